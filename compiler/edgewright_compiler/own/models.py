"""The model that a person names: a builder function, or a finished file.

A builder is `FILE.py:FUNCTION`: it returns an untrained `nn.Module` and may take any of these by name:

    width    1.0 is the model as it was meant; smaller is a smaller model of the same kind
    classes  how many answers it gives: classes, labels or targets
    shape    of one sample as the net gets it, without the batch: (channels, h, w), (channels, steps), (columns,)

In the same file, `augment(rng, rows)` makes the training rows of each epoch, and `front(data)` the preprocessing that
is exported with the net; both are optional.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from torch import nn

from edgewright_contracts.errors import RequestError

from ..data.loaders import file_and_name, function, module_of

FILES: Final = (".onnx", ".tflite", ".pt2")  # finished models
_OFFERED: Final = ("width", "classes", "shape")


@dataclass(frozen=True, slots=True)
class Builder:
    """`make(width)` builds the net; `scales` says whether a width means anything to it."""

    place: str
    file: Path
    name: str
    make: Callable[[float], nn.Module]
    scales: bool
    augment: Callable[..., Any] | None
    front: Callable[..., Any] | None

    @property
    def said(self) -> str:
        """How messages call it."""
        return f"{self.file.name}:{self.name}"


def finished(model: str) -> Path | None:
    """The file, when `model` names a finished one; None for a builder. Raises RequestError for neither."""
    path = Path(model)
    if path.suffix in FILES:
        if not path.is_file():
            raise RequestError(f"{path}: no such model file")
        return path
    if ".py:" not in model:
        raise RequestError(
            f"unknown model {model!r}: expected FILE.py:FUNCTION that returns an nn.Module, "
            f"or a {', '.join(FILES)} file"
        )
    return None


def builder(place: str, *, classes: int, shape: tuple[int, ...]) -> Builder:
    """Raises RequestError for a function that wants something else, or that returns no module."""
    file, name = file_and_name(place)
    build = function(place)
    offered: Mapping[str, Any] = {"classes": classes, "shape": shape}
    parameters = inspect.signature(build).parameters
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name in _OFFERED:
            continue
        if parameter.default is parameter.empty:
            raise RequestError(
                f"{place} wants {parameter.name!r}: a builder may take {', '.join(_OFFERED)}; give the rest defaults"
            )
    given = {key: value for key, value in offered.items() if key in parameters}
    scales = "width" in parameters

    def make(width: float) -> nn.Module:
        net = build(**given, **({"width": width} if scales else {}))
        if not isinstance(net, nn.Module):
            raise RequestError(f"{place}: expected an nn.Module, got {type(net).__name__}")
        return net

    hooks = module_of(file)
    return Builder(place, file, name, make, scales, getattr(hooks, "augment", None), getattr(hooks, "front", None))


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
