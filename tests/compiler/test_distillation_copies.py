"""A teacher that answers a few augmented copies once, and products in bfloat16: the same lesson, at less cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewright_compiler.recipe import Distil, Schedule
from edgewright_compiler.rows import Labelled
from edgewright_compiler.training.distill import Teaching, distillation, module_teacher, remembered
from edgewright_compiler.training.draws import draws
from edgewright_compiler.training.losses import task_loss
from edgewright_compiler.training.train import Batch, History, bfloat16_here, reproducible, train
from sim.nets import Case, case

ONE = case("cnn")
SCHEDULE = Schedule(epochs=4, batch=32)
PLAN = Distil(copies=2)


class Asked:
    """A teacher that keeps count of the rows that it answered."""

    def __init__(self, teacher: Teaching) -> None:
        self.teacher, self.rows = teacher, 0

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        self.rows += len(batch.x)
        return self.teacher.answer(batch)


def noisy(rng: np.random.Generator, rows: Any) -> Any:
    return (rows + rng.normal(0, 0.1, rows.shape)).astype(rows.dtype)


def built(one: Case, seed: int) -> nn.Module:
    with reproducible(seed):
        return one.build()


def taught(asked: Asked, *, remember: bool, schedule: Schedule = SCHEDULE, **more: Any) -> tuple[nn.Module, History]:
    net, draw = built(ONE, 1), draws(Labelled("train", {"x": ONE.rows}, ONE.labels), noisy, 1, copies=PLAN.copies)
    teacher: Teaching = remembered(asked, nn.Identity(), draw, copies=PLAN.copies) if remember else asked
    base = task_loss(ONE.task, schedule=schedule, labels=ONE.labels, net=net)
    loss = distillation(ONE.task, teacher, base, PLAN)
    more.setdefault("progress", lambda share: None)
    return net, train(net, nn.Identity(), draw, loss, schedule, seed=1, **more)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_each_copy_is_answered_once_and_teaches_the_same() -> None:
    anew, once = Asked(module_teacher(built(ONE, 9))), Asked(module_teacher(built(ONE, 9)))
    expected, found = taught(anew, remember=False)[1], taught(once, remember=True)[1]
    rehearsal = 2
    n = len(ONE.labels)
    assert anew.rows == SCHEDULE.epochs * n + rehearsal
    assert once.rows == PLAN.copies * n + rehearsal
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)


def test_epochs_go_round_the_copies() -> None:
    draw = draws(Labelled("train", {"x": ONE.rows}, ONE.labels), noisy, 1, copies=2)
    assert np.array_equal(draw(0)[0], draw(2)[0])
    assert np.array_equal(draw(1)[0], draw(5)[0])
    assert not np.array_equal(draw(0)[0], draw(1)[0])


def test_a_resumed_run_learns_from_the_same_answers(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(share: float) -> None:
        if share > 0.6:
            raise Killed

    whole, _ = taught(Asked(module_teacher(built(ONE, 9))), remember=True)
    path, ticks = tmp_path / "checkpoint.pt", iter(range(0, 100_000, 1000))
    more: dict[str, Any] = {"checkpoint": path, "clock": lambda: float(next(ticks))}
    with pytest.raises(Killed):
        taught(Asked(module_teacher(built(ONE, 9))), remember=True, progress=kill, **more)
    assert path.exists()
    resumed, _ = taught(Asked(module_teacher(built(ONE, 9))), remember=True, **more)
    assert same(whole, resumed)


@pytest.mark.skipif(not bfloat16_here(), reason="this CPU has no products in bfloat16")
def test_mixed_precision_learns_the_same_task_and_is_as_reproducible() -> None:
    mixed = replace(SCHEDULE, mixed=True)

    def run(schedule: Schedule) -> tuple[nn.Module, History]:
        return taught(Asked(module_teacher(built(ONE, 9))), remember=True, schedule=schedule)

    first, second, full = run(mixed), run(mixed), run(SCHEDULE)
    assert same(first[0], second[0])
    assert not same(first[0], full[0])
    assert first[1].losses == pytest.approx(full[1].losses, rel=0.05)
    assert all(p.dtype == torch.float32 for p in first[0].parameters())
