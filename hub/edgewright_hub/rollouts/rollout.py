"""A staged rollout, as data: (state, spec, what was observed, now) → (state', which device shall run what). Pure.

Guarantee: no device is given the release unless every stage before was promoted by the gate, or nobody was left for it;
after harm every device that was given it is sent back. `step` is a function of its arguments alone, so a hub that stops
at any point and runs it again on the same observations decides the same.

Order within a step: what ends the rollout at once; what devices said; devices that took too long or are put off;
counts; judgement; transition; wishes.

Who counts. A device is *silent* when it is offline or its next report is overdue. Silent devices that were not given
the release are passed over and come in when they speak again, under the same gates; so do those that an operator holds
and those outside their maintenance windows, even if they were asked already and do not run the release yet (they are
*put off*, and are not late). Devices that say they cannot run the release are passed over like these, and do not get it
in the end. Those that are retired, or that the rollout is not for any more, leave it (`departures`). A device that
falls silent after it was asked and before it runs the release leaves the denominator; if it has not answered within
`device_timeout_s`, its wish is withdrawn and it is *late*: it gets the release after the end of the rollout. A device
that falls silent *while running the release* stays in the denominator, so silence can never promote.

A stage that gives the release to nobody new, as happens in small fleets, is judged on the devices of those before it.

When it goes back: `retreat`.

When it is done. Behind the last stage there is nobody whom more evidence could spare, so its end takes no proof that
the release is no worse, but time: it waits until *every* device of the last stage that is present has reported its
soak windows with the release, and until then watches for harm as before; and until no device that is present waits for
its maintenance window. Devices that try again, because their link, power or disk failed, are waited for only as far as
the share that any stage needs. This is so for a rollout of one stage too, and for the first version of a model.
Devices that the end passes over get the release at once, or, where the specification asks for hours or caps, each in
its turn (`latecomers`).

An experiment stays at its share whatever the gate says of promotion: only its conclusion leads on, or back.

Cost for 10,000 devices and six metrics, all of which report: 0.7 ms a step, without the gate's time
(benchmarks/rollout_policies.py prints what whole rollouts take).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np

from edgewright_contracts.errors import Refused

from . import experiment, exposure, headway, interval, order, retreat
from .departures import departed
from .experiment import Answer, Conclusion
from .gates import Evidence, Gate, Judgement
from .headway import Headway
from .hearing import Said, hear
from .members import CODE, Bools, Member, Members, Numbers, happened
from .processes import Counts, Floats
from .specification import LONGEST_S, RolloutSpec
from .state import ACTIVE, GOING_BACK, Command, RolloutState, move
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


def approve(state: RolloutState, spec: RolloutSpec, who: str, digest: str, now_ms: int) -> RolloutState:
    """One person more consents to this digest; it starts when enough did, besides the one who created it.

    Raises RequestError where no consent is asked for, Refused for another digest, its author, and a second time.
    """
    if state.state != "unapproved":
        move(state, "approve", "", now_ms)
    if digest != spec.digest:
        raise Refused(f"rollout {state.id} is of {spec.digest[:16]}, and {who} looked at {digest[:16] or 'none'}")
    if who == state.author:
        raise Refused(f"{who} created rollout {state.id}: somebody else must approve it")
    if who in state.approved:
        raise Refused(f"{who} has approved rollout {state.id} already: {spec.approvals} different persons must")
    state = msgspec.structs.replace(state, approved=(*state.approved, who))
    if len(state.approved) < spec.approvals:
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
    if state.state in ("draft", "unapproved"):
        return state, NOTHING
    state = _not_ahead(state, spec, now_ms)
    was, given = state.members, state.members.given
    members = departed(_heard(state.members, spec, seen, now_ms), seen.retired, seen.left)
    state = msgspec.structs.replace(state, members=members)
    if state.state in GOING_BACK:
        return retreat.undone(state, spec, now_ms), NOTHING
    here = seen.present if seen.held is None else seen.present & ~seen.held
    here = here if seen.unable is None else here & ~seen.unable
    able = here if seen.open is None else here & seen.open
    state = msgspec.structs.replace(state, members=_put_off(state.members, spec, seen, now_ms))
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


def _not_ahead(state: RolloutState, spec: RolloutSpec, now_ms: int) -> RolloutState:
    """Without times that lie ahead. After the hub's clock was put back, what was written before counts as of now: else
    nothing would be judged, asked or given up until the clock has caught up."""
    members = state.members
    longest_ms = now_ms + int(1000 * max(LONGEST_S, spec.device_timeout_s))
    if (members.asked_ms > now_ms).any() or (members.due_ms > longest_ms).any():
        asked_ms, due_ms = np.minimum(members.asked_ms, now_ms), np.minimum(members.due_ms, longest_ms)
        state = msgspec.structs.replace(state, members=replace(members, asked_ms=asked_ms, due_ms=due_ms))
    if max(state.since_ms, state.judged_ms, state.asked_ms, state.headway.at_ms) <= now_ms:
        return state
    return msgspec.structs.replace(
        state,
        since_ms=min(state.since_ms, now_ms),
        judged_ms=min(state.judged_ms, now_ms),
        asked_ms=min(state.asked_ms, now_ms),
        headway=msgspec.structs.replace(state.headway, at_ms=min(state.headway.at_ms, now_ms)),
    )


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


def _put_off(members: Members, spec: RolloutSpec, seen: Observation, now_ms: int) -> Members:
    """Devices that do not run the release yet, and shall not for now or not at all."""
    closed = None if seen.open is None else ~seen.open
    for off, reason in ((seen.unable, "cannot run it"), (seen.held, "held by an operator"), (closed, "closed")):
        if off is not None and (off := off & members.has("asked", "resting")).any():
            places = np.flatnonzero(off)
            members = happened(members, places, "put off", [reason] * places.size)
    limit = 1000 * spec.device_timeout_s
    silent = members.has("asked") & (now_ms - members.asked_ms > limit)
    silent |= members.has("resting") & (now_ms - members.due_ms > limit) & ~seen.present
    if silent.any():
        places = np.flatnonzero(silent)
        members = happened(members, places, "timeout", [f"no answer within {spec.device_timeout_s:g} s"] * places.size)
    places = np.flatnonzero(exposure.given_up(members, spec, now_ms))
    if not places.size:
        return members
    last = [members.reasons.get(members.devices[i], "") or "no reason told" for i in places.tolist()]
    tries = members.attempts[places].tolist()
    why = [f"given up after {n} attempts: {reason}" for n, reason in zip(tries, last, strict=True)]
    return happened(members, places, "timeout", why)


def _judge(
    state: RolloutState, spec: RolloutSpec, seen: Observation, here: Bools, able: Bools, gate: Gate, now_ms: int
) -> tuple[RolloutState, Wishes]:
    due = now_ms - state.judged_ms >= 1000 * spec.window_s
    treated, control, members = interval.taken(state.members, seen.treated, seen.control, seen.present, due=due)
    mine = exposure.of_stage(members, state.stage)
    running, coming = members.has("active", "committed"), members.has("asked", "resting")
    counted = mine & (running | (coming & able))
    soaked = counted & running & seen.present & (members.windows >= spec.gate.soak_windows)
    trying = members.has("resting") | (members.has("asked") & (members.attempts > 0))
    soaking = np.count_nonzero(counted & seen.present & ~soaked & ~(trying & coming))
    waiting = members.has("waiting")
    last = state.stage == len(spec.ladder) - 1
    judgement = gate.judge(
        Evidence(
            treated=treated,
            control=control,
            since=Counts(members.since[0], members.since[1]),
            pre=Counts(members.pre[0], members.pre[1]),
            ledger=state.ledger,
            exposed=int(np.count_nonzero(members.given)),
            failed=int(np.count_nonzero(members.has("failed"))),
            expected=int(np.count_nonzero(counted)),
            committed=int(np.count_nonzero(counted & members.has("committed"))),
            reported=int(np.count_nonzero(soaked)),
            last=last,
            soaking=int(soaking) if last else 0,
            labels_block=exposure.asks_for_labels(spec, state.stage)
            and bool((members.labelled & members.given).any())
            and bool(waiting.any()),  # else everyone has it, and nobody would be spared
            compares=spec.experiment is not None,
        )
    )
    troubles = _troubles(members, mine & trying) if judgement.verdict == "hold" else ""
    state = msgspec.structs.replace(
        state,
        members=members,
        ledger=judgement.ledger,
        figures=judgement.figures,
        judged_ms=now_ms if treated.trials.any() else state.judged_ms,
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
    closed = int(np.count_nonzero(waiting & here & ~able))
    if closed:
        return msgspec.structs.replace(state, reason=f"{closed} devices wait for their maintenance windows"), NOTHING
    # Those that failed stay with what they had; told so, that the rollout's short windows end for them too.
    state = msgspec.structs.replace(move(state, "finish", judgement.reason, now_ms), outcome="promoted")
    failed, never = members.has("failed"), members.has("failed", "gone")
    if spec.paced:  # those that do not run it come later, each in its turn (`latecomers`)
        later = int(np.count_nonzero(waiting | coming | members.has("late")))
        if later:
            said = f"{state.reason}; {later} devices were passed over, and come in their turn"
            state = msgspec.structs.replace(state, reason=said)
        return state, together(all_of("keep", running), all_of("back", failed | coming))
    keep = ~never if seen.unable is None else ~never & ~(seen.unable & members.has("waiting"))
    return state, together(all_of("keep", keep), all_of("back", failed))


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


def _troubles(members: Members, trying: Bools) -> str:
    """What keeps devices of a stage that were asked and try again."""
    names = [members.devices[i] for i in np.flatnonzero(trying)[:3].tolist()]
    return "".join(f"; {name} tries again ({members.reasons.get(name, '')})" for name in names)
