"""Where what was chosen is weak: under named shifts, in single layers, in the rows that it learned from.

The package can do without each of these figures; one that is not defined for a metric is left out, with the reason.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from torch import nn

from edgewright_contracts.errors import RequestError

from ..data.suspects import suspects
from ..graph.graph import plain
from ..graph.reference import run
from ..measuring.evidence import Figure, LayerDrop, Shift
from ..measuring.metrics import Outputs, value
from ..measuring.robustness import adversarial, shifted
from ..measuring.slices import figure
from ..rows import Labelled
from ..training.sensitivity import sensitivity
from ..training.train import answers
from .assembly import Chosen, Part
from .choice import Arch
from .learn import Learned, answered, student
from .refinement import drawn
from .workbench import Workbench

SHIFTED_ROWS: Final = 2000  # of the test rows, for every shift
SUSPECTED_ROWS: Final = 50  # training rows below which nothing stands out
RANKED_ROWS: Final = 512  # validation rows that rank layers
NAMED: Final = 20  # suspects of either kind


def under_shifts(bench: Workbench, taken: Chosen, part: Part, left_out: list[str]) -> tuple[Shift, ...]:
    """A shift under which the metric is not defined goes to `left_out`, with the reason."""
    rows = bench.data.test.take(drawn(len(bench.data.test), SHIFTED_ROWS, bench.seed, b"shifted"))
    tensor, recipe = bench.recipe.input, bench.recipe
    raw = rows.inputs[tensor.name]
    session = part.file.open()
    changes = [(*one, False) for one in shifted(recipe.statistics, tensor, raw, seed=bench.seed)]
    moved = adversarial(recipe.statistics, bench.front, taken.built.net, tensor, raw, rows.labels, recipe.task)
    if moved is not None:
        changes.append(("fgsm", *moved, True))
    found = []
    for name, detail, changed, hostile in changes:
        outputs = run(session, {tensor.name: changed}, alone=part.file.alone)
        try:
            reached = measured(bench, outputs, rows)
        except RequestError as reason:
            left_out.append(f"robustness to {name} is left out: {reason}")
        else:
            found.append(Shift(name=name, detail=detail, figure=reached, adversarial=hostile))
    return tuple(found)


def layer_drops(
    bench: Workbench, taken: Chosen, taught_by: Learned | None, left_out: list[str]
) -> tuple[LayerDrop, ...]:
    """What half of each layer's channels is worth, in the net that pruning began with; none, and a line in `left_out`,
    where the metric is not defined."""
    if bench.recipe.prune is None:
        return ()
    whole = student(bench, Arch(width=taken.choice.arch.width), taught_by).net()
    rows = bench.data.validation.take(drawn(len(bench.data.validation), RANKED_ROWS, bench.seed, b"ranked"))
    points = bench.metric.points(bench.data.validation.labels) * (1 if bench.metric.higher else -1)

    def score(net: nn.Module) -> float:
        graph = plain(bench.recipe, bench.data, net, temperature=1.0, seed=bench.seed)
        return points * value(bench.metric, answered(graph, rows), rows.labels)

    try:
        table = sensitivity(whole, bench.example, score, round_to=bench.recipe.prune.round_to)
    except RequestError as reason:
        left_out.append(f"the sensitivity of layers is left out: {reason}")
        return ()
    return tuple(
        LayerDrop(layers=one.layers, channels=one.channels, kept=one.kept, drop=round(one.drop, 3)) for one in table
    )


def suspected(bench: Workbench, taken: Chosen) -> tuple[str, ...]:
    """Training rows to look at, the worst first, in words."""
    data = bench.data
    if bench.recipe.task != "classification" or len(data.train) < SUSPECTED_ROWS:
        return ()
    _, embeddings = answers(taken.built.net, bench.front, data.train.inputs[bench.recipe.input.name])
    found = suspects(data.train, data.labels, embeddings=embeddings.astype(np.float64), seed=bench.seed)
    labels = [f"{s.origin}: labelled {s.given}, looks like {s.likely} ({s.score:.2f})" for s in found.labels]
    outliers = [
        f"{s.origin}: looks like no other row, nearest {s.likely} ({s.score:.1f} deviations)" for s in found.outliers
    ]
    return (*labels[:NAMED], *outliers[:NAMED])


def measured(bench: Workbench, outputs: Outputs, rows: Labelled) -> Figure:
    return figure(bench.metric, outputs, rows.labels, seed=bench.seed, groups=rows.groups)
