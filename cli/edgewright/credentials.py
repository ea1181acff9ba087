"""`edgewright hub token | user | users`: what lets a device enrol, and a person use the hub."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgewright_contracts.errors import RequestError

from .hub_folder import DATA, JSON, say, served_before

if TYPE_CHECKING:
    from edgewright_hub.fleet.tokens import Role


@click.command()
@DATA
@click.option("--uses", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="How many devices.")
@click.option("--expires", default="1d", show_default=True, help="Life of the token: 90s, 30m, 12h, 7d.")
@click.option("--pattern", default=".*", show_default=True, help="Regular expression for the whole device id.")
@click.option("--fleet", default="default", show_default=True, help="Fleet of the devices that use it.")
@click.option("--queue", is_flag=True, help="Devices that use it wait for `fleet accept`.")
@JSON
def token(data: Path, uses: int, expires: str, pattern: str, fleet: str, queue: bool, as_json: bool) -> None:
    """Make an enrolment token. Works on the data directory, whether or not the hub runs."""
    from edgewright_hub.fleet import tokens
    from edgewright_hub.fleet.ca import open_authority
    from edgewright_hub.registry.registry import Registry
    from edgewright_hub.storage.control import open_control
    from edgewright_hub.storage.places import places

    served_before(data)
    engine = open_control(places(data).control)
    try:
        made = tokens.issue(
            engine,
            uses=uses,
            expires_s=seconds(expires),
            pattern=pattern,
            fleet=fleet,
            root_sha256=Registry(data / "repo", data / "keys", engine).first_root_sha256,
            ca_sha256=open_authority(data / "ca", now=datetime.now(UTC)).ca_sha256,
            now_ms=int(time.time() * 1000),
            kind="queue" if queue else "open",
        )
    finally:
        engine.dispose()
    click.echo(json.dumps({"token": made}) if as_json else made)


@click.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "operator", "publisher", "admin"]))
@click.option("--replace", is_flag=True, help="End the token that NAME has, and make another.")
@click.option("--revoke", is_flag=True, help="Only end it.")
@DATA
@JSON
def user(name: str, role: Role | None, replace: bool, revoke: bool, data: Path, as_json: bool) -> None:
    """Make an API token for NAME: viewer reads, operator rolls out and enrols, publisher publishes, admin does all.
    Works on the data directory, whether or not the hub runs, which follows at once."""
    from edgewright_hub.fleet import tokens
    from edgewright_hub.storage.control import open_control
    from edgewright_hub.storage.places import places

    if revoke == bool(role) or (revoke and replace):
        raise RequestError("expected --role ROLE (with --replace, if NAME has a token), or --revoke alone")
    served_before(data)
    engine, now_ms = open_control(places(data).control), int(time.time() * 1000)
    try:
        if role is None:
            number = tokens.dismiss(engine, name, now_ms=now_ms)
            return say({"name": name, "revoked": number}, f"{name} has no token any more ({number} ended)", as_json)
        made = tokens.appoint(engine, role=role, name=name, replace=replace, now_ms=now_ms)
        return say({"name": name, "role": role, "token": made}, made, as_json)
    finally:
        engine.dispose()


@click.command()
@DATA
@JSON
def users(data: Path, as_json: bool) -> None:
    """Who has an API token, and with which role."""
    from edgewright_hub.fleet import tokens
    from edgewright_hub.storage.control import open_control
    from edgewright_hub.storage.places import places

    served_before(data)
    engine = open_control(places(data).control)
    try:
        known = tokens.holders(engine)
    finally:
        engine.dispose()
    text = "\n".join(f"{name:<24} {role}" for name, role in known)
    say({"users": [{"name": name, "role": role} for name, role in known]}, text, as_json)


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not found:
        raise RequestError(f"--expires: expected a number with s, m, h or d, for instance 12h, got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
