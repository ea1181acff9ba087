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
COUNTED: Final = (  # of telemetry.windows and of telemetry.device_hours: what is read of the time before
    "device", "digest", "n", "errors", "labels_n", "labels_wrong", "latency_total", "confidence",
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

Row = Any  # of telemetry.windows, telemetry.device_hours or telemetry.events


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
    metrics: Sequence[Metric], previous: Mapping[str, str | None], counted: Iterable[Sequence[Row]]
) -> tuple[Member, ...]:
    """Members with what they counted with their `previous` digests.

    `counted`: their hours and windows, each of which counts once, in any order; all of a device are in one part, and
    parts are let go of one after the other. Of devices that fail or fall silent nothing is known before: the first is
    what counts, and that was another time.
    """
    places = {device: place for place, device in enumerate(previous)}
    pre, slow_cells = np.zeros((len(places), 2, len(metrics))), np.full(len(places), -1, np.intp)
    for rows in counted:
        at = np.array([places[row.device] for row in rows], np.intp)
        runs = _latency(rows)
        devices, number = np.unique(at, return_inverse=True)
        slow_cells[devices] = _slow_cells(runs, number, devices.size)
        np.add.at(pre, at, _counts(rows, runs, slow_cells[at], metrics))
    return tuple(
        Member(
            device=device, previous=digest, pre_trials=tuple(trials), pre_events=tuple(events),
            slow_cell=None if cell < 0 else cell,
        )
        for (device, digest), (trials, events), cell in zip(
            previous.items(), pre.tolist(), slow_cells.tolist(), strict=True
        )
    )  # fmt: skip


def dispersed(
    metrics: Sequence[Metric], members: Sequence[Member], windows: Iterable[Sequence[Row]]
) -> tuple[Process, ...]:
    """Processes with the dispersion of `windows`, each with its `start_ms`, of these members. Some of the members are
    enough (`ENOUGH`)."""
    places = {member.device: place for place, member in enumerate(members)}
    slow_cells = np.array([-1 if m.slow_cell is None else m.slow_cell for m in members], np.intp)
    tables, devices, slots = [np.zeros((0, 2, len(metrics)))], [np.zeros(0, np.intp)], [np.zeros(0, np.intp)]
    for rows in windows:
        at = np.array([places[row.device] for row in rows], np.intp)
        tables.append(_counts(rows, _latency(rows), slow_cells[at], metrics))
        devices.append(at)
        slots.append(np.array([row.start_ms // SLOT_MS for row in rows], np.intp))
    every, at, slot = np.concatenate(tables), np.concatenate(devices), np.concatenate(slots)
    return tuple(
        Process(phi=dispersion(every[:, 1, i], every[:, 0, i], at, slot, least=STEADY if metric in ADVISORY else 1.0))
        for i, metric in enumerate(metrics)
    )


def tabulate(rows: Sequence[Row], slow_cells: npt.NDArray[Any], metrics: Sequence[Metric]) -> Floats:
    """float64[windows, trials | events, metrics]; `slow_cells`: of the device of each window, -1 for none.

    Cost: 5 µs a window where there are many.
    """
    if not rows:
        return np.zeros((0, 2, len(metrics)))
    out = _counts(rows, _latency(rows), slow_cells, metrics)
    told = [(r.mono_end_ms - r.mono_start_ms, r.shadow_n, r.shadow_agree) for r in rows]
    ms, compared, agreed = np.array(told, np.float64).T
    out[:, 0, len(METRICS) : _SHADOW] = ms[:, None] / 3600_000
    shadow = np.array([row.phase == "shadow" for row in rows])
    if shadow.any():
        out[shadow] = 0.0
        out[shadow, 0, _SHADOW], out[shadow, 1, _SHADOW] = compared[shadow], (compared - agreed)[shadow]
    return out


def _counts(rows: Sequence[Row], runs: Grids, slow_cells: npt.NDArray[Any], metrics: Sequence[Metric]) -> Floats:
    """`tabulate` of what is in windows and in hours alike; `runs`: their latencies."""
    out = np.zeros((len(rows), 2, len(metrics)))
    counted = np.array([(r.n, r.errors, r.labels_n, r.labels_wrong) for r in rows], np.float64).reshape(-1, 4)
    out[:, :, 0], out[:, :, 2] = counted[:, :2], counted[:, 2:]
    slow = runs.cell >= slow_cells[runs.owner]
    out[:, 0, 1] = np.bincount(runs.owner, runs.times, minlength=len(rows)) * (slow_cells >= 0)
    out[:, 1, 1] = np.bincount(runs.owner, runs.times * slow, minlength=len(rows)) * (slow_cells >= 0)
    if sure := [i for i, row in enumerate(rows) if row.confidence]:
        bins = ragged([rows[i].confidence for i in sure]).values.reshape(len(sure), -1)[:, :CONFIDENCE_BINS]
        out[sure, 0, FIRST_OUTCOME - 1], out[sure, 1, FIRST_OUTCOME - 1] = bins.sum(axis=1), bins @ _DOUBT
    for i, name in enumerate(metrics):
        if i >= FIRST_OUTCOME:
            told = np.array([row.outcomes.get(name, (0, 0)) for row in rows], np.float64).reshape(-1, 2)
            out[:, 0, i], out[:, 1, i] = told[:, 0], told[:, 0] - told[:, 1]
    return out


def _latency(rows: Sequence[Row]) -> Grids:
    """What was checked when it came; sums of it may be larger than any one."""
    return grids(ragged([row.latency_total for row in rows]), np.full(len(rows), np.iinfo(np.int64).max))


def _slow_cells(runs: Grids, device: npt.NDArray[np.intp], devices: int) -> npt.NDArray[np.intp]:
    """The cell behind the 95th percentile of each of so many devices, -1 of one without runs; `device` of each row."""
    cell = device[runs.owner] * GRID_CELLS + runs.cell
    reached = np.cumsum(np.bincount(cell, runs.times, minlength=devices * GRID_CELLS).reshape(-1, GRID_CELLS), axis=1)
    total = reached[:, -1:]
    return np.where(total[:, 0] > 0, np.count_nonzero(reached < 0.95 * total, axis=1) + 1, -1)


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
