"""Which edge hash the windows of a variant must bear: that of the channels in its own package.

A package that this hub does not have, or whose reference cannot be read, has none: its windows are counted unseen.
Guarantee: what is published is known `FRESH_S` later. Cost: a look-up in a dict; hub.db is read at most that often.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.built import built
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import Manifest

from ..storage import control

FRESH_S: Final = 5.0
_LOG = logging.getLogger(__name__)


class Edges:
    """Of all packages in hub.db."""

    def __init__(self, engine: sa.Engine, blobs: Path) -> None:
        self._engine = engine
        self._blobs = blobs
        self._known: dict[tuple[str, str], str | None] = {}  # by the first 16 digits of the digest, and variant
        self._read: set[str] = set()  # digests
        self._read_s = float("-inf")

    def of(self, digest: str, variant: str) -> str | None:
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
                self._known[row.digest[:16], variant.id] = self._hash(manifest, row.digest, variant.id)

    def _hash(self, manifest: Manifest, digest: str, variant: str) -> str | None:
        place = self._blobs / manifest.files[manifest.variant(variant).baseline].sha256
        try:
            return decode_baseline(place.read_bytes()).edge_hash
        except (ContractError, OSError) as error:
            _LOG.warning("the windows of %s %s are not checked: %s", digest[:16], variant, error)
            return None
