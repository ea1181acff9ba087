"""What the outputs of a finished file mean, as far as the task and what they were seen to answer tell; and what is
counted about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from edgewright_contracts.channels import Source
from edgewright_contracts.manifest import Role, Task, TensorIn, TensorOut

from ..graph.features import LISTED, VALUES, Columns, Feature
from ..rows import Array
from .borders import Border
from .surgery import MONITOR, slug

Outputs = Mapping[str, Array]

_WIDE: Final = 4096  # columns of a tensor that a channel can name


def declared_inputs(inputs: Sequence[Border]) -> tuple[TensorIn, ...]:
    return tuple(TensorIn(name=b.name, dtype=b.dtype, shape=b.shape) for b in inputs)  # type: ignore[arg-type]


def declared_outputs(task: Task, outputs: Sequence[Border], seen: Outputs, columns: Columns) -> tuple[TensorOut, ...]:
    """The first output is the task's answer, the others are values."""
    first = outputs[0].name
    made = []
    for b in outputs:
        role = _role(task, seen[b.name]) if b.name == first else "values"
        made.append(TensorOut(name=b.name, role=role, dtype=b.dtype, shape=b.shape))  # type: ignore[arg-type]
    if columns:
        made.append(TensorOut(name=MONITOR, role="monitor", shape=(len(columns),)))
    return tuple(made)


def features(outputs: Sequence[TensorOut], columns: Columns) -> tuple[Feature, ...]:
    """Columns of the monitor, then each output by its role; a wide one by a few of its columns and its largest."""
    found = [Feature(name, group, "numeric", Source(MONITOR, "column", at)) for at, (name, group) in enumerate(columns)]
    for out in outputs:
        size = int(np.prod(out.shape))
        name = slug(out.name)
        if out.role == "monitor" or size == 0 or out.dtype == "bool":
            continue
        if out.role == "probabilities" and size > 1:
            classes = tuple(range(min(size, LISTED)))
            found.append(Feature(f"{name}.class", "output", "categorical", Source(out.name, "argmax"), classes))
            found.append(Feature(f"{name}.confidence", "output", "score", Source(out.name, "max")))
        elif out.role in ("probabilities", "score"):
            found.append(Feature(f"{name}.score", "output", "score", Source(out.name, "column", 0)))
            found.append(Feature(f"{name}.value", "output", "numeric", Source(out.name, "column", 0)))
        else:
            at = np.unique(np.linspace(0, min(size, _WIDE) - 1, min(size, VALUES)).astype(int))
            found += [Feature(f"{name}.{i}", "output", "numeric", Source(out.name, "column", int(i))) for i in at]
            if size > VALUES:
                found.append(Feature(f"{name}.largest", "output", "numeric", Source(out.name, "max")))
    return tuple(found)


def by_metric_name(outputs: Sequence[TensorOut], seen: Outputs) -> dict[str, Array]:
    """Outputs under the names that metrics ask for, flat: the first of each role."""
    found = dict(seen)
    wanted: dict[Role, str] = {"probabilities": "probabilities", "values": "values", "score": "score"}
    for role, name in wanted.items():
        tensor = next((t for t in outputs if t.role == role), None)
        if tensor is not None and name not in found:
            found[name] = seen[tensor.name].reshape(len(seen[tensor.name]), -1)
    if "probabilities" not in found and "values" in found:
        found["probabilities"] = found["values"]  # logits rank like the probabilities that they would make
    return found


def _role(task: Task, seen: Array) -> Role:
    shares = seen.dtype.kind == "f" and bool(((seen >= -1e-3) & (seen <= 1 + 1e-3)).all())  # type: ignore[operator]
    if task in ("classification", "multilabel"):
        return "probabilities" if shares and seen.ndim <= 2 else "values"
    if task == "anomaly":
        return "score" if shares else "values"
    return "embedding" if task == "embedding" else "values"
