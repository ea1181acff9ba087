"""`edgewright init | compile`: from a recipe, or a model and data of one's own, to a package.

The compiler and its libraries are imported when something is compiled.
"""

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
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from edgewright_compiler.pipeline.choice import Limits, read_choice
from edgewright_contracts.errors import RequestError
from edgewright_devices import load
from edgewright_models import RECIPES

from .runs import WORK

if TYPE_CHECKING:
    from edgewright_compiler.compilation import CompileResult
    from edgewright_compiler.recipe import Recipe

RECIPE_FILE: Final = "recipe.py"
TASKS: Final = ("classify", "multilabel", "regress", "detect", "anomaly")
FORMATS: Final = ("onnx", "tflite")
OWN_MINUTES: Final = 10.0  # for a model of one's own, whose best size nobody knows yet


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
@click.argument("model")
@click.option("--device", required=True, help="A device profile, as raspberry-pi-5 or x86-gateway.")
@click.option("--data", help="For a model of your own: a folder, a .csv, .parquet or .npz file, or FILE.py:FUNCTION.")
@click.option("--task", type=click.Choice(TASKS), help="For a model of your own.")
@click.option("--metric", help="accuracy, macro_f1, auroc, map50, mae or FILE.py:FUNCTION; else the task's own.")
@click.option("--teacher", help="For a model of your own: what it learns from, FILE.py:FUNCTION, .onnx or .tflite.")
@click.option("--finetune", type=click.Path(path_type=Path), help="A state dict that the model starts from.")
@click.option("--epochs", type=click.IntRange(1), help="For a model of your own; 20 if left out.")
@click.option("--max-drop", type=float, help="Points: refuse unless the loss is at most this, at 95 % on test rows.")
@click.option("--max-p95-ms", type=float, help="On the device: an estimate until it has measured.")
@click.option("--max-size-kb", type=float, help="Of the model file, in 1000 bytes.")
@click.option("--max-rss-mb", type=float, help="What loading and running the file adds to a process.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Search other widths and shares so long.")
@click.option("--format", "formats", type=click.Choice(FORMATS), multiple=True, help="Leave the other format out.")
@click.option("--choice", type=click.Path(path_type=Path), help="Make what a choice.json of an earlier run chose.")
@click.option("--quick", is_flag=True, help="A reference recipe in its smallest form: minutes become seconds.")
@click.option("--name", help="The package's name; the recipe's or the file's if left out.")
@click.option("--version", help="The package's version; the recipe's own if left out.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 2**8), default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="Where NAME-VERSION/ is made.")
@WORK
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compile_(
    model: str,
    device: str,
    formats: tuple[str, ...],
    choice: Path | None,
    minutes: float | None,
    out: Path,
    work: Path,
    seed: int,
    as_json: bool,
    max_drop: float | None,
    max_p95_ms: float | None,
    max_size_kb: float | None,
    max_rss_mb: float | None,
    **told: Any,
) -> None:
    """Compile MODEL for a device: a reference recipe, a directory made by `edgewright init`, or a model of your own as
    FILE.py:FUNCTION with --data and --task.

    Finished steps are kept: what was interrupted goes on where it was. See `edgewright runs`.
    """
    profile = load(device)
    limits = Limits(max_drop=max_drop, max_p95_ms=max_p95_ms, max_size_kb=max_size_kb, max_rss_mb=max_rss_mb)
    recorded = None if choice is None else read_choice(choice)
    own = _is_own(model, told)
    with _extras():
        from edgewright_compiler.quiet import quiet

        with quiet() as streams:
            console = Console(file=streams.err, quiet=as_json)
            with _bars(console) as say:
                say("loading the tools", 0.0)
                from edgewright_compiler.compilation import compile_recipe

                say("loading the tools", 1.0)
                recipe = _own(model, told) if own else _reference(model, told)
                result = compile_recipe(
                    recipe,
                    profile,
                    out / f"{recipe.name}-{recipe.version}",
                    seed=seed,
                    now=datetime.now(UTC),
                    progress=say,
                    work=work,
                    limits=limits,
                    formats=tuple(dict.fromkeys(formats)) or FORMATS,  # type: ignore[arg-type]  # click checked them
                    minutes=OWN_MINUTES if own and minutes is None else minutes,
                    recorded=recorded,
                )
    if as_json:
        return click.echo(msgspec.json.encode(_summary(result)).decode())
    return _show_result(Console(), result)


compile = compile_  # noqa: A001  the command's name is what the entry point looks for


def _is_own(model: str, told: dict[str, Any]) -> bool:
    """Whether MODEL is a person's own. Raises RequestError for options that do not go with what it is."""
    if ".py:" in model:
        for name in ("data", "task"):
            if told[name] is None:
                raise RequestError(
                    f"a model of your own needs --{name}; `edgewright compile --help` says what it takes"
                )
        return True
    wrong = [name for name in ("data", "task", "teacher", "finetune", "epochs") if told[name] is not None]
    if wrong:
        raise RequestError(
            f"--{wrong[0]} is for a model of your own, FILE.py:FUNCTION; {model!r} is a recipe and brings its own"
        )
    return False


def _own(model: str, told: dict[str, Any]) -> Recipe:
    from edgewright_compiler.own.recipe import EPOCHS, own_recipe

    if told["quick"]:
        raise RequestError("--quick is for reference recipes; for a model of your own use --epochs and --minutes")
    return own_recipe(
        model,
        told["data"],
        task=told["task"],
        metric=told["metric"],
        name=told["name"],
        version=told["version"] or "1.0.0",
        teacher=told["teacher"],
        finetune=told["finetune"],
        epochs=told["epochs"] or EPOCHS,
    )


def _reference(model: str, told: dict[str, Any]) -> Recipe:
    """The recipe of this name or directory, with what the options change of it."""
    module = _loaded(_module_name(model))
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


def _module_name(recipe: str) -> str:
    """The module of a reference recipe, or the directory of one's own. Raises RequestError for neither."""
    if recipe in RECIPES:
        return RECIPES[recipe]
    if (Path(recipe) / RECIPE_FILE).is_file():
        return recipe
    raise RequestError(
        f"unknown recipe {recipe!r}: expected one of {', '.join(RECIPES)}, a directory that holds {RECIPE_FILE}, or a "
        "model of your own as FILE.py:FUNCTION"
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
    """One bar per stage, in the order in which the stages are told, each with what it will still take."""
    columns = TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=console.quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def told(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=share)

        yield told


def _summary(result: CompileResult) -> dict[str, Any]:
    manifest, evidence = result.package.manifest, result.evidence
    return {
        "package": str(result.package.root),
        "name": manifest.name,
        "version": manifest.version,
        "digest": result.package.digest,
        "run": str(result.run),
        "seconds": round(result.seconds, 2),
        "metric": evidence.metric,
        "reference": {
            "name": evidence.reference.name,
            "metric": {name: round(f.value, 5) for name, f in evidence.reference.metric.items()},
            "bytes": evidence.reference.bytes,
            "p50_us": {form: time.p50 for form, time in evidence.reference.time_us.items()},
        },
        "variants": [
            {
                "id": v.id,
                "scheme": v.scheme,
                "metric": {name: round(f.value, 5) for name, f in v.metric.items()},
                "loss": v.loss,
                "bytes": v.bytes,
                "p50_us": v.time_us.p50,
                "p95_us": v.time_us.p95,
                "monitor_us": v.monitor_us,
            }
            for v in evidence.variants
        ],
    }


def _show_result(console: Console, result: CompileResult) -> None:
    manifest, evidence = result.package.manifest, result.evidence
    tests = list(evidence.variants[0].metric)
    title = (
        f"{manifest.name} {manifest.version}: {evidence.metric} on {', '.join(tests)} rows; times of one sample, here"
    )
    table = Table(title=title, title_justify="left")
    for name in ("", *tests, "loss (95 % bound)", "bytes", "", "p50", ""):
        table.add_column(name, justify="right" if name else "left")
    reference = evidence.reference
    for form, time in reference.time_us.items():
        shares = [f"{reference.metric[test].value:.4f}" for test in tests]
        table.add_row(f"{reference.name}, {form}", *shares, "", f"{reference.bytes[form]:,}", "", f"{time.p50:.0f} µs")
    for v in evidence.variants:
        form = v.id.partition("-")[0]
        loss = "" if v.loss is None else f"{v.loss.estimate:+.2f} (≤ {v.loss.bound:.2f})"
        smaller = faster = ""
        if form in reference.bytes:
            smaller = f"÷ {reference.bytes[form] / v.bytes:.1f}"
            faster = f"÷ {reference.time_us[form].p50 / v.time_us.p50:.1f}"
        shares = [f"{v.metric[test].value:.4f}" for test in tests]
        table.add_row(v.id, *shares, loss, f"{v.bytes:,}", smaller, f"{v.time_us.p50:.0f} µs", faster)
    console.print(table)
    for warning in evidence.warnings:
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)
    console.print(f"digest {result.package.digest}", highlight=False)
    console.print(f"{result.package.root} in {result.seconds:.1f} s; all that was measured: ", end="", highlight=False)
    console.print(f"edgewright inspect {result.package.root}", highlight=False, soft_wrap=True)
