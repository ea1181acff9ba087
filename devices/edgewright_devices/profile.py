"""Device profiles: what a compiler must know of a device, one TOML each, with the source of every figure.

A profile is a nominal description, not a measurement: what a model costs on a device is known only when it ran there.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Annotated, Literal

import msgspec

from edgewright_contracts.built import built
from edgewright_contracts.errors import RequestError

Runtime = Literal["onnxruntime", "litert", "tflite-runtime"]
Positive = Annotated[int, msgspec.Meta(gt=0)]


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`sources` names, for every figure, where it comes from."""

    name: str
    title: str
    arch: Literal["aarch64", "x86_64"]  # platform.machine()
    cores: Positive
    clock_mhz: Positive
    ram_mb: Positive
    storage_mb: Positive
    runtimes: Annotated[tuple[Runtime, ...], msgspec.Meta(min_length=1)]  # the device's own order of preference
    int8_dot: bool  # SDOT on Arm, VNNI on x86: without it, x86 sums of 8-bit products can saturate
    fp32_per_cycle: Positive  # peak float32 operations of one core in one cycle; a fused multiply-add counts two
    sources: dict[str, str]

    def __post_init__(self) -> None:
        figures = {*self.__struct_fields__} - {"name", "title", "sources"}
        if set(self.sources) != figures:
            raise ValueError(f"sources: expected one for each of {', '.join(sorted(figures))}")


def load(name: str) -> DeviceProfile:
    """Raises RequestError for an unknown device; its message lists the known ones."""
    profiles = {profile.name: profile for profile in all_profiles()}
    try:
        return profiles[name]
    except KeyError:
        raise RequestError(f"unknown device {name!r}: expected one of {', '.join(profiles)}") from None


def all_profiles() -> tuple[DeviceProfile, ...]:
    """Every profile beside this module, by name."""
    files = [f for f in resources.files(__package__).iterdir() if f.name.endswith(".toml")]
    decoded = [tomllib.loads(f.read_text(encoding="utf-8")) for f in sorted(files, key=lambda f: f.name)]
    return tuple(msgspec.convert(one, built(DeviceProfile)) for one in decoded)
