"""Finding a recipe by its name or directory, and what the command line changes of it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgewright_contracts.errors import RequestError
from edgewright_models import RECIPES

if TYPE_CHECKING:
    from edgewright_compiler.recipe import Recipe

RECIPE_FILE: Final = "recipe.py"


def reference(model: str, told: dict[str, Any]) -> Recipe:
    """The recipe of this name or directory, with what the options change of it."""
    module = _loaded(module_name(model))
    settings = module.Settings()
    if told["quick"]:
        if not hasattr(module, "QUICK"):
            raise RequestError(f"{model} has no small form: expected Settings called QUICK in its {RECIPE_FILE}")
        settings = module.QUICK
    if told["version"] is not None:
        settings = replace(settings, version=told["version"])
    recipe: Recipe = module.recipe(settings)
    changed = {key: told[key] for key in ("name", "metric") if told[key] is not None}
    return replace(recipe, **changed)


def module_name(recipe: str) -> str:
    """The module of a reference recipe, or the directory of one's own. Raises RequestError for neither."""
    if recipe in RECIPES:
        return RECIPES[recipe]
    if (Path(recipe) / RECIPE_FILE).is_file():
        return recipe
    raise RequestError(
        f"unknown recipe {recipe!r}: expected one of {', '.join(RECIPES)}, a directory that holds {RECIPE_FILE}, or a "
        "model of your own as FILE.py:FUNCTION"
    )


def file_of(module_name: str) -> str:
    """The file of a module, without importing it."""
    path = Path(module_name) / RECIPE_FILE
    if path.is_file():
        return str(path)
    spec = importlib.util.find_spec(module_name)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


def _loaded(module_name: str) -> Any:
    """The recipe's module; one of a directory is loaded as a package, so that `from . import data` works there."""
    if module_name in RECIPES.values():
        return importlib.import_module(module_name)
    directory = Path(module_name).resolve()
    package = "edgewright_project"
    start = directory / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        package, start if start.is_file() else None, submodule_search_locations=[str(directory)]
    )
    assert spec is not None
    sys.modules[package] = importlib.util.module_from_spec(spec)
    module = importlib.import_module(f"{package}.recipe")
    missing = [name for name in ("Settings", "recipe") if not hasattr(module, name)]
    if missing:
        raise RequestError(
            f"{directory / RECIPE_FILE}: expected a dataclass Settings and recipe(settings), no {missing[0]}"
        )
    return module
