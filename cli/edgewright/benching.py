"""`edgewright bench PACKAGE [--ssh HOST]`: self-test, latency, load time and memory of every variant, here or there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from edgewright_contracts.errors import Refused
from edgewright_contracts.package import Package, read_package, unpack

if TYPE_CHECKING:
    from edgewright_compiler.measuring.evidence import Bench


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--ssh", "host", help="Measure on this host: user@host, as ssh takes it. Nothing stays there.")
@click.option("--python", help="The Python on that host that has a runtime; the usual places when left out.")
@click.option("--calls", type=click.IntRange(40), default=400, show_default=True, help="Timed calls of each variant.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(package: Path, host: str | None, python: str | None, calls: int, as_json: bool) -> None:
    """Measure every variant of PACKAGE (a directory or an .ewp) with every runtime that works.

    With --ssh, what the host measured is also kept beside the package, and `edgewright inspect` shows it.
    """
    from edgewright_compiler.measuring import bench as here
    from edgewright_compiler.measuring import remote
    from edgewright_compiler.measuring.evidence import encode
    from edgewright_compiler.quiet import quiet

    if python is not None and host is None:
        raise click.UsageError("--python names the Python of a host: it needs --ssh")
    made = datetime.now(UTC).isoformat(timespec="seconds")
    with (
        quiet() as streams,
        _waiting(Console(file=streams.err, quiet=as_json), f"measuring on {host or 'this machine'}"),
        _directory(package) as opened,
    ):
        if host is None:
            found = here.bench(opened, calls=calls, host=os.uname().nodename, made=made)
        else:
            found = remote.bench_over_ssh(opened, host, calls=calls, python=python, made=made)
    kept = None
    if host is not None:
        kept = remote.file_for(package, host)
        part = kept.with_name(f".{kept.name}.part")
        part.write_bytes(encode(found))
        part.replace(kept)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        show_bench(Console(), found)
        if kept is not None:
            click.echo(f"kept in {kept}")
    failed = [f"{one.variant} in {one.runtime}: {one.failed}" for one in found.variants if one.failed]
    if failed:
        raise Refused(f"{len(failed)} of {len(found.variants)} do not run as they should on {found.host}: {failed[0]}")


def _waiting(console: Console, what: str) -> Live:
    """`Console.status` would take sys.stderr, and show the noise of the runtimes past `quiet`."""
    spinner = Spinner("dots", what)
    return Live(spinner, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


def show_bench(console: Console, found: Bench) -> None:
    machine = found.machine
    clock = f", {machine.clock_mhz} MHz" if machine.clock_mhz else ""
    memory = f", {machine.ram_mb} MB" if machine.ram_mb else ""
    console.print(f"[bold]{found.name} {found.version}[/bold] on {found.host}", highlight=False)
    console.print(
        f"{machine.board or machine.cpu}: {machine.arch}, {machine.cores} cores{clock}{memory}", highlight=False
    )
    table = slim(("variant", "runtime", "test"), ("load ms", "+MB", "p50 µs", "p95", "p99", "× kernel"))
    for one in found.variants:
        time, used = one.time_us, one.memory
        table.add_row(
            one.variant,
            one.runtime,
            "ok" if one.selftest else "[red]failed[/red]",
            *((f"{used.load_ms:.1f}", f"{used.growth_mb:.1f}") if used else ("–", "–")),
            *([f"{us:,.0f}" for us in (time.p50, time.p95, time.p99)] if time else ["–"] * 3),
            f"{time.per_reference:.2f}" if time else "–",
        )
    console.print(fitted(table))
    runtimes = ", ".join(f"{name} {version}" for name, version in sorted(machine.runtimes.items()))
    heat = f", processor at {found.celsius[0]:.0f} to {found.celsius[1]:.0f} °C" if found.celsius else ""
    console.print(f"one sample, one thread; reference kernel {found.reference_us:.0f} µs{heat}", highlight=False)
    console.print(f"{runtimes}; Python {machine.python}, numpy {machine.numpy}", highlight=False)


def slim(words: Sequence[str], figures: Sequence[str]) -> Table:
    """A table that nine columns fit into on a narrow terminal: words to the left, figures to the right of them."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in words:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def fitted(table: Table) -> Table:
    """Where the terminal is too narrow, words break into lines and figures stay whole."""
    for column in table.columns:
        if column.justify == "right":
            column.min_width = max(len(str(cell)) for cell in (column.header, *column.cells))
    return table


@contextmanager
def _directory(path: Path) -> Iterator[Package]:
    """The package as a directory: runtimes map their file from a path."""
    package = read_package(path)
    if path.is_dir():
        yield package
        return
    with tempfile.TemporaryDirectory(prefix="edgewright-") as scratch:
        yield unpack(path, Path(scratch) / "package")
