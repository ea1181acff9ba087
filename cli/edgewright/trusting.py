"""`edgewright keys | sign | publish`: the owner's signature, and what it is put on."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from edgewright_compiler.keys import init_keys, load_owner, sign_package
from edgewright_compiler.publish import Published
from edgewright_compiler.publish import publish as send
from edgewright_contracts.package import SUFFIX, read_package, write_ewp
from edgewright_contracts.signature import encode_signature

from .hub_client import read_token


@click.group()
def keys() -> None:
    """The owner's signing keys: they decide what devices run, and never leave the owner."""


@keys.command("init")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def keys_init(directory: Path, as_json: bool) -> None:
    """Make new keys in the new DIRECTORY; DIRECTORY/hub is what the hub is given."""
    init_keys(directory, now=datetime.now(UTC))
    if as_json:
        return click.echo(msgspec.json.encode({"keys": str(directory), "hub": str(directory / "hub")}).decode())
    return click.echo(
        f"{directory}: root.pem and targets.pem are yours alone; back them up offline, nothing can replace them.\n"
        f"Give {directory / 'hub'} to the hub: edgewright hub serve --trust {directory / 'hub'}"
    )


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--hub", required=True, help="The hub's address, https://HOST:PORT.")
@click.option("--keys", "directory", required=True, type=click.Path(path_type=Path), help="The owner's keys.")
@click.option("--token-file", required=True, type=click.Path(path_type=Path), help="A file with an API token.")
@click.option("--ca", type=click.Path(path_type=Path), help="The hub's CA certificate; else the system's.")
@click.option("--candidate", is_flag=True, help="It waits for `registry approve` before it may be rolled out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def publish(
    package: Path, hub: str, directory: Path, token_file: Path, ca: Path | None, candidate: bool, as_json: bool
) -> None:
    """Sign PACKAGE and publish it on a hub; a version that was published never changes."""
    token = read_token(token_file)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=as_json or not console.is_terminal) as bars:
        task = bars.add_task("publishing", total=None)
        done = send(
            package,
            hub,
            directory,
            token,
            ca,
            now=datetime.now(UTC),
            progress=lambda sent, total: bars.update(task, completed=sent, total=total),
            candidate=candidate,
        )
    click.echo(msgspec.json.encode(done).decode() if as_json else _said(done))


@click.command()
@click.argument("package", type=click.Path(exists=True, path_type=Path))
@click.option("--keys", "directory", required=True, type=click.Path(path_type=Path), help="The owner's keys.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The signed .ewp; else PACKAGE itself.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sign(package: Path, directory: Path, out: Path | None, as_json: bool) -> None:
    """Sign PACKAGE for devices that get it by hand: one .ewp that carries its signature.

    A signature cannot be withdrawn: devices that are to follow what you sign now are enrolled at a hub.
    """
    place = out or (package.with_name(package.name + SUFFIX) if package.is_dir() else package)
    found = read_package(package)
    signature = sign_package(load_owner(directory), found)
    write_ewp(package, place, encode_signature(signature))
    if as_json:
        said = {"file": str(place), "digest": found.digest, "key": signature.key}
        return click.echo(msgspec.json.encode(said).decode())
    return click.echo(
        f"{place}: {found.manifest.name} {found.manifest.version} ({found.digest[:12]}), signed. On the device:\n"
        f"  edgewright agent sideload {place.name} --home DIR \\\n    --key {signature.key}"
    )


def _said(done: Published) -> str:
    what = f"{done.name} {done.version} ({done.digest[:12]})"
    if done.already:
        return f"{what} was published before, nothing to do"
    return f"{what} published: {done.sent} files, {done.bytes_sent:,} bytes; signed list version {done.targets_version}"
