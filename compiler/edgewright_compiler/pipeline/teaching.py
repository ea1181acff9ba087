"""What a net is taught by: the rows that it sees, the loss on them, and who answers them first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ..recipe import Schedule
from ..training.distill import Teaching, distillation, file_teacher, module_teacher, remembered
from ..training.draws import Draw, draws
from ..training.losses import task_loss
from ..training.train import Loss
from .workbench import LEARNERS, RUNTIMES, Workbench, files_hash

if TYPE_CHECKING:
    from .learn import Learned


def lesson_rows(bench: Workbench, seed: int) -> Draw:
    """What a student learns from."""
    data, recipe = bench.data, bench.recipe
    copies = 0 if recipe.distil is None else recipe.distil.copies
    return draws(data.train, recipe.augment, seed, data.unlabelled, copies=copies)


def lesson_loss(bench: Workbench, net: nn.Module, draw: Draw, schedule: Schedule, taught_by: Learned | None) -> Loss:
    recipe = bench.recipe
    base = task_loss(recipe.task, schedule=schedule, labels=bench.data.train.labels, net=net)
    teaching = _teaching(bench, taught_by)
    if recipe.distil is None or teaching is None:
        return base
    if recipe.distil.copies:
        teaching = remembered(teaching, bench.front, draw, copies=recipe.distil.copies)
    return distillation(recipe.task, teaching, base, recipe.distil)


def _teaching(bench: Workbench, taught_by: Learned | None) -> Teaching | None:
    if taught_by is not None:
        return module_teacher(taught_by.net())
    plan = bench.recipe.teacher
    if plan is None or plan.file is None:
        return None
    return file_teacher(plan.file, bench.recipe.task, reads=bench.recipe.input, gives=bench.declared)


def learners(bench: Workbench) -> tuple[str, ...]:
    """The tools that a student's weights depend on; a teacher that is a file answers by its runtime."""
    plan = bench.recipe.teacher
    return LEARNERS if plan is None or plan.file is None else (*LEARNERS, *RUNTIMES)


def teacher_name(bench: Workbench, taught_by: Learned | None) -> str | None:
    """What the teacher is, for the facts of a step: the one that was trained, or the file and what it gives."""
    plan = bench.recipe.teacher
    if taught_by is not None:
        return taught_by.step
    if plan is None or plan.file is None:
        return None
    return files_hash((plan.file,)) + (" logits" if plan.logits else "")
