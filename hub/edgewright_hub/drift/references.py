"""The reference that a variant's windows are compared with: channels and counts that its package carries.

A package or variant that this hub does not have, or whose reference it cannot read, has none: its windows are not
tested, and no other's are held up. References are read once and kept, some kilobytes each.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa

from edgewright_contracts.baseline import Baseline, decode_baseline, per_channel
from edgewright_contracts.binning import Cells, unpack
from edgewright_contracts.built import built
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import Manifest

from ..storage import control
from .moves import Channels

_LOG = logging.getLogger(__name__)


class Package(NamedTuple):
    model: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Reference:
    edge_hash: str
    width: int
    channels: dict[str, Channels]  # of each part
    cells: dict[str, list[Cells]]
    slices: dict[str, list[slice]]  # into a window's row of cells

    def counts(self, row: Any) -> Cells | None:
        """The cells of a row of telemetry.windows; None when it was counted under other channels."""
        if row.edge_hash != self.edge_hash:
            return None
        if not row.cells:
            return np.zeros(self.width, np.int64)
        try:
            return unpack(row.cells, count=self.width)
        except ContractError:
            return None


class References:
    """Of all packages of hub.db, by the first 16 digits of the digest, and variant."""

    def __init__(self, blobs: Path) -> None:
        self._blobs = blobs
        self._packages: dict[str, Package] = {}
        self._unreadable: set[str] = set()
        self._known: dict[tuple[str, str], Reference | None] = {}

    def learn(self, connection: sa.Connection, digests: set[str]) -> None:
        """Look the packages of these windows up, unless they are known."""
        if digests - set(self._packages):
            p = control.packages.c
            for row in connection.execute(sa.select(p.name, p.digest, p.manifest)):
                try:
                    self._packages[row.digest[:16]] = Package(row.name, msgspec.convert(row.manifest, built(Manifest)))
                except (msgspec.ValidationError, ContractError) as error:
                    if row.digest not in self._unreadable:
                        _LOG.warning("no drift for %s %s: its manifest in hub.db: %s", row.name, row.digest[:16], error)
                    self._unreadable.add(row.digest)

    def model(self, digest: str) -> str:
        """The package's name, or "" of an unknown one."""
        return self._packages[digest].model if digest in self._packages else ""

    def declares(self, digest: str, context: str) -> bool:
        """Whether the package of this digest names this context; every one has the context ""."""
        return not context or (digest in self._packages and context in self._packages[digest].manifest.contexts)

    def of(self, digest: str, variant: str) -> Reference | None:
        package = self._packages.get(digest)
        if package is None:
            return None  # it may be published yet
        if (digest, variant) not in self._known:
            try:
                self._known[digest, variant] = reference_of(_baseline(package.manifest, variant, self._blobs))
            except (ContractError, OSError) as error:
                _LOG.warning("no drift for %s %s of %s: %s", package.model, variant, digest, error)
                self._known[digest, variant] = None
        return self._known[digest, variant]


def _baseline(manifest: Manifest, variant: str, blobs: Path) -> Baseline:
    return decode_baseline((blobs / manifest.files[manifest.variant(variant).baseline].sha256).read_bytes())


def reference_of(baseline: Baseline) -> Reference:
    cells = per_channel(baseline.channels, baseline.cells())
    starts = np.cumsum([0, *(c.width for c in baseline.channels)])
    parts: dict[str, Channels] = {}
    counts: dict[str, list[Cells]] = {}
    slices: dict[str, list[slice]] = {}
    for part in dict.fromkeys(c.group for c in baseline.channels):
        mine = [
            (c, s, row) for c, s, row in zip(baseline.channels, starts.tolist(), cells, strict=False) if c.group == part
        ]
        parts[part] = Channels(
            names=tuple(c.name for c, _, _ in mine),
            kinds=tuple(c.kind for c, _, _ in mine),
            widths=tuple(c.cells for c, _, _ in mine),
        )
        counts[part] = [row for _, _, row in mine]
        slices[part] = [slice(start, start + c.cells) for c, start, _ in mine]
    return Reference(baseline.edge_hash, int(starts[-1]), parts, counts, slices)
