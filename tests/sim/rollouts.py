"""A rollout by the names of its devices, and a gate that says what a case says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from edgewright_hub.rollouts import rollout
from edgewright_hub.rollouts.effect import Effect
from edgewright_hub.rollouts.gates import Evidence, Gate, Judgement
from edgewright_hub.rollouts.hearing import News, Said
from edgewright_hub.rollouts.members import Member
from edgewright_hub.rollouts.rollout import Observation
from edgewright_hub.rollouts.specification import RolloutSpec
from edgewright_hub.rollouts.state import RolloutState
from edgewright_hub.rollouts.wishes import Wish

NEW, OLD = "a" * 64, "b" * 64


@dataclass
class Script:
    """A gate that says what the case says, and holds once the case has nothing left to say."""

    verdicts: list[str]
    asked: list[Evidence] = field(default_factory=list)
    effects: tuple[Effect, ...] = ()

    def judge(self, evidence: Evidence) -> Judgement:
        self.asked.append(evidence)
        verdict: Any = self.verdicts.pop(0) if self.verdicts else "hold"
        reason = f"said {verdict}"
        return Judgement(verdict=verdict, reason=reason, figures=(), ledger=evidence.ledger, effects=self.effects)


def fleet(size: int) -> tuple[Member, ...]:
    return tuple(Member(device=f"d{i}", previous=OLD, pre_trials=(1e4, 0, 0)) for i in range(size))


def started(spec: RolloutSpec, size: int = 8) -> RolloutState:
    return rollout.command(rollout.enrol(RolloutState(id="r1"), fleet(size)), spec, "start", "go", 0)[0]


def names(state: RolloutState, *statuses: Any) -> list[str]:
    return [state.members.devices[i] for i in np.flatnonzero(state.members.has(*statuses))]


def mask_of(state: RolloutState, devices: Iterable[str]) -> np.ndarray:
    wanted = set(devices)
    return np.array([device in wanted for device in state.members.devices])


def seen_of(
    state: RolloutState,
    present: Iterable[str],
    *news: News,
    windows: Mapping[str, int] = MappingProxyType({}),
    back: Iterable[str] = (),
    **more: Any,
) -> Observation:
    """An observation by the names of devices."""
    columns = state.members.columns()
    counted = np.zeros(len(columns), np.int32)
    for device, count in windows.items():
        counted[columns[device]] = count
    return Observation(mask_of(state, present), Said.of(news, columns), counted, back=mask_of(state, back), **more)


def everyone(state: RolloutState, *news: News, **more: Any) -> Observation:
    return seen_of(state, state.members.devices, *news, **more)


def obedient(state: RolloutState) -> Observation:
    """Every device that was asked has committed."""
    return everyone(state, *(News(d, "commit") for d in names(state, "asked")))


def step(
    state: RolloutState, spec: RolloutSpec, seen: Observation, gate: Gate, now_ms: int
) -> tuple[RolloutState, list[Wish]]:
    after, wishes = rollout.step(state, spec, seen, gate, now_ms)
    return after, wishes.expand(after.members, spec)
