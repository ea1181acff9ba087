"""A staged rollout, as data: (state, spec, what was observed, now) → (state', which device shall run what). Pure.

Guarantee: no device is given the release unless every stage before was promoted by the gate, or nobody was left for it;
after harm every device that was given it is sent back. `step` is a function of its arguments alone, so a hub that stops
at any point and runs it again on the same observations decides the same.

Order within a step: what ends the rollout at once; what devices said; devices that took too long or are put off;
counts; judgement; transition; wishes.

A device is *silent* when it is offline or its next report is overdue. Silent devices that were not given the release
are passed over and come in when they speak again, under the same gates; so do those that an operator holds and those
outside their maintenance windows, even if they were asked already (`deferral`). Devices that say they cannot run the
release are passed over like these, and do not get it in the end. Those that are retired, or that the rollout is not for
any more, leave it (`departures`). Who of a stage counts: `census`. Whom it is given to: `exposure`. When it is done:
`completion`; when it goes back: `retreat`; when it stands still and needs a person: `headway`.

An experiment stays at its share whatever the gate says of promotion: only its conclusion leads on, or back.

Cost for 10,000 devices and six metrics, all of which report: 0.7 ms a step, without the gate's time
(benchmarks/rollout_policies.py prints what whole rollouts take).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np

from edgewright_contracts.errors import Refused

from . import background, census, completion, deferral, experiment, exposure, headway, interval, order, retreat
from .departures import departed
from .experiment import Answer, Conclusion
from .gates import Evidence, Gate, Judgement
from .headway import Headway
from .hearing import Said, hear
from .members import CODE, Bools, Member, Members, Numbers, happened
from .processes import Counts, Floats
from .specification import RolloutSpec
from .state import ACTIVE, GOING_BACK, Command, RolloutState, move, not_ahead
from .wishes import KINDS, NOTHING, Wishes, all_of, together


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What came since the last step, in columns: one place for each member. None: none."""

    present: Bools
    said: Said | None = None
    windows: Numbers | None = None  # reports with the release
    treated: Counts | None = None
    control: Counts | None = None
    back: Bools | None = None  # seen running their previous digest
    lost: Bools | None = None  # fell silent for the first time
    open: Bools | None = None  # within their maintenance windows; None: all are
    held: Bools | None = None  # by the operator: nothing is to change there
    unable: Bools | None = None  # to run the release, by what they said of themselves
    retired: Bools | None = None  # not enrolled any more
    left: Bools | None = None  # not meant by the specification any more
    bytes: Floats | None = None  # that each downloads of the release; None: `release_bytes`
    withdrawn: str = ""  # why nobody may run the release any more


def enrol(state: RolloutState, joined: tuple[Member, ...]) -> RolloutState:
    """Take devices in, each at its place (`order`)."""
    if not joined:
        return state
    return msgspec.structs.replace(state, members=order.joined(state.members, Members.of(joined), state.id))


def command(
    state: RolloutState, spec: RolloutSpec, event: Command, reason: str, now_ms: int
) -> tuple[RolloutState, Wishes]:
    """Start, pause, resume or abort. Raises RequestError where the table has no such transition."""
    after = move(state, "submit" if event == "start" and spec.approvals else event, reason, now_ms)
    if event == "abort":
        return msgspec.structs.replace(after, outcome="aborted"), all_of("back", state.members.given)
    return after, NOTHING


def revert(state: RolloutState, still: Bools, reason: str, now_ms: int) -> tuple[RolloutState, Wishes]:
    """Send the devices back that are `still` told to run the release; others have gone on since. Raises RequestError,
    and Refused where there is no such device."""
    after = move(state, "revert", reason, now_ms)
    if not still.any():
        raise Refused(f"no device is told to run the release of rollout {state.id} any more: all have gone on since")
    # Those that were waited for no longer when it was done may run it too by now.
    status = np.where(still, np.int8(CODE["committed"]), state.members.status)
    members = replace(state.members, status=status, back=~still)
    return msgspec.structs.replace(after, members=members, outcome="reverted"), all_of("back", still)


def is_last(state: RolloutState, spec: RolloutSpec, who: str, digest: str) -> bool:
    """Whether enough persons, besides the one who created it, consent to this digest together with `who`.

    Raises RequestError where no consent is asked for, Refused for another digest, its author, and a second time.
    """
    if state.state != "unapproved":
        move(state, "approve", "", 0)
    if digest != spec.digest:
        raise Refused(f"rollout {state.id} is of {spec.digest[:16]}, and {who} looked at {digest[:16] or 'none'}")
    if who == state.author:
        raise Refused(f"{who} created rollout {state.id}: somebody else must approve it")
    if who in state.approved:
        raise Refused(f"{who} has approved rollout {state.id} already: {spec.approvals} different persons must")
    return len(state.approved) + 1 >= spec.approvals


def approve(state: RolloutState, spec: RolloutSpec, who: str, digest: str, now_ms: int) -> RolloutState:
    """One person more consents; it begins with the last consent. Raises as `is_last`."""
    last = is_last(state, spec, who, digest)
    state = msgspec.structs.replace(state, approved=(*state.approved, who))
    if not last:
        said = f"approved by {', '.join(state.approved)}; {spec.approvals - len(state.approved)} more must"
        return msgspec.structs.replace(state, reason=said)
    return move(state, "approve", f"approved by {' and '.join(state.approved)}", now_ms)


def conclude(
    state: RolloutState, spec: RolloutSpec, answer: Answer, reason: str, now_ms: int
) -> tuple[RolloutState, Wishes]:
    """End the experiment: go on to the stages behind it, or take the release back. Raises RequestError, Refused."""
    after = move(state, "conclude" if answer == "promote" else "take back", reason, now_ms)
    if state.stage != spec.experiment_stage or state.conclusion is not None:
        raise Refused(f"rollout {state.id} is not at the share of an experiment; pause or abort it instead")
    found = Conclusion(answer=answer, reason=reason, effects=state.effects, at_ms=now_ms)
    after = msgspec.structs.replace(after, conclusion=found)
    if answer == "promote":
        return after, NOTHING
    return msgspec.structs.replace(after, outcome="taken back"), all_of("back", state.members.given)


def cooling(state: RolloutState, spec: RolloutSpec, now_ms: int) -> tuple[str, ...]:
    """Devices that shall rest from rollouts of this model: it was taken back from them less than `cooldown_s` ago."""
    if state.outcome in ("", "promoted") or now_ms - state.since_ms >= 1000 * spec.cooldown_s:
        return ()
    return tuple(state.members.devices[i] for i in np.flatnonzero(state.members.given).tolist())


def step(
    state: RolloutState, spec: RolloutSpec, seen: Observation, gate: Gate, now_ms: int
) -> tuple[RolloutState, Wishes]:
    """One step. In a final state nothing changes and nothing is wished."""
    if state.state not in ACTIVE:
        return state, NOTHING
    if seen.withdrawn and state.state not in GOING_BACK:
        return retreat.withdrawn(state, seen.withdrawn, now_ms)
    state = not_ahead(state, spec, now_ms)
    if state.state in ("draft", "unapproved"):
        return _waits(state, spec, now_ms), NOTHING
    was, given = state.members, state.members.given
    members = departed(_heard(state.members, spec, seen, now_ms), seen.retired, seen.left)
    state = msgspec.structs.replace(state, members=members)
    if state.state in GOING_BACK:
        return retreat.undone(state, spec, now_ms), NOTHING
    here = seen.present if seen.held is None else seen.present & ~seen.held
    here = here if seen.unable is None else here & ~seen.unable
    able = here if seen.open is None else here & seen.open
    state = msgspec.structs.replace(state, members=_deferred(state.members, spec, seen, now_ms))
    off = all_of("back", given & ~state.members.given)
    state, judged = _judge(state, spec, seen, here, able, gate, now_ms)
    if state.state == "done":
        other = np.ones(len(state.members), np.bool_)
        other[judged.device] = False
        return state, together(all_of("back", given & ~state.members.given & other), judged)
    if state.state == "running":
        state, asked = _ask(state, spec, here, able, seen.bytes, now_ms)
        return _gets_on(state, was, spec, here, seen.unable, now_ms), together(off, judged, asked)
    return retreat.undone(state, spec, now_ms), together(off, judged)


def _waits(state: RolloutState, spec: RolloutSpec, now_ms: int) -> RolloutState:
    """Before it begins nothing moves, and nobody looks after it by themselves."""
    why = headway.unapproved(spec.approvals - len(state.approved), (now_ms - state.since_ms) / 1000)
    return msgspec.structs.replace(state, headway=msgspec.structs.replace(state.headway, stalled=why))


def _heard(members: Members, spec: RolloutSpec, seen: Observation, now_ms: int) -> Members:
    if seen.said is not None:
        members = hear(members, seen.said, spec.retry, spec.device_timeout_s, now_ms)
    if seen.windows is not None and seen.windows.any():
        members = replace(members, windows=members.windows + seen.windows)
    if seen.back is not None and seen.back.any():
        members = replace(members, back=members.back | seen.back)
    if seen.lost is not None and seen.lost.any():
        members = replace(members, lost=members.lost | seen.lost)
    return members


def _deferred(members: Members, spec: RolloutSpec, seen: Observation, now_ms: int) -> Members:
    return deferral.late(deferral.put_off(members, seen.unable, seen.held, seen.open), spec, seen.present, now_ms)


def _judge(
    state: RolloutState, spec: RolloutSpec, seen: Observation, here: Bools, able: Bools, gate: Gate, now_ms: int
) -> tuple[RolloutState, Wishes]:
    due = now_ms - state.judged_ms >= 1000 * spec.window_s
    taken = interval.taken(
        state.members, seen.treated, seen.control, seen.present, due=due, alone_ms=state.alone_ms, now_ms=now_ms,
        seldom=[row for row, metric in enumerate(spec.gate.metrics) if metric in state.seldom],
    )  # fmt: skip
    members = taken.members
    count = census.of(members, state.stage, seen.present, able, spec.gate.soak_windows)
    last = state.stage == len(spec.ladder) - 1
    judgement = gate.judge(
        Evidence(
            treated=taken.treated,
            control=taken.control,
            since=Counts(members.since[0], members.since[1]),
            pre=Counts(members.pre[0], members.pre[1]),
            ledger=state.ledger,
            exposed=int(np.count_nonzero(members.given)),
            failed=int(np.count_nonzero(members.has("failed"))),
            expected=count.expected,
            committed=count.committed,
            reported=count.reported,
            last=last,
            soaking=count.soaking if last else 0,
            labels_block=exposure.asks_for_labels(spec, state.stage)
            and bool((members.labelled & members.given).any())
            and bool(members.has("waiting").any()),  # else everyone has it, and nobody would be spared
            compares=spec.experiment is not None,
            missed=taken.missed,
            by_themselves=background.by_themselves(members, spec.window_s),
        )
    )
    troubles = census.troubles(members, state.stage) if judgement.verdict == "hold" else ""
    state = msgspec.structs.replace(
        state,
        members=members,
        ledger=judgement.ledger,
        figures=judgement.figures,
        judged_ms=now_ms if taken.treated.trials.any() else state.judged_ms,
        alone_ms=taken.alone_ms,
        reason=judgement.reason + troubles,
    )
    if judgement.verdict == "rollback":
        return retreat.harmed(state, judgement, now_ms)
    if state.stage == spec.experiment_stage and state.conclusion is None:
        return _compared(state, spec, judgement, now_ms)
    if state.state == "running" and exposure.nobody_left(members, spec, state.stage, seen.unable):
        return _passed_by(state, spec, now_ms), NOTHING
    if judgement.verdict != "promote" or state.state != "running":
        return state, NOTHING
    if exposure.first_time(members, spec, state.stage, here, able).size:
        return state, NOTHING
    if not last:
        return _next_stage(state, state.reason, now_ms), NOTHING
    return completion.done(state, spec, here, able, seen.unable, judgement.reason, now_ms)


def _passed_by(state: RolloutState, spec: RolloutSpec, now_ms: int) -> RolloutState:
    """At a stage that can give the release to nobody: the next one begins, unless that is the last."""
    reason = f"nobody is left for stage {state.stage + 1} ({spec.ladder[state.stage]})"
    if state.stage + 2 >= len(spec.ladder):
        return msgspec.structs.replace(state, reason=f"{reason}, and nobody has the release: abort it, and begin anew")
    return _next_stage(state, f"{reason}: it is passed by", now_ms)


def _next_stage(state: RolloutState, reason: str, now_ms: int) -> RolloutState:
    return msgspec.structs.replace(
        state, stage=state.stage + 1, since_ms=now_ms, reason=reason, headway=Headway(at_ms=now_ms)
    )


def _compared(state: RolloutState, spec: RolloutSpec, judgement: Judgement, now_ms: int) -> tuple[RolloutState, Wishes]:
    """At the share of an experiment, which nothing but its conclusion leads beyond."""
    state = msgspec.structs.replace(state, effects=judgement.effects)
    if spec.experiment is None or state.state != "running":
        return state, NOTHING
    found = experiment.answer(spec.experiment, state.effects, (now_ms - state.since_ms) / 1000)
    return (state, NOTHING) if found is None else conclude(state, spec, *found, now_ms)


def _ask(
    state: RolloutState, spec: RolloutSpec, here: Bools, able: Bools, costs: Floats | None, now_ms: int
) -> tuple[RolloutState, Wishes]:
    members = state.members
    again = exposure.again(members, able, now_ms)
    first = exposure.first_time(members, spec, state.stage, here, able)
    if not first.size and not again.size:
        return state, NOTHING
    bucket = exposure.filled(spec, state.bucket, now_ms - state.asked_ms)
    asked = np.concatenate((again, first))[: exposure.room(members, spec)]
    if bucket is not None:
        taken = np.cumsum(np.full(asked.size, float(spec.release_bytes)) if costs is None else costs[asked])
        asked = asked[: int(np.searchsorted(taken, bucket, side="right"))]
        bucket -= float(taken[asked.size - 1]) if asked.size else 0.0
    if not asked.size:
        return state, NOTHING
    again, first = asked[: again.size], asked[again.size :]
    members = happened(members, asked, "ask")
    stage, asked_ms = members.stage.copy(), members.asked_ms.copy()
    stage[first], asked_ms[asked] = state.stage, now_ms
    state = msgspec.structs.replace(
        state,
        members=replace(members, stage=stage, asked_ms=asked_ms),
        bucket=bucket,
        asked_ms=now_ms,
    )
    codes = np.where(np.arange(asked.size) < again.size, KINDS.index("again"), KINDS.index("give"))
    return state, Wishes(asked, codes.astype(np.int8))


def _gets_on(
    state: RolloutState, was: Members, spec: RolloutSpec, here: Bools, unable: Bools | None, now_ms: int
) -> RolloutState:
    """The state with its headway; `was`: its members before the step."""
    now = headway.got_on(state.headway, state.members, was, state.figures, spec, now_ms)
    compares = state.stage == spec.experiment_stage and state.conclusion is None
    last_ms = max(now.at_ms, state.judged_ms) if compares else now.at_ms
    got_on_s, still_s = (last_ms - state.since_ms) / 1000, (now_ms - last_ms) / 1000
    why = headway.stalled(now, state.members, spec, state.stage, here, unable, got_on_s, still_s)
    return msgspec.structs.replace(state, headway=msgspec.structs.replace(now, stalled=why))
