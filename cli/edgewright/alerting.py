"""`edgewright fleet alerts` and `edgewright fleet webhook`: what a person is to look at, and what other systems are
told of it."""

from __future__ import annotations

import json

import click
from rich.markup import escape
from rich.table import Table

from .groups import ShownByDefault
from .hub_client import HubClient, path, with_hub
from .tables import ago, print_table


@click.group(cls=ShownByDefault)
def alerts() -> None:
    """What a person is to look at: drift, rollouts, what ends soon, what is to be trained again."""


@alerts.command()
@click.option("--all", "everything", is_flag=True, help="Also those that are over.")
@with_hub
def show(client: HubClient, everything: bool, as_json: bool) -> int:
    """Open alerts, pages first. Exits with 1 while there is a page that nobody has acknowledged."""
    rows = client.get(path("alerts", closed=everything))
    now = [row for row in rows if row["closed_ms"] is None]
    pages = sum(row["severity"] == "page" and row["acknowledged_ms"] is None for row in now)
    if as_json:
        click.echo(json.dumps({"open": len(now), "pages": pages, "alerts": rows}))
        return 1 if pages else 0
    table = Table("", "", "since", "what", box=None, header_style="dim")
    for row in rows:
        tone = "red" if row["severity"] == "page" else "yellow"
        word = f"[{tone}]{row['severity']}[/]" if row["closed_ms"] is None else "closed"
        seen = f" ({row['acknowledged_by']} looks at it)" if row["acknowledged_by"] and not row["closed_ms"] else ""
        table.add_row(str(row["id"]), word, ago(row["opened_ms"]), escape(row["text"] + seen))
    print_table(table, f"{len(now)} open, {pages} of them pages that nobody has acknowledged")
    return 1 if pages else 0


@alerts.command()
@click.argument("number", type=int)
@with_hub
def acknowledge(client: HubClient, number: int, as_json: bool) -> None:
    """Say that somebody looks at it."""
    row = client.post(path("alerts", str(number), "acknowledge"))
    click.echo(json.dumps(row) if as_json else f"{number} is looked at by {row['acknowledged_by']}: {row['text']}")


@alerts.command()
@click.argument("number", type=int)
@with_hub
def close(client: HubClient, number: int, as_json: bool) -> None:
    """Close it. It opens again when its reason comes back."""
    row = client.post(path("alerts", str(number), "close"))
    click.echo(json.dumps(row) if as_json else f"{number} is closed: {row['text']}")


@click.group(cls=ShownByDefault)
def webhook() -> None:
    """Addresses that alerts are posted to, signed, and again until they are taken."""


@webhook.command("show")
@with_hub
def webhooks(client: HubClient, as_json: bool) -> int:
    """Webhooks and how their deliveries fare. Exits with 1 when the last try of one failed."""
    rows = client.get("/api/v1/webhooks")
    failing = any(row["said"] for row in rows)
    if as_json:
        click.echo(json.dumps({"webhooks": rows}))
        return 1 if failing else 0
    table = Table("", "url", "of", "done", "due", "given up", "", box=None, header_style="dim")
    for row in rows:
        of = " ".join(filter(None, ("pages" if row["pages_only"] else "", row["kind"], row["subject"]))) or "all"
        counts = (str(row["done"]), str(row["due"]), str(row["given up"]))
        table.add_row(str(row["id"]), escape(row["url"]), escape(of), *counts, escape(row["said"]))
    print_table(table, f"{len(rows)} webhooks")
    return 1 if failing else 0


@webhook.command()
@click.argument("address", metavar="URL")
@click.option("--pages-only", is_flag=True, help="Not of tickets.")
@click.option(
    "--kind", default="", help="Only alerts of this kind: drift, rollout, expiry, accuracy, retrain, export, hub."
)
@click.option("--subject", default="", help="Only alerts of this device, fleet or model.")
@with_hub
def add(client: HubClient, address: str, pages_only: bool, kind: str, subject: str, as_json: bool) -> None:
    """Post alerts to URL. Prints the secret that signs them, this once."""
    asked = {"url": address, "pages_only": pages_only, "kind": kind, "subject": subject}
    made = client.post("/api/v1/webhooks", asked)
    click.echo(json.dumps(made) if as_json else f"webhook {made['id']}; its secret, told this once: {made['secret']}")


@webhook.command()
@click.argument("number", type=int)
@with_hub
def test(client: HubClient, number: int, as_json: bool) -> None:
    """Send it something; `webhook show` says soon whether it was taken."""
    made = client.post(path("webhooks", str(number), "test"))
    click.echo(json.dumps(made) if as_json else f"delivery {made['delivery']} is on its way")


@webhook.command()
@click.argument("number", type=int)
@with_hub
def remove(client: HubClient, number: int, as_json: bool) -> None:
    """Post nothing there any more."""
    client.post(path("webhooks", str(number), "remove"))
    click.echo(json.dumps({"removed": number}) if as_json else f"webhook {number} is removed")
