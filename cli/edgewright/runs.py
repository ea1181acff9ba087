"""`edgewright runs`: what was compiled here, how far it came, and two runs beside each other.

Reads the folders that `edgewright compile` leaves under its work directory; needs neither torch nor a runtime.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from edgewright_compiler.pipeline.choice import Candidate, Choice, Limits, misses, pareto, read_choice
from edgewright_compiler.pipeline.runs import Run, all_runs, find, read_measured, read_run

WORK = click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path(".edgewright"),
    show_default=True,
    envvar="EDGEWRIGHT_WORK",
    help="Where `edgewright compile` keeps steps and runs.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


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
    """Show one RUN (its id, or the beginning of it): every step, and every candidate with what it cost and lost.

    A run that chose nothing shows its candidates, too, with the limits that they miss; in --json as `measured`.
    """
    folder = find(work, run)
    found, choice, measured = _alive(read_run(folder)), _choice(folder), read_measured(folder)
    if as_json:
        return click.echo(msgspec.json.encode({"run": found, "choice": choice, "measured": measured}).decode())
    console = Console()
    console.print(f"[bold]{found.id}[/bold]  {found.state}, {found.device}, seed {found.seed}", highlight=False)
    if found.message:
        console.print(found.message, highlight=False, markup=False)
    for step in found.steps:
        took = "found" if step.seconds is None else f"{step.seconds:.1f} s"
        console.print(f"  {step.name:<40} {took:>9}", highlight=False)
    if choice is not None:
        _show(console, choice.candidates, choice.limits, choice)
        console.print(f"chosen because: {choice.why}", highlight=False)
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
    """Put two runs beside each other: what was chosen, what it costs and what it loses."""
    folders = find(work, first), find(work, second)
    pairs = [(read_run(folder), _choice(folder)) for folder in folders]
    if as_json:
        return click.echo(msgspec.json.encode({"runs": [{"run": r, "choice": c} for r, c in pairs]}).decode())
    table = Table()
    table.add_column("")
    for run, _ in pairs:
        table.add_column(run.id, justify="right")
    for name in ("device", "seed", "state"):
        table.add_row(name, *(str(getattr(run, name)) for run, _ in pairs))
    table.add_row("seconds", *(f"{run.seconds:.1f}" for run, _ in pairs))
    table.add_row("digest", *(run.digest[:16] or "–" for run, _ in pairs))
    table.add_row("architecture", *("–" if c is None else c.arch.id for _, c in pairs))
    for form in sorted({form for _, choice in pairs if choice is not None for form in choice.chosen}):
        shown = [None if c is None or form not in c.chosen else c.candidate(form) for _, c in pairs]
        for label, text in (
            ("scheme", lambda c: c.scheme),
            ("loss on validation", lambda c: f"{c.drop:+.2f} points"),
            ("bytes", lambda c: f"{c.bytes:,}"),
            ("p50, reference kernels", lambda c: f"{c.relative:.2f}"),
        ):
            table.add_row(f"{form}: {label}", *("–" if c is None else text(c) for c in shown))
    return Console().print(table)


def _show(console: Console, candidates: Sequence[Candidate], limits: Limits, choice: Choice | None) -> None:
    """Every candidate: the chosen are marked, those on the Pareto front too; below, the limits that they miss."""
    title = "candidates on validation rows, ± to the 95 % bound; times of this machine"
    table = Table(title=title, title_justify="left")
    for name in ("", "candidate", "loss", "±", "bytes", "p50"):
        table.add_column(name, justify="left" if name in ("", "candidate") else "right", no_wrap=True)
    front = set(map(id, pareto(candidates)))
    for c in candidates:
        taken = choice is not None and c.arch == choice.arch and choice.chosen.get(c.format) == c.scheme
        mark = "chosen" if taken else "front" if id(c) in front else ""
        table.add_row(mark, c.id, *(("–",) * 4 if c.refused else _figures(c)))
    console.print(table)
    for c in candidates:
        if said := "; ".join(misses(c, limits)):
            console.print(f"  {c.id}: {said}", highlight=False, markup=False, soft_wrap=True)


def _figures(c: Candidate) -> tuple[str, ...]:
    return f"{c.drop:+.2f}", f"{c.half_width:.2f}", f"{c.bytes:,}", f"{c.p50_us:.1f} µs"


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
