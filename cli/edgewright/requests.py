"""What can be wrong with a request to compile and is seen without the tools, which take seconds to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewright_compiler.data.loaders import file_and_name
from edgewright_compiler.data.opening import there
from edgewright_compiler.measuring.metrics import metric, tasks_of
from edgewright_compiler.naming import TASKS, nameable, slug
from edgewright_compiler.packaging import absent
from edgewright_contracts.errors import RequestError


def asked(model: str, told: dict[str, Any], out: Path, work: Path) -> None:
    """Raises RequestError for a file that is not there, a package that is, an unknown metric, or a name that no package
    can have. `told` are options as `compile` has them; a recipe's own name, version and task are not known here."""
    own = ".py:" in model
    if own:
        file_and_name(model)
    elif told["task"] and not Path(model).is_file():
        raise RequestError(f"{model}: no such model file")
    if told["task"]:
        name, version = named(model, told)
        absent(out / f"{name}-{version}")
    else:
        name, version = told["name"] or "any", told["version"] or "1"
        if told["name"] and told["version"]:
            absent(out / f"{name}-{version}")
    nameable(name, version)
    _folder(work)
    if told["data"]:
        there(told["data"])
    if told["finetune"] and not told["finetune"].is_file():
        raise RequestError(f"{told['finetune']}: no such file; --finetune takes a state dict that torch.save wrote")
    asked_for = told["metric"]
    if asked_for is None:
        return
    if ".py:" in asked_for:
        file_and_name(asked_for)
    elif told["task"]:
        metric(asked_for, TASKS[told["task"]])
    else:
        tasks_of(asked_for)


def named(model: str, told: dict[str, Any]) -> tuple[str, str]:
    """Name and version of the package of a model of one's own, or of a file."""
    return told["name"] or slug(Path(model.partition(".py:")[0]).stem), told["version"] or "1.0.0"


def _folder(work: Path) -> None:
    place = next(place for place in (work, *work.absolute().parents) if place.exists() or place.is_symlink())
    if not place.is_dir():
        raise RequestError(f"{place} is a file: expected a folder to keep steps and runs in; choose another --work")
