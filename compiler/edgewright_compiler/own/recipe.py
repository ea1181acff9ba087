"""From a person's model and data to a recipe like any other.

Guarantee: what can be wrong is found here, before anything is trained: the data are read and checked, the net is built
and answers two of their rows in the shape that its task needs, weights are compared by name. Equal files give an equal
recipe; the split of the data does not depend on the seed of the training.

    model  FILE.py:FUNCTION, see `models`. A function that takes `width` gives a family: the whole one is the teacher,
           narrower ones are its students. Without `width` the model itself is pruned and quantized.
    data   a folder, table, archive or FILE.py:FUNCTION, see `data.opening`
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task, TensorIn

from ..data.collection import RawKind, kind_of
from ..data.loaders import module_of
from ..data.opening import open_data
from ..graph.heads import head
from ..measuring.metrics import metric as metric_of
from ..recipe import Augment, Distil, Prune, Recipe, Schedule, Statistics, Teacher
from ..rows import Array, Data, take
from ..training.finetune import load_weights
from .fronts import front_of
from .models import Builder, builder, finished

TASKS: Final[dict[str, Task]] = {
    "classify": "classification",
    "multilabel": "multilabel",
    "regress": "regression",
    "detect": "detection",
    "anomaly": "anomaly",
}
METRICS: Final[dict[str, str]] = {
    "classification": "accuracy",
    "multilabel": "accuracy",
    "regression": "mae",
    "detection": "map50",
    "anomaly": "auroc",
}
EPOCHS: Final = 20
WIDTHS: Final = (1.0, 0.5, 0.25)
SPLIT_SEED: Final = 0
_STATISTICS: Final[dict[str, Statistics]] = {
    "image": "image", "audio": "series", "series": "series", "vector": "vector", "tokens": "tokens",
}  # fmt: skip


def own_recipe(
    model: str,
    data: str | Path,
    *,
    task: str,
    metric: str | None = None,
    name: str | None = None,
    version: str = "1.0.0",
    teacher: str | None = None,
    finetune: Path | None = None,
    epochs: int = EPOCHS,
) -> Recipe:
    """`task` is a key of TASKS. `teacher` is another builder, or a finished .onnx or .tflite file of the same raw
    input. `finetune` is a state dict: the last layer learns alone for the first quarter of the epochs.

    Raises RequestError for whatever is wrong with the request, the files or the rows; Unavailable.
    """
    kind = task_of(task)
    if finished(model) is not None:
        raise RequestError(f"{model} is finished and cannot be trained: it is packaged as it is, see compile_foreign")
    if epochs < 1:
        raise RequestError(f"expected at least one epoch, got {epochs}")
    metric = metric or METRICS[kind]
    metric_of(metric, kind)
    rows = open_data(data, kind, seed=SPLIT_SEED)
    if len(rows.train.inputs) != 1:
        raise RequestError(f"{data}: expected samples of one input, got {', '.join(rows.train.inputs)}")
    input_, raw = _input(rows)

    def front(data: Data) -> nn.Module:
        return front_of(raw, data) if hooks.front is None else _own_front(hooks, data)

    hooks = builder(model, classes=1, shape=())
    prepared = _prepared(front(rows), rows, hooks)
    shape, classes = tuple(int(n) for n in prepared.shape[1:]), _answers(kind, rows)
    build = builder(model, classes=classes, shape=shape)
    big = build if teacher is None or finished(teacher) is not None else builder(teacher, classes=classes, shape=shape)
    notes = [f"Model: {_place(build)}, {'a family of widths' if build.scales else 'of one size'}."]
    for one in dict.fromkeys((build, big)):
        _answering(one, kind, rows, prepared)
    if build.augment is not None:
        _augmenting(build, rows)

    schedule = _schedule(rows, epochs, metric)
    tuned = _schedule(rows, epochs, metric, frozen=-(-epochs // 4)) if finetune is not None else schedule
    if finetune is not None:
        notes.append(_finetuned(_ready(big, kind, rows, prepared)(1.0), finetune))
    sources = tuple(dict.fromkeys(p for b in (build, big) for p in local_sources(b.file)))
    sources += tuple(p for p in _python(str(data), metric) if p not in sources)
    return Recipe(
        name=name or slug(build.file.stem),
        version=version,
        task=kind,
        input=input_,
        data=lambda: rows,
        source=rows.fingerprint,
        settings=_settings(model=_place(build), teacher=teacher, finetune=finetune, epochs=epochs, metric=metric),
        sources=sources,
        front=front,
        statistics=_STATISTICS[raw],
        teacher=_teacher(teacher, _ready(big, kind, rows, prepared), tuned, finetune),
        student=_ready(build, kind, rows, prepared) if build.scales or teacher is not None else None,
        schedule=schedule,
        distil=Distil() if kind in ("classification", "multilabel", "regression") else None,
        prune=Prune(shares=(0.7, 0.5), tune=_schedule(rows, max(1, epochs // 2), metric, rate=1e-3)),
        augment=build.augment,
        widths=WIDTHS if build.scales else (1.0,),
        metric=metric,
        calibration=min(256, len(rows.train)),
        notes=tuple(notes),
    )


def task_of(name: str) -> Task:
    """`name` is what the command line calls it, or the manifest. Raises RequestError."""
    found = TASKS.get(name) or next((t for t in TASKS.values() if t == name), None)
    if found is None:
        raise RequestError(f"expected a task among {', '.join(TASKS)}, got {name!r}")
    return found


def slug(name: str) -> str:
    """`name` as a package may be called."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63] or "model"


def local_sources(file: Path) -> tuple[Path, ...]:
    """The file, and the modules beside it that it imports, directly or not: what its behaviour depends on."""
    folder, found, todo = file.resolve().parent, [file.resolve()], [module_of(file)]
    while todo:
        names = {value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
                 for value in vars(todo.pop()).values()}  # fmt: skip
        for name in sorted(n for n in names if isinstance(n, str)):
            module = sys.modules.get(name)
            path = getattr(module, "__file__", None)
            if module is None or not path or Path(path).parent != folder or Path(path) in found:
                continue
            found.append(Path(path))
            todo.append(module)
    return tuple(found)


class InUnits:
    """A forward hook that puts a net's answer, in deviations of its targets, into their unit.

    Without it a net would first have to learn that a target is near 20,000, in steps of its learning rate. It is a hook
    and no module around the net, so that names of weights stay those of the net's own files.
    """

    def __init__(self, targets: npt.NDArray[np.floating]) -> None:
        self.mean = torch.tensor(targets.mean(axis=0, dtype=np.float64), dtype=torch.float32)
        self.deviation = torch.tensor(targets.std(axis=0, dtype=np.float64), dtype=torch.float32)

    def __call__(self, net: nn.Module, inputs: object, answer: Tensor) -> Tensor:
        return answer * self.deviation.to(answer.device) + self.mean.to(answer.device)


def _ready(build: Builder, task: Task, rows: Data, prepared: Tensor) -> Callable[[float], nn.Module]:
    """The builder, with lazy layers given their sizes, and for a regression its answers put into their unit."""
    hook = InUnits(rows.train.labels) if task == "regression" else None  # type: ignore[arg-type]

    def make(width: float) -> nn.Module:
        net = build.make(width)
        if any(isinstance(p, UninitializedParameter) for p in net.parameters()):
            net.eval()
            with torch.no_grad():
                net(prepared)
            net.train()
        if hook is not None:
            net.register_forward_hook(hook)
        return net

    return make


def _input(rows: Data) -> tuple[TensorIn, RawKind]:
    ((name, array),) = rows.train.inputs.items()
    raw = kind_of(array, f"training samples {name!r}")
    valid = {"uint8": (0.0, 255.0)}.get(array.dtype.name)
    if raw == "tokens":
        valid = (0.0, float(max(int(s.inputs[name].max()) for s in (rows.train, rows.validation, rows.test))))
    unit = {"image": "level", "audio": "16-bit sample"}.get(raw, "")
    shape = tuple(int(n) for n in array.shape[1:])
    return TensorIn(name=name, dtype=array.dtype.name, shape=shape, valid=valid, unit=unit), raw  # type: ignore[arg-type]


def _answers(task: Task, rows: Data) -> int:
    if task == "regression":
        return int(rows.train.labels.shape[1])
    return 1 if task == "anomaly" else len(rows.labels)


def _two(rows: Data) -> Tensor:
    (array,) = take(rows.train.inputs, slice(0, 2)).values()
    return torch.from_numpy(np.ascontiguousarray(array))


def _own_front(hooks: Builder, data: Data) -> nn.Module:
    assert hooks.front is not None
    made = hooks.front(data)
    if not isinstance(made, nn.Module):
        raise RequestError(f"{hooks.file}: front(data) gave {type(made).__name__}: expected an nn.Module")
    return made


def _prepared(front: nn.Module, rows: Data, hooks: Builder) -> Tensor:
    try:
        with torch.no_grad():
            prepared = front.eval()(_two(rows))
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"{hooks.file}: its front does not take raw rows of shape {tuple(_two(rows).shape)}: {error}"
        ) from error
    if not isinstance(prepared, Tensor) or len(prepared) != 2:
        raise RequestError(f"{hooks.file}: its front must give one tensor with the samples along the first axis")
    return prepared


def _answering(build: Builder, task: Task, rows: Data, prepared: Tensor) -> None:
    """Does it answer two rows as its task needs? Raises RequestError with the net's own words."""
    net = build.make(1.0).eval()
    try:
        with torch.no_grad():
            answer = net(prepared)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RequestError(
            f"{_place(build)} does not take two samples of shape {tuple(prepared.shape[1:])}, which is what the front "
            f"gives it: {reason[0]}; let the builder take `shape`, or define front(data) in {build.file.name}"
        ) from error
    if not isinstance(answer, Tensor):
        raise RequestError(f"{_place(build)} answers {type(answer).__name__}: expected one tensor")
    if not torch.isfinite(answer).all():
        raise RequestError(f"{_place(build)}, untrained, answers NaN or infinity to the first two samples")
    labels = len(rows.labels) if task in ("classification", "multilabel", "detection") else 0
    head(task, answer, prepared, labels=labels, temperature=1.0, scale=1.0)
    if task == "regression" and answer.shape[1] != rows.train.labels.shape[1]:
        raise RequestError(
            f"{_place(build)} gives {answer.shape[1]} values: the data have {rows.train.labels.shape[1]}"
        )
    if task == "detection" and not callable(getattr(net, "loss", None)):
        raise RequestError(f"{_place(build)}: a detector needs a method loss(answer, labels) -> scalar of its own")


def _augmenting(build: Builder, rows: Data) -> None:
    assert build.augment is not None
    hook: Augment = build.augment
    (array,) = take(rows.train.inputs, slice(0, 4)).values()
    before = array.copy()
    made: Array = hook(np.random.default_rng(0), array)
    if not isinstance(made, np.ndarray) or made.shape != array.shape or made.dtype != array.dtype:
        got = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__
        raise RequestError(
            f"{build.file}: augment(rng, rows) gave {got} for {array.dtype} {array.shape}: expected raw rows of the "
            "same shape and dtype"
        )
    if not np.array_equal(before, array):
        raise RequestError(f"{build.file}: augment(rng, rows) changed the rows that it was given: work on a copy")


def _schedule(rows: Data, epochs: int, metric: str, *, rate: float = 3e-3, frozen: int = 0) -> Schedule:
    batch = int(np.clip(2 ** int(np.log2(max(1, len(rows.train) // 32))), 8, 64))
    tuned = frozen > 0
    return Schedule(
        epochs=epochs,
        rate=1e-3 if tuned else rate,
        batch=batch,
        shape="cosine" if tuned else "one-cycle",
        clip=5.0,
        balanced=metric == "macro_f1",
        frozen_epochs=frozen,
    )


def _finetuned(net: nn.Module, weights: Path) -> str:
    if not weights.is_file():
        raise RequestError(f"{weights}: no such file; --finetune takes a state dict that torch.save wrote")
    found = load_weights(net, weights)
    left = [*found.missing, *(line.split(":")[0] for line in found.mismatched)]
    fresh = f"; untrained: {', '.join(left[:5])}" + (f" and {len(left) - 5} more" if len(left) > 5 else "")
    return f"Fine-tuned from {weights.name}: {len(found.taken)} tensors taken{fresh if left else ''}."


def _teacher(
    place: str | None, make: Callable[[float], nn.Module], schedule: Schedule, weights: Path | None
) -> Teacher:
    file = None if place is None else finished(place)
    if file is not None:
        if file.suffix not in (".onnx", ".tflite"):
            raise RequestError(f"{file}: a teacher is FILE.py:FUNCTION, .onnx or .tflite")
        return Teacher(file=file)
    return Teacher(build=lambda: make(1.0), schedule=schedule, weights=weights)


def _settings(*, model: str, teacher: str | None, finetune: Path | None, epochs: int, metric: str) -> str:
    facts = {"model": model, "epochs": str(epochs), "metric": metric}
    if teacher is not None:
        facts["teacher"] = Path(teacher).name
    if finetune is not None:
        facts["finetune"] = finetune.name
    return ", ".join(f"{key}={value}" for key, value in facts.items())


def _place(build: Builder) -> str:
    return f"{build.file.name}:{build.name}"


def _python(*places: str) -> list[Path]:
    files = (Path(place.rpartition(":")[0]) for place in places if ".py:" in place)
    return [p for file in files if file.is_file() for p in local_sources(file)]
