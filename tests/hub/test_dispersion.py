"""phi is 1 for Poisson counts, that of bursts, more where bursts last, and blind to what moves all devices."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_hub.rollouts.dispersion import dispersion

WINDOWS = 288


def _phi(
    devices: int, rate: float, *, bursts: float = 0.0, lasting: int = 1, common: float = 0.0, spread: float = 0.5,
    apart: int = 0,
) -> float:  # fmt: skip
    """Mean over three fleets with 60 runs in each window of a day; `apart`: windows between one clock and the next."""
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        own = rate * rng.gamma(1 / spread**2, spread**2, (devices, 1))
        shared = (1 + 0.3 * np.sin(np.arange(WINDOWS) / 46)) * np.exp(rng.normal(0, 0.2, WINDOWS)) if common else 1.0
        burst = rng.gamma(1 / bursts**2, bursts**2, (devices, WINDOWS // lasting)) if bursts else np.ones((devices, 1))
        factor = np.repeat(burst, lasting, 1) if bursts else burst
        events = rng.poisson(60 * own * shared * factor, (devices, WINDOWS)).astype(float)
        device, slot = np.divmod(np.arange(devices * WINDOWS), WINDOWS)
        found.append(dispersion(events.ravel(), np.full(events.size, 60.0), device, slot + apart * device))
    return float(np.mean(found))


@pytest.mark.parametrize("devices", [8, 60])
@pytest.mark.parametrize("rate", [1e-4, 0.01])
def test_poisson_counts_of_unequal_devices_have_none(devices: int, rate: float) -> None:
    assert _phi(devices, rate) == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_bursts_are_told_with_and_without_a_rhythm_that_all_share(common: float) -> None:
    true = 1 + 0.7**2 * 60 * 0.01 * 1.25  # devices with more events have more of it
    assert _phi(60, 0.01, bursts=0.7, common=common) == pytest.approx(true, rel=0.06)


def test_bursts_that_last_weigh_more_than_their_windows_say() -> None:
    assert _phi(60, 0.01, bursts=0.7, lasting=12) > 3.5
    assert _phi(60, 0.01, bursts=0.7) < 1.5


def test_devices_whose_clocks_are_years_apart_are_told_alike() -> None:
    assert _phi(30, 0.01, bursts=0.7, apart=1_000_008) == pytest.approx(_phi(30, 0.01, bursts=0.7), rel=0.05)


def test_too_little_to_tell_is_one() -> None:
    few = np.array([0.0, 9.0, 0.0])
    assert dispersion(few, np.full(3, 60.0), np.zeros(3, np.intp), np.arange(3)) == 1.0
    nothing = np.zeros(0)
    assert dispersion(nothing, nothing, nothing.astype(np.intp), nothing.astype(np.intp)) == 1.0
