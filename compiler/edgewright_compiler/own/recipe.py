"""From a person's model and data to a recipe like any other.

Guarantee: what can be wrong is found here, before anything is trained: the data are read and checked, the net is built
and answers two of their rows in the shape that its task needs, weights are compared by name. Equal files give an equal
recipe; the split of the data does not depend on the seed of the training.

    model  FILE.py:FUNCTION, see `models`. A function that takes `width` gives a family: the whole one is the teacher,
           narrower ones are its students. Without `width` the model itself is pruned and quantized.
    data   a folder, table, archive or FILE.py:FUNCTION, see `data.opening`
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task, TensorIn

from ..data.collection import RawKind, kind_of
from ..data.opening import open_data
from ..measuring.metrics import metric as metric_of
from ..naming import TASKS, slug
from ..recipe import Distil, Prune, Recipe, Schedule, Statistics, Teacher
from ..rows import Data
from ..training.finetune import load_weights
from .fronts import front_of
from .host import open_hosted
from .models import Builder, builder, finished, local_sources
from .teacher import finished_teacher
from .trial import answering, augmenting, own_front, prepared_rows

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
    "image": "image", "audio": "series", "series": "series", "vector": "vector", "tokens": "tokens", "text": "tokens",
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
    hooks = builder(model, classes=1, shape=())
    hosted = None if hooks.host is None else open_hosted(data, kind, hooks, seed=SPLIT_SEED)
    rows = open_data(data, kind, seed=SPLIT_SEED) if hosted is None else hosted.data
    if len(rows.train.inputs) != 1:
        raise RequestError(f"{data}: expected samples of one input, got {', '.join(rows.train.inputs)}")
    input_, raw = _input(rows)

    def front(data: Data) -> nn.Module:
        return front_of(raw, data) if hooks.front is None else own_front(hooks, data)

    prepared = prepared_rows(front(rows), rows, hooks)
    shape, classes = tuple(int(n) for n in prepared.shape[1:]), _answers(kind, rows)
    build = builder(model, classes=classes, shape=shape)
    file = None if teacher is None else finished(teacher)
    if file is not None and finetune is not None:
        raise RequestError(f"{finetune}: --finetune starts the teacher, and {file.name} is finished; leave one out")
    big = build if teacher is None or file is not None else builder(teacher, classes=classes, shape=shape)
    notes = [f"Model: {build.said}, {'a family of widths' if build.scales else 'of one size'}."]
    if hosted is not None:
        notes.append(hosted.note)
    for one in dict.fromkeys((build, big)):
        answering(one, kind, rows, prepared)
    if build.augment is not None:
        augmenting(build, rows)
    taught = None
    if file is not None:
        taught, note = finished_teacher(file, kind, input_, rows)
        notes.append(note)

    whole = _ready(big, kind, rows, prepared)
    if callable(getattr(build.make(1.0), "loss", None)):
        notes.append(f"Trained with the own loss(answer, labels) of {build.said}.")
    schedule = _schedule(rows, epochs, metric)
    tuned = _schedule(rows, epochs, metric, frozen=-(-epochs // 4)) if finetune is not None else schedule
    if finetune is not None:
        notes.append(_finetuned(whole(1.0), finetune))
    sources = tuple(dict.fromkeys(p for b in (build, big) for p in local_sources(b.file)))
    sources += tuple(p for p in _python(str(data), metric) if p not in sources)
    recipe = Recipe(
        name=name or slug(build.file.stem),
        version=version,
        task=kind,
        input=input_,
        data=lambda: rows,
        source=rows.fingerprint,
        settings=_settings(model=build.said, teacher=teacher, finetune=finetune, epochs=epochs, metric=metric),
        sources=sources,
        front=front,
        statistics=_STATISTICS[raw],
        teacher=taught or Teacher(build=partial(whole, 1.0), schedule=tuned, weights=finetune),
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
    return recipe if hosted is None else hosted.recipe(recipe)


def task_of(name: str) -> Task:
    """`name` is what the command line calls it, or the manifest. Raises RequestError."""
    found = TASKS.get(name) or next((t for t in TASKS.values() if t == name), None)
    if found is None:
        raise RequestError(f"expected a task among {', '.join(TASKS)}, got {name!r}")
    return found


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
        valid = (0.0, float(int(array.max())))  # of training rows alone: what is judged on must not shape the package
    unit = {"image": "level", "audio": "16-bit sample"}.get(raw, "")
    shape = tuple(int(n) for n in array.shape[1:])
    return TensorIn(name=name, dtype=array.dtype.name, shape=shape, valid=valid, unit=unit), raw  # type: ignore[arg-type]


def _answers(task: Task, rows: Data) -> int:
    if task == "regression":
        return int(rows.train.labels.shape[1])
    return 1 if task == "anomaly" else len(rows.labels)


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


def _settings(*, model: str, teacher: str | None, finetune: Path | None, epochs: int, metric: str) -> str:
    facts = {"model": model, "epochs": str(epochs), "metric": metric}
    if teacher is not None:
        facts["teacher"] = Path(teacher).name
    if finetune is not None:
        facts["finetune"] = finetune.name
    return ", ".join(f"{key}={value}" for key, value in facts.items())


def _python(*places: str) -> list[Path]:
    files = (Path(place.rpartition(":")[0]) for place in places if ".py:" in place)
    return [p for file in files if file.is_file() for p in local_sources(file)]
