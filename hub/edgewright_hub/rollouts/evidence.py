"""Rows of telemetry.db → what a rollout observes. Pure.

A window is *treated* when a device that was given the release reports it with the release's digest, and *control* when
a device that was not given it reports the digest that it would go back to. Shadow windows are neither. A run is *slow*
when it took longer than the grid edge next above the device's own 95th percentile before the rollout; a device without
such a period has no slow runs and no runs that could be slow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgewright_contracts.binning import GRID_CELLS, unpack_grid

from .members import Happening, Member, Members, News, Said
from .processes import METRICS, Counts, Floats, Process, dispersion
from .rollout import GOING_BACK, Observation, RolloutState
from .specification import RolloutSpec

# What the agent's update machine says, unless it says that something failed.
_HAPPENINGS: Final[dict[str, Happening]] = {
    "activate": "activate",
    "probation": "activate",
    "commit": "commit",
    "rollback": "fail",
    "blocked": "fail",
    "held": "stop",
}
_K: Final = len(METRICS)

Row = Any  # of telemetry.windows or telemetry.events


def observe(
    spec: RolloutSpec, state: RolloutState, windows: Sequence[Row], events: Sequence[Row], present: frozenset[str]
) -> Observation:
    """What `windows` and `events`, in the order of their arrival, say about a rollout whose members are complete."""
    members, size = state.members, len(state.members)
    columns, given = members.columns(), members.given
    news = [n for row in events if row.device in columns and (n := _news(spec, state, row)) is not None]
    counted = np.zeros(size, np.int32)
    treated, control = np.zeros((2 * _K, size)), np.zeros((2 * _K, size))
    back = np.zeros(size, np.bool_)
    for row in events:
        if row.device in columns and _returned(state, _digest(members, columns[row.device]), row):
            back[columns[row.device]] = True
    for row in windows:
        if (column := columns.get(row.device)) is None or row.phase == "shadow":
            continue
        previous = _digest(members, column)
        slow_cell = int(members.slow_cell[column]) if members.slow_cell[column] >= 0 else None
        if row.digest == spec.digest[:16]:
            if given[column] and row.rollout in ("", state.id):
                treated[:, column] += tabulate([row], slow_cell)[0]
                counted[column] += 1
                news.append(News(row.device, "activate" if row.phase == "probation" else "commit"))
        elif previous is not None and row.digest == previous[:16]:
            if not given[column]:
                control[:, column] += tabulate([row], slow_cell)[0]
            elif state.state in GOING_BACK and row.start_ms >= state.since_ms:
                back[column] = True
    return Observation(
        present=np.array([device in present for device in members.devices], np.bool_),
        said=Said.of(news, columns),
        windows=counted,
        treated=Counts(treated[:_K], treated[_K:]),
        control=Counts(control[:_K], control[_K:]),
        back=back,
    )


def before(
    previous: Mapping[str, str | None], windows: Mapping[str, Sequence[Row]]
) -> tuple[tuple[Member, ...], tuple[Process, ...]]:
    """Members with what they counted with their `previous` digests, and processes with the dispersion of it."""
    members, tables = [], [np.zeros((0, 2 * _K + 1))]
    for number, (device, digest) in enumerate(previous.items()):
        rows = windows.get(device, ())
        slow_cell = _slow_cell(rows)
        table = tabulate(rows, slow_cell)
        tables.append(np.column_stack((table, np.full(len(table), float(number)))))
        sums = tuple(table.sum(0).tolist())
        members.append(
            Member(device=device, previous=digest, pre_trials=sums[:_K], pre_events=sums[_K:], slow_cell=slow_cell)
        )
    every = np.concatenate(tables)
    device_of = every[:, -1].astype(np.intp)
    phis = (dispersion(every[:, _K + i], every[:, i], device_of) if len(every) else 1.0 for i in range(_K))
    return tuple(members), tuple(Process(phi=phi) for phi in phis)


def tabulate(rows: Sequence[Row], slow_cell: int | None) -> Floats:
    """float64[windows, trials by METRICS | events by METRICS]."""
    out = np.zeros((len(rows), 2 * _K))
    for into, row in zip(out, rows, strict=True):
        grid = unpack_grid(row.latency_total) if slow_cell is not None else np.zeros(1)
        into[:] = (
            row.n,
            grid.sum(),
            row.labels_n,
            row.errors,
            grid[slow_cell:].sum() if slow_cell is not None else 0,
            row.labels_wrong,
        )
    return out


def _slow_cell(rows: Sequence[Row]) -> int | None:
    total = np.zeros(GRID_CELLS, np.int64)
    for row in rows:
        total += unpack_grid(row.latency_total)
    if not total.any():
        return None
    return int(np.searchsorted(np.cumsum(total), 0.95 * total.sum())) + 1


def _news(spec: RolloutSpec, state: RolloutState, row: Row) -> News | None:
    if row.digest != spec.digest or row.rollout not in ("", state.id):
        return None
    happening = _HAPPENINGS.get(row.after)
    if row.failure is not None and happening != "stop":
        happening = "fail" if row.failure == "model" else "retry"
    return None if happening is None else News(row.device, happening, row.reason, row.before, row.failure or "link")


def _returned(state: RolloutState, previous: str | None, row: Row) -> bool:
    return (
        state.state in GOING_BACK
        and row.digest == previous
        and row.arrived_ms >= state.since_ms
        and _HAPPENINGS.get(row.after) in ("activate", "commit")
    )


def _digest(members: Members, column: int) -> str | None:
    """What the device goes back to."""
    return members.digests[members.previous[column]] if members.previous[column] >= 0 else None
