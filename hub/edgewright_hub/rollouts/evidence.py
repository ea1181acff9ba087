"""Rows of telemetry.db → what a rollout observes. Pure.

A window is *treated* when a device that was given the release reports it with the release's digest, and *control* when
a device that was not given it reports the digest that it would go back to. Shadow windows are neither. A run is *slow*
when it took longer than the grid edge next above the device's own 95th percentile before the rollout; a device without
such a period has no slow runs and no runs that could be slow.

Devices that fail and devices that fall silent count once each, for the first time since the rollout began, with the
release or without it; what they are measured by is the hours that they reported until then. So what a device that has
always come and gone does is not held against the release: it has had its first by the time when it gets it, or is as
likely to have it as any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgewright_contracts.binning import GRID_CELLS
from edgewright_contracts.codec import MAX_COUNT
from edgewright_contracts.report import CONFIDENCE_BINS
from edgewright_contracts.unpacking import ragged

from ..ingest.columns import Grids, grids
from .dispersion import dispersion
from .gates import ADVISORY, FIRST_OUTCOME, ONCE
from .hearing import News, Said
from .members import Happening, Member, Members, widened
from .processes import METRICS, Counts, Floats, Metric, Process
from .rollout import Observation
from .specification import RolloutSpec
from .state import GOING_BACK, RolloutState

# What the agent's update machine says, unless it says that something failed.
_HAPPENINGS: Final[dict[str, Happening]] = {
    "activate": "activate",
    "probation": "activate",
    "commit": "commit",
    "rollback": "fail",
    "blocked": "fail",
    "held": "stop",
}
COLUMNS: Final = (  # of telemetry.windows that are read here
    "id", "device", "arrived_ms", "start_ms", "mono_start_ms", "mono_end_ms", "digest", "phase", "rollout", "n",
    "errors", "labels_n", "labels_wrong", "latency_total", "outcomes", "shadow_n", "shadow_agree", "confidence",
    "placed",
)  # fmt: skip
GRACE_MS: Final = 15_000  # after the announced time of the next report, before a device counts as silent
PATIENCE: Final = 2.0  # promised times of silence, until it counts: a device has one first, not to be spent on a blip
SLOT_MS: Final = 300_000  # of `dispersion`
UNNOTICED_H: Final = 0.25  # that a device was at risk before its end is noticed
NOBODY: Final[Mapping[str, Heard]] = MappingProxyType({})
ENOUGH: Final = 1_000  # devices, from which more of them tell no more of the dispersion
STEADY: Final = 0.01  # least phi of sums of confidence, which vary less than counts do
_SHADOW: Final = len(METRICS) + len(ONCE)
_DOUBT: Final = 1 - (np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS

Row = Any  # of telemetry.windows or telemetry.events


@dataclass(frozen=True, slots=True)
class Heard:
    """Of a device: whether its connection stands, and UTC milliseconds."""

    online: bool
    last_seen_ms: int
    next_due_ms: int | None

    def present(self, now_ms: int) -> bool:
        return self.online and (self.next_due_ms is None or now_ms <= self.next_due_ms + GRACE_MS)


def observe(
    spec: RolloutSpec,
    state: RolloutState,
    windows: Sequence[Row],
    events: Sequence[Row],
    present: frozenset[str],
    heard: Mapping[str, Heard] = NOBODY,
    now_ms: int = 0,
) -> Observation:
    """What `windows` and `events`, in the order of their arrival, say about a rollout whose members are complete."""
    members, size, metrics = state.members, len(state.members), spec.gate.metrics
    columns, given = members.columns(), members.given
    failure, missing = metrics.index("failure"), metrics.index("missing")
    news = [n for row in events if row.device in columns and (n := _news(spec, state, row)) is not None]
    counted, back = np.zeros(size, np.int32), np.zeros(size, np.bool_)
    treated, control = np.zeros((2, len(metrics), size)), np.zeros((2, len(metrics), size))
    for row in events:
        if (column := columns.get(row.device)) is None:
            continue
        previous = _digest(members, column)
        back[column] |= _returned(state, previous, row)
        if row.digest == previous and row.failure == "model" and not given[column]:
            control[1, failure, column] = 1.0
    for one in news:
        if one.happening == "fail" and given[columns[one.device]]:
            treated[1, failure, columns[one.device]] = 1.0
    mine: tuple[list[Row], list[int]] = ([], [])
    theirs: tuple[list[Row], list[int]] = ([], [])
    for row in windows:
        if (column := columns.get(row.device)) is None:
            continue
        previous = _digest(members, column)
        ran = row.phase != "shadow" and row.placed != "import"  # a table of labels says nothing of what runs now
        if row.digest == spec.digest[:16]:
            if given[column] and row.rollout in ("", state.id):
                mine[0].append(row)
                mine[1].append(column)
                if ran:
                    counted[column] += 1
                    news.append(News(row.device, "activate" if row.phase == "probation" else "commit"))
        elif previous is not None and row.digest == previous[:16] and row.phase != "shadow":
            if not given[column]:
                theirs[0].append(row)
                theirs[1].append(column)
            elif ran and state.state in GOING_BACK and row.start_ms >= state.since_ms:
                back[column] = True
    for into, (rows, places) in ((treated, mine), (control, theirs)):
        at = np.array(places, np.intp)
        np.add.at(into.transpose(2, 0, 1), at, tabulate(rows, members.slow_cell[at], metrics))
    lost = _fell_silent(state, heard, now_ms)
    treated[1, missing], control[1, missing] = lost & given, lost & ~given
    since = widened(members.since, len(metrics))
    over = np.stack((members.has("failed") | (since[1, failure] > 0), members.lost))  # had their first before
    for side in (treated, control):
        side[:, [failure, missing]] = np.where(over, 0.0, side[:, [failure, missing]])
        side[0, [failure, missing]] += UNNOTICED_H * side[1, [failure, missing]]
    return Observation(
        present=np.array([device in present for device in members.devices], np.bool_),
        said=Said.of(news, columns),
        windows=counted,
        treated=Counts(treated[0], treated[1]),
        control=Counts(control[0], control[1]),
        back=back,
        lost=lost,
    )


def before(
    metrics: Sequence[Metric], previous: Mapping[str, str | None], windows: Iterable[tuple[str, Sequence[Row]]]
) -> tuple[tuple[Member, ...], tuple[Process, ...]]:
    """Members with what they counted with their `previous` digests, and processes with the dispersion of it.

    `windows`: of each device of `previous` in turn; they are let go of one device after the other. Of devices that fail
    or fall silent nothing is known before: the first is what counts, and that was another time.
    """
    members, tables, numbers, slots = [], [np.zeros((0, 2, len(metrics)))], [], []
    once = [metrics.index(metric) for metric in ONCE]
    stride = max(1, len(previous) // ENOUGH)
    for number, (device, rows) in enumerate(windows):
        slow_cell = _slow_cell(rows)
        table = tabulate(rows, np.full(len(rows), -1 if slow_cell is None else slow_cell), metrics)
        table[:, :, once] = 0.0
        if number % stride == 0:
            tables.append(table)
            numbers += [number] * len(rows)
            slots += [row.start_ms // SLOT_MS for row in rows]
        trials, events = table.sum(0).tolist()
        members.append(
            Member(device=device, previous=previous[device], pre_trials=trials, pre_events=events, slow_cell=slow_cell)
        )
    every = np.concatenate(tables)
    at = np.array(numbers, np.intp), np.array(slots, np.intp)
    return tuple(members), tuple(
        Process(phi=dispersion(every[:, 1, i], every[:, 0, i], *at, least=STEADY if metric in ADVISORY else 1.0))
        for i, metric in enumerate(metrics)
    )


def tabulate(rows: Sequence[Row], slow_cells: npt.NDArray[Any], metrics: Sequence[Metric]) -> Floats:
    """float64[windows, trials | events, metrics]; `slow_cells`: of the device of each window, -1 for none.

    Cost: 5 µs a window where there are many.
    """
    out = np.zeros((len(rows), 2, len(metrics)))
    if not rows:
        return out
    counted = [
        (r.n, r.errors, r.labels_n, r.labels_wrong, r.mono_end_ms - r.mono_start_ms, r.shadow_n, r.shadow_agree)
        for r in rows
    ]
    n, errors, labels, wrong, ms, compared, agreed = np.array(counted, np.float64).T
    hours = ms / 3600_000
    zero = np.zeros_like(n)
    out[:, 0, :_SHADOW] = np.column_stack((n, zero, labels, hours, hours))
    out[:, 1, :3] = np.column_stack((errors, zero, wrong))
    if (timed := np.flatnonzero(slow_cells >= 0)).size:
        runs = _latency([rows[i] for i in timed.tolist()])
        slow = runs.cell >= slow_cells[timed][runs.owner]
        out[timed, 0, 1] = np.bincount(runs.owner, runs.times, minlength=timed.size)
        out[timed, 1, 1] = np.bincount(runs.owner, runs.times * slow, minlength=timed.size)
    if sure := [i for i, row in enumerate(rows) if row.confidence]:
        bins = ragged([rows[i].confidence for i in sure]).values.reshape(len(sure), -1)[:, :CONFIDENCE_BINS]
        out[sure, 0, FIRST_OUTCOME - 1], out[sure, 1, FIRST_OUTCOME - 1] = bins.sum(axis=1), bins @ _DOUBT
    for i, name in enumerate(metrics):
        if i >= FIRST_OUTCOME:
            told = np.array([row.outcomes.get(name, (0, 0)) for row in rows], np.float64)
            out[:, 0, i], out[:, 1, i] = told[:, 0], told[:, 0] - told[:, 1]
    shadow = np.array([row.phase == "shadow" for row in rows])
    if shadow.any():
        out[shadow] = 0.0
        out[shadow, 0, _SHADOW], out[shadow, 1, _SHADOW] = compared[shadow], (compared - agreed)[shadow]
    return out


def _latency(rows: Sequence[Row]) -> Grids:
    return grids(ragged([row.latency_total for row in rows]), np.full(len(rows), MAX_COUNT))


def _fell_silent(state: RolloutState, heard: Mapping[str, Heard], now_ms: int) -> npt.NDArray[np.bool_]:
    """bool[devices]: silent for twice as long as nearly all devices without the release may be; the same for both
    sides, of which one reports more often. When most of the fleet is silent the fault is on the hub's side, and nobody
    is.

    Devices without the release are looked at once they have reported since the rollout began.
    """
    members = state.members
    nobody = np.zeros(len(members), np.bool_)
    known = [heard.get(device) for device in members.devices]
    watched = np.array([one is not None and one.next_due_ms is not None for one in known], np.bool_)
    if not watched.any() or state.state not in ("running", "paused"):
        return nobody
    seen = np.array([0 if one is None else one.last_seen_ms for one in known], np.int64)
    due = np.array([0 if one is None or one.next_due_ms is None else one.next_due_ms for one in known], np.int64)
    given = members.given
    usual = watched & ~given if (watched & ~given).any() else watched
    longest = PATIENCE * float(np.quantile((due - seen)[usual], 0.9)) + GRACE_MS
    silent = watched & (now_ms - seen > longest)
    if 2 * np.count_nonzero(silent) > np.count_nonzero(watched):
        return nobody
    return np.asarray(silent & ~members.lost & (given | (members.since[0] > 0).any(axis=0)))


def _slow_cell(rows: Sequence[Row]) -> int | None:
    runs = _latency(rows)
    if not runs.times.size:
        return None
    reached = np.cumsum(np.bincount(runs.cell, runs.times, minlength=GRID_CELLS))
    return int(np.searchsorted(reached, 0.95 * reached[-1])) + 1


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
