"""`edgewright fleet enroll | queue | accept | refuse`: many devices at once, and those that wait for a person's yes."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any, Final

import click
from rich.markup import escape
from rich.table import Table

from edgewright_contracts.errors import EdgewrightError, RequestError

from .credentials import seconds
from .hub_client import HubClient, with_hub
from .tables import ago, print_table

_NAMES: Final = ("id", "serial")


@click.command()
@click.argument("table", metavar="CSV", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="New file for the tokens: CSV of id,token, readable by its owner only.")  # fmt: skip
@click.option("--one-token", is_flag=True, help="One token for all of them, instead of one for each.")
@click.option("--prefix", default="", help="Put before a serial number to make a device's id.")
@click.option("--fleet", "fleet_name", default="default", show_default=True, help="Where the table names none.")
@click.option("--expires", default="30d", show_default=True, help="Life of the tokens: 12h, 7d.")
@with_hub
def enroll(
    client: HubClient,
    table: Path,
    out: Path,
    one_token: bool,
    prefix: str,
    fleet_name: str,
    expires: str,
    as_json: bool,
) -> None:
    """Make enrolment tokens for the devices of a table. Its columns: id (or serial), and as you like fleet, site, hw,
    profile, tz, tag.NAME, which the devices then have from the first moment."""
    devices = read(table, prefix)
    asked = {"devices": devices, "fleet": fleet_name, "one_token": one_token, "expires_s": seconds(expires)}
    try:  # first: tokens that are made and cannot be written are lost
        descriptor = os.open(out, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        raise RequestError(f"{out} is there already: tokens never replace others; name a new file") from None
    with os.fdopen(descriptor, "w", newline="") as stream:
        try:
            made = client.post("/api/v1/fleet/expected", asked)["tokens"]
        except EdgewrightError:
            out.unlink()
            raise
        writer = csv.writer(stream)
        writer.writerow(("id", "token"))
        writer.writerows((one["device"], one["token"]) for one in made)
    if as_json:
        return click.echo(json.dumps({"devices": len(made), "file": str(out)}))
    return click.echo(f"{len(made)} devices may enrol; their {'token is' if one_token else 'tokens are'} in {out}")


def read(place: Path, prefix: str) -> list[dict[str, Any]]:
    """The devices of a table: {device, fleet, set}. Raises RequestError, which names the line."""
    with place.open(newline="", encoding="utf-8-sig") as stream:
        try:
            lines = csv.DictReader(stream, strict=True)
            named = next((name for name in _NAMES if name in (lines.fieldnames or ())), None)
            if named is None:
                raise RequestError(f"{place}: expected a column id or serial, got {', '.join(lines.fieldnames or ())}")
            return [_device(place, lines.line_num, named, line, prefix) for line in lines]
        except (csv.Error, UnicodeDecodeError) as error:
            raise RequestError(f"{place}: expected a table as CSV in UTF-8: {error}") from None


def _device(place: Path, number: int, named: str, line: dict[Any, Any], prefix: str) -> dict[str, Any]:
    if None in line or None in line.values():
        raise RequestError(f"{place}, line {number}: expected as many values as there are columns")
    said = {str(key).strip(): str(value).strip() for key, value in line.items()}
    name = said.pop(named)
    if named == "serial":
        name = prefix + name.lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
        raise RequestError(f"{place}, line {number}: expected an id of a-z, 0-9 and -, got {name!r}")
    return {"device": name, "fleet": said.pop("fleet", ""), "set": {key: value for key, value in said.items() if value}}


@click.command()
@with_hub
def queue(client: HubClient, as_json: bool) -> None:
    """Devices that are expected and not enrolled yet; those that wait for your yes come first."""
    rows = client.get("/api/v1/fleet/expected")
    if as_json:
        return click.echo(json.dumps({"expected": rows}))
    table = Table("device", "fleet", "state", "since", "key", box=None, header_style="dim")
    for row in rows:
        state = "[yellow]waiting[/]" if row["state"] == "waiting" else row["state"]
        table.add_row(row["device"], escape(row["fleet"]), state, ago(row["since_ms"]), row["key_sha256"][:16])
    waiting = sum(row["state"] == "waiting" for row in rows)
    return print_table(
        table, f"{waiting} wait for `edgewright fleet accept`; {len(rows) - waiting} others are expected"
    )


@click.command()
@click.argument("devices", metavar="DEVICE...", nargs=-1, required=True)
@with_hub
def accept(client: HubClient, devices: tuple[str, ...], as_json: bool) -> None:
    """Say yes to devices that wait: they get their certificates when they ask again."""
    answer = client.post("/api/v1/fleet/accept", {"devices": devices})
    click.echo(json.dumps(answer) if as_json else f"accepted: {', '.join(answer['devices'])}")


@click.command()
@click.argument("devices", metavar="DEVICE...", nargs=-1, required=True)
@with_hub
def refuse(client: HubClient, devices: tuple[str, ...], as_json: bool) -> None:
    """Say no to devices that wait. `fleet accept` takes that back."""
    answer = client.post("/api/v1/fleet/refuse", {"devices": devices})
    click.echo(json.dumps(answer) if as_json else f"refused: {', '.join(answer['devices'])}")
