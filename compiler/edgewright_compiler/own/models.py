"""The model that a person names: a builder function, or a finished file.

A builder is `FILE.py:FUNCTION`: it returns an untrained `nn.Module` and may take any of these by name:

    width    1.0 is the model as it was meant; smaller is a smaller model of the same kind
    classes  how many answers it gives: classes, labels or targets
    shape    of one sample as the net gets it, without the batch: (channels, h, w), (channels, steps), (columns,)

In the same file, `augment(rng, rows)` makes the training rows of each epoch, `front(data)` the preprocessing that is
exported with the net, and `host(rows)` what cannot be exported, see `host`; each is optional.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from edgewright_contracts.errors import RequestError

from ..data.loaders import file_and_name, function, guarded, imported, module_of

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
    host: Callable[..., Any] | None

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

    augment, front, host = (_hook(file, hook) for hook in ("augment", "front", "host"))
    return Builder(place, file, name, make, scales, augment, front, host)


def _hook(file: Path, name: str) -> Callable[..., Any] | None:
    found = getattr(module_of(file), name, None)
    if found is None:
        return None
    if not callable(found):
        raise RequestError(f"{file}:{name}: expected a function, got {type(found).__name__}")
    return guarded(found, file)


def local_sources(file: Path) -> tuple[Path, ...]:
    """The file and the modules below its folder that it imports, directly or not, sorted: what it depends on.

    Imports are read off the sources, so that one of a number counts, and one that something else had loaded before;
    what only running shows (a name made at run time) is taken from the imports seen up to now.
    """
    module_of(file)
    folder = file.resolve().parent
    found: set[Path] = set()
    todo = {file.resolve(), *imported(file)}
    while todo:
        path = todo.pop()
        found.add(path)
        todo |= _imports(path, folder) - found
    return tuple(sorted(found))


def _imports(path: Path, folder: Path) -> set[Path]:
    """Files below `folder` that import statements anywhere in this source name, with the packages around them."""
    if path.suffix != ".py":
        return set()
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # beside a `try`, or never reached: it is named by another source, and imports nothing itself
        return set()
    names: set[Path] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {folder.joinpath(*one.name.split(".")) for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = path.parents[node.level - 1] if node.level else folder
            module = start.joinpath(*(node.module or "").split(".")) if node.module else start
            names |= {module, *(module / one.name for one in node.names)}
    around = {up for name in names for up in (name, *name.parents) if up.is_relative_to(folder) and up != folder}
    files = {at for name in around for at in (name.with_name(f"{name.name}.py"), name / "__init__.py")}
    return {at.resolve() for at in files if at.is_file()}
