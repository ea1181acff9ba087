"""What windows, events and silence say about a release, as counts of treated devices and of their control."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewright_contracts.binning import GRID_CELLS, pack_grid
from edgewright_hub.rollouts import rollout
from edgewright_hub.rollouts.evidence import Heard, before, dispersed, observe
from edgewright_hub.rollouts.gates import GatePolicy
from edgewright_hub.rollouts.members import Member, Members
from edgewright_hub.rollouts.processes import Margin
from edgewright_hub.rollouts.rollout import Observation
from edgewright_hub.rollouts.specification import RolloutSpec
from edgewright_hub.rollouts.state import RolloutState

NEW, OLD = "a" * 64, "b" * 64
HOUR = 3600_000
SPEC = RolloutSpec(
    model="m", digest=NEW, gate=GatePolicy(outcomes={"pick_ok": Margin(r0=1.05, r1=1.25)}, shadow_limit=0.02)
)
ROWS = {name: i for i, name in enumerate(SPEC.gate.metrics)}


def _window(device: str, digest: str, **more: Any) -> Any:
    grid = np.zeros(GRID_CELLS, np.int64)
    grid[[20, 40]] = 57, 3
    values = {
        "device": device, "digest": digest[:16], "phase": "normal", "rollout": "", "arrived_ms": 0, "start_ms": 0,
        "mono_start_ms": 0, "mono_end_ms": HOUR, "n": 60, "errors": 2, "labels_n": 5, "labels_wrong": 1,
        "latency_total": pack_grid(grid), "outcomes": {"pick_ok": [10, 7]}, "shadow_n": 0, "shadow_agree": 0,
        "confidence": bytes([0] * 8 + [1, 3] + [0] * 10), "placed": "wall",
    }  # fmt: skip
    return SimpleNamespace(**{**values, **more})


def _event(device: str, digest: str, failure: str | None, after: str = "rollback") -> Any:
    return SimpleNamespace(
        device=device, digest=digest, rollout="", failure=failure, before="probation", after=after, reason="",
        arrived_ms=0,
    )  # fmt: skip


def _state(**first: Any) -> RolloutState:
    """Ten devices, the first of which was given the release; all reported since the rollout began."""
    rows = []
    for i in range(10):
        row: dict[str, Any] = {"device": f"d{i}", "previous": OLD, "slow_cell": 30, "control_trials": (60.0, 0.0, 0.0)}
        if i == 0:
            row |= {"status": "committed", "stage": 0, **first}
        rows.append(Member(**row))
    return rollout.enrol(RolloutState(id="r1", state="running"), tuple(rows))


def _of(seen: Observation, state: RolloutState, side: str, metric: str, device: str) -> tuple[float, float]:
    counts, at = getattr(seen, side), state.members.devices.index(device)
    return counts.trials[ROWS[metric], at], counts.events[ROWS[metric], at]


def test_windows_count_runs_slow_runs_labels_outcomes_and_hours_on_their_side() -> None:
    state = _state()
    rows = [_window("d0", NEW), _window("d0", NEW), _window("d1", OLD), _window("d0", OLD), _window("d2", NEW)]
    seen = observe(SPEC, state, rows, [], frozenset())
    expected = {
        "error": (60, 2), "slow": (60, 3), "label": (5, 1), "pick_ok": (10, 3), "confidence": (4, 0.3),
        "failure": (1, 0), "missing": (1, 0), "shadow": (0, 0),
    }  # fmt: skip
    for metric, counted in expected.items():
        assert _of(seen, state, "control", metric, "d1") == pytest.approx(counted)
        assert _of(seen, state, "treated", metric, "d0") == pytest.approx([2 * x for x in counted])
    assert seen.control is not None
    assert not seen.control.trials[:, state.members.devices.index("d2")].any(), "it was not given what it runs"


def test_labels_of_a_table_are_evidence_and_no_sign_that_a_device_runs_anything() -> None:
    state = _state(status="asked")
    table = {"placed": "import", "n": 0, "errors": 0, "latency_total": b"", "mono_end_ms": 0}
    seen = observe(SPEC, state, [_window("d0", NEW, **table)], [], frozenset())
    assert _of(seen, state, "treated", "label", "d0") == (5, 1)
    assert not seen.windows.any()
    assert not seen.said.device.size
    going = msgspec.structs.replace(state, state="rolling-back")
    assert not observe(SPEC, going, [_window("d0", OLD, **table)], [], frozenset()).back.any()
    assert observe(SPEC, going, [_window("d0", OLD)], [], frozenset()).back.any()


def test_a_shadow_counts_disagreements_and_nothing_else() -> None:
    state = _state(status="active")
    seen = observe(SPEC, state, [_window("d0", NEW, phase="shadow", shadow_n=50, shadow_agree=48)], [], frozenset())
    assert _of(seen, state, "treated", "shadow", "d0") == (50, 2)
    assert _of(seen, state, "treated", "error", "d0") == (0, 0)


def test_a_device_fails_once_and_only_by_the_fault_of_a_model() -> None:
    state = _state(status="active")
    said = [
        _event("d0", NEW, "model"),
        _event("d0", NEW, "model"),
        _event("d1", OLD, "model"),
        _event("d2", OLD, "link"),
    ]
    seen = observe(SPEC, state, [], said, frozenset())
    assert [_of(seen, state, "treated", "failure", "d0")[1], _of(seen, state, "control", "failure", "d1")[1]] == [1, 1]
    assert _of(seen, state, "control", "failure", "d2") == (0, 0)
    again = observe(SPEC, _state(status="failed"), [_window("d0", NEW)], said[:1], frozenset())
    assert _of(again, state, "treated", "failure", "d0") == (0, 0)


@pytest.mark.parametrize("silent", ["d0", "d3"])
def test_a_device_that_stops_reporting_counts_once_on_its_side(silent: str) -> None:
    state, now = _state(), 10 * HOUR
    heard = {d: Heard(True, now - 60_000, now + 540_000) for d in state.members.devices}
    heard[silent] = Heard(False, now - 1_300_000, now - 1_240_000)
    seen = observe(SPEC, state, [], [], frozenset(), heard, now)
    side = "treated" if silent == "d0" else "control"
    trials, events = _of(seen, state, side, "missing", silent)
    assert (trials > 0, events) == (True, 1)
    assert seen.treated is not None
    assert seen.control is not None
    assert seen.treated.events.sum() + seen.control.events.sum() == 1
    state, _ = rollout.step(state, SPEC, seen, _Holds(), now)
    assert _of(observe(SPEC, state, [], [], frozenset(), heard, now), state, side, "missing", silent) == (0, 0)


def test_a_device_that_reports_more_often_with_the_release_is_not_called_silent_sooner() -> None:
    state, now = _state(), 10 * HOUR
    heard = {d: Heard(True, now - 60_000, now + 540_000) for d in state.members.devices}
    heard["d0"] = Heard(False, now - 200_000, now - 140_000)
    seen = observe(SPEC, state, [], [], frozenset(), heard, now)
    assert _of(seen, state, "treated", "missing", "d0") == (0, 0)


def test_silence_of_most_of_the_fleet_is_the_hub_s() -> None:
    state, now = _state(), 10 * HOUR
    heard = {d: Heard(False, now - 3 * HOUR, now - 2 * HOUR) for d in state.members.devices}
    seen = observe(SPEC, state, [], [], frozenset(), heard, now)
    assert seen.lost is not None
    assert not seen.lost.any()


def test_the_period_before_gives_rates_of_runs_and_none_of_devices_that_fail() -> None:
    rows = [_window("d0", OLD, start_ms=300_000 * i) for i in range(24)]
    (member,) = before(SPEC.gate.metrics, {"d0": OLD}, [rows])
    processes = dispersed(SPEC.gate.metrics, [member], [rows])
    trials = dict(zip(SPEC.gate.metrics, member.pre_trials, strict=True))
    assert (trials["error"], trials["label"], trials["pick_ok"], trials["failure"], trials["missing"]) == (
        1440, 120, 240, 0, 0,
    )  # fmt: skip
    assert [process.phi for process in processes] == [1.0] * len(SPEC.gate.metrics)


class _Holds:
    def judge(self, evidence: Any) -> Any:
        return SimpleNamespace(verdict="hold", reason="", figures=(), ledger=evidence.ledger, effects=())


def test_a_device_whose_outcomes_are_told_counts_as_labelled() -> None:
    rows = [_window("d0", OLD, labels_n=0), _window("d1", OLD, labels_n=0, outcomes={})]
    joined = before(SPEC.gate.metrics, {"d0": OLD, "d1": OLD}, [[row] for row in rows])
    assert Members.of(joined).labelled.tolist() == [True, False]
