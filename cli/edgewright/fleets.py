"""`edgewright fleet`: what the devices of a hub run and are set to, and whether they drifted. Talks to the hub's HTTPS
API (`hub_client.with_hub`)."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgewright_contracts.errors import RequestError

from . import alerting, enrolments, fetching, inventory, quality
from .drifting import acknowledge, drift
from .hub_client import HubClient, path, with_hub
from .tables import ago, print_table


@click.group()
def fleet() -> None:
    """Devices of a hub and their drift."""


for command in (
    inventory.describe, inventory.hold, inventory.release, inventory.show, inventory.cohort,
    enrolments.enroll, enrolments.queue, enrolments.accept, enrolments.refuse,
):  # fmt: skip
    fleet.add_command(command)
for more in (alerting.alerts, alerting.webhook, fetching.samples, fetching.collect):
    fleet.add_command(more)
for more in (quality.accuracy, quality.labels, quality.retrain):
    fleet.add_command(more)


@fleet.command()
@inventory.SELECT
@with_hub
def devices(client: HubClient, select: str, as_json: bool) -> None:
    """Every device, retired ones too: what it runs, and when it was last seen."""
    rows = client.get(path("devices", select=select))
    if as_json:
        click.echo(json.dumps({"devices": rows}))
        return
    table = Table("device", "fleet", "state", "runs", "last seen", box=None, header_style="dim")
    for row in rows:
        state = "[yellow]overdue[/]" if row["overdue"] else "[green]online[/]" if row["online"] else "[red]offline[/]"
        state = "[dim]retired[/]" if row["state"] == "retired" else state + (", held" if row["held"] else "")
        runs = f"{row['running']['digest'][:12]} {row['running']['variant']}" if row["running"] else "nothing"
        table.add_row(escape(row["device"]), escape(row["fleet"]), state, escape(runs), ago(row["last_seen_ms"]))
    enrolled = [row for row in rows if row["state"] != "retired"]
    late = sum(row["overdue"] for row in enrolled)
    said = f"{sum(row['online'] for row in enrolled) - late} of {len(enrolled)} online"
    said += f", {late} connected and their reports are overdue" if late else ""
    print_table(table, said + (f", {len(rows) - len(enrolled)} retired" if len(enrolled) < len(rows) else ""))


fleet.add_command(drift)
fleet.add_command(acknowledge)


@fleet.command()
@click.argument("device")
@with_hub
def retire(client: HubClient, device: str, as_json: bool) -> None:
    """Decommission a device: let it in no more, its certificate ends now. A new token takes it back."""
    answer = client.post(path("devices", device, "retire"))
    click.echo(json.dumps(answer) if as_json else f"{device} is retired")


fleet.add_command(retire, "decommission")


@fleet.command()
@click.argument("names", metavar="[DEVICE]...", nargs=-1)
@click.option("--fleet", "fleet_name", default="", callback=inventory.named,
              help="A whole fleet instead of devices; neither: all devices.")  # fmt: skip
@inventory.SELECT
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Set it there; more than once for more keys.")
@click.option("--reset", is_flag=True, help="Forget what was set there before.")
@click.option("--reason", default="", help="Why, for who reads it later.")
@with_hub
def config(
    client: HubClient,
    names: tuple[str, ...],
    fleet_name: str,
    select: str,
    pairs: tuple[str, ...],
    reset: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Show or set how devices are to behave: profile, limits, windows, samples. A device's settings win over those of
    a selector, those over its fleet's, and those over what is set for all; devices follow once they hear of it."""
    if pairs or reset:
        settings = dict(_setting(pair) for pair in pairs)
        whom = {"devices": names, "fleet": fleet_name, "select": select}
        asked: dict[str, Any] = {key: value for key, value in whom.items() if value}
        asked |= {"settings": settings, "reset": reset, "reason": reason}
        found = client.post("/api/v1/config", asked)
    elif reason:
        raise RequestError("--reason belongs to a change: add --set KEY=VALUE or --reset")
    else:
        found = client.get(path("config", fleet=fleet_name, select=select, device=names))
    if as_json:
        click.echo(json.dumps({"configs": found}))
        return
    for one in found:
        _tell_config(one)


def _setting(pair: str) -> tuple[str, Any]:
    """A number, true, false or null as JSON has them; anything else is a word."""
    key, sign, value = pair.partition("=")
    if not sign or not key:
        raise RequestError(f"--set: expected KEY=VALUE, for instance profile=metered, got {pair!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _tell_config(found: dict[str, Any]) -> None:
    console = Console()
    whose = found["subject"] if found["scope"] != "fleet" else f"fleet {found['subject']}"
    console.print(f"[bold]{escape(whose or 'all devices')}[/]  version {found['version']}", highlight=False)
    table = Table("setting", "", "set for", "version", box=None, header_style="dim")
    for one in found["settings"]:
        value = json.dumps(one["value"]) if not isinstance(one["value"], str) else one["value"]
        table.add_row(one["key"], escape(value), escape(_whom(one)), str(one["version"]))
    print_table(
        table, "all else is as the hub has it" if found["settings"] else "nothing is set: all is as the hub has it"
    )
    if found["narrower"]:
        others = ", ".join(_whom(one) for one in found["narrower"])
        console.print(f"set otherwise for {escape(others)}", style="dim", highlight=False)
    table = Table("version", "for", "when", "who", "set to", "why", box=None, header_style="dim")
    for one in found["history"][:10]:
        values = ", ".join(f"{key}={json.dumps(value)}" for key, value in one["settings"].items()) or "nothing"
        who, why = escape(one["who"]), escape(one["reason"])
        table.add_row(str(one["version"]), escape(_whom(one)), ago(one["at_ms"]), who, escape(values), why)
    if table.row_count:
        console.print()
        console.print(table)


def _whom(one: dict[str, Any]) -> str:
    if one["scope"] in ("device", "selector"):
        return str(one["subject"])
    return f"fleet {one['subject']}" if one["scope"] == "fleet" else "all"
