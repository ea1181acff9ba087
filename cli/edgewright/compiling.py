"""`edgewright init | compile`: from a recipe to a package. The compiler is imported when a recipe is compiled."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgewright_contracts.errors import RequestError
from edgewright_devices import load
from edgewright_models import RECIPES

if TYPE_CHECKING:
    from edgewright_compiler.compilation import CompileResult

RECIPE_FILE = "recipe.py"


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help=f"The reference recipe to start from: {', '.join(RECIPES)}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def init(directory: Path, recipe: str, as_json: bool) -> None:
    """Copy a reference recipe into the new DIRECTORY, to be changed at will and compiled with `edgewright compile`."""
    source = Path(_found(_module_name(recipe))).parent
    if directory.exists():
        raise RequestError(f"{directory} exists already: name a new directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    part = directory.with_name(f".{directory.name}.part")
    try:
        part.mkdir()
        for file in sorted(source.iterdir()):
            if file.is_file():
                shutil.copyfile(file, part / file.name)
        part.rename(directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    files = sorted(p.name for p in directory.iterdir())
    if as_json:
        return click.echo(msgspec.json.encode({"directory": str(directory), "recipe": recipe, "files": files}).decode())
    click.echo(f"{directory}: {', '.join(files)}")
    return click.echo(f"Compile it with: edgewright compile {directory} --device x86-gateway")


@click.command("compile")
@click.argument("recipe")
@click.option("--device", required=True, help="A device profile, as raspberry-pi-5 or x86-gateway.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="Where NAME-VERSION/ is made.")
@click.option("--version", help="The version of the package; the recipe's own when left out.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 2**8), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compile_(recipe: str, device: str, out: Path, version: str | None, seed: int, as_json: bool) -> None:
    """Compile RECIPE (a reference recipe, or a directory made by `edgewright init`) for a device."""
    profile = load(device)
    module_name = _module_name(recipe)
    with _extras():
        from edgewright_compiler.quiet import quiet

        with quiet() as streams:
            console = Console(file=streams.err, quiet=as_json)
            with _bars(console) as told:
                told("loading the tools", 0.0)
                from edgewright_compiler.compilation import compile_recipe

                module = _loaded(module_name)
                settings = module.Settings() if version is None else replace(module.Settings(), version=version)
                made = module.recipe(settings)
                told("loading the tools", 1.0)
                target = out / f"{made.name}-{made.version}"
                result = compile_recipe(made, profile, target, seed=seed, now=datetime.now(UTC), progress=told)
    if as_json:
        return click.echo(msgspec.json.encode(_summary(result)).decode())
    return _show_result(Console(), result)


compile = compile_  # noqa: A001  the command's name is what the entry point looks for


def _module_name(recipe: str) -> str:
    """The module of a reference recipe, or the directory of one's own. Raises RequestError for neither."""
    if recipe in RECIPES:
        return RECIPES[recipe]
    if (Path(recipe) / RECIPE_FILE).is_file():
        return recipe
    raise RequestError(
        f"unknown recipe {recipe!r}: expected one of {', '.join(RECIPES)}, or a directory that holds {RECIPE_FILE}"
    )


def _found(module_name: str) -> str:
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


@contextmanager
def _extras() -> Iterator[None]:
    """A library that is not installed is answered with the command that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("edgewright"):
            raise
        raise RequestError(
            f"compiling needs the package {error.name!r}, which is not installed. "
            "Install it with: pip install 'edgewright[compiler,recipes]'"
        ) from None


@contextmanager
def _bars(console: Console) -> Iterator[Any]:
    """One bar per stage, in the order in which the stages are told."""
    columns = TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=console.quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=share)

        yield told


def _summary(result: CompileResult) -> dict[str, Any]:
    manifest = result.package.manifest
    return {
        "package": str(result.package.root),
        "name": manifest.name,
        "version": manifest.version,
        "digest": result.package.digest,
        "seconds": round(result.seconds, 2),
        "variants": [
            {
                "id": v.id,
                "accuracy": {name: round(a.share, 5) for name, a in v.accuracies.items()},
                "bytes": v.bytes,
                "p50_us": round(v.latency.p50_us, 2),
                "p95_us": round(v.latency.p95_us, 2),
            }
            for v in result.variants
        ],
    }


def _show_result(console: Console, result: CompileResult) -> None:
    manifest = result.package.manifest
    tests = list(result.variants[0].accuracies)
    title = f"{manifest.name} {manifest.version}: accuracy on {', '.join(tests)} rows; latency of one sample, here"
    table = Table(title=title, title_justify="left")
    for name in ("variant", *tests, "bytes", "p50", "p95"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for v in result.variants:
        shares = [f"{100 * v.accuracies[test].share:.2f} %" for test in tests]
        table.add_row(v.id, *shares, f"{v.bytes:,}", f"{v.latency.p50_us:.0f} µs", f"{v.latency.p95_us:.0f} µs")
    console.print(table)
    console.print(f"digest {result.package.digest}", highlight=False)
    console.print(f"{result.package.root} in {result.seconds:.1f} s", highlight=False, soft_wrap=True)
