"""Device profiles: all load, every figure names its source, an unknown device is told the known ones."""

from __future__ import annotations

import msgspec
import pytest

from edgewright_contracts.errors import RequestError
from edgewright_devices import DeviceProfile, all_profiles, load


def test_all_four_devices_load_and_are_frozen() -> None:
    profiles = all_profiles()
    assert [p.name for p in profiles] == ["jetson-orin-nano", "raspberry-pi-4", "raspberry-pi-5", "x86-gateway"]
    for profile in profiles:
        assert load(profile.name) == profile
        assert all(profile.sources.values())
    with pytest.raises(AttributeError):
        profiles[0].cores = 1  # type: ignore[misc]


def test_an_unknown_device_is_told_the_known_ones() -> None:
    with pytest.raises(
        RequestError, match="unknown device 'toaster': expected one of jetson-orin-nano, raspberry-pi-4"
    ):
        load("toaster")


def test_a_figure_without_a_source_is_refused() -> None:
    one = msgspec.to_builtins(load("x86-gateway"))
    del one["sources"]["cores"]
    with pytest.raises(msgspec.ValidationError, match="expected one for each of"):
        msgspec.convert(one, DeviceProfile)
