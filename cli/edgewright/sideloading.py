"""`edgewright agent sideload`: a package that was carried to the device by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import msgspec

from edgewright_contracts.errors import RequestError


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), required=True, help="The device's directory.")
@click.option("--key", metavar="HEX", help="The owner's public key, to be trusted by this device from now on.")
@click.option(
    "--trust-this-file",
    is_flag=True,
    help="Take a package without a known signature. Whoever made FILE then decides what this device answers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sideload(file: Path, home: Path, key: str | None, trust_this_file: bool, as_json: bool) -> None:
    """Install FILE.ewp without a hub: self-test, other slot, probation, as any update.

    A device that is not enrolled takes what the key signed that it was told first (--key). An enrolled one takes only
    what its owner's list holds now, and what the hub wants later counts more.
    """
    from edgewright_agent.console import install
    from edgewright_agent.hosting.owner import act_as_owner

    act_as_owner(home)
    if not os.access(file, os.R_OK):
        raise RequestError(f"{file}: {home} belongs to another user, who may not read this file; copy it to /tmp")
    done = install.sideload(home, file, key=key, this_file=trust_this_file)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(done)))
        return
    what = f"{done.name} {done.version} ({done.digest[:12]})"
    if not done.answers:
        click.echo(f"{what}: the running agent takes it up; see\n  edgewright agent status --home {home}")
        return
    click.echo(f"{what} answers: {done.variant} on {done.runtime}, self-test passed; trusted by {done.trusted}")
    click.echo(f"  try it:    edgewright agent predict --home {home} {done.name} FILE.npy")
    click.echo(f"  start it:  edgewright agent run --home {home} --listen 127.0.0.1:8500")
