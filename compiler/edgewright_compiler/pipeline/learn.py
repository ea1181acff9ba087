"""Steps that make weights: the teacher, the student that learns from it, and what pruning leaves of that.

Each is one step of the store, with a seed of its own: whichever of them is found finished, the others come out the
same. A long one keeps a checkpoint in its unfinished directory and goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from torch import nn

from edgewright_contracts.errors import RequestError
from edgewright_runtime.runtime import SUFFIXES, open_session

from ..graph.graph import Plain, plain
from ..graph.heads import head
from ..graph.reference import batch_size, run
from ..measuring.metrics import Outputs, value
from ..packaging import npz
from ..quantization.qat import rounded
from ..recipe import Schedule
from ..rows import Array, Labelled
from ..training.draws import Draw, draws
from ..training.finetune import load_weights
from ..training.losses import task_loss
from ..training.prune import cost_of, ladder, load_net, load_rounds, prune, save_net
from ..training.train import Loss, train
from .choice import Arch
from .clocked import latency_of
from .steps import CHECKPOINT, Step
from .teaching import learners, lesson_loss, lesson_rows, teacher_name
from .workbench import CLOCKED, CLOCKS, FOR_INT8, LEARNERS, LEARNING, RUNTIMES, TRUTH, Workbench, files_hash, shape_of

NET: Final = "net.npz"
OUTPUTS: Final = "outputs.npz"
HISTORY: Final = "history.json"
PRUNED: Final = "pruned.json"


@dataclass(frozen=True, slots=True)
class Learned:
    """A trained net: the step that made it, its untrained form, and where its weights are. `measured` is the name that
    the step had in the run whose recorded choice it is made from: seeds hang on it, and must be those of that run."""

    step: str
    build: Callable[[], nn.Module]
    path: Path
    measured: str = ""

    @property
    def origin(self) -> str:
        return self.measured or self.step

    def net(self) -> nn.Module:
        return load_net(self.path / NET, self.build)


def teacher(bench: Workbench) -> Learned | None:
    """The trained teacher; None when the recipe has none or it is a finished file."""
    plan = bench.recipe.teacher
    if plan is None or plan.build is None:
        return None
    build, schedule = plan.build, plan.schedule or bench.recipe.schedule
    weights = None if plan.weights is None else files_hash((plan.weights,))
    step = Step(
        "teacher",
        bench.facts(LEARNING, LEARNERS, net=shape_of(_untrained(build, 0)), schedule=asdict(schedule), weights=weights),
    )

    def make(part: Path) -> None:
        seed = bench.seed_for("teacher")
        net = _untrained(build, seed)
        if plan.weights is not None:
            load_weights(net, plan.weights)
        loss = task_loss(bench.recipe.task, schedule=schedule, labels=bench.data.train.labels, net=net)
        draw = draws(bench.data.train, bench.recipe.augment, seed)
        _train(bench, net, draw, loss, schedule, seed, part, "training the teacher")
        save_net(part / NET, net, ())

    return Learned(step.name, build, bench.store.get(step, make))


def student(bench: Workbench, arch: Arch, taught_by: Learned | None, sizes: tuple[int, ...] = ()) -> Learned:
    """The net of this architecture: trained at its width, pruned share by share down to its own, at last for int8.

    `sizes` are those of a recorded choice, see `pruned_sizes`.
    """
    if arch.qat:
        return _for_int8(bench, student(bench, msgspec.structs.replace(arch, qat=False), taught_by, sizes), taught_by)
    return _rounds(bench, arch, taught_by, sizes)[-1]


def pruned_sizes(bench: Workbench, arch: Arch, taught_by: Learned | None) -> tuple[int, ...]:
    """Bytes of weights after each round down to `arch`, where a clock decided them; otherwise none. Each round takes
    the fewest channels that do, and every channel has its bytes: the size says which are gone."""
    plan = bench.recipe.prune
    if plan is None or plan.target != "latency":
        return ()
    rounds = _rounds(bench, msgspec.structs.replace(arch, qat=False), taught_by, ())
    return tuple(_bytes(bench, one) for one in rounds[1:])


def _rounds(bench: Workbench, arch: Arch, taught_by: Learned | None, sizes: tuple[int, ...]) -> list[Learned]:
    """The net at its width, and what each round of pruning left of it."""
    found = [_wide(bench, arch.width, taught_by)]
    plan = bench.recipe.prune
    if arch.share == 1.0:
        return found
    recorded = iter(sizes)
    for target, shares in ({} if plan is None else ladder(plan)).items():
        for share in shares:
            found.append(_pruned(bench, found[-1], share, taught_by, next(recorded, None)))
        if target == arch.share:
            return found
    known = "none" if plan is None else ", ".join(map(str, plan.shares))
    raise RequestError(f"expected a share that {bench.recipe.name} prunes to ({known}), got {arch.share}")


def _bytes(bench: Workbench, learned: Learned) -> int:
    return int(cost_of("size", bench.example)(learned.net()))


def training(width: float) -> str:
    """The name of a stage."""
    return "training the student" if width == 1.0 else f"training the student at width {width:g}"


def tuning(share: float) -> str:
    return f"training what {share:.0%} leaves"


def original(bench: Workbench, taught_by: Learned | None) -> Learned:
    """The net that the package is compared with: the teacher, or else the student before it is pruned."""
    return taught_by or _wide(bench, bench.recipe.widths[0], None)


def _wide(bench: Workbench, width: float, taught_by: Learned | None) -> Learned:
    recipe = bench.recipe
    if recipe.student is None:
        if taught_by is None:
            raise RequestError(f"{recipe.name}: expected a student or a teacher that is a net, got neither")
        return taught_by
    build = partial(recipe.student, width)
    schedule = recipe.schedule
    facts = bench.facts(
        LEARNING,
        learners(bench),
        net=shape_of(_untrained(build, 0)),
        schedule=asdict(schedule),
        distil=None if recipe.distil is None else asdict(recipe.distil),
        teacher=teacher_name(bench, taught_by),
        width=width,
    )
    step = Step("student", facts)

    def make(part: Path) -> None:
        seed = bench.seed_for(f"student {width}")
        net = _untrained(build, seed)
        draw = lesson_rows(bench, seed)
        _train(
            bench, net, draw, lesson_loss(bench, net, draw, schedule, taught_by), schedule, seed, part, training(width)
        )
        save_net(part / NET, net, ())

    return Learned(step.name, build, bench.store.get(step, make))


def _pruned(bench: Workbench, before: Learned, share: float, taught_by: Learned | None, size: int | None) -> Learned:
    """One round: channels go until `share` of the whole net's cost is left, then it is trained again.

    `size` in bytes is what an earlier run came to by its clock; then as many channels go, and no clock is asked.
    """
    plan = bench.recipe.prune
    assert plan is not None
    clock = plan.target == "latency"
    facts = bench.facts(
        (*LEARNING, *CLOCKED) if clock else LEARNING,
        (*learners(bench), *CLOCKS) if clock else learners(bench),
        before=before.origin,
        share=share,
        plan={**asdict(plan), "shares": None},
        distil=None if bench.recipe.distil is None else asdict(bench.recipe.distil),
        teacher=teacher_name(bench, taught_by),
    )
    measured = Step("pruned", facts)
    there = before.step == before.origin and bench.store.has(measured)
    made = Learned(measured.name, before.build, bench.store.root / measured.name)
    if size is None or (there and _bytes(bench, made) == size):
        step = measured
    else:
        step = Step("pruned", {**facts, "before": before.step, "bytes": size})

    def make(part: Path) -> None:
        net = before.net()
        example = bench.example
        if size is not None:
            cost, whole, left = cost_of("size", example), float(size), 1.0
        else:
            cost = latency_of(bench) if clock else cost_of(plan.target, example)
            whole, left = cost(_untrained(before.build, 0)), share
        pruned = prune(
            net,
            example,
            cost=cost,
            whole=whole,
            share=left,
            round_to=plan.round_to,
            rounds=load_rounds(before.path / NET),
        )
        seed = bench.seed_for(f"pruned {before.origin} {share}")
        draw = lesson_rows(bench, seed)
        loss = lesson_loss(bench, net, draw, plan.tune, taught_by)
        _train(bench, net, draw, loss, plan.tune, seed, part, tuning(share))
        save_net(part / NET, net, pruned.rounds)
        told = {"channels": pruned.channels, "left": pruned.left, "before": pruned.before, "after": pruned.after}
        (part / PRUNED).write_bytes(msgspec.json.encode(told))

    return Learned(step.name, before.build, bench.store.get(step, make), measured.name)


def _for_int8(bench: Workbench, before: Learned, taught_by: Learned | None) -> Learned:
    """Trained on while it computes as if in int8; what comes out is float, and loses less when it is quantized."""
    recipe = bench.recipe
    schedule = (
        recipe.prune.tune
        if recipe.prune is not None
        else replace(recipe.schedule, epochs=-(-recipe.schedule.epochs // 4), rate=recipe.schedule.rate / 3)
    )
    facts = bench.facts(
        (*LEARNING, *FOR_INT8),
        learners(bench),
        before=before.step,
        schedule=asdict(schedule),
        distil=None if recipe.distil is None else asdict(recipe.distil),
        teacher=teacher_name(bench, taught_by),
        weight_bits=bench.weight_bits,
    )
    step = Step("qat", facts)

    def make(part: Path) -> None:
        net = before.net()
        seed = bench.seed_for(f"qat {before.origin}")
        with torch.no_grad():
            example = bench.front(torch.from_numpy(bench.calibration[recipe.input.name]))
        draw = lesson_rows(bench, seed)
        loss = lesson_loss(bench, net, draw, schedule, taught_by)
        with rounded(net, example, weight_bits=bench.weight_bits):
            _train(bench, net, draw, loss, schedule, seed, part, "training for int8")
        save_net(part / NET, net, load_rounds(before.path / NET))

    return Learned(step.name, before.build, bench.store.get(step, make))


def reference_outputs(bench: Workbench, taught_by: Learned | None, role: str, rows: Labelled) -> Outputs:
    """What the float model that the package is compared with answers, by declared output; kept, as a step.

    `role` is what the rows are for: test, validation, view 0.. (names are the recipe's, and need not differ).
    """
    plan = bench.recipe.teacher
    file = None if plan is None else plan.file
    by = teacher_name(bench, taught_by) or original(bench, taught_by).step
    step = Step("truth", bench.facts(TRUTH, (*LEARNERS, *RUNTIMES), rows=role, by=by))

    def make(part: Path) -> None:
        if file is not None:
            runtime = next(name for name, suffix in SUFFIXES.items() if suffix == file.suffix)
            found = run(open_session(file, runtime, inputs=(bench.recipe.input,), outputs=bench.declared), rows.inputs)
            if "logits" in found:
                found = _of_logits(bench, found["logits"])
        else:
            net = original(bench, taught_by).net()
            found = answered(plain(bench.recipe, bench.data, net, temperature=1.0, seed=bench.seed), rows)
        (part / OUTPUTS).write_bytes(npz(found))

    return arrays(bench.store.get(step, make) / OUTPUTS)


def _of_logits(bench: Workbench, logits: Array) -> dict[str, Array]:
    """What the head of a package would make of them."""
    answer = torch.from_numpy(logits)
    top = head(bench.recipe.task, answer, answer, labels=len(bench.data.labels), temperature=1.0, scale=1.0)
    return {out.name: made.numpy() for out, made in zip(top.outputs, top(answer, answer), strict=True)}


def arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def answered(graph: Plain, rows: Labelled) -> dict[str, Array]:
    """What the torch graph answers, by declared output."""
    (raw,) = rows.inputs.values()
    size = batch_size(math.prod(raw.shape[1:]))
    with torch.no_grad():
        parts = [graph(part) for part in torch.split(torch.from_numpy(raw), size)]
    names = [output.name for output in graph.outputs]
    return {name: torch.cat([part[i] for part in parts]).numpy() for i, name in enumerate(names)}


def _train(
    bench: Workbench,
    net: nn.Module,
    draw: Draw,
    loss: Loss,
    schedule: Schedule,
    seed: int,
    part: Path,
    stage: str,
) -> None:
    data, recipe = bench.data, bench.recipe
    validate = None
    if schedule.patience is not None:
        graph = plain(recipe, data, net, temperature=1.0, seed=bench.seed)
        sign = 1 if bench.metric.higher else -1

        def validate(_net: nn.Module) -> float:
            return sign * value(bench.metric, answered(graph.eval(), data.validation), data.validation.labels)

    history = train(
        net,
        bench.front,
        draw,
        loss,
        schedule,
        seed=seed,
        progress=bench.progress(stage),
        validate=validate,
        checkpoint=part / CHECKPOINT,
    )
    (part / HISTORY).write_bytes(msgspec.json.encode(asdict(history)))


def _untrained(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
