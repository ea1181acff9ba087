"""What the cells of a variant's windows must be like: as the channels in its own package say.

A package that this hub does not have, or whose reference cannot be read, has none: its windows are counted unseen.
Guarantee: what is published is known `FRESH_S` later. Cost: a look-up in a dict; hub.db is read at most that often.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import sqlalchemy as sa

from edgewright_contracts.baseline import Baseline, decode_baseline
from edgewright_contracts.built import built
from edgewright_contracts.channels import SCORE_ONE, width
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import Manifest

from ..storage import control

FRESH_S: Final = 5.0
MANY: Final = ("each", "area")  # of `Source.reduce`: any number of values an inference
_LOG = logging.getLogger(__name__)


class Layout(NamedTuple):
    edge_hash: str
    width: int  # cells
    most: int | None  # that one inference can add to all cells together; None: any number


class Edges:
    """Of all packages in hub.db."""

    def __init__(self, engine: sa.Engine, blobs: Path) -> None:
        self._engine = engine
        self._blobs = blobs
        self._known: dict[tuple[str, str], Layout | None] = {}  # by the first 16 digits of the digest, and variant
        self._read: set[str] = set()  # digests
        self._read_s = float("-inf")

    def of(self, digest: str, variant: str) -> Layout | None:
        key = (digest, variant)
        if key not in self._known and time.monotonic() - self._read_s > FRESH_S:
            self._learn()
        return self._known.get(key)

    def _learn(self) -> None:
        p = control.packages.c
        with self._engine.connect() as connection:
            new = [row for row in connection.execute(sa.select(p.digest)) if row.digest not in self._read]
            rows = connection.execute(
                sa.select(p.digest, p.manifest).where(p.digest.in_([row.digest for row in new]))
            ).all()
        self._read_s = time.monotonic()
        for row in rows:
            self._read.add(row.digest)
            try:
                manifest = msgspec.convert(row.manifest, built(Manifest))
            except (msgspec.ValidationError, ContractError) as error:
                _LOG.warning("the windows of %s are not checked: its manifest in hub.db: %s", row.digest[:16], error)
                continue
            for variant in manifest.variants:
                self._known[row.digest[:16], variant.id] = self._layout(manifest, row.digest, variant.id)

    def _layout(self, manifest: Manifest, digest: str, variant: str) -> Layout | None:
        place = self._blobs / manifest.files[manifest.variant(variant).baseline].sha256
        try:
            return layout(decode_baseline(place.read_bytes()))
        except (ContractError, OSError) as error:
            _LOG.warning("the windows of %s %s are not checked: %s", digest[:16], variant, error)
            return None


def layout(baseline: Baseline) -> Layout:
    channels = baseline.channels
    values = sum(1 + SCORE_ONE * (c.kind == "score") for c in channels)  # a score adds itself to the sum, too
    return Layout(
        baseline.edge_hash, width(channels), None if any(c.source.reduce in MANY for c in channels) else values
    )
