"""`edgewright fleet drift`: which devices drifted, how many false pages are allowed, what the new normal is. Talks to
the hub's HTTPS API (`hub_client.with_hub`)."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from edgewright_contracts.errors import RequestError

from .groups import ShownByDefault
from .hub_client import HubClient, path, with_hub
from .tables import ago, print_table, toned

_REASON = click.option("--reason", default="", help="Why; it is kept in the audit log.")


@click.group(cls=ShownByDefault)
def drift() -> None:
    """Which devices and fleets drifted; how many false pages are allowed; what is a new normal."""


@drift.command()
@click.option("--all", "everything", is_flag=True, help="Also what has not moved.")
@click.option("--by", metavar="KEY", help="How many devices drift at each site, cohort, hw, profile or tag.NAME.")
@with_hub
def show(client: HubClient, everything: bool, by: str | None, as_json: bool) -> int:
    """Which devices and fleets drifted, since when, in what and how. Exits with 1 while there is an alarm."""
    if by is not None:
        return _divided(client, by, as_json)
    rows, budget = client.get("/api/v1/drift"), client.get("/api/v1/drift/budget")
    alarms = [row for row in rows if row["verdict"] == "alarm"]
    told = rows if everything else [row for row in rows if row["verdict"] in ("alarm", "skewed")]
    if as_json:
        click.echo(json.dumps({"alarms": len(alarms), "budget": budget, "drift": told}))
        return 1 if alarms else 0
    table = Table("who", "part", "", "since", "n", "what moved", box=None, header_style="dim")
    for row in told:
        moved = ", ".join(f"{c['name']} (JS {c['js']:.2f})" for c in row["channels"][:3])
        more = f" and {len(row['channels']) - 3} more" if len(row["channels"]) > 3 else ""
        what = ": ".join(one for one in (", ".join(row["kinds"]), moved + more) if one) or "–"
        who = f"cohort {row['subject']} ({len(row['devices'])})" if row["scope"] == "cohort" else row["subject"]
        since = ago(row["since_ms"]) if row["since_ms"] else "–"
        table.add_row(escape(who), row["part"], toned(row["verdict"]), since, f"{row['n']:,}", escape(what))
    watched = sum(row["scope"] == "device" and row["verdict"] in ("ok", "alarm", "skewed") for row in rows)
    allowed = f"at most {budget['false_pages_a_month']:g} false pages a month are expected"
    print_table(table, f"{len(alarms)} alarms; {watched} streams of devices are watched; {allowed}")
    return 1 if alarms else 0


def _divided(client: HubClient, key: str, as_json: bool) -> int:
    rows = client.get(path("drift", "by", key))
    alarms = sum(row["alarm"] for row in rows)
    if as_json:
        click.echo(json.dumps({"by": key, "rows": rows}))
        return 1 if alarms else 0
    table = Table(escape(key), "devices", "drift", "skewed", "learning", "what", box=None, header_style="dim")
    for row in rows:
        numbers = (f"{row[name]:,}" for name in ("devices", "alarm", "skewed", "learning"))
        what = ": ".join(one for one in (", ".join(row["parts"]), ", ".join(row["kinds"])) if one)
        table.add_row(escape(row[key] or "–"), *numbers, escape(what or "–"))
    print_table(table, f"devices by {key}, {alarms} in alarm; once for each value that a device has")
    return 1 if alarms else 0


@drift.command()
@click.argument("pages", type=float, required=False)
@_REASON
@with_hub
def budget(client: HubClient, pages: float | None, reason: str, as_json: bool) -> None:
    """Show or set how many false PAGES a month the whole fleet may have."""
    if pages is None and reason:
        raise RequestError("--reason belongs to a change: name the pages a month too, for instance `budget 1`")
    asked = {"false_pages_a_month": pages, "reason": reason}
    found = client.get("/api/v1/drift/budget") if pages is None else client.post("/api/v1/drift/budget", asked)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"at most {found['false_pages_a_month']:g} false pages a month, over {found['streams']} streams:")
    click.echo(f"a device pages at evidence of e^{found['log_e_device']:.1f}, a fleet at e^{found['log_e_cohort']:.1f}")


@drift.command()
@click.argument("subject")
@_REASON
@click.option("--undo", is_flag=True, help="Take the last acceptance back.")
@with_hub
def accept(client: HubClient, subject: str, reason: str, undo: bool, as_json: bool) -> None:
    """What the device or fleet SUBJECT shows now is its new normal: compare it with its own windows from here on."""
    verb = "undo" if undo else "accept"
    answer: dict[str, Any] = client.post(path("drift", subject, verb), {"reason": reason})
    if as_json:
        click.echo(json.dumps(answer))
    elif undo:
        click.echo(f"{answer['restored']} streams of {subject} have their earlier normal back")
    else:
        click.echo(f"{answer['accepted']} streams of {subject} have a new normal; --undo takes it back")


@click.command()
@click.argument("subject")
@with_hub
def acknowledge(client: HubClient, subject: str, as_json: bool) -> None:
    """End the drift alarms of a device or a fleet: somebody has looked. What goes on moving is reported again."""
    answer = client.post(path("drift", subject, "acknowledge"))
    click.echo(json.dumps(answer) if as_json else f"{answer['acknowledged']} alarms of {subject} ended")
