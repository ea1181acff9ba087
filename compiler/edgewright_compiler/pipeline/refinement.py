"""When static int8 loses too much and float does not: the layers that must stay float, found by measuring each.

Layers are ranked by how far the answers move (smooth: a few hundred rows tell), and given back until the metric itself,
on all validation rows, is where it has to be. A step: what was found is kept, with the whole table.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec
import numpy as np
import numpy.typing as npt

from edgewright_contracts.built import built
from edgewright_contracts.errors import Refused

from ..graph.reference import run
from ..measuring.metrics import value
from ..quantization.mixed import LayerHarm, layer_sensitivity, mixed
from ..quantization.schemes import Scheme
from ..rows import Rows, take
from .files import File
from .steps import Step
from .workbench import QUANTIZERS, REFINING, RUNTIMES, Workbench

RANKING_ROWS: Final = 256
_FOUND: Final = "layers.json"


class Refinement(msgspec.Struct, frozen=True):
    """`float_layers` are empty when none help, and `reason` says so; `harm` is every layer's, the largest first."""

    float_layers: tuple[str, ...]
    harm: tuple[tuple[str, float], ...]
    reason: str = ""


def drawn(n: int, most: int, seed: int, purpose: bytes) -> npt.NDArray[np.int64]:
    """Indices of at most `most` of n rows, ascending. Drawn, because the first rows of a split may be of one class."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng([seed, crc32(purpose)]).choice(n, most, replace=False))


def refined(bench: Workbench, source: File, scheme: Scheme, int8: float, allowed: float) -> Refinement:
    """For a static scheme whose file has the figure `int8`, and may lose `allowed` points against the float file."""
    facts = bench.facts(
        REFINING,
        (*QUANTIZERS, *RUNTIMES),
        source=source.step,
        scheme=asdict(scheme),
        calibration=bench.recipe.calibration,
        allowed=round(allowed, 6),
    )
    step = Step("mixed", facts)
    directory = bench.store.get(step, lambda part: _find(bench, source, scheme, int8, allowed, part))
    return msgspec.json.decode((directory / _FOUND).read_bytes(), type=built(Refinement))


def _find(bench: Workbench, source: File, scheme: Scheme, int8: float, allowed: float, part: Path) -> None:
    rows, metric = bench.data.validation, bench.metric
    few = take(rows.inputs, drawn(len(rows), RANKING_ROWS, bench.seed, b"ranking layers"))
    truth = _answers(source, few)
    points = metric.points(rows.labels) * (1 if metric.higher else -1)

    def nearness(path: Path) -> float:
        found = _answers(replace(source, path=path), few)
        return -float(np.mean([np.abs(found[name] - truth[name]).mean() for name in truth]))

    def figure(path: Path) -> float:
        return points * value(metric, run(replace(source, path=path).open(), rows.inputs), rows.labels)

    harm: tuple[LayerHarm, ...] = ()
    try:
        table = layer_sensitivity(
            scheme, source.path, bench.calibration, nearness, progress=bench.progress("ranking layers")
        )
        harm = table.layers
        judged = replace(table, float_score=figure(source.path), int8_score=points * int8)
        found = mixed(
            judged,
            source.path,
            bench.calibration,
            figure,
            max_drop=allowed,
            progress=bench.progress("choosing float layers"),
        )
        answer = Refinement(found.scheme.float_layers, tuple((one.layer, one.harm) for one in harm))
    except Refused as reason:
        answer = Refinement((), tuple((one.layer, one.harm) for one in harm), str(reason))
    (part / _FOUND).write_bytes(msgspec.json.encode(answer))


def _answers(file: File, rows: Rows) -> dict[str, npt.NDArray[np.float64]]:
    """All outputs but the monitor, which no scheme changes but through what it reads."""
    return {name: out.astype(np.float64) for name, out in run(file.open(), rows).items() if name != "monitor"}
