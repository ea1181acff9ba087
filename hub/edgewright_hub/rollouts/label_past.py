"""The past of labels and outcomes that do not come every day: a table of the week, a customer's return. Pure.

A rollout waits for labels only of devices of which some came before it (`gates`), and what came before is what was
counted in the last 24 hours (`readings`). Where no device of a rollout has a label, or an outcome of a name, in these,
hub.db tells what came in the last `DAYS`, by device and day (`accuracy.labels`): that is the past of the metric then,
with the dispersion of days. Rates need no length of time, so nothing else of a gate changes.

Nothing is read where all came within the last 24 hours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from edgewright_contracts.report import CORRECT

from .dispersion import dispersion
from .gates import GatePolicy
from .members import Member, Members
from .processes import Metric, Process

DAYS: Final = 30
DAY_MS: Final = 86_400_000

Counted = tuple[str, int, Mapping[str, Any]]  # device, begin of a day, and n and hits of each outcome by name


class Came(msgspec.Struct, frozen=True):
    """Of a metric of which nothing came in the last 24 hours."""

    days: int  # of the last `DAYS`, on which something came
    last_ms: int  # the begin of the newest of them


def late(policy: GatePolicy) -> dict[Metric, int]:
    """What is told after its inference, and judged: rows of Counts."""
    rows = {metric: row for row, metric in enumerate(policy.metrics)}
    return {m: rows[m] for m in ("label", *policy.outcomes) if policy.margin(m) is not None}


def unknown(policy: GatePolicy, members: Members) -> list[Metric]:
    """Which of these no device has in its past, so that no stage waits for them."""
    return [metric for metric, row in late(policy).items() if not members.pre[0, row : row + 1].any()]


def filled(
    policy: GatePolicy, members: tuple[Member, ...], processes: tuple[Process, ...], counted: Iterable[Counted]
) -> tuple[tuple[Member, ...], tuple[Process, ...], Mapping[Metric, Came]]:  # fmt: skip
    """Both, with what came of the metrics that none of the members has in its past; and of which metrics that is.

    `counted`: of these members in the last `DAYS`, with what they ran; asked for only where it is needed.
    """
    wanted = {metric: row for metric, row in late(policy).items() if not any(m.pre_trials[row] for m in members)}
    if not wanted or not members:
        return members, processes, {}
    names = {CORRECT if metric == "label" else metric: row for metric, row in wanted.items()}
    places = {member.device: place for place, member in enumerate(members)}
    counts = np.zeros((2, len(policy.metrics), len(members)))
    told: dict[int, list[tuple[int, int, float, float]]] = {row: [] for row in wanted.values()}
    for device, day_ms, outcomes in counted:
        for name in names.keys() & outcomes.keys():
            (n, hits), row, place = outcomes[name], names[name], places[device]
            counts[:, row, place] += n, n - hits
            told[row].append((place, day_ms, float(n), float(n - hits)))
    came, moved = dict[Metric, Came](), list(processes)
    for metric, row in wanted.items():
        if counts[0, row].any():
            days = {day_ms for _, day_ms, _, _ in told[row]}
            came[metric] = Came(days=len(days), last_ms=max(days))
            moved[row] = msgspec.structs.replace(moved[row], phi=_phi(told[row]))
    if not came:
        return members, processes, {}
    both = (counts + np.array([[m.pre_trials, m.pre_events] for m in members]).transpose(1, 2, 0)).transpose(2, 0, 1)
    with_past = tuple(
        msgspec.structs.replace(member, pre_trials=tuple(trials), pre_events=tuple(events))
        for member, (trials, events) in zip(members, both.tolist(), strict=True)
    )
    return with_past, tuple(moved), came


def _phi(told: Sequence[tuple[int, int, float, float]]) -> float:
    place, day_ms, n, wrong = np.array(told).T
    return dispersion(wrong, n, place.astype(np.intp), (day_ms // DAY_MS).astype(np.intp))
