"""Nets that are pruned until a clock is content are made again, bit for bit, from what the clock decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from torch import nn

from edgewright_compiler.pipeline import learn
from edgewright_compiler.pipeline.choice import Arch
from edgewright_compiler.pipeline.steps import Store
from edgewright_compiler.pipeline.workbench import Workbench
from edgewright_compiler.training.prune import cost_of
from edgewright_compiler.training.train import reproducible
from edgewright_models.digits.recipe import Settings, recipe

HALF = Arch(share=0.5)


def bench(root: Path, target: str = "latency") -> Workbench:
    digits = recipe(Settings(epochs=1, tune_epochs=1, distil=False, reference_rows=100))
    assert digits.prune is not None
    pruned = replace(digits.prune, target=target, shares=(0.5,), rounds=2)
    store = Store(root / "steps", lambda: 0.0)
    return Workbench(replace(digits, prune=pruned), seed=3, store=store, say=lambda _stage, _share: None)


def clock(monkeypatch: pytest.MonkeyPatch, overhead: float) -> None:
    """A machine on which a net takes as long as its products, and every call so much more."""

    def latency_of(at: Workbench) -> Callable[[nn.Module], float]:
        products = cost_of("macs", at.example)
        return lambda net: products(net) + overhead

    monkeypatch.setattr(learn, "latency_of", latency_of)


def made(at: Workbench, sizes: tuple[int, ...] = (), arch: Arch = HALF) -> bytes:
    with reproducible(at.seed):
        return (learn.student(at, arch, None, sizes).path / learn.NET).read_bytes()


def test_a_recorded_size_makes_the_net_that_another_machine_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = msgspec.structs.replace(HALF, qat=True)
    clock(monkeypatch, 0.0)
    first = bench(tmp_path / "first")
    pruned, for_int8 = made(first), made(first, arch=trained)
    sizes = learn.pruned_sizes(first, trained, None)
    assert len(sizes) == 2, "one for each round"
    assert sizes[0] > sizes[1]

    clock(monkeypatch, 30_000.0)
    second = bench(tmp_path / "second")
    assert made(second) != pruned, "its clock decides otherwise"
    assert learn.pruned_sizes(second, HALF, None) != sizes
    assert made(second, sizes) == pruned, "beside what it measured itself"

    third = bench(tmp_path / "third")
    assert made(third, sizes) == pruned, "on a fresh clone"
    assert made(third, sizes, trained) == for_int8


def test_what_was_measured_here_is_found_by_its_recorded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 0.0)
    at = bench(tmp_path)
    made(at)
    sizes = learn.pruned_sizes(at, HALF, None)
    before = sorted(path.name for path in at.store.root.iterdir())
    made(at, sizes)
    assert sorted(path.name for path in at.store.root.iterdir()) == before


def test_products_are_counted_alike_everywhere_and_need_no_record(tmp_path: Path) -> None:
    assert learn.pruned_sizes(bench(tmp_path, "macs"), HALF, None) == ()
