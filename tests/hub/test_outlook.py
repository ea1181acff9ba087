"""What a rollout's plan says of its gates is what its gates then do, within a loose factor."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_hub.rollouts.gates import Evidence, GatePolicy, Ledger, SequentialGate
from edgewright_hub.rollouts.outlook import Outlook, Usual, outlook, usual
from edgewright_hub.rollouts.processes import Counts, Process

ERRORS_ONLY = GatePolicy(slow=None, label=None)
FLEET, STAGES, RUNS = 400, (8, 40, 400), 60.0


def _simulated(rate: float, worse: float, seed: int) -> tuple[str, int]:
    """How a rollout over STAGES ends, and after how many windows in which the gate could decide."""
    rng = np.random.default_rng(seed)
    gate, ledger = SequentialGate(ERRORS_ONLY), Ledger()
    pre = Counts(np.full((1, FLEET), RUNS * 288), rng.poisson(RUNS * 288 * rate, (1, FLEET)).astype(float))
    stage, since = 0, 0
    for window in range(1, 2000):
        exposed = np.arange(FLEET) < STAGES[stage]
        k = rng.poisson(RUNS * np.where(exposed, worse, rate))
        n = np.full(FLEET, RUNS)
        control = Counts((n * ~exposed)[None], (k * ~exposed)[None])
        judgement = gate.judge(
            Evidence(
                treated=Counts((n * exposed)[None], (k * exposed)[None]), control=control, since=control, pre=pre,
                ledger=ledger, exposed=STAGES[stage], failed=0, expected=1, committed=1,
                reported=int(window - since >= 3), last=False, soaking=0, labels_block=False,
            )
        )  # fmt: skip
        ledger = judgement.ledger
        if judgement.verdict == "rollback":
            return "rollback", window
        if judgement.verdict == "promote":
            stage, since = stage + 1, window
            if stage == len(STAGES) - 1:
                return "promote", window
    return "hold", window


def _told(rate: float) -> Outlook:
    return outlook(ERRORS_ONLY, {"error": Usual(trials=RUNS, rate=rate)}, STAGES, FLEET)


@pytest.mark.parametrize("rate", [0.01, 1e-4, 0.0])
def test_a_good_release_takes_as_long_as_was_told(rate: float) -> None:
    told = _told(rate)
    ends = [_simulated(rate, rate, seed) for seed in range(20)]
    assert [end for end, _ in ends].count("promote") >= 19
    assert told.windows is not None
    told_windows = told.windows - (told.stages[-1].windows or 0.0)  # the last stage is only waited for
    assert 0.6 <= np.median([windows for _, windows in ends]) / told_windows <= 1.6


@pytest.mark.parametrize(("rate", "least", "most"), [(0.01, 0.013, 0.025), (0.0, 1e-4, 2e-3)])
def test_a_regression_of_the_size_that_was_told_is_rolled_back_and_a_much_smaller_one_is_not(
    rate: float, least: float, most: float
) -> None:
    visible = _told(rate).stages[1].visible["error"]
    assert least < visible < most
    found = [_simulated(rate, visible, seed)[0] for seed in range(20)]
    assert found.count("rollback") >= 15, "four in five, and more because a worse one is promoted later"
    assert [_simulated(rate, rate + (visible - rate) / 20, seed)[0] for seed in range(10)].count("rollback") <= 1


def test_a_stage_with_more_devices_sees_less_and_less_labels_take_longer() -> None:
    few, many = (
        outlook(
            GatePolicy(),
            {
                "error": Usual(trials=60, rate=0.01),
                "slow": Usual(trials=60, rate=0.05),
                "label": Usual(trials=labels, rate=0.08, delay=12.0),
            },
            (10, 50, 250, 1000),
            1000,
        )
        for labels in (0.3, 3.0)
    )
    seen = [stage.visible["error"] for stage in many.stages]
    assert seen == sorted(seen, reverse=True)
    assert [stage.failing for stage in many.stages] == [2, 6, 26, 101]
    assert few.stages[2].waits_for == "label"
    assert few.windows is not None
    assert many.windows is not None
    assert few.windows > 2 * many.windows


def test_what_never_ends_is_said_to_never_end() -> None:
    found = outlook(GatePolicy(), {"label": Usual(trials=1e-4, rate=0.08)}, (1, 2, 4), 4)
    assert (found.windows, found.stages[-1].windows, found.stages[-1].waits_for) == (None, None, "label")


def test_what_is_usual_is_read_from_the_period_before() -> None:
    pre = Counts(np.array([[600.0, 1200.0, 0.0]]), np.array([[6.0, 12.0, 0.0]]))
    found = usual(pre, (Process(phi=1.3),), 10, ERRORS_ONLY)
    assert found == {"error": Usual(trials=90.0, rate=0.01, phi=1.3)}
