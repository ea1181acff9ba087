"""`edgewright fleet set | hold | release | show | cohort`: what devices are, who is left alone, and all about one."""

from __future__ import annotations

import json
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgewright_contracts.errors import RequestError

from .hub_client import HubClient, path, with_hub
from .tables import ago, print_table


def named(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
    """Whoever names devices by an empty word, as a script does whose variable is not set, does not mean all of them."""
    words = value if isinstance(value, tuple) else (value,)
    if ctx.get_parameter_source(str(option.name)) != ParameterSource.DEFAULT and not all(map(str.strip, words)):
        raise RequestError(f"{option.opts[0]} is empty, and would mean every device; leave it out if that is meant")
    return value


SELECT = click.option("--select", "-s", "select", default="", metavar="SELECTOR", callback=named,
                      help="Devices that this means, as site=berlin,hw=pi5*,!held.")  # fmt: skip
SHOWN = 20  # entries of a history


@click.command("set")
@click.argument("words", metavar="[DEVICE]... KEY=VALUE...", nargs=-1, required=True)
@SELECT
@with_hub
def describe(client: HubClient, words: tuple[str, ...], select: str, as_json: bool) -> None:
    """Say what devices are: site=, hw=, profile=, tz= (as Europe/Berlin), tag.NAME=. An empty value takes it back."""
    pairs = dict(_pair(word) for word in words if "=" in word)
    if not pairs:
        raise RequestError("nothing to set: expected KEY=VALUE, for instance site=berlin")
    body = {"devices": [word for word in words if "=" not in word], "select": select, "set": pairs}
    _tell_changed(client.post("/api/v1/fleet/attributes", body), "changed", as_json)


@click.command()
@click.argument("devices", metavar="[DEVICE]...", nargs=-1)
@SELECT
@click.option("--reason", required=True, help="Why, for who reads it later.")
@with_hub
def hold(client: HubClient, devices: tuple[str, ...], select: str, reason: str, as_json: bool) -> None:
    """Let nothing change on devices: no rollout touches them, and they begin no update, until they are released."""
    body = {"devices": devices, "select": select, "reason": reason}
    _tell_changed(client.post("/api/v1/fleet/hold", body), "held", as_json)


@click.command()
@click.argument("devices", metavar="[DEVICE]...", nargs=-1)
@SELECT
@click.option("--reason", default="", help="Why, for who reads it later.")
@with_hub
def release(client: HubClient, devices: tuple[str, ...], select: str, reason: str, as_json: bool) -> None:
    """Take a hold back: devices follow what they are told."""
    body = {"devices": devices, "select": select, "reason": reason}
    _tell_changed(client.post("/api/v1/fleet/release", body), "released", as_json)


@click.command()
@click.argument("name", required=False)
@SELECT
@click.option("--remove", is_flag=True, help="Forget the name.")
@with_hub
def cohort(client: HubClient, name: str | None, select: str, remove: bool, as_json: bool) -> None:
    """List cohorts, or give devices that a selector means the name NAME: cohort=NAME then means them wherever a
    selector may stand. Who is in it is asked anew each time."""
    if name is None:
        if select or remove:
            raise RequestError("expected the cohort's name before --select or --remove")
        rows = client.get("/api/v1/fleet/cohorts")
        if as_json:
            return click.echo(json.dumps({"cohorts": rows}))
        table = Table("cohort", "means", "devices", "since", "by", box=None, header_style="dim")
        for row in rows:
            who = (str(row["devices"]), ago(row["at_ms"]), escape(row["who"]))
            table.add_row(escape(row["name"]), escape(row["selector"]), *who)
        return print_table(table, f"{len(rows)} cohorts")
    if bool(select) == remove:
        raise RequestError("expected --select SELECTOR to say who is in it, or --remove")
    if remove:
        answer = client.delete(path("fleet", "cohorts", name))
        return click.echo(json.dumps(answer) if as_json else f"there is no cohort {name} any more")
    answer = client.put(path("fleet", "cohorts", name), {"selector": select})
    return click.echo(json.dumps(answer) if as_json else f"{name}: {_some(answer['devices'])}")


@click.command()
@click.argument("device")
@with_hub
def show(client: HubClient, device: str, as_json: bool) -> None:
    """All about one device: what it shall run and runs, what was refused of it, and its history."""
    found = client.get(path("devices", device))
    if as_json:
        return click.echo(json.dumps(found))
    console = Console()
    online = "overdue" if found["overdue"] else "online" if found["online"] else "offline"
    state = "held" if found["held"] else online
    state = found["state"] if found["state"] != "enrolled" else state
    console.print(f"[bold]{escape(found['device'])}[/]  {state}, last seen {ago(found['last_seen_ms'])}")
    said = [f"fleet {found['fleet']}", *(f"{key}={value}" for key, value in found["attributes"].items())]
    if found["hardware"] and "hw" not in found["attributes"]:
        said.append(f"says hw={found['hardware']}")
    said += [f"cohort={name}" for name in found["cohorts"]]
    console.print(escape(", ".join(said)), highlight=False)
    if found["desired_rev"] != found["reported_rev"]:
        told = f"its document is revision {found['desired_rev']}, at its last birth it held {found['reported_rev']}"
        if found["desired_rev"] is None:
            told = "it was told nothing yet"
        console.print(told, style="dim", highlight=False)
    table = Table("model", "shall run", "said it runs", "", box=None, header_style="dim")
    for one in found["models"]:
        agrees = "[green]agrees[/]" if one["agrees"] else "[yellow]differs[/]"
        table.add_row(escape(one["model"]), _package(one, "desired"), _package(one, "reported"), agrees)
    _part(console, table)
    table = Table("refused", "times", "last", "said", box=None, header_style="dim")
    for one in found["refusals"]:
        table.add_row(escape(one["reason"]), str(one["count"]), ago(one["last_ms"]), escape(one["said"]))
    _part(console, table)
    table = Table("when", "who", "what", "", box=None, header_style="dim")
    for one in found["history"][:SHOWN]:
        table.add_row(ago(one["at_ms"]), escape(one["who"]), escape(one["what"]), escape(one["detail"]))
    return _part(console, table)


def _part(console: Console, table: Table) -> None:
    if table.row_count:
        console.print()
        console.print(table)


def _package(one: dict[str, Any], side: str) -> str:
    digest = one[side]
    return escape(f"{one[f'{side}_version'] or ''} {digest[:12]}".strip()) if digest else "nothing"


def _pair(word: str) -> tuple[str, str]:
    key, _, value = word.partition("=")
    return key, value


def _tell_changed(answer: dict[str, Any], what: str, as_json: bool) -> None:
    if as_json:
        return click.echo(json.dumps(answer))
    rest = len(answer["devices"]) - answer["changed"]
    same = f"; {rest} were so before" if rest else ""
    return click.echo(f"{answer['changed']} {what}: {_some(answer['devices'])}{same}")


def _some(devices: list[str]) -> str:
    more = f" and {len(devices) - 5} more" if len(devices) > 5 else ""
    return (", ".join(devices[:5]) or "no device yet") + more
