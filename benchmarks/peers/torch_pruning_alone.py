"""Structured pruning by torch-pruning alone: channels of least magnitude go, the rest learns the labels again.

The net stays float. One ratio for all layers, of 1/64 to 63/64 the one that comes nearest to the goal; channels stay
multiples of 8, because that is what onnxruntime's convolutions like. It is given as much training as the recipe gives:
the schedule behind the recipe's own pruning, or else the student's whole one, on the same augmented rows; but labels,
no teacher.
"""

from __future__ import annotations

import copy
from math import log
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch_pruning
from torch import Tensor, nn

from edgewright_compiler.export.onnx import export_onnx
from edgewright_compiler.graph.tap import last_layer
from edgewright_compiler.measuring.counted import counted
from edgewright_compiler.pipeline.steps import CHECKPOINT, Step
from edgewright_compiler.pipeline.workbench import LEARNERS, LEARNING
from edgewright_compiler.training.draws import draws
from edgewright_compiler.training.losses import task_loss
from edgewright_compiler.training.train import train

from .given import Given

STEPS = 64


def pruned(given: Given, target: Path) -> dict[str, Any]:
    bench, recipe = given.bench, given.bench.recipe
    schedule = recipe.schedule if recipe.prune is None else recipe.prune.tune
    facts = bench.facts(
        LEARNING, LEARNERS, net=given.built.learned.step, goal=given.until, schedule=msgspec.to_builtins(schedule)
    )
    made = bench.store.get(Step("peer-net", facts), lambda part: _learn(given, part))
    notes: dict[str, Any] = msgspec.json.decode((made / "notes.json").read_bytes())
    net = _cut(given.built.net, bench.example, notes["ratio"])
    net.load_state_dict(torch.load(made / "net.pt", weights_only=True))
    graph = given.graph(net.eval())
    tensor = recipe.input
    row = torch.zeros(1, *tensor.shape, dtype=getattr(torch, tensor.dtype))
    export_onnx(graph, row, target, inputs=[tensor.name], outputs=[output.name for output in graph.outputs])
    return notes


def _learn(given: Given, part: Path) -> None:
    """Find the ratio, cut, and train."""
    bench, recipe = given.bench, given.bench.recipe
    whole, example = given.built.net, bench.example

    def far(step: int) -> float:
        return abs(log(given.cost(counted(_cut(whole, example, step), example)) / given.goal))

    step = min(range(1, STEPS), key=far)
    net = _cut(whole, example, step)
    schedule = recipe.schedule if recipe.prune is None else recipe.prune.tune
    seed = bench.seed_for(f"torch-pruning alone {given.built.learned.step}")
    train(
        net,
        bench.front,
        draws(bench.data.train, recipe.augment, seed),
        task_loss(recipe.task, schedule=schedule, labels=bench.data.train.labels, net=net),
        schedule,
        seed=seed,
        progress=bench.progress("training what torch-pruning leaves"),
        checkpoint=part / CHECKPOINT,
    )
    torch.save(net.state_dict(), part / "net.pt")
    before, after = counted(whole, example), counted(net, example)
    notes = {
        "goal": given.until,
        "ratio": step,
        "epochs": schedule.epochs,
        "macs": [before.macs, after.macs],
        "params": [before.params, after.params],
    }
    (part / "notes.json").write_bytes(msgspec.json.encode(notes))


def _cut(net: nn.Module, example: Tensor, step: int) -> nn.Module:
    """A copy without about `step` of STEPS of every layer's channels."""
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
