"""`variants/<id>/baseline.msgpack`: the channels of a package and this variant's reference counts for them.

The counts are made by the variant's own file on rows that no weight was trained on. Both tail cells of a numeric
channel hold 1, not 0: edges are quantiles of the reference, so nothing can lie outside by construction, and a cell of
probability zero would make the first value outside an infinite surprise (research: pitfall P1). The reference should
hold at least 20 times as many rows as a window that is tested against it.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import numpy as np

from .binning import Cells, offsets, pack, unpack
from .channels import MAX_CHANNELS, Channel, edge_hash, width
from .codec import Count, Hex64, decode, encode
from .errors import ContractError

BASELINE_BYTES: Final = 256 * 1024
VERSION: Final = 1


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    v: Annotated[int, msgspec.Meta(ge=1, le=VERSION)] = VERSION
    edge_hash: Hex64
    n: Count  # rows of the reference
    channels: Annotated[tuple[Channel, ...], msgspec.Meta(min_length=1, max_length=MAX_CHANNELS)]
    counts: bytes  # varints, all channels one after another

    def __post_init__(self) -> None:
        names = [c.name for c in self.channels]
        if len(set(names)) != len(names):
            raise ContractError("channels", "distinct names", ", ".join(names))
        if self.edge_hash != edge_hash(self.channels):
            raise ContractError("edge_hash", f"{edge_hash(self.channels)}, the hash of the channels", self.edge_hash)
        unpack(self.counts, field="counts", count=width(self.channels))

    def cells(self) -> Cells:
        """int64[width], as reported windows carry them."""
        return unpack(self.counts, field="counts")


def make(channels: tuple[Channel, ...], counts: Cells, n: int) -> Baseline:
    """A baseline from raw reference counts; raises the numeric tails to 1."""
    counts = counts.copy()
    for channel, start in zip(channels, offsets([c.width for c in channels]), strict=False):
        if channel.kind == "numeric":
            for tail in (start, start + len(channel.edges)):
                counts[tail] = max(1, int(counts[tail]))
    return Baseline(edge_hash=edge_hash(channels), n=n, channels=channels, counts=pack(counts))


def encode_baseline(baseline: Baseline) -> bytes:
    """Raises ContractError."""
    return encode(baseline, name="baseline", limit=BASELINE_BYTES, wire="msgpack")


def decode_baseline(data: bytes) -> Baseline:
    """Raises ContractError."""
    return decode(Baseline, data, name="baseline", limit=BASELINE_BYTES, wire="msgpack")


def per_channel(channels: tuple[Channel, ...], cells: Cells) -> list[Cells]:
    """The value cells of each channel (without a score's sum) as views into int64[width]."""
    starts = offsets([c.width for c in channels])
    if cells.size != starts[-1]:
        raise ContractError("cells", f"{starts[-1]} cells", str(cells.size))
    return [np.asarray(cells[s : s + c.cells]) for c, s in zip(channels, starts, strict=False)]
