"""`edgewright init | compile`: from a recipe, or a model and data of one's own, to a package.

The compiler and its libraries are imported when something is compiled.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click
import msgspec
from rich.console import Console

from edgewright_compiler.naming import TASKS
from edgewright_compiler.packaging import writable
from edgewright_compiler.pipeline.choice import Limits
from edgewright_compiler.pipeline.recorded import read_choice
from edgewright_contracts.errors import Refused, RequestError
from edgewright_devices import load
from edgewright_models import RECIPES

from .compiled import show, summary
from .progress import shown
from .recipes import file_of, module_name, reference
from .requests import asked, named
from .runs import WORK

if TYPE_CHECKING:
    from edgewright_compiler.recipe import Recipe
    from edgewright_contracts.manifest import Format

FORMATS: Final[tuple[Format, ...]] = ("onnx", "tflite")
OWN_MINUTES: Final = 10.0  # for a model of one's own, whose best size nobody knows yet
FINISHED: Final = (".onnx", ".tflite", ".pt2")
OF_A_FILE: Final = ("reading the model", "quantizing", "measuring the package")  # stages that are sure to come

Kind = Literal["recipe", "own", "file"]
WHAT: Final[dict[Kind, str]] = {
    "recipe": "a recipe",
    "own": "a model of your own, FILE.py:FUNCTION",
    "file": "a finished .onnx, .tflite or .pt2 file",
}
NEEDED: Final[dict[Kind, tuple[str, ...]]] = {"recipe": (), "own": ("data", "task"), "file": ("task",)}
ONLY_FOR: Final[dict[str, tuple[Kind, ...]]] = {
    "data": ("own", "file"),
    "task": ("own", "file"),
    "teacher": ("own",),
    "finetune": ("own",),
    "epochs": ("own",),
    "shapes": ("file",),
    "fixed": ("file",),
    "quick": ("recipe",),
    "formats": ("recipe", "own"),
}
OPTIONS: Final = {"shapes": "shape", "fixed": "fix", "formats": "format"}  # where the name of an option is another


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help=f"The reference recipe to start from: {', '.join(RECIPES)}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def init(directory: Path, recipe: str, as_json: bool) -> None:
    """Copy a reference recipe into the new DIRECTORY, to be changed at will and compiled with `edgewright compile`."""
    source = Path(file_of(module_name(recipe))).parent
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
@click.option("--data", help="For a model of your own or a file: a folder, .csv, .parquet, .npz or FILE.py:FUNCTION.")
@click.option("--task", type=click.Choice(list(TASKS)), help="For a model of your own or a file.")
@click.option("--metric", help="accuracy, macro_f1, auroc, map50, mae or FILE.py:FUNCTION; else the task's own.")
@click.option("--teacher", help="For a model of your own: what it learns from, FILE.py:FUNCTION, .onnx or .tflite.")
@click.option("--finetune", type=click.Path(path_type=Path), help="A state dict that the model starts from.")
@click.option("--epochs", type=click.IntRange(1), help="For a model of your own; 20 if left out.")
@click.option("--shape", "shapes", multiple=True, help="For a file: an input that is open, as image=3x640x640.")
@click.option("--fix", "fixed", multiple=True, help="For a file: an input that becomes a constant, as sr=16000.")
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
    formats: tuple[Format, ...],
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
    """Compile MODEL for a device: a reference recipe, a directory made by `edgewright init`, a model of your own as
    FILE.py:FUNCTION with --data and --task, or a finished .onnx, .tflite or .pt2 file with --task.

    Finished steps are kept: what was interrupted goes on where it was. Those of a finished file take seconds and are
    made anew. See `edgewright runs` for what was compiled.
    """
    profile = load(device)
    writable(out)
    recorded = None if choice is None else read_choice(choice)
    limits = Limits(max_drop=max_drop, max_p95_ms=max_p95_ms, max_size_kb=max_size_kb, max_rss_mb=max_rss_mb)
    kind = _kind(model, {**told, "formats": formats})
    asked(model, told, out, work)
    notes: tuple[str, ...] = ()
    with _extras():
        from edgewright_compiler.quiet import quiet

        with quiet() as streams, shown(Console(file=streams.err, quiet=as_json)) as say:
            say("loading the tools", 0.0)
            if kind == "file":
                from edgewright_compiler.foreign.compilation import compile_foreign

                say("loading the tools", 1.0)
                name, version = named(model, told)
                say.plan(OF_A_FILE, more=False)
                packed = compile_foreign(
                    Path(model),
                    profile,
                    out / f"{name}-{version}",
                    name=name,
                    version=version,
                    task=TASKS[told["task"]],
                    seed=seed,
                    now=datetime.now(UTC),
                    progress=say,
                    work=work,
                    data=told["data"],
                    metric=told["metric"],
                    shapes=dict(_shape(one) for one in told["shapes"]),
                    fixed=dict(_fixed(one) for one in told["fixed"]),
                    limits=limits,
                    recorded=recorded,
                )
                package, evidence, run, notes = packed.package, packed.evidence, packed.run, packed.notes
            else:
                from edgewright_compiler.compilation import compile_recipe
                from edgewright_compiler.data.loaders import blamed
                from edgewright_compiler.pipeline.stages import planned

                say("loading the tools", 1.0)
                recipe = _own(model, told) if kind == "own" else reference(model, told)
                wanted = tuple(dict.fromkeys(formats)) or FORMATS
                searched = OWN_MINUTES if kind == "own" and minutes is None else minutes
                more = searched is not None and recorded is None
                say.plan(planned(recipe, wanted, recorded, searched=more), more=more)
                with blamed(() if model in RECIPES else recipe.sources), _barely_trained(quick=told["quick"]):
                    result = compile_recipe(
                        recipe,
                        profile,
                        out / f"{recipe.name}-{recipe.version}",
                        seed=seed,
                        now=datetime.now(UTC),
                        progress=say,
                        work=work,
                        limits=limits,
                        formats=wanted,
                        minutes=searched,
                        recorded=recorded,
                    )
                package, evidence, run = result.package, result.evidence, result.run
                if kind == "own":
                    notes = (*recipe.notes, *recipe.data().notes)
    if as_json:
        return click.echo(msgspec.json.encode(summary(package, evidence, run)).decode())
    return show(Console(), package, evidence, notes)


compile = compile_  # noqa: A001  the command's name is what the entry point looks for


def _kind(model: str, told: dict[str, Any]) -> Kind:
    """What MODEL is. Raises RequestError for options that it needs or that do not go with it."""
    if model.endswith(".py"):
        raise RequestError(f"expected FILE.py:FUNCTION that returns an nn.Module, as {model}:build, got {model!r}")
    kind: Kind = "own" if ".py:" in model else "file" if Path(model).suffix in FINISHED else "recipe"
    for name in NEEDED[kind]:
        if told[name] is None:
            raise RequestError(f"{WHAT[kind]} needs --{name}: see `edgewright compile --help`")
    for name, kinds in ONLY_FOR.items():
        if told[name] and kind not in kinds:
            option = OPTIONS.get(name, name)
            raise RequestError(f"--{option} is for {' and '.join(WHAT[k] for k in kinds)}, got {model!r}")
    return kind


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """NAME=3x640x640: the sizes of one sample, without the batch."""
    name, sign, sizes = text.partition("=")
    if not sign or not all(size.isdigit() and int(size) for size in sizes.split("x")):
        raise RequestError(f"--shape: expected NAME=SIZExSIZE.. as image=3x640x640, got {text!r}")
    return name, tuple(int(size) for size in sizes.split("x"))


def _fixed(text: str) -> tuple[str, float]:
    """NAME=16000: an input that becomes a constant."""
    name, sign, value = text.partition("=")
    try:
        return name, float(value if sign else "none")
    except ValueError:
        raise RequestError(f"--fix: expected NAME=NUMBER as sr=16000, got {text!r}") from None


def _own(model: str, told: dict[str, Any]) -> Recipe:
    from edgewright_compiler.own.recipe import EPOCHS, own_recipe

    name, version = named(model, told)
    return own_recipe(
        model,
        told["data"],
        task=told["task"],
        metric=told["metric"],
        name=name,
        version=version,
        teacher=told["teacher"],
        finetune=told["finetune"],
        epochs=told["epochs"] or EPOCHS,
    )


@contextmanager
def _barely_trained(*, quick: bool) -> Iterator[None]:
    """A refusal that tells losses, in points, says what they are worth."""
    try:
        yield
    except Refused as reason:
        if quick and " points" in str(reason):
            raise Refused(f"{reason}. --quick trains almost nothing: leave it out to see what it loses") from reason
        raise


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
