"""Device profiles: all load, every figure names its source, an unknown device is told the known ones."""

from __future__ import annotations

import msgspec
import pytest

from edgewright_contracts.errors import RequestError
from edgewright_devices import DeviceProfile, all_profiles, load


def test_all_eight_devices_load_and_are_frozen() -> None:
    profiles = all_profiles()
    assert {p.name for p in profiles} == {
        "raspberry-pi-zero-2w", "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5",
        "jetson-orin-nano", "imx8m-plus", "x86-gateway", "x86-gateway-vnni",
    }  # fmt: skip
    for profile in profiles:
        assert load(profile.name) == profile
        assert all(profile.sources.values())
    with pytest.raises(AttributeError):
        profiles[0].cores = 1  # type: ignore[misc]


def test_an_unknown_device_is_told_the_known_ones() -> None:
    with pytest.raises(
        RequestError, match="unknown device 'toaster': expected one of imx8m-plus, jetson-orin-nano, rasp"
    ):
        load("toaster")


def test_only_devices_with_an_8_bit_dot_product_claim_one() -> None:
    assert {p.name for p in all_profiles() if p.int8_dot} == {"raspberry-pi-5", "jetson-orin-nano", "x86-gateway-vnni"}


def test_a_figure_without_a_source_is_refused() -> None:
    one = msgspec.to_builtins(load("x86-gateway"))
    del one["sources"]["cores"]
    with pytest.raises(msgspec.ValidationError, match="expected one for each of"):
        msgspec.convert(one, DeviceProfile)
