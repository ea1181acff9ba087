"""Channels: what is counted about inputs, embeddings and outputs. Compiler and agent count with the same `Binner`.

A channel takes values out of named output tensors (`Source`) and puts each into one of a fixed row of cells (`kind`):

    numeric      under | inner cells between the edges | over | missing      len(edges) + 2 cells
    categorical  one per listed class index | other                          len(values) + 1
    score        20 equal bins on [0, 1] | missing | sum of score × 4096     22
    count        0 .. 9 | 10+ | missing                                      12

A numeric cell is `searchsorted(edges, x, "right")`; the last edge closes its cell on the right, ±inf count as under and
over, NaN as missing. In a categorical channel whatever is not listed, NaN among it, is `other`. Nothing assumes
classes: a regression, a detection and an anomaly package differ only in their channels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from .binning import Cells, offsets
from .codec import Text
from .errors import ContractError

SCORE_BINS: Final = 20
SCORE_ONE: Final = 4096  # fixed point of a score's sum: exact to merge, and 2**28 scores of 1 still fit a cell
SCORE_SLACK: Final = 1e-3  # a dequantized probability may stand this far outside [0, 1]
COUNT_TOP: Final = 10
MAX_CHANNELS: Final = 256

Group = Literal["input", "embedding", "output"]
Kind = Literal["numeric", "categorical", "score", "count"]
Reduce = Literal["column", "argmax", "max", "each", "above", "area"]


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a channel's values come from; `outputs[tensor]` has the batch as its first axis.

    column   x[:, column]                     one value a row
    argmax   index of the row's largest       predicted class
    max      the row's largest                confidence
    each     every element                    scores or classes of all boxes
    above    how many elements > threshold    number of boxes
    area     (x1 - x0) * (y1 - y0) of x[..., 4]

    With `mask`, `each` and `area` count only where `outputs[mask] > threshold` (padded boxes stay out).
    """

    tensor: Text
    reduce: Reduce = "column"
    column: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    mask: Text = ""
    threshold: float = 0.5

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "threshold", float(self.threshold))
        if not math.isfinite(self.threshold):
            raise ContractError("threshold", "a finite number", repr(self.threshold))


class Channel(msgspec.Struct, frozen=True, omit_defaults=True):
    name: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9_.-]{0,62}\Z")]
    group: Group
    kind: Kind
    source: Source
    edges: Annotated[tuple[float, ...], msgspec.Meta(max_length=11)] = ()  # float32, numeric only
    values: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31)], ...], msgspec.Meta(max_length=20)
    ] = ()  # class indices, categorical only

    def __post_init__(self) -> None:
        # an int or a numpy scalar given for an edge must hash as the float that it becomes on the wire
        msgspec.structs.force_setattr(self, "edges", tuple(float(edge) for edge in self.edges))
        if self.kind == "numeric":
            e = np.asarray(self.edges, np.float64)
            if e.size < 2 or not np.isfinite(e).all() or (np.diff(e) <= 0).any():
                raise ContractError(
                    f"channels[{self.name}].edges", "2..11 finite, strictly increasing edges", _short(self.edges)
                )
            with np.errstate(over="ignore"):
                if (e != e.astype(np.float32)).any():
                    raise ContractError(f"channels[{self.name}].edges", "float32 edges", _short(self.edges))
        elif self.edges:
            raise ContractError(f"channels[{self.name}].edges", f"none for a {self.kind} channel", _short(self.edges))
        if (self.kind == "categorical") != bool(self.values):
            raise ContractError(
                f"channels[{self.name}].values", "class indices for a categorical channel only", _short(self.values)
            )
        if len(set(self.values)) != len(self.values):
            raise ContractError(f"channels[{self.name}].values", "distinct class indices", _short(self.values))

    @property
    def cells(self) -> int:
        """Number of cells that hold counts of values."""
        if self.kind == "numeric":
            return len(self.edges) + 2
        if self.kind == "categorical":
            return len(self.values) + 1
        return SCORE_BINS + 1 if self.kind == "score" else COUNT_TOP + 2

    @property
    def width(self) -> int:
        """Number of integers on the wire: the cells, and for a score their sum behind them."""
        return self.cells + (self.kind == "score")


def edge_hash(channels: Sequence[Channel]) -> str:
    """16 hex digits over all channel definitions: counts of two different hashes are never added."""
    return hashlib.sha256(msgspec.json.encode(list(channels), order="deterministic")).hexdigest()[:16]


def width(channels: Sequence[Channel]) -> int:
    return sum(channel.width for channel in channels)


class Binner:
    """Adds batches of outputs into `cells`, int64[width]. Not thread-safe: one thread bins (the meter's)."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self.channels = tuple(channels)
        self._starts = offsets([c.width for c in self.channels])
        self.cells: Cells = np.zeros(self._starts[-1], np.int64)
        places = list(zip(self.channels, self._starts, strict=False))
        plain = [(c, at) for c, at in places if c.kind == "numeric" and c.source.reduce == "column"]
        tensors = dict.fromkeys(c.source.tensor for c, _ in plain)
        self._columns = [_Columns(name, [p for p in plain if p[0].source.tensor == name]) for name in tensors]
        self._others = [(c, at, np.asarray(c.edges, np.float32)) for c, at in places if (c, at) not in plain]

    def add(self, outputs: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Count one batch; every tensor that a channel names must be there, batch first."""
        for group in self._columns:
            group.add(outputs, self.cells)
        for channel, start, edges in self._others:
            x = extract(channel.source, outputs)
            here = self.cells[start : start + channel.width]
            if channel.kind == "numeric":
                here += np.bincount(numeric_cells(x, edges), minlength=channel.cells)
            elif channel.kind == "categorical":
                here += _categorical(x, channel.values)
            elif channel.kind == "score":
                here += _score(x)
            else:
                here += _count(x)

    def take(self) -> Cells:
        """The cells so far; counting starts again at zero."""
        taken, self.cells = self.cells, np.zeros_like(self.cells)
        return taken


class _Columns:
    """All numeric channels that are columns of one tensor, binned together: a fifth of the cost of one by one."""

    def __init__(self, tensor: str, places: list[tuple[Channel, int]]) -> None:
        self._tensor = tensor
        self._at = np.array([c.source.column for c, _ in places])
        self._starts = np.array([[start] for _, start in places])
        self._last = np.array([[len(c.edges)] for c, _ in places], np.uint8)  # the cell over the last edge
        longest = int(self._last.max())
        edges = np.full((longest, len(places), 1), np.inf, np.float32)
        for i, (channel, _) in enumerate(places):
            edges[: len(channel.edges), i, 0] = channel.edges
        self._edges = edges
        self._closing = np.array([[c.edges[-1]] for c, _ in places], np.float32)

    def add(self, outputs: Mapping[str, npt.NDArray[np.generic]], cells: Cells) -> None:
        flat = _rows(_tensor(self._tensor, outputs))
        if int(self._at.max()) >= flat.shape[1]:
            raise ContractError(self._tensor, f"at least {int(self._at.max()) + 1} columns", str(flat.shape[1]))
        with np.errstate(over="ignore"):
            v = flat.T[self._at].astype(np.float32)  # one channel a row: numpy's inner loop then has one edge
        cell = np.zeros(v.shape, np.uint8)  # a byte holds every cell of a channel, and adds eight times as fast
        for edge in self._edges:
            cell += (v >= edge).view(np.uint8)
        np.minimum(cell, self._last, out=cell)  # +inf also passes the padding
        cell -= (v == self._closing).view(np.uint8)
        missing = np.isnan(v)
        if missing.any():
            np.copyto(cell, self._last + np.uint8(1), where=missing)
        cells += np.bincount((cell + self._starts).ravel(), minlength=cells.size)


def extract(source: Source, outputs: Mapping[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    """The channel's values of one batch, flat. Raises ContractError when a tensor or column is not there, or when a
    mask or the corners of boxes do not fit. Of a row without elements the largest is missing."""
    x = _tensor(source.tensor, outputs)
    flat = _rows(x)
    if source.reduce == "column":
        if source.column >= flat.shape[1]:
            raise ContractError(source.tensor, f"at least {source.column + 1} columns", str(flat.shape[1]))
        return np.asarray(flat[:, source.column])
    if source.reduce == "argmax":
        if flat.shape[1] == 0:
            return np.full(len(flat), -1)
        index = np.asarray(flat.argmax(axis=1))
        if flat.dtype.kind == "f":
            return np.asarray(np.where(np.isnan(flat).any(axis=1), -1, index))
        return index
    if source.reduce == "max":
        return np.asarray(flat.max(axis=1)) if flat.shape[1] else np.full(len(flat), np.nan, np.float32)
    if source.reduce == "above":
        return np.asarray((flat > source.threshold).sum(axis=1))  # type: ignore[operator]
    if source.reduce == "area":
        if flat.shape[1] % 4:
            raise ContractError(source.tensor, "boxes of 4 corners each", f"{flat.shape[1]} numbers a row")
        with np.errstate(over="ignore", invalid="ignore"):
            b = flat.reshape(len(flat), flat.shape[1] // 4, 4).astype(np.float32)
            flat = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    if source.mask:
        keep = _rows(_tensor(source.mask, outputs)) > source.threshold  # type: ignore[operator]
        if keep.shape != flat.shape:
            raise ContractError(source.mask, f"one number for each of {flat.shape}", str(keep.shape))
        return np.asarray(flat[keep])
    return flat.reshape(-1)


def _rows(x: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """(batch, elements); numpy cannot infer the second of an empty batch."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def numeric_cells(x: npt.NDArray[np.generic], edges: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Cell of each value: 0 under, 1..k-1 between the k edges, k over, k + 1 missing."""
    with np.errstate(over="ignore"):  # what float32 cannot hold lies outside every edge
        v = np.asarray(x, np.float32).ravel()
    k = edges.size
    cell = np.searchsorted(edges, v, "right")
    cell[v == edges[-1]] = k - 1
    cell[np.isnan(v)] = k + 1
    return cell


def _categorical(x: npt.NDArray[np.generic], values: tuple[int, ...]) -> Cells:
    v = np.asarray(x).ravel()
    each = np.array([np.count_nonzero(v == value) for value in values], np.int64)
    return np.append(each, v.size - each.sum())


def _score(x: npt.NDArray[np.generic]) -> Cells:
    v = np.asarray(x, np.float64).ravel()
    inside = (v >= -SCORE_SLACK) & (v <= 1 + SCORE_SLACK)
    s = np.clip(v[inside], 0, 1)
    bins = np.bincount(np.minimum((s * SCORE_BINS).astype(np.intp), SCORE_BINS - 1), minlength=SCORE_BINS)
    total = int(np.rint(s * SCORE_ONE).sum())
    return np.concatenate((bins, [v.size - s.size, total])).astype(np.int64)


def _count(x: npt.NDArray[np.generic]) -> Cells:
    v = np.asarray(x, np.float64).ravel()
    known = v >= 0
    bins = np.bincount(np.minimum(v[known], COUNT_TOP).astype(np.intp), minlength=COUNT_TOP + 1)
    return np.append(bins, v.size - np.count_nonzero(known)).astype(np.int64)


def _tensor(name: str, outputs: Mapping[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    try:
        x = np.asarray(outputs[name])
    except KeyError:
        raise ContractError("outputs", f"a tensor {name!r}", ", ".join(sorted(outputs)) or "none") from None
    if x.ndim == 0:
        raise ContractError(name, "a tensor with the batch as its first axis", "a scalar")
    return x


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
