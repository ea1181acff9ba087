"""Three devices: a good release is not blamed for what chance does to one of them, a bad one is still taken back."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from edgewright_hub.rollouts.background import by_themselves
from edgewright_hub.rollouts.gates import Evidence, GatePolicy, Ledger, SequentialGate
from edgewright_hub.rollouts.hearing import News
from edgewright_hub.rollouts.interval import taken
from edgewright_hub.rollouts.members import CODE, Members
from edgewright_hub.rollouts.past import pre_rates, unsure
from edgewright_hub.rollouts.processes import Counts, Process
from edgewright_hub.rollouts.progress import packed, unpacked
from edgewright_hub.rollouts.specification import RolloutSpec
from edgewright_hub.rollouts.state import RolloutState
from sim.rollouts import NEW, Script, everyone, mask_of, names, obedient, started, step

MINUTE_MS = 60_000


def _labels(devices: int, treated: int, factor: float, days: int) -> str:
    """Verdict on a release with so many times the wrong labels of the day before, 26 of 328 of each device."""
    policy = GatePolicy(slow=None)
    gate, ledger = SequentialGate(policy), Ledger((Process(),) * 3)
    given = np.arange(devices) < treated
    before = np.array([0.0, 0.0, 1.0])[:, None]
    pre = Counts(before * np.full(devices, 328.0), before * np.full(devices, 26.0))
    for _ in range(8 * days):
        n, k = np.full(devices, 41.0), 41 * 26 / 328 * np.where(given, factor, 1.0)
        control = Counts(before * n * ~given, before * k * ~given)
        judgement = gate.judge(Evidence(
            treated=Counts(before * n * given, before * k * given), control=control, since=control, pre=pre,
            ledger=ledger, exposed=treated, failed=0, expected=treated, committed=treated, reported=treated,
            last=False, soaking=0, labels_block=True,
        ))  # fmt: skip
        ledger = judgement.ledger
        if judgement.verdict != "hold":
            break
    return judgement.verdict


def test_what_one_day_leaves_unsure_of_a_device_is_not_found_as_harm_however_long_it_is_held() -> None:
    assert _labels(3, 1, 1.45, days=30) == "hold"
    assert _labels(3, 1, 3.0, days=10) == "rollback"


def test_many_devices_know_their_past_and_find_a_quarter_more() -> None:
    assert _labels(1000, 250, 1.25, days=2) == "rollback"


@pytest.mark.parametrize("devices", [3, 40])
def test_how_unsure_a_rate_is_said_to_be_is_how_far_it_lies_from_the_truth(devices: int) -> None:
    rng = np.random.default_rng(5)
    off = []
    for _ in range(1000):
        truth = 0.08 * rng.gamma(4, 1 / 4, devices)
        n = np.full(devices, 328.0)
        k = rng.poisson(n * truth).astype(float)
        off.append((np.log(pre_rates(k, n) / truth) / np.sqrt(unsure(k, n)))[0])
    assert 0.7 < np.std(off) < 1.2


# Nobody to compare with


def _counted(state: RolloutState, who: list[str], n: float, errors: float) -> Counts:
    rows = np.zeros((2, 5, len(state.members)))
    rows[:, 0, mask_of(state, who)] = np.array([n, errors])[:, None]
    rows[0, 3:, mask_of(state, who)] = 1 / 60  # hours
    return Counts(rows[0], rows[1])


def _idle(share: float, minutes: int, *, wakes: int = 10**6, stop: bool = False) -> tuple[RolloutState, int]:
    """One device runs the release, and `share` of its 60 runs a minute fail; the two others report, and ran nothing
    until minute `wakes`. With the minutes that it took."""
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, "100%"))
    state, gate = started(spec, 3), SequentialGate(spec.gate)
    for minute in range(minutes):
        if stop:
            state = unpacked(msgspec.json.decode(msgspec.json.encode(packed(state))))
        mine = names(state, "asked", "committed")
        others = [d for d in state.members.devices if d not in mine]
        ran = 60.0 * (minute >= wakes)
        seen = everyone(
            state,
            *(News(d, "commit") for d in mine),
            windows=dict.fromkeys(mine, 1),
            treated=_counted(state, mine, 60.0, 60 * share),
            control=_counted(state, others, ran, 0.01 * ran),
        )
        state, _ = step(state, spec, seen, gate, MINUTE_MS * (minute + 1))
        if state.state != "running":
            break
    return state, minute


@pytest.mark.parametrize("stop", [False, True])
def test_harm_is_judged_by_the_day_before_when_all_others_stand_still(stop: bool) -> None:
    state, minutes = _idle(0.6, 60, stop=stop)
    assert (state.outcome, state.exposed) == ("rolled back", 1)
    assert 15 <= minutes <= 17
    assert state.reason.startswith("errors 60.00% (n = ")


def test_while_others_stand_still_a_good_release_is_neither_taken_back_nor_given_to_them() -> None:
    state, _ = _idle(0.0, 120)
    assert (state.state, state.stage) == ("running", 0)
    assert state.figures[0].log_ok == 0
    state, minutes = _idle(0.0, 200, wakes=60)
    assert state.stage == 1, "what they count from then on is compared"
    assert minutes > 60


def test_one_who_counts_seldom_is_waited_for_by_its_own_pace_but_no_longer_than_a_day() -> None:
    """The control ran 36 times on the day before: three runs are expected of it in two hours."""
    for runs, hours in ((36.0, 2), (1.0, 24)):
        members = Members.new(["a", "b"], (NEW,), status=np.array([CODE["committed"], CODE["waiting"]], np.int8),
                              pre=np.full((2, 3, 2), runs))  # fmt: skip
        one = Counts(np.array([[5.0, 0.0]] * 3), np.zeros((3, 2)))
        here, alone, waited = np.ones(2, np.bool_), (), []
        for hour in range(30):
            found = taken(members, one, None, here, due=True, alone_ms=alone, now_ms=3_600_000 * (hour + 1))
            members, alone = found.members, found.alone_ms
            waited.append(found.treated.trials.any())
            assert found.missed == (bool(waited[-1]),) * 3
        assert waited == [hour >= hours for hour in range(30)]
        one = Counts(np.array([[0.0, 5.0]] * 3), np.zeros((3, 2)))
        assert taken(members, None, one, here, due=True, alone_ms=alone, now_ms=2**40).alone_ms == ()


# Devices that fail


def _failed(ran: list[int], failed: list[bool]) -> Members:
    status = np.array([CODE["failed" if f else "committed"] for f in failed], np.int8)
    return Members.new(
        [f"d{i}" for i in range(len(ran))], (NEW,), status=status, windows=np.array(ran, np.int32)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ran", "failed", "usual"),
    [
        ([0], [True], False),  # at once
        ([60], [True], False),  # within the hour
        ([600], [True], True),  # after ten hours
        ([600, 600], [True, True], False),  # two of two
        ([6000, 6000], [True, True], True),  # after four days
        ([6000, 5], [True, True], False),  # the second at once
        ([6000, 5], [False, True], False),
        ([600] * 10, [True] * 2 + [False] * 8, True),
        ([60] * 10, [True] * 2 + [False] * 8, False),
        ([60], [False], False),
    ],
)
def test_a_device_may_fail_by_itself_after_hours_and_not_at_once(
    ran: list[int], failed: list[bool], usual: bool
) -> None:
    assert by_themselves(_failed(ran, failed), 60.0) is usual


def _held(hours: int, stages: tuple[Any, ...] = (1, "100%")) -> tuple[RolloutSpec, RolloutState, int]:
    """After so many hours with the release on the first device, which fails then."""
    spec = RolloutSpec(model="digits", digest=NEW, stages=stages, window_s=3600.0)
    state, gate = started(spec, 3), Script([])
    for hour in range(hours + 1):
        ran = dict.fromkeys(names(state, "committed"), 1)
        seen = everyone(state, *(News(d, "commit") for d in names(state, "asked")), windows=ran)
        state, _ = step(state, spec, seen, gate, 60 * MINUTE_MS * (hour + 1))
    return spec, state, 60 * MINUTE_MS * (hours + 2)


def test_after_a_first_device_that_may_have_failed_by_itself_another_is_asked() -> None:
    spec, state, now = _held(20)
    gate = SequentialGate(spec.gate)
    state, wishes = step(state, spec, everyone(state, News(names(state, "committed")[0], "fail")), gate, now)
    assert (state.state, state.stage, len(wishes)) == ("running", 0, 1)
    assert state.reason == (
        "1 of 1 devices failed, as some do by themselves; no device of this stage can be judged yet"
    )
    state, _ = step(state, spec, obedient(state), gate, now + MINUTE_MS)
    state, _ = step(state, spec, everyone(state, News(names(state, "committed")[0], "fail")), gate, now + 2 * MINUTE_MS)
    assert (state.outcome, state.exposed) == ("rolled back", 2)
    assert "2 of 2 devices failed" in state.reason


def test_a_first_device_that_fails_soon_takes_the_release_back() -> None:
    spec, state, now = _held(1)
    fails = everyone(state, News(names(state, "committed")[0], "fail"))
    state, _ = step(state, spec, fails, SequentialGate(spec.gate), now)
    assert (state.outcome, state.exposed) == ("rolled back", 1)


def test_the_only_device_that_a_later_stage_brought_is_replaced_too() -> None:
    """Else nobody of the stage could be judged, though a device of the stage before still runs the release."""
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, 2, "100%"), window_s=3600.0)
    state, gate = started(spec, 4), Script(["hold", "promote"])
    for hour in range(30):
        state, _ = step(state, spec, obedient(state), gate, 60 * MINUTE_MS * hour)
        ran = dict.fromkeys(names(state, "committed"), 1)
        state, _ = step(state, spec, everyone(state, windows=ran), gate, 60 * MINUTE_MS * hour + 1)
    assert (state.stage, state.exposed) == (1, 2)
    newest = next(d for d in names(state, "committed") if state.members.row(state.members.columns()[d]).stage == 1)
    state, _ = step(state, spec, everyone(state, News(newest, "fail")), SequentialGate(spec.gate), 30 * 60 * MINUTE_MS)
    assert (state.state, state.exposed, len(names(state, "asked"))) == ("running", 3, 1)


def test_of_devices_that_failed_one_after_the_other_each_is_replaced() -> None:
    """The first one in its stage, the second in the next, which brought nobody new before."""
    spec = RolloutSpec(model="digits", digest=NEW, stages=(1, "20%", "100%"), window_s=3600.0)
    state, gate, now = started(spec, 5), Script(["hold", "promote"]), 0
    for turn in range(3):
        for _ in range(300):
            now += 60 * MINUTE_MS
            ran = dict.fromkeys(names(state, "committed"), 1)
            said = [News(d, "commit") for d in names(state, "asked")]
            state, _ = step(state, spec, everyone(state, *said, windows=ran), gate, now)
        assert (state.stage, state.exposed, len(names(state, "committed"))) == (1, turn + 1, 1)
        state, _ = step(state, spec, everyone(state, News(names(state, "committed")[0], "fail")), gate, now + 1)
    assert len(names(state, "asked")) == 1
