"""The devices of a rollout, in columns: what each was before, and how far it has come with the release. Pure.

What devices say comes late, doubled and out of order; `MEMBERS` says what each piece of news changes (`hearing`), and
whatever is not in it changes nothing. Failures of class `model` are held against the release (`fail`). After any other
the device rests (`retry`) and is asked again when its back-off is over, so often as the specification says for that
class; what only an operator can put right is not asked again but waited for. A device that gave up by itself (`stop`)
takes no further part; one that is held or closed (`put off`) comes in later, by the same gates. `departures` says who
leaves, retires and returns.

A column has one place for each device, in the order in which they are given the release (`order`); nothing here is
written to after it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from edgewright_contracts.event import FailureClass

from .gates import FIRST_OUTCOME
from .processes import METRICS, Floats

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]
Small = npt.NDArray[np.int8]
Numbers = npt.NDArray[np.int32]
Times = npt.NDArray[np.int64]  # UTC milliseconds

Status = Literal["waiting", "asked", "resting", "active", "committed", "failed", "late", "gone"]
Happening = Literal[
    "ask", "activate", "commit", "fail", "retry", "stop", "timeout", "put off", "leave", "retire", "return"
]

# Whatever is not here changes nothing: devices repeat themselves, and their old news comes late.
MEMBERS: Final[dict[tuple[Status, Happening], Status]] = {
    ("waiting",   "ask"):      "asked",
    ("asked",     "activate"): "active",
    ("asked",     "commit"):   "committed",
    ("asked",     "fail"):     "failed",
    ("asked",     "retry"):    "resting",
    ("asked",     "stop"):     "late",
    ("asked",     "timeout"):  "late",
    ("asked",     "put off"):  "waiting",
    ("resting",   "ask"):      "asked",
    ("resting",   "activate"): "active",    # devices try again by themselves too
    ("resting",   "commit"):   "committed",
    ("resting",   "fail"):     "failed",
    ("resting",   "stop"):     "late",
    ("resting",   "timeout"):  "late",
    ("resting",   "put off"):  "waiting",
    ("active",    "commit"):   "committed",
    ("active",    "fail"):     "failed",
    ("active",    "retry"):    "resting",
    ("committed", "fail"):     "failed",
    ("committed", "retry"):    "resting",
    ("waiting",   "leave"):    "gone",
    ("asked",     "leave"):    "gone",
    ("resting",   "leave"):    "gone",
    ("late",      "leave"):    "gone",
    ("waiting",   "retire"):   "gone",
    ("asked",     "retire"):   "gone",
    ("resting",   "retire"):   "gone",
    ("active",    "retire"):   "gone",
    ("committed", "retire"):   "gone",
    ("late",      "retire"):   "gone",
    ("gone",      "return"):   "waiting",
}  # fmt: skip
GIVEN: Final[tuple[Status, ...]] = ("asked", "resting", "active", "committed", "failed")

STATUSES: Final[tuple[Status, ...]] = get_args(Status)
HAPPENINGS: Final[tuple[Happening, ...]] = get_args(Happening)
CAUSES: Final[tuple[FailureClass, ...]] = get_args(FailureClass)

CODE: Final[Mapping[Status, int]] = {status: code for code, status in enumerate(STATUSES)}
NEXT: Final[Small] = np.array(
    [[CODE[MEMBERS.get((status, happening), status)] for happening in HAPPENINGS] for status in STATUSES], np.int8
)
IS_GIVEN: Final[Bools] = np.array([status in GIVEN for status in STATUSES])
OPERATOR: Final = CAUSES.index("operator")
_ZEROS: Final = (0.0,) * len(METRICS)


COLUMNS: Final[Mapping[str, str]] = {  # of Members, with their types
    "previous": "i2", "pre": "f8", "since": "f8", "pending": "f8", "slow_cell": "i2", "group": "i1", "status": "i1",
    "stage": "i1", "asked_ms": "i8", "due_ms": "i8", "windows": "i4", "attempts": "i1", "cause": "i1", "back": "?",
    "refused": "?", "lost": "?",
}  # fmt: skip
_LEADING: Final = {"pre": (2, 0), "since": (2, 0), "pending": (4, 0)}  # axes before that of the devices
_UNKNOWN: Final = ("previous", "slow_cell", "group", "stage")  # -1 unless said otherwise


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One device, as a row: what joins, and what people look at."""

    device: str
    previous: str | None  # the digest that it goes back to; None: it ran no package of this name
    pre_trials: tuple[float, ...] = _ZEROS  # before the rollout, by METRICS
    pre_events: tuple[float, ...] = _ZEROS
    control_trials: tuple[float, ...] = _ZEROS  # since, while it was not given the release
    control_events: tuple[float, ...] = _ZEROS
    slow_cell: int | None = None  # cells of the latency grid from here on are slow, for this device
    group: int | None = None  # the first stage whose selector means it
    status: Status = "waiting"
    stage: int | None = None  # in which it was given the release
    asked_ms: int = 0
    due_ms: int = 0  # when a resting device is asked again
    windows: int = 0  # that it has reported with the release
    attempts: int = 0  # that ended in a rest
    cause: FailureClass = "link"  # of the last of these
    back: bool = False  # seen on `previous` again
    refused: bool = False  # it failed in its self-test
    lost: bool = False  # it fell silent once since the rollout began, with the release or without
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """All of them; `Member` says what the columns mean. -1 stands for None; codes are places in STATUSES, CAUSES."""

    devices: tuple[str, ...]
    digests: tuple[str, ...]  # what devices go back to
    reasons: Mapping[str, str]  # by device, of those that have one
    previous: npt.NDArray[np.int16]  # a place in `digests`
    pre: Floats  # float64[trials | events, metrics, devices]
    since: Floats  # likewise, as control
    pending: Floats  # likewise, not judged yet, the treated side and then the control; no metrics where nothing waits
    slow_cell: npt.NDArray[np.int16]
    group: Small
    status: Small
    stage: Small
    asked_ms: Times
    due_ms: Times
    windows: Numbers
    attempts: Small
    cause: Small
    back: Bools
    refused: Bools
    lost: Bools

    def __len__(self) -> int:
        return len(self.devices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Members):
            return NotImplemented
        plain = ("devices", "digests", "reasons")
        return all(getattr(self, name) == getattr(other, name) for name in plain) and all(
            getattr(self, name) is getattr(other, name) or np.array_equal(getattr(self, name), getattr(other, name))
            for name in COLUMNS
        )

    def has(self, *statuses: Status) -> Bools:
        """bool[devices]: whose status is one of these."""
        found = np.zeros(len(self), np.bool_)
        for status in statuses:  # comparing bytes is ten times as fast as looking them up
            found |= self.status == CODE[status]
        return found

    @property
    def given(self) -> Bools:
        return self.has(*GIVEN)

    @property
    def labelled(self) -> Bools:
        """Devices for whose predictions truth has come: labels, or named outcomes."""
        return np.asarray((self.pre[0, METRICS.index("label")] > 0) | (self.pre[0, FIRST_OUTCOME:] > 0).any(axis=0))

    def columns(self) -> dict[str, int]:
        """The place of each device."""
        return {device: place for place, device in enumerate(self.devices)}

    def row(self, place: int) -> Member:
        def or_none(value: Any) -> int | None:
            return None if value < 0 else int(value)

        return Member(
            device=self.devices[place],
            previous=None if self.previous[place] < 0 else self.digests[self.previous[place]],
            pre_trials=tuple(self.pre[0, :, place].tolist()),
            pre_events=tuple(self.pre[1, :, place].tolist()),
            control_trials=tuple(self.since[0, :, place].tolist()),
            control_events=tuple(self.since[1, :, place].tolist()),
            slow_cell=or_none(self.slow_cell[place]),
            group=or_none(self.group[place]),
            status=STATUSES[self.status[place]],
            stage=or_none(self.stage[place]),
            asked_ms=int(self.asked_ms[place]),
            due_ms=int(self.due_ms[place]),
            windows=int(self.windows[place]),
            attempts=int(self.attempts[place]),
            cause=CAUSES[self.cause[place]],
            back=bool(self.back[place]),
            refused=bool(self.refused[place]),
            lost=bool(self.lost[place]),
            reason=self.reasons.get(self.devices[place], ""),
        )

    def rows(self) -> list[Member]:
        return [self.row(place) for place in range(len(self))]

    @classmethod
    def new(
        cls, devices: Sequence[str], digests: Sequence[str], reasons: Mapping[str, str] | None = None, **columns: Any
    ) -> Members:
        """These devices, in this order. Columns that are not given are as of devices that nothing is known of."""
        metrics = max(len(METRICS), *(columns[name].shape[1] for name in ("pre", "since") if name in columns), 0)
        every: dict[str, Any] = {}
        for name, dtype in COLUMNS.items():
            column = columns.get(name)
            if column is None:
                column = np.full((*_LEADING.get(name, ()), len(devices)), -1 if name in _UNKNOWN else 0, dtype)
            every[name] = widened(column, metrics) if name in ("pre", "since") else column
        return cls(tuple(devices), tuple(digests), reasons or {}, **every)

    @classmethod
    def of(cls, rows: Sequence[Member]) -> Members:
        digests = tuple(sorted({m.previous for m in rows if m.previous is not None}))
        places = {digest: place for place, digest in enumerate(digests)} | {None: -1}
        metrics = max((len(METRICS), *(len(m.pre_trials) for m in rows)))

        def known(values: Iterable[int | None], dtype: str) -> npt.NDArray[Any]:
            return np.array([-1 if value is None else value for value in values], dtype)

        def counts(*two: list[tuple[float, ...]]) -> Floats:
            out = np.zeros((2, metrics, len(rows)))
            for into, by_device in zip(out, two, strict=True):
                for place, values in enumerate(by_device):
                    into[: len(values), place] = values
            return out

        return cls.new(
            [m.device for m in rows],
            digests,
            {m.device: m.reason for m in rows if m.reason},
            previous=np.array([places[m.previous] for m in rows], np.int16),
            pre=counts([m.pre_trials for m in rows], [m.pre_events for m in rows]),
            since=counts([m.control_trials for m in rows], [m.control_events for m in rows]),
            slow_cell=known((m.slow_cell for m in rows), "i2"),
            group=known((m.group for m in rows), "i1"),
            status=np.array([CODE[m.status] for m in rows], np.int8),
            stage=known((m.stage for m in rows), "i1"),
            asked_ms=np.array([m.asked_ms for m in rows], np.int64),
            due_ms=np.array([m.due_ms for m in rows], np.int64),
            windows=np.array([m.windows for m in rows], np.int32),
            attempts=np.array([m.attempts for m in rows], np.int8),
            cause=np.array([CAUSES.index(m.cause) for m in rows], np.int8),
            back=np.array([m.back for m in rows], np.bool_),
            refused=np.array([m.refused for m in rows], np.bool_),
            lost=np.array([m.lost for m in rows], np.bool_),
        )


def widened(counts: Floats, metrics: int) -> Floats:
    """float64[..., metrics, devices] of it: empty rows for metrics that were not known when it was counted."""
    missing = metrics - counts.shape[-2]
    if missing <= 0:
        return counts
    return np.concatenate((counts, np.zeros((*counts.shape[:-2], missing, counts.shape[-1]))), axis=-2)


def happened(members: Members, places: Indices, happening: Happening, reasons: Sequence[str] = ()) -> Members:
    """The members after the hub did this to some of them, for these reasons, if it has any; those that it takes the
    release from have no stage."""
    status, stage = members.status.copy(), members.stage.copy()
    status[places] = NEXT[status[places], HAPPENINGS.index(happening)]
    stage[places] = np.where(IS_GIVEN[status[places]], stage[places], -1)
    names = [members.devices[place] for place in places.tolist()] if reasons else []
    told = {**members.reasons, **dict(zip(names, reasons, strict=True))} if reasons else members.reasons
    return replace(members, status=status, stage=stage, reasons=told)
