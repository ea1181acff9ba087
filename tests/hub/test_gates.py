"""The gate never lets harm through in these simulations, rarely blames a good release, and ends without any event."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewright_contracts.errors import RequestError
from edgewright_hub.rollouts.gates import Evidence, GatePolicy, Judgement, Ledger, SequentialGate
from edgewright_hub.rollouts.processes import Counts, Interval, Margin, Process, advance

VECTORS = json.loads((Path(__file__).parent / "data" / "stats_vectors.json").read_text())


@pytest.mark.parametrize("case", VECTORS["ratio"])
def test_the_ratio_process_reproduces_the_reference_trace(case: dict) -> None:
    """In the vectors c is the canary and t are all others."""
    process, margin = Process(phi=case["phi"]), Margin(r0=case["r0"], r1=case["r1"])
    for k_t, k_c, e_t, e_c, log_bad, log_ok in case["trace_kc_kt_ec_et_logbad_logok"]:
        process = advance(process, margin, None, Interval(k_t=k_t, n_t=100 * e_t, k_c=k_c, e_t=e_t, e_c=e_c))
        assert process.log_bad == pytest.approx(log_bad, rel=1e-9, abs=1e-12)
        assert process.ok / process.phi == pytest.approx(log_ok, rel=1e-9, abs=1e-12)


ERRORS_ONLY = GatePolicy(slow=None, label=None)


def _counts(trials: list[float], events: list[float], index: int = 0) -> Counts:
    """Counts of one metric; the other two stay empty."""
    t, e = np.zeros((3, len(trials))), np.zeros((3, len(trials)))
    t[index], e[index] = trials, events
    return Counts(t, e)


def _evidence(ledger: Ledger, treated: Counts, control: Counts, pre: Counts, *, exposed: int = 10) -> Evidence:
    return Evidence(
        treated=treated, control=control, since=control, pre=pre, ledger=ledger, exposed=exposed, failed=0,
        expected=exposed, committed=exposed, reported=exposed, last=False, soaking=0, labels_block=True,
    )  # fmt: skip


def _run(
    policy: GatePolicy,
    *,
    base: float,
    factor: float,
    seed: int,
    metric: int = 0,
    treated: int = 10,
    devices: int = 200,
    n: float = 60,
    windows: int = 300,
    pre_windows: int = 288,
    spread: float = 0.5,
) -> tuple[Judgement, int]:
    """A fleet of unequal devices; judged after every window until the gate decides."""
    rng = np.random.default_rng(seed)
    rate = np.minimum(base * rng.gamma(1 / spread**2, spread**2, devices), 1)
    exposed = np.arange(devices) < treated
    pre = _counts([n * pre_windows] * devices, list(rng.poisson(n * pre_windows * rate)), metric)
    gate, ledger = SequentialGate(policy), Ledger((Process(phi=1.3),) * 3)
    for window in range(1, windows + 1):
        k = rng.poisson(n * rate * np.where(exposed, factor, 1.0))
        judgement = gate.judge(
            _evidence(
                ledger,
                _counts(list(n * exposed), list(k * exposed), metric),
                _counts(list(n * ~exposed), list(k * ~exposed), metric),
                pre,
                exposed=treated,
            )
        )
        ledger = judgement.ledger
        if judgement.verdict != "hold":
            return judgement, window
    return judgement, windows


def test_a_good_release_is_promoted_and_almost_never_rolled_back() -> None:
    verdicts = [_run(ERRORS_ONLY, base=0.01, factor=1.0, seed=s)[0].verdict for s in range(40)]
    assert verdicts.count("rollback") == 0
    assert verdicts.count("promote") >= 38


@pytest.mark.parametrize(("factor", "within"), [(1.5, 150), (2.0, 40), (5.0, 6)])
def test_a_release_with_more_errors_is_rolled_back(factor: float, within: int) -> None:
    outcomes = [_run(ERRORS_ONLY, base=0.01, factor=factor, seed=s) for s in range(30)]
    verdicts = [judgement.verdict for judgement, _ in outcomes]
    assert verdicts.count("promote") <= (2 if factor == 1.5 else 0), "at most beta"
    assert np.median([w for j, w in outcomes if j.verdict == "rollback"]) <= within


def test_a_fleet_without_a_single_error_promotes_after_about_three_thousand_inferences() -> None:
    judgement, window = _run(ERRORS_ONLY, base=0.0, factor=1.0, seed=1)
    assert judgement.verdict == "promote"
    assert 3000 <= window * 600 <= 6600
    assert "errors 0.00% against 0.00%" in judgement.reason


def test_a_quiet_fleet_still_stops_a_release_that_errs() -> None:
    gate, ledger = SequentialGate(ERRORS_ONLY), Ledger()
    pre = _counts([17_280.0] * 100, [0.0] * 100)
    treated, control = [60.0] * 5 + [0.0] * 95, [0.0] * 5 + [60.0] * 95
    for _ in range(10):
        judgement = gate.judge(
            _evidence(ledger, _counts(treated, [3.0] * 5 + [0.0] * 95), _counts(control, [0.0] * 100), pre, exposed=5)
        )
        ledger = judgement.ledger
        if judgement.verdict == "rollback":
            break
    assert judgement.verdict == "rollback"
    assert "errors 5.00% against 0.00%" in judgement.reason


def test_the_effect_is_told_where_it_is_wanted() -> None:
    gate, ledger = SequentialGate(GatePolicy(label=None)), Ledger()
    pre = _counts([17_280.0] * 20, [173.0] * 20)
    treated, control = [60.0] * 10 + [0.0] * 10, [0.0] * 10 + [60.0] * 10
    for _ in range(50):
        evidence = _evidence(
            ledger, _counts(treated, [0.6] * 10 + [0.0] * 10), _counts(control, [0.0] * 10 + [0.6] * 10), pre
        )
        judgement = gate.judge(replace(evidence, compares=True))
        ledger = judgement.ledger
    (errors,) = judgement.effects
    assert gate.judge(replace(evidence, ledger=Ledger())).effects == ()
    assert (errors.metric, errors.n) == ("error", 30_000)
    assert (errors.treated, errors.difference) == pytest.approx((0.01, 0.0))
    assert errors.ratio_low < 1 < (errors.ratio_high or 0)


def test_wrong_labels_stop_a_release_whose_runs_all_succeed() -> None:
    policy = GatePolicy(slow=None, label=Margin(r0=1.05, r1=1.25))
    judgement, window = _run(policy, base=0.05, factor=4.0, seed=2, metric=2, treated=2, devices=8, n=10)
    assert judgement.verdict == "rollback"
    assert window <= 30
    assert judgement.reason.startswith("wrong labels")


def test_devices_that_always_differed_do_not_count_against_the_release() -> None:
    """The treated devices have had three times the errors of the others, before as well as now."""
    gate, ledger = SequentialGate(ERRORS_ONLY), Ledger()
    rng = np.random.default_rng(4)
    rate = np.array([0.03] * 5 + [0.01] * 45)
    exposed = np.arange(50) < 5
    pre = _counts([17_280.0] * 50, list(rng.poisson(17_280 * rate)))
    for _ in range(100):
        k = rng.poisson(60 * rate)
        judgement = gate.judge(
            _evidence(ledger, _counts(list(60.0 * exposed), list(k * exposed)),
                      _counts(list(60.0 * ~exposed), list(k * ~exposed)), pre, exposed=5)
        )  # fmt: skip
        ledger = judgement.ledger
        if judgement.verdict != "hold":
            break
    assert judgement.verdict == "promote"


def test_without_control_the_period_before_is_the_measure() -> None:
    gate, ledger = SequentialGate(ERRORS_ONLY), Ledger()
    pre, nothing = _counts([20_000.0], [200.0]), _counts([0.0], [0.0])
    judgement = gate.judge(_evidence(ledger, _counts([600.0], [40.0]), nothing, pre, exposed=1))
    assert judgement.verdict == "rollback"
    assert judgement.figures[0].basis == "pre-period"
    assert gate.judge(_evidence(ledger, _counts([600.0], [6.0]), nothing, pre, exposed=1)).verdict == "hold"


def test_a_first_version_is_measured_by_an_absolute_limit() -> None:
    gate, ledger = SequentialGate(ERRORS_ONLY), Ledger()
    nothing = _counts([0.0], [0.0])
    good = gate.judge(_evidence(ledger, _counts([300.0], [0.0]), nothing, nothing, exposed=1))
    assert (good.verdict, good.figures[0].basis) == ("promote", "limit")
    assert gate.judge(_evidence(ledger, _counts([300.0], [60.0]), nothing, nothing, exposed=1)).verdict == "rollback"


def test_devices_that_fail_or_stay_silent_decide_before_any_rate() -> None:
    gate = SequentialGate(ERRORS_ONLY)
    counts, nothing = _counts([1e6], [0.0]), _counts([0.0], [0.0])
    fine = _evidence(Ledger(), counts, nothing, nothing)
    assert gate.judge(fine).verdict == "promote"
    assert gate.judge(replace(fine, failed=2)).verdict == "rollback"
    assert gate.judge(replace(fine, failed=1)).verdict == "promote", "a tenth is tolerated"
    assert gate.judge(replace(fine, reported=8)).verdict == "hold"
    assert gate.judge(replace(fine, committed=8)).verdict == "hold"
    assert gate.judge(replace(fine, expected=0)).verdict == "hold"


def test_devices_that_fail_by_themselves_everywhere_do_not_take_a_release_back() -> None:
    """Two of thirteen fail in a day and a half; of 37 without the release, three do."""
    policy = GatePolicy(slow=None, label=None)
    at = policy.metrics.index("failure")
    verdicts = []
    for elsewhere in (3.0, 0.0):
        rows = np.zeros((2, 2, at + 1, 50))
        rows[0, 0, 0, :13] = rows[1, 0, 0, 13:] = 26_000.0
        rows[0, 0, at, :13] = rows[1, 0, at, 13:] = 36.0
        rows[0, 1, at, :2] = 1.0
        rows[1, 1, at, 13] = elsewhere
        evidence = _evidence(Ledger(), Counts(*rows[0]), Counts(*rows[1]), _counts([17_280.0] * 50, [0.0] * 50))
        judgement = SequentialGate(policy).judge(replace(evidence, exposed=13, failed=2))
        verdicts.append(judgement.verdict)
    assert verdicts == ["promote", "rollback"]


def test_the_last_stage_waits_for_no_further_evidence_but_still_rolls_back() -> None:
    gate = SequentialGate(ERRORS_ONLY)
    nothing = _counts([0.0], [0.0])
    last = replace(_evidence(Ledger(), _counts([10.0], [0.0]), nothing, nothing), last=True)
    assert gate.judge(last).verdict == "promote"
    assert gate.judge(replace(last, treated=_counts([500.0], [400.0]))).verdict == "rollback"


def test_the_absolute_process_is_fair_when_the_release_sits_on_the_margin() -> None:
    """Treated rate = control + delta, looked at after every window: crosses 20 in at most a share 1/20 of runs."""
    crossed = 0
    for seed in range(100):
        judgement, _ = _run(
            GatePolicy(slow=None, label=None, alpha=1e-9, error=Margin(r0=1.1, r1=1e9, delta=0.01)),
            base=0.01, factor=2.0, seed=seed, treated=5, devices=20, windows=60, spread=0.05,
        )  # fmt: skip
        process = judgement.ledger.processes[0]
        crossed += process.difference / process.phi >= math.log(20)
    assert crossed <= 8


@pytest.mark.parametrize("policy", [GatePolicy(), ERRORS_ONLY])
def test_a_judgement_can_be_stored_whatever_was_seen(policy: GatePolicy) -> None:
    some, nothing = _counts([100.0], [3.0], 1), _counts([0.0], [0.0])
    for treated in (some, nothing):
        for control in (some, nothing):
            for pre in (some, nothing):
                judgement = SequentialGate(policy).judge(_evidence(Ledger(), treated, control, pre, exposed=1))
                assert msgspec.json.decode(msgspec.json.encode(judgement), type=Judgement) == judgement


def _broken_control(factor: float, seed: int, *, broken: int, devices: int = 8, rise: float = 50.0) -> Judgement:
    """One treated device and seven others, of which `broken` fail `rise` times as often as before."""
    rng = np.random.default_rng(seed)
    exposed = np.arange(devices) < 1
    rate = np.full(devices, 0.01) * np.where(exposed, factor, 1.0)
    rate[devices - broken :] *= rise
    pre = _counts([20_000.0] * devices, list(rng.poisson(np.full(devices, 200.0))))
    gate, ledger, since = SequentialGate(ERRORS_ONLY), Ledger(), np.zeros((2, devices))
    for _ in range(200):
        k = rng.poisson(300 * rate)
        since += np.stack((300.0 * ~exposed, k * ~exposed))
        evidence = _evidence(
            ledger, _counts(list(300.0 * exposed), list(k * exposed)),
            _counts(list(300.0 * ~exposed), list(k * ~exposed)), pre, exposed=1,
        )  # fmt: skip
        judgement = gate.judge(replace(evidence, since=_counts(list(since[0]), list(since[1]))))
        ledger = judgement.ledger
        if judgement.verdict != "hold":
            break
    return judgement


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rise", [3.0, 50.0])
def test_a_control_device_that_breaks_does_not_let_a_harmful_release_through(seed: int, rise: float) -> None:
    assert _broken_control(3.0, seed, broken=1, rise=rise).verdict == "rollback"


@pytest.mark.parametrize("seed", range(5))
def test_a_control_that_is_all_broken_promotes_nothing_that_is_worse_than_before(seed: int) -> None:
    assert _broken_control(3.0, seed, broken=7).verdict == "hold"
    assert _broken_control(3.0, seed, broken=1, devices=2).verdict == "hold"


@pytest.mark.parametrize("seed", range(5))
def test_a_good_release_is_promoted_beside_a_broken_control_device(seed: int) -> None:
    assert _broken_control(1.0, seed, broken=1).verdict == "promote"


def test_what_moves_the_whole_fleet_holds_a_release_and_does_not_send_it_back() -> None:
    for seed in range(5):
        judgement = _broken_control(3.0, seed, broken=7, rise=3.0)  # treated and control alike
        assert judgement.verdict == "hold"
        assert "than the same devices were before" in judgement.reason


def test_a_release_that_grows_worse_is_not_promoted_on_its_first_hours() -> None:
    gate, ledger = SequentialGate(ERRORS_ONLY), Ledger()
    pre = _counts([17_280.0] * 200, [172.8] * 200)
    treated, control = [60.0] * 20 + [0.0] * 180, [0.0] * 20 + [60.0] * 180
    verdicts = []
    for window in range(60):
        worse = [0.6 * (1 + window / 30)] * 20 + [0.0] * 180
        judgement = gate.judge(
            replace(_evidence(ledger, _counts(treated, worse), _counts(control, [0.0] * 20 + [0.6] * 180), pre))
        )
        ledger = judgement.ledger
        verdicts.append(judgement.verdict)
        if judgement.verdict == "rollback":
            break
    assert verdicts[5] == "promote", "good enough at first"
    last = len(verdicts) - verdicts[::-1].index("promote")
    assert last <= 25, "with 1.8 times the errors at the latest"
    assert verdicts[-1] == "rollback"
    assert math.log(20) < judgement.figures[0].log_lost


def test_less_confidence_is_told_and_decides_nothing() -> None:
    policy = GatePolicy(slow=None, label=None)
    at = policy.metrics.index("confidence")
    gate, ledger = SequentialGate(policy), Ledger((Process(),) * at + (Process(phi=0.02),))

    def counts(trials: list[float], doubt: float) -> Counts:
        rows = np.zeros((2, at + 1, len(trials)))
        rows[0, 0] = rows[0, at] = trials
        rows[1, at] = doubt * rows[0, at]
        return Counts(rows[0], rows[1])

    some, others = [60.0] * 10 + [0.0] * 30, [0.0] * 10 + [60.0] * 30
    for _ in range(10):
        judgement = gate.judge(
            _evidence(ledger, counts(some, 0.12), counts(others, 0.10), counts([17_280.0] * 40, 0.10))
        )
        ledger = judgement.ledger
    assert judgement.verdict == "promote"
    doubt = next(figure for figure in judgement.figures if figure.metric == "confidence")
    assert (doubt.treated, doubt.control, doubt.blocks) == (pytest.approx(0.12), pytest.approx(0.10), False)
    assert doubt.log_bad > gate.need_bad


def test_an_outcome_may_not_take_the_name_of_what_is_judged_anyhow() -> None:
    with pytest.raises(RequestError, match="error is judged by that name already"):
        GatePolicy(outcomes={"error": Margin(r0=1.1, r1=1.5)})


def test_an_outcome_is_gated_by_its_misses() -> None:
    policy = GatePolicy(slow=None, label=None, outcomes={"pick_ok": Margin(r0=1.05, r1=1.25)})
    at = policy.metrics.index("pick_ok")
    verdicts = []
    for misses in (0.10, 0.20):
        gate, ledger = SequentialGate(policy), Ledger()
        for _ in range(40):
            sides = []
            for trials, share in (
                ([60.0] * 10 + [0.0] * 30, misses),
                ([0.0] * 10 + [60.0] * 30, 0.1),
                ([17_280.0] * 40, 0.1),
            ):
                rows = np.zeros((2, at + 1, 40))
                rows[0, 0] = rows[0, at] = trials
                rows[1, at] = share * rows[0, at]
                sides.append(Counts(rows[0], rows[1]))
            judgement = gate.judge(_evidence(ledger, *sides))
            ledger = judgement.ledger
            if judgement.verdict != "hold":
                break
        verdicts.append(judgement.verdict)
    assert verdicts == ["promote", "rollback"]
    assert judgement.reason.startswith("misses of pick_ok 20.00%")


def test_a_shadow_is_held_against_its_signed_limit_without_a_control() -> None:
    policy = GatePolicy(slow=None, label=None, shadow_limit=0.02)
    at = policy.metrics.index("shadow")
    verdicts = []
    for disagree in (0.005, 0.04):
        gate, ledger = SequentialGate(policy), Ledger()
        for _ in range(20):
            rows = np.zeros((2, at + 1, 4))
            rows[0, 0] = rows[0, at] = 300.0
            rows[1, at] = disagree * 300
            nothing = Counts(np.zeros((1, 4)), np.zeros((1, 4)))
            judgement = gate.judge(_evidence(ledger, Counts(rows[0], rows[1]), nothing, nothing, exposed=4))
            ledger = judgement.ledger
            if judgement.verdict != "hold":
                break
        verdicts.append(judgement.verdict)
    assert verdicts == ["promote", "rollback"]


def test_devices_that_fall_silent_with_the_release_and_not_without_it_take_it_back() -> None:
    """Four of ten within the first hour."""
    policy = GatePolicy(slow=None, label=None)
    at = policy.metrics.index("missing")
    verdicts = []
    for lost_elsewhere in (0.0, 20.0):
        rows = np.zeros((2, 2, at + 1, 100))
        rows[0, 0, 0, :10] = rows[1, 0, 0, 10:] = 60.0  # a few runs
        rows[0, 0, at, :10] = rows[1, 0, at, 10:] = 1.0  # an hour
        rows[0, 1, at, :4] = 1.0
        rows[1, 1, at, 10:50] = lost_elsewhere / 20
        judgement = SequentialGate(policy).judge(
            _evidence(Ledger(), Counts(*rows[0]), Counts(*rows[1]), _counts([17_280.0] * 100, [0.0] * 100))
        )
        verdicts.append((judgement.verdict, judgement.reason[:32]))
    assert verdicts[0] == ("rollback", "4 devices that fell silent, 0 ex")
    assert verdicts[1][0] == "hold", "they fall silent everywhere"
