"""What accuracy needs of the packages of hub.db: names, variants, and where their confidence is counted. Read once."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.binning import Cells, offsets
from edgewright_contracts.built import built
from edgewright_contracts.channels import Channel, width
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import Manifest

from ..storage import control
from .expected import CONFIDENCE_WIDTH

_LOG = logging.getLogger(__name__)


class Variant(NamedTuple):
    model: str
    version: str
    edge_hash: str
    width: int  # of a row of cells
    at: int | None  # where the cells of its confidence begin; None: it has none

    def confidence(self, edge_hash: str, cells: Cells | None) -> Cells | None:
        """The cells of its confidence in a row that was counted under its channels."""
        if self.at is None or cells is None or (edge_hash, cells.size) != (self.edge_hash, self.width):
            return None
        return cells[self.at : self.at + CONFIDENCE_WIDTH]


class Packages:
    """By the first 16 digits of the digest, as on the wire. One that cannot be read is left out and logged. They are
    read again only when one was published."""

    def __init__(self, engine: sa.Engine, blobs: Path) -> None:
        p = control.packages.c
        with engine.connect() as connection:
            mark = connection.execute(sa.select(sa.func.count(), sa.func.max(p.published_ms))).one()
        self.known = _known(engine, blobs, tuple(mark))

    def digest(self, model: str, version: str) -> str:
        """ "" of an unknown one."""
        return next((d for (d, _), one in self.known.items() if (one.model, one.version) == (model, version)), "")

    def digests(self, model: str) -> set[str]:
        return {digest for (digest, _), one in self.known.items() if one.model == model}

    def variants(self, digest: str) -> tuple[str, ...]:
        return tuple(sorted(variant for d, variant in self.known if d == digest))

    def edge_hash(self, digest: str, variant: str) -> str:
        return self.known[digest, variant].edge_hash


@functools.lru_cache(maxsize=4)
def _known(engine: sa.Engine, blobs: Path, _mark: tuple[int, int]) -> dict[tuple[str, str], Variant]:
    p = control.packages.c
    out: dict[tuple[str, str], Variant] = {}
    with engine.connect() as connection:
        rows = connection.execute(sa.select(p.name, p.version, p.digest, p.manifest)).all()
    for row in rows:
        try:
            manifest = msgspec.convert(row.manifest, built(Manifest))
            for one in manifest.variants:
                baseline = decode_baseline((blobs / manifest.files[one.baseline].sha256).read_bytes())
                cells = width(baseline.channels), confidence(baseline.channels)
                out[row.digest[:16], one.id] = Variant(row.name, row.version, baseline.edge_hash, *cells)
        except (msgspec.ValidationError, ContractError, OSError) as error:
            _LOG.warning("no accuracy for %s %s: %s", row.name, row.version, error)
    return out


def confidence(channels: tuple[Channel, ...]) -> int | None:
    """Where the cells of the confidence begin: a score by that name, else the largest score of a row."""
    places = dict(zip(channels, offsets([c.width for c in channels]), strict=False))
    scores = [c for c in places if c.kind == "score"]
    named = [c for c in scores if c.name.rpartition(".")[2] == "confidence"]
    largest = [c for c in scores if c.source.reduce == "max"]
    return next((int(places[c]) for c in (*named, *largest)), None)
