"""What devices can run, by what they said of themselves when they came, and what speaks against a package.

Ruled out is only what a device's own words rule out: every variant of the package by its architecture and runtimes, its
agent's version, its memory. Of a device that has not said anything nothing is, and who says something else later is
asked anew. Cost: the births that came since the last look; then 0.6 µs for each device and package.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from edgewright_contracts.built import built
from edgewright_contracts.manifest import Manifest

from ..storage import control, telemetry


class Kit(NamedTuple):
    """Of a device; "" and 0 where it did not say."""

    arch: str
    runtimes: tuple[str, ...]  # the one that it prefers first
    agent: str = ""
    ram_mb: int = 0

    @classmethod
    def told(cls, birth: Mapping[str, Any]) -> Kit:
        hardware = birth.get("hardware") or {}
        return cls(
            str(hardware.get("arch", "")),
            tuple(birth.get("runtimes") or ()),
            str(birth.get("agent", "")),
            int(hardware.get("ram_mb", 0)),
        )


def why_not(manifest: Manifest, kit: Kit) -> str:
    """Why a device with this kit cannot run it; "": nothing is known against it."""
    if not manifest.ranked(kit.arch, kit.runtimes):
        has = ", ".join(f"{kit.arch}/{runtime}" for runtime in kit.runtimes) or "no runtime"
        return f"it has {has}, there are variants for {', '.join(manifest.ranking)}"
    if kit.agent and _release(manifest.requires_agent) > _release(kit.agent):
        return f"its agent is {kit.agent}, expected {manifest.requires_agent} or later"
    needs = manifest.budgets.rss_mb
    if needs is not None and 0 < kit.ram_mb < needs:
        return f"it has {kit.ram_mb} MB of memory, the model takes {needs:g}"
    return ""


class Abilities:
    """Of the whole fleet. From any thread."""

    def __init__(self, telemetry_engine: sa.Engine) -> None:
        self._telemetry = telemetry_engine
        self._lock = threading.Lock()
        self._heard_ms = -1
        self._kits: dict[str, Kit] = {}
        self._manifests: dict[str, Manifest] = {}
        self._answers: dict[tuple[str, Kit], str] = {}

    def read(self, connection: sa.Connection, digests: Iterable[str]) -> None:
        """Hear what devices said since the last time, and get to know these packages. `connection` is of hub.db."""
        d, p = telemetry.devices.c, control.packages.c
        query = sa.select(d.device, d.birth, d.birth_ms).where(d.birth_ms >= self._heard_ms, d.birth.is_not(None))
        with self._lock:
            with self._telemetry.connect() as other:
                for row in other.execute(query):
                    self._kits[row.device] = Kit.told(row.birth)
                    self._heard_ms = max(self._heard_ms, row.birth_ms)
            if missing := {digest for digest in digests if digest not in self._manifests}:
                found = connection.execute(sa.select(p.digest, p.manifest).where(p.digest.in_(missing)))
                self._manifests |= {one.digest: msgspec.convert(one.manifest, built(Manifest)) for one in found}

    def manifest(self, digest: str | None) -> Manifest | None:
        return self._manifests.get(digest or "")

    def why_not(self, device: str, digest: str) -> str:
        """Why it cannot run the package; "": nothing is known against it."""
        kit, manifest = self._kits.get(device), self._manifests.get(digest)
        if kit is None or manifest is None:
            return ""
        found = self._answers.get((digest, kit))
        if found is None:
            found = self._answers[digest, kit] = why_not(manifest, kit)
        return found

    def variant(self, device: str, digest: str) -> str | None:
        """The id of the one that it will choose; None: nobody knows."""
        kit, manifest = self._kits.get(device), self._manifests.get(digest)
        ranked = manifest.ranked(kit.arch, kit.runtimes) if kit and manifest else ()
        return ranked[0][0].id if ranked else None


@functools.lru_cache(maxsize=256)
def _release(version: str) -> tuple[int, ...]:
    """As agents compare them: the numbers in front, without zeros behind."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(n) for n in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
