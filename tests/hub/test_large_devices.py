"""A device with far more rows than the others of its fleet: neither does it hide what they show, nor is it judged by
what they vary by alone."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_hub.drift import sizes
from edgewright_hub.drift.groups import DriftPolicy, Group
from edgewright_hub.drift.moves import Channels
from edgewright_hub.drift.streams import Streams

CELLS, DEVICES, ROWS, WINDOW_MS = 12, 6, 240, 20 * 60_000
CHANNELS = Channels(names=("a", "b"), kinds=("numeric",) * 2, widths=(CELLS,) * 2)
SLOPE = np.linspace(-1, 1, CELLS)


class Fleet:
    """Devices with a block in each window, all wandering a little; the first has so many times the rows of each other.
    `made_up`: it counts anything."""

    def __init__(self, times: int, *, made_up: bool = False) -> None:
        self.rng = np.random.default_rng(3)
        self.rows = np.full(DEVICES, ROWS)
        self.rows[0] *= times
        self.made_up = made_up
        self.group = Group(DriftPolicy(), CHANNELS, [np.full(CELLS, 20_000 // CELLS)] * 2)
        self.at = np.array([self.group.baselines.enter(f"pi-{i}", "lab") for i in range(DEVICES)])
        self.windows = 0

    def live(self, windows: int, tilt: float = 0.0, *, of: int = 1) -> None:
        """All devices tilt, from the one numbered `of` on."""
        for _ in range(windows):
            self.windows += 1
            tilts = self.rng.normal(0, 0.08, (DEVICES, 2)) + tilt * (np.arange(DEVICES) >= of)[:, None]
            weights = np.exp(tilts[..., None] * SLOPE)
            if self.made_up:
                weights[0] = self.rng.random((2, CELLS))
            cells = self.rng.multinomial(self.rows[:, None], weights / weights.sum(-1, keepdims=True))
            start = np.full(DEVICES, self.windows * WINDOW_MS)
            self.group.take(self.at, cells, self.rows, start, np.full(DEVICES, WINDOW_MS))

    @property
    def c_f(self) -> float:
        return float(self.group.dispersion.c_f(0, 0).max())

    @property
    def log_e(self) -> np.ndarray:
        return self.group.log_e(self.at)


@pytest.mark.parametrize("whole_day", [False, True])
def test_a_large_device_does_not_make_the_dispersion_of_its_fleet(whole_day: bool) -> None:
    windows = 80 if whole_day else 40
    alike, mixed = Fleet(1), Fleet(1000)
    for fleet in (alike, mixed):
        fleet.live(windows)
        assert (fleet.group.first_day is None) == whole_day
    assert mixed.c_f == pytest.approx(alike.c_f, abs=0.2)
    mixed.live(4, 1.5)
    assert (mixed.log_e[1:] > 5).all(), "what the others show is seen at once"
    assert mixed.log_e[0] < 0


def test_a_large_device_is_quiet_while_it_wanders_as_the_others_do_and_found_when_it_moves() -> None:
    fleet = Fleet(1000)
    fleet.live(120)
    assert (fleet.log_e < 0).all()
    fleet.live(6, 1.5, of=0)
    assert fleet.log_e[0] > 5


def test_a_device_that_makes_up_a_thousand_million_rows_hides_nobody() -> None:
    fleet = Fleet(4_000_000, made_up=True)
    fleet.live(80)
    assert fleet.c_f < 1.5
    fleet.live(4, 1.5)
    assert (fleet.log_e[1:] > 5).all()


def test_a_block_is_large_beside_that_of_the_middle_device_by_the_time_it_ran() -> None:
    streams = Streams(1, CELLS)
    for device, (blocks, rows) in enumerate([(900, 700.0), (3, 200.0), (2, 200.0), (40, 5e6)]):
        streams.row(f"pi-{device}")
        streams.sizes[device, 1] = blocks, blocks * rows
    assert sizes.usual(streams, 1, 200) == 700, "devices that hardly ever run make no other one large"
    parts = sizes.parts(np.array([700.0, 2000.0, 7000.0]), streams, 1, 200)
    np.testing.assert_allclose(parts, [1, 1, 0.1])
    streams.row("new")
    streams.sizes[:, 1] = 0
    streams.n[:4, 0] = 240, 100, 300, 10**9
    assert sizes.usual(streams, 1, 200) == 240, "before their first block by what came until now"
