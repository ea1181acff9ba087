"""`edgewright agent bench | collect | consent | clear`: what a person asks of a device, and allows it."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

HOME = click.option(
    "--home",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="The device's directory.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command()
@HOME
@click.argument("model")
@JSON
def bench(home: Path, model: str, as_json: bool) -> None:
    """Measure the installed MODEL on this device, beside a running agent or without one."""
    from edgewright_agent.console.bench import bench as measure

    found = measure(home, model)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found)))
        return
    click.echo(f"{model} {found.version} {found.variant} on {found.runtime}, {found.runs} runs of one sample")
    click.echo(f"  latency  p50 {found.p50_ms:.3f} ms, p95 {found.p95_ms:.3f} ms, longest {found.max_ms:.3f} ms")
    click.echo(f"  memory   peak {found.rss_mb:.0f} MB, of which {found.base_mb:.0f} MB without the model")
    click.echo(f"  loading  {found.load_ms:.1f} ms")


@click.command()
@HOME
@click.option("--samples", type=click.Choice(["yes", "no"]), required=True, help="Whether inputs may be kept and sent.")
@JSON
def consent(home: Path, samples: str, as_json: bool) -> None:
    """Allow the hub's operator to look at sampled inputs of this device, or forbid it and remove what was kept."""
    from edgewright_agent.console import status
    from edgewright_agent.disk import RealDisk
    from edgewright_agent.hosting.owner import act_as_owner
    from edgewright_agent.samples import consent as word

    status.of(home)  # or the word would lie where nobody reads it
    act_as_owner(home)
    word.write(RealDisk(), home, word.Consent(samples=samples == "yes"))
    if as_json:
        click.echo(json.dumps({"samples": samples == "yes"}))
    elif samples == "yes":
        click.echo("inputs may be sampled, as many as the hub asks for; take it back with --samples no")
    else:
        click.echo("no input is kept or sent; what was kept is removed")


@click.command()
@HOME
@click.argument("model")
@click.argument("digest", default="")
@JSON
def clear(home: Path, model: str, digest: str, as_json: bool) -> None:
    """Let packages of MODEL that are blocked or held here be tried again: all, or what begins with DIGEST."""
    from edgewright_agent.console.clear import clear as release
    from edgewright_agent.hosting.owner import act_as_owner

    act_as_owner(home)
    done = release(home, model, digest)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(done)))
        return
    for one in done.cleared:
        click.echo(f"{model} {one[:16]} may be tried again, when it is wanted")


@click.command()
@HOME
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it there; else it is printed.")
@JSON
def collect(home: Path, out: Path | None, as_json: bool) -> None:
    """Gather what helps to find a fault: status, config, errors, spool, log; no keys, no inputs; 20 kB at most."""
    from edgewright_agent.console.collect import collect as gather

    text = gather(home)
    if out is not None:
        out.write_text(text + "\n")
        click.echo(json.dumps({"file": str(out), "bytes": len(text)}) if as_json else f"{out}: {len(text)} bytes")
        return
    click.echo(text if as_json else json.dumps(json.loads(text), indent=1))
