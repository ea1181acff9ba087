"""Structured pruning by torch-pruning alone: channels of least magnitude go, the rest learns the labels again.

The net stays float. One ratio for all layers, the smallest in steps of 1/64 that is enough; channels stay multiples of
8, because that is what onnxruntime's convolutions like. It is given as much training as the recipe gives: the schedule
behind the recipe's own pruning, or else the student's whole one, on the same augmented rows; but labels, no teacher.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from edgewright_compiler.export.onnx import export_onnx
from edgewright_compiler.graph.tap import last_layer
from edgewright_compiler.measuring.counted import counted
from edgewright_compiler.pipeline.steps import CHECKPOINT
from edgewright_compiler.training.draws import draws
from edgewright_compiler.training.losses import task_loss
from edgewright_compiler.training.train import train

from .given import Given

STEPS = 64


def pruned(given: Given, target: Path) -> dict[str, Any]:
    bench, recipe = given.bench, given.bench.recipe
    low, high = 0, STEPS - 1  # `low` is not enough, `high` is, or is as much as there is
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if given.small_enough(_cut(given.net, bench.example, middle)) else (middle, high)
    net = _cut(given.net, bench.example, high)
    schedule = recipe.schedule if recipe.prune is None else recipe.prune.tune
    seed = bench.seed_for(f"torch-pruning alone {given.file.step}")
    train(
        net,
        bench.front,
        draws(bench.data.train, recipe.augment, seed),
        task_loss(recipe.task, schedule=schedule, labels=bench.data.train.labels, net=net),
        schedule,
        seed=seed,
        progress=bench.progress("training what torch-pruning leaves"),
        checkpoint=target.parent / CHECKPOINT,
    )
    graph = given.graph(net)
    tensor = recipe.input
    row = torch.zeros(1, *tensor.shape, dtype=getattr(torch, tensor.dtype))
    export_onnx(graph, row, target, inputs=[tensor.name], outputs=[output.name for output in graph.outputs])
    before, after = counted(given.net, bench.example), counted(net, bench.example)
    return {
        "until": given.until,
        "enough": given.small_enough(net),
        "ratio": f"{high}/{STEPS}",
        "epochs": schedule.epochs,
        "macs": [before.macs, after.macs],
        "params": [before.params, after.params],
    }


def _cut(net: nn.Module, example: Tensor, step: int) -> nn.Module:
    """A copy without `step` of STEPS of every layer's channels."""
    smaller = copy.deepcopy(net).eval()
    pruner = torch_pruning.pruner.BasePruner(
        smaller,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=step / STEPS,
        ignored_layers=[last_layer(smaller, example)[1]],
        round_to=8,
    )
    pruner.step()
    return smaller
