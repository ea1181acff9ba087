"""Mixed precision: which layers cost the accuracy, measured one by one, and the fewest of them to keep float.

A layer's harm is what the score loses when that layer alone is int8 and all others stay float: alone, because beside
others that are int8 too its share cannot be told apart. Then layers are given back to float, the most harmful first,
until the loss is within the target; and each that turns out not to be needed is taken again.

Layers are told apart by the score, so a smooth one (minus the distance from the float file's answers) ranks them with a
few hundred rows, where accuracy would need thousands. Higher is better; the unit is the caller's.

Cost: one file and one score a layer for the table, and about twice the length of the float set for the choice. Ranges
of activations are found once.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgewright_contracts.errors import Refused, RequestError

from ..rows import Rows
from .apply import quantize
from .schemes import Scheme

Score = Callable[[Path], float]  # of a file; higher is better
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class LayerHarm:
    layer: str
    score: float  # with this layer int8 and all others float
    harm: float  # what float has more


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The most harmful layer first; equal ones in the order of the file."""

    scheme: Scheme
    float_score: float
    int8_score: float  # with every layer int8
    layers: tuple[LayerHarm, ...]


@dataclass(frozen=True, slots=True)
class Mixed:
    scheme: Scheme
    score: float
    tried: tuple[tuple[tuple[str, ...], float], ...]  # float layers and score, in the order of trying


def layer_sensitivity(
    scheme: Scheme,
    source: Path,
    calibration: Rows,
    score: Score,
    *,
    scope: str | None = "net",
    progress: Progress,
) -> Sensitivity:
    """The ranked table for a static scheme. Raises as `quantize`, and RequestError for a scheme of another method."""
    layers = _layers(scheme, source, scope)
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(scheme, source, calibration, score, scope, Path(scratch))
        whole, none = score(source), bench.score(())
        found = []
        for at, layer in enumerate(layers):
            progress(at / len(layers))
            alone = bench.score(tuple(other for other in layers if other != layer))
            found.append(LayerHarm(layer, alone, whole - alone))
    progress(1.0)
    return Sensitivity(scheme, whole, none, tuple(sorted(found, key=lambda row: -row.harm)))


def mixed(
    table: Sensitivity,
    source: Path,
    calibration: Rows,
    score: Score,
    *,
    max_drop: float,
    scope: str | None = "net",
    progress: Progress,
) -> Mixed:
    """The scheme with the fewest float layers found whose score is within `max_drop` of float's.

    Returns the scheme as it is when it needs none. Raises Refused when every layer but one would have to stay float.
    """
    enough = table.float_score - max_drop
    tried: list[tuple[tuple[str, ...], float]] = [((), table.int8_score)]
    if table.int8_score >= enough:
        return Mixed(table.scheme, table.int8_score, tuple(tried))
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(table.scheme, source, calibration, score, scope, Path(scratch))
        kept: list[str] = []
        reached = table.int8_score
        for row in table.layers[:-1]:
            progress(len(kept) / len(table.layers))
            kept.append(row.layer)
            reached = bench.score(tuple(kept))
            tried.append((tuple(kept), reached))
            if reached >= enough:
                break
        else:
            raise Refused(
                f"{table.scheme.id}: expected a drop of at most {max_drop:g}, and with all but one of "
                f"{len(table.layers)} layers float it is still {table.float_score - reached:g}; package it in "
                "float, or train for int8"
            )
        for layer in kept[:-1]:  # the last one is needed: without it, it was not enough
            without = tuple(other for other in kept if other != layer)
            again = bench.score(without)
            tried.append((without, again))
            if again >= enough:
                kept, reached = list(without), again
    progress(1.0)
    return Mixed(table.scheme.keeping(tuple(kept)), reached, tuple(tried))


@dataclass(frozen=True, slots=True)
class _Bench:
    scheme: Scheme
    source: Path
    calibration: Rows
    judge: Score
    scope: str | None
    scratch: Path

    def score(self, kept: tuple[str, ...]) -> float:
        target = self.scratch / f"trial.{self.scheme.format}"
        trial = self.scheme.keeping(kept)
        ranges = self.scratch / "ranges"
        quantize(trial, self.source, target, self.calibration, scope=self.scope, ranges=ranges)
        return self.judge(target)


def _layers(scheme: Scheme, source: Path, scope: str | None) -> tuple[str, ...]:
    if not scheme.calibrated:
        raise RequestError(f"{scheme.id}: expected a scheme with calibrated ranges, got {scheme.method}")
    found: tuple[str, ...] = importlib.import_module(f".{scheme.format}", __package__).layers(source, scope)
    whole = [
        layer for layer in found if not any(layer.startswith(f"{other}.") for other in found)
    ]  # a part of one goes
    layers = tuple(layer for layer in whole if layer not in scheme.float_layers)  # with it
    if len(layers) < 2:
        raise Refused(f"{scheme.id}: {source.name} has {len(layers)} layers to choose from; mixed precision needs two")
    return layers
