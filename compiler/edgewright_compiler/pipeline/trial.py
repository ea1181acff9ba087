"""The trial: what is asked of a recipe before anything is trained, so that a wrong request costs seconds and not hours.

In order: training rows enough to calibrate int8, a metric that reads what the package will give, an export to each
format. An untrained net stands for the trained one: its figures are worth nothing, its shapes and operators are those
of the package. Exports cost about 3 s each and are a step: a run that is resumed asks them no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.manifest import Format
from edgewright_devices import DeviceProfile

from ..graph.graph import Plain
from ..graph.heads import head
from ..graph.tap import Tapped
from ..measuring.metrics import Outputs
from ..quantization.apply import MIN_ROWS
from ..quantization.schemes import layer_kinds, schemes
from ..rows import Array, Labelled
from .build import export
from .files import NAMES
from .learn import answered
from .steps import Step
from .workbench import EXPORTERS, TRYING, Workbench, shape_of

ROWS: Final = 32  # validation rows that a metric is tried on, and one of each class (of so many) besides
STAGE: Final = "trying the export"


def tried(bench: Workbench, device: DeviceProfile, formats: Sequence[Format], *, thorough: bool) -> None:
    """`thorough`: the reference will be exported, too.

    Raises RequestError for too few rows to calibrate on, and for a metric or a net that does not fit the task; Refused
    for an operator that a format has no form of.
    """
    nets = _untrained(bench, thorough=thorough)
    packaged = nets[0]
    if any(scheme.calibrated for form in formats for scheme in schemes(form, device, layer_kinds(packaged))):
        _calibration(bench)
    graphs = [_graph(bench, net) for net in nets]
    _metric(bench, graphs[0])
    asked = [(form, net, graph) for form in formats for net, graph in zip(nets, graphs, strict=True)]
    made = [_exported(bench, *one, formats, at / len(asked)) for at, one in enumerate(asked)]
    if any(made):
        bench.say(STAGE, 1.0)


def _untrained(bench: Workbench, *, thorough: bool) -> list[nn.Module]:
    """The net that is packaged, and the reference where it has modules of other kinds and is exported."""
    recipe = bench.recipe
    teacher = None if recipe.teacher is None else recipe.teacher.build
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bench.seed)
        packaged = recipe.student(recipe.widths[0]) if recipe.student is not None else teacher and teacher()
        reference = teacher() if thorough and teacher is not None else None
    if packaged is None:
        raise RequestError(f"{recipe.name}: expected a student or a teacher that is a net, got neither")
    others = reference is not None and not _kinds(reference) <= _kinds(packaged)
    return [packaged.eval(), *([reference.eval()] if reference is not None and others else [])]


def _kinds(net: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in net.modules()}


def _graph(bench: Workbench, net: nn.Module) -> Plain:
    """As `graph.plain`, without the rows that scale an anomaly score."""
    recipe, data = bench.recipe, bench.data
    tapped = Tapped(net).eval()
    with torch.no_grad():
        prepared: Tensor = bench.front(torch.from_numpy(np.ascontiguousarray(_raw(data.train, slice(0, 2)))))
        answer, _ = tapped(prepared)
    top = head(recipe.task, answer, prepared, labels=len(data.labels), temperature=1.0, scale=1.0)
    return Plain(bench.front, tapped, top).eval()


def _raw(rows: Labelled, at: slice) -> Array:
    (array,) = rows.inputs.values()
    return array[at]


def _calibration(bench: Workbench) -> None:
    asked, there = bench.recipe.calibration, len(bench.data.train)
    if asked < MIN_ROWS <= there:
        raise RequestError(
            f"{bench.recipe.name}: expected a recipe that calibrates int8 on at least {MIN_ROWS} training rows, got "
            f"calibration={asked}"
        )
    if there < MIN_ROWS:
        rows = "1 training row" if there == 1 else f"{there} training rows"
        raise RequestError(
            f"{rows}: expected at least {MIN_ROWS}, which set the ranges of int8 (validation and test "
            "rows come on top); give more samples"
        )


def _metric(bench: Workbench, graph: Plain) -> None:
    """What an untrained net answers may leave a figure undefined. What is finite for neither that nor right answers to
    rows of every class never will be."""
    rows, metric = bench.data.validation, bench.metric
    metric.points(rows.labels)
    metric.points(bench.data.test.labels)
    few = rows.take(_spread(rows.labels))
    untrained = answered(graph, few)
    score = metric.score(untrained, few.labels)
    if ":" not in metric.name or not callable(score) or not _whole(bench, few.labels):
        return
    figure = score(np.ones(len(few)))
    right = _right(untrained, few.labels)
    best = metric.score(right, few.labels)
    if not np.isfinite(figure) and callable(best) and not np.isfinite(best(np.ones(len(few)))):
        raise RequestError(
            f"metric {metric.name}: expected a finite number, got {figure} for {len(few)} validation rows, and no "
            "finite one either where every answer is right. Nothing was trained yet"
        )


def _whole(bench: Workbench, labels: Array) -> bool:
    """Whether these labels have every class, and every label of several both ways."""
    if bench.recipe.task == "classification":
        return len(np.unique(labels)) == len(bench.data.labels)
    return bench.recipe.task == "regression" or (
        bench.recipe.task == "multilabel" and bool((np.ptp(labels, axis=0) > 0).all())
    )


def _right(answers: Outputs, labels: Array) -> dict[str, Array]:
    """The same outputs, of a net that is right everywhere."""
    found = dict(answers)
    if "values" in found:
        found["values"] = labels.astype(np.float32).reshape(found["values"].shape)
    elif labels.ndim == 1:
        found["probabilities"] = np.eye(found["probabilities"].shape[1], dtype=np.float32)[labels.astype(np.int64)]
    else:
        found["probabilities"] = labels.astype(np.float32)
    return found


def _spread(labels: Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows from all over a split, and the first one of each class: some metrics are defined on nothing less."""
    even = np.linspace(0, len(labels) - 1, min(ROWS, len(labels))).astype(np.int64)
    if labels.ndim > 1:
        return np.unique(even)
    return np.union1d(even, np.unique(labels, return_index=True)[1][:ROWS])


def _exported(
    bench: Workbench, form: Format, net: nn.Module, graph: Plain, formats: Sequence[Format], share: float
) -> bool:
    """Whether it was exported now, and not found tried."""
    step = Step("trial", bench.facts(TRYING, EXPORTERS, net=shape_of(net), form=form))
    now = False

    def make(part: Path) -> None:
        nonlocal now
        now = True
        bench.say(STAGE, share)
        export(graph, bench.recipe.input, form, part).unlink()

    try:
        bench.store.get(step, make)
    except Refused as reason:
        other = next((f"; --format {one} makes {NAMES[one]} alone" for one in formats if one != form), "")
        raise Refused(f"{reason}{other}. Nothing was trained yet") from reason
    return now
