"""`edgewright runs`: what was compiled here, how far it came, and two runs beside each other.

Reads the folders that `edgewright compile` leaves under its work directory; needs neither torch nor a runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

from edgewright_compiler.pipeline.choice import Candidate, Choice, Limits, left_out, misses, pareto
from edgewright_compiler.pipeline.recorded import read_choice
from edgewright_compiler.pipeline.runs import Run, StepDone, all_runs, find, read_measured, read_run

from .benching import fitted, slim

WORK = click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path(".edgewright"),
    show_default=True,
    envvar="EDGEWRIGHT_WORK",
    help="Where `edgewright compile` keeps steps and runs.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_COMPARED: Final[tuple[tuple[str, Callable[[Candidate], str]], ...]] = (
    ("candidate", lambda c: c.id),
    ("loss on validation", lambda c: f"{c.drop:+.2f} points"),
    ("bytes", lambda c: f"{c.bytes:,}"),
    ("p50, reference kernels", lambda c: f"{c.relative:.2f}"),
)


@click.group(invoke_without_command=True)
@WORK
@JSON
@click.pass_context
def runs(context: click.Context, work: Path, as_json: bool) -> None:
    """List the runs of `edgewright compile`; `show ID` and `compare ID ID` say more."""
    if context.invoked_subcommand is not None:
        return None
    found = [_alive(run) for run in all_runs(work)]
    if as_json:
        return click.echo(msgspec.json.encode({"runs": found}).decode())
    if not found:
        return click.echo(f"no runs under {work}: `edgewright compile` makes them")
    table = Table()
    for name in ("run", "state", "made", "found", "seconds"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=True)
    for run in found:
        made = sum(step.seconds is not None for step in run.steps)
        table.add_row(run.id, run.state, f"{made}", f"{len(run.steps) - made}", f"{run.seconds:.0f}")
    return Console().print(table)


@runs.command()
@click.argument("run")
@WORK
@JSON
def show(run: str, work: Path, as_json: bool) -> None:
    """Show one RUN (its id, or the beginning of it): its steps by kind, every candidate with what it cost and lost.

    --json has every step by itself. A run that chose nothing shows its candidates, too, with the limits that they miss;
    in --json as `measured`.
    """
    folder = find(work, run)
    found, choice, measured = _alive(read_run(folder)), _choice(folder), read_measured(folder)
    if as_json:
        return click.echo(msgspec.json.encode({"run": found, "choice": choice, "measured": measured}).decode())
    console = Console()
    console.print(f"[bold]{found.id}[/bold]  {found.state}, {found.device}, seed {found.seed}", highlight=False)
    if found.message:
        console.print(found.message, highlight=False, markup=False)
    for kind, took in _by_kind(found.steps):
        console.print(f"  {kind:<14} {took}", highlight=False)
    if choice is not None:
        _show(console, choice.candidates, choice.limits, choice)
        console.print(f"chosen because: {choice.why}", highlight=False)
        if choice.untried:
            console.print(left_out(choice.untried), highlight=False)
    elif measured is not None:
        _show(console, measured.candidates, measured.limits, None)
    if found.package:
        console.print(f"package {found.package}", highlight=False, soft_wrap=True)
        console.print(f"digest  {found.digest}", highlight=False)
    return None


@runs.command()
@click.argument("first")
@click.argument("second")
@WORK
@JSON
def compare(first: str, second: str, work: Path, as_json: bool) -> None:
    """Put two runs beside each other: what was chosen, what it costs and what it loses.

    Of a run that chose nothing: the candidate of each format that lost least, and why the run ended.
    """
    folders = find(work, first), find(work, second)
    pairs = [(_alive(read_run(folder)), _choice(folder)) for folder in folders]
    if as_json:
        return click.echo(msgspec.json.encode({"runs": [{"run": r, "choice": c} for r, c in pairs]}).decode())
    console = Console()
    table = Table()
    table.add_column("")
    names = _apart(pairs[0][0].id, pairs[1][0].id)
    for name, (run, _) in zip(names, pairs, strict=True):
        table.add_column(name, justify="right")
        console.print(f"{name}: {run.id}", highlight=False, soft_wrap=True)
    for name in ("device", "seed", "state"):
        table.add_row(name, *(str(getattr(run, name)) for run, _ in pairs))
    table.add_row("seconds", *(f"{run.seconds:.1f}" for run, _ in pairs))
    table.add_row("digest", *(run.digest[:16] or "–" for run, _ in pairs))
    table.add_row("architecture", *("none; least loss" if c is None else c.arch.id for _, c in pairs))
    taken = [
        _least(folder) if choice is None else {form: choice.candidate(form) for form in choice.chosen}
        for folder, (_, choice) in zip(folders, pairs, strict=True)
    ]
    for form in sorted({form for one in taken for form in one}):
        shown = [one.get(form) for one in taken]
        for label, text in _COMPARED:
            table.add_row(f"{form}: {label}", *("–" if c is None else text(c) for c in shown))
    console.print(table)
    for name, (run, _) in zip(names, pairs, strict=True):
        if run.message:
            console.print(f"{name} {run.state}: {run.message}", highlight=False, markup=False, soft_wrap=True)
    return None


def _apart(first: str, second: str) -> tuple[str, str]:
    """Two ids without the parts that they begin and end with alike; what is left of each is never nothing."""
    a, b = first.split("-"), second.split("-")
    while min(len(a), len(b)) > 1 and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while min(len(a), len(b)) > 1 and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return "-".join(a), "-".join(b)


def _least(folder: Path) -> dict[str, Candidate]:
    """By format, what lost least in a run that chose nothing."""
    measured = read_measured(folder)
    found: dict[str, Candidate] = {}
    for c in () if measured is None else measured.candidates:
        if not c.refused and (c.format not in found or c.drop < found[c.format].drop):
            found[c.format] = c
    return found


def _by_kind(steps: Sequence[StepDone]) -> list[tuple[str, str]]:
    """How many steps of each kind there were, what they took and how many of them were found finished."""
    kinds: dict[str, list[float | None]] = {}
    for step in steps:
        kinds.setdefault(step.name.rpartition("-")[0], []).append(step.seconds)
    told = []
    for kind, seconds in kinds.items():
        made = [took for took in seconds if took is not None]
        parts = ["1 step" if len(seconds) == 1 else f"{len(seconds)} steps"]
        parts += [f"{sum(made):.1f} s"] if made else []
        parts += [f"{len(seconds) - len(made)} found"] if len(made) < len(seconds) else []
        told.append((kind, ", ".join(parts)))
    return told


def _show(console: Console, candidates: Sequence[Candidate], limits: Limits, choice: Choice | None) -> None:
    """Every candidate: the chosen are marked, those on the Pareto front too; below, the limits that they miss."""
    console.print("candidates on validation rows, ± to the 95 % bound; times of this machine;", highlight=False)
    console.print("error: mean distance of answers from the float file's, of their range", highlight=False)
    table = slim(["", "candidate"], ["loss", "±", "bytes", "p50", "error"])
    front = set(map(id, pareto(candidates)))
    for c in candidates:
        taken = choice is not None and c.arch == choice.arch and choice.chosen.get(c.format) == c.scheme
        mark = "chosen" if taken else "front" if id(c) in front else ""
        table.add_row(mark, c.id, *(("–",) * 5 if c.refused else _figures(c)))
    console.print(fitted(table))
    reasons: dict[str, list[str]] = {}
    for c in candidates:
        if said := "; ".join(misses(c, limits)):
            reasons.setdefault(said, []).append(c.id)
    for said, of in reasons.items():
        console.print(f"  {', '.join(of)}: {said}", highlight=False, markup=False, soft_wrap=True)


def _figures(c: Candidate) -> tuple[str, ...]:
    error = "–" if c.error is None else f"{c.error:.4f}"
    return f"{c.drop:+.2f}", f"{c.half_width:.2f}", f"{c.bytes:,}", f"{c.p50_us:.1f} µs", error


def _choice(folder: Path) -> Choice | None:
    path = folder / "choice.json"
    return read_choice(path) if path.is_file() else None


def _alive(run: Run) -> Run:
    """A run that says it is running, whose process is gone, was killed."""
    if run.state != "running":
        return run
    try:
        os.kill(run.pid, 0)
    except ProcessLookupError:
        return msgspec.structs.replace(run, state="interrupted", message="killed: compile again to go on")
    except PermissionError:
        pass
    return run
