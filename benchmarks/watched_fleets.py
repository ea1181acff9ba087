"""Whole fleets in virtual time, watched by what a hub decides with (`drift.watch`): windows in, pages out.

A device counts what virtual devices count (`simulation.inputs`): seven channels of input and embedding, two of output;
each device sees a little different inputs (a tilt of .04 of their standard deviation), and each window too (.03). All
feeds are alike. A page is what would wake somebody: the alarm of a device that its cohort's alarm does not list, or of
a cohort. With `ack` whoever is woken acknowledges at once, so that every stream goes on and may page again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgewright_contracts.baseline import make
from edgewright_contracts.binning import pack
from edgewright_hub.drift import answers
from edgewright_hub.drift.budget import Budget
from edgewright_hub.drift.groups import DriftPolicy
from edgewright_hub.drift.references import Reference, References, reference_of
from edgewright_hub.drift.streams import SKEWED
from edgewright_hub.drift.verdicts import pages
from edgewright_hub.drift.watch import Key, Watch
from edgewright_hub.simulation.inputs import CHANNELS, EDGE_HASH, REFERENCE, Inputs

DAY_S: Final = 86_400
WINDOW_S: Final = 1200
ROWS: Final = 240  # in a window, so that each is a block
FLEET: Final = "fleet"
START_MS: Final = 1_760_000_000_000

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Tilt = Callable[[float], "Floats | float"]  # of the inputs of each device, by days since the beginning
Speaks = Callable[[float], "Bools | bool"]


class Window(NamedTuple):
    """A row of telemetry.windows."""

    device: str
    cells: bytes
    start_ms: int
    mono_end_ms: int
    arrived_ms: int
    n: int = ROWS
    n_monitored: int = ROWS
    digest: str = "0" * 16
    variant: str = ""
    context: str = ""
    edge_hash: str = EDGE_HASH
    phase: str = "normal"
    mono_start_ms: int = 0
    spool_id: str = ""
    seq: int = 0
    repeated: int = 0
    input_age: bytes = b""


class Published(References):
    """Of one package, which is there."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def of(self, digest: str, variant: str) -> Reference:
        return self._reference

    def model(self, digest: str) -> str:
        return "virtual"

    def declares(self, digest: str, context: str) -> bool:
        return True


class Page(NamedTuple):
    day: float
    scope: str
    subject: str
    part: str


class Fleet:
    def __init__(self, devices: int, seed: int, *, budget: float = 1.0, policy: DriftPolicy = DriftPolicy()) -> None:  # noqa: B008
        self.rng = np.random.default_rng([seed, devices])
        self.names = [f"d{i:04}" for i in range(devices)]
        self.inputs = Inputs(devices, self.rng)
        training = self.inputs.draw(np.arange(devices), self._rows(devices), np.zeros(devices), self.rng).sum(0)
        self.watch = Watch(policy, Published(reference_of(make(CHANNELS, training, REFERENCE))))
        self.watch.budget = Budget(budget)
        self.watch.belong(dict.fromkeys(self.names, (FLEET,)))
        self.pages: list[Page] = []
        self.skewed: set[str] = set()  # devices said to differ from training from the beginning
        self._open: set[tuple[str, str]] = set()
        self._steps = 0

    def _rows(self, devices: int) -> npt.NDArray[np.int64]:
        return self.rng.multinomial(REFERENCE, np.full(devices, 1 / devices))

    @property
    def day(self) -> float:
        return self._steps * WINDOW_S / DAY_S

    def live(
        self, days: float, *, tilt: Tilt = lambda _: 0.0, speaks: Speaks = lambda _: True, ack: bool = True
    ) -> None:
        every = np.arange(len(self.names))
        for _ in range(round(days * DAY_S / WINDOW_S)):
            here = every[np.broadcast_to(speaks(self.day), every.shape)]
            tilts = np.broadcast_to(np.asarray(tilt(self.day), np.float64), every.shape)
            cells = self.inputs.draw(here, np.full(here.size, ROWS), tilts[here], self.rng)
            start_ms = START_MS + self._steps * WINDOW_S * 1000
            rows = [
                Window(self.names[at], pack(mine), start_ms, WINDOW_S * 1000, start_ms + WINDOW_S * 1000)
                for at, mine in zip(here.tolist(), cells, strict=True)
            ]
            self.watch.decide(self.watch.take(rows))
            self._steps += 1
            self._wake(ack)

    def _wake(self, ack: bool) -> None:
        now: dict[tuple[str, str], Page] = {}
        for group_key, group in self.watch.groups.items():
            s = group.streams
            alarmed = [("device", s.devices[at]) for at in np.flatnonzero(s.alarm[: len(s.devices)]).tolist()]
            for scope, subject in (*alarmed, ("cohort", FLEET)):
                key = Key(scope, subject, *group_key)
                if pages(self.watch, key):
                    now[scope, subject] = Page(self.day, scope, subject, key.part)
            skewed = np.flatnonzero(s.skew[: len(s.devices)] == SKEWED)
            self.skewed.update(s.devices[at] for at in skewed.tolist())
        self.pages += [page for subject, page in now.items() if subject not in self._open]
        self._open = set() if ack else set(now)
        for _, subject in now if ack else ():
            ended = answers.acknowledge(self.watch, subject)
            self.watch.decide_cohorts({key.group for key in ended})
