"""`edgewright fleet accuracy | labels | retrain`: how right models are out there, what people know of it, and when a
model is to be trained again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgewright_contracts.errors import RequestError

from .groups import ShownByDefault
from .hub_client import HubClient, path, with_hub
from .inventory import SELECT, named
from .tables import ago, print_table

LABEL_DAYS = 30  # of which labels are, unless the newest contradict the others


@click.command()
@click.option("--model", default="", help="Only this one.")
@click.option("--fleet", default="", callback=named, help="Only devices of this fleet.")
@click.option("--context", help='Only this context; "" is what names none.')
@click.option("--hours", type=click.IntRange(1, 8760), default=24, show_default=True, help="Of inferences.")
@SELECT
@with_hub
def accuracy(
    client: HubClient, model: str, fleet: str, context: str | None, hours: int, select: str, as_json: bool
) -> int:
    """Accuracy of each model, version, fleet and context: expected, if what it has learnt still holds, from calibrated
    confidence and the labels of 30 days, with a 95 % interval. Exits with 1 when labels say that it does not hold."""
    asked: dict[str, Any] = {"model": model, "fleet": fleet, "hours": hours, "select": select}
    asked |= {} if context is None else {"context": context}
    told = client.get(path("accuracy", **asked))
    wrong = any(_holds(one) == "disagrees" for found in told["models"] for one in (found, *found["slices"]))
    if as_json:
        click.echo(json.dumps(told))
        return 1 if wrong else 0
    console = Console()
    for found in told["models"]:
        console.print(f"[bold]{escape(found['model'])}[/]  {_expected(found)}", highlight=False)
        table = Table("version", "fleet", "context", "expected", "labelled", "", box=None, header_style="dim")
        for one in found["slices"]:
            where = (escape(one["cohort"]), escape(one["context"] or "–"))
            version = escape(f"{one['version']} {one['variant']}")
            moved = f", [red]{', '.join(one['drift'])} moved[/]" if one["drift"] else ""
            since = f" [dim]({one['label_days']} d)[/]" if one["label_days"] < LABEL_DAYS else ""
            table.add_row(version, *where, _expected(one), _rate(one["labelled"]), _said(_holds(one)) + since + moved)
        console.print(table)
        rows = [(one, name, rate) for one in found["slices"] for name, rate in one["outcomes"].items()]
        if rows:
            table = Table("outcome", "version", "fleet", "rate", "devices", box=None, header_style="dim")
            for one, name, rate in rows:
                where = (escape(f"{one['version']} {one['variant']}"), escape(one["cohort"]))
                table.add_row(escape(name), *where, _rate(rate), str(rate["devices"]))
            console.print(table)
    said = f"{told['condition']}; inferences of {hours} h" if told["models"] else "nothing was counted yet"
    console.print(said, style="dim", highlight=False)
    return 1 if wrong else 0


def _holds(found: dict[str, Any]) -> str:
    return str(found["expected"]["holds"]) if found["expected"] else "no confidence"


def _said(holds: str) -> str:
    return {"disagrees": "[red]labels disagree[/]", "agrees": "[green]labels agree[/]"}.get(holds, f"[dim]{holds}[/]")


def _expected(found: dict[str, Any]) -> str:
    if found["expected"] is None:
        return "–"
    one = found["expected"]
    return f"{one['value']:.1%} ({one['low']:.1%}–{one['high']:.1%})"


def _rate(rate: dict[str, Any] | None) -> str:
    return f"{rate['value']:.1%} ({rate['low']:.1%}–{rate['high']:.1%}) of {rate['n']:,}" if rate else "–"


@click.group(cls=ShownByDefault)
def labels() -> None:
    """Labels and outcomes that people know and devices do not."""


@labels.command("show")
@with_hub
def imported(client: HubClient, as_json: bool) -> None:
    """Tables that were imported."""
    rows = client.get("/api/v1/labels")
    if as_json:
        click.echo(json.dumps({"imports": rows}))
        return
    table = Table("file", "when", "who", "labels", "refused", box=None, header_style="dim")
    for row in rows:
        counts = (f"{row['counted']:,}", f"{row['refused']:,}")
        table.add_row(escape(row["name"]), ago(row["at_ms"]), escape(row["who"]), *counts)
    print_table(table, f"{len(rows)} tables")


@labels.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@with_hub
def bring(client: HubClient, file: Path, as_json: bool) -> None:
    """Count the labels of a table, CSV or JSON lines, once: device; digest, or model and version, or model and time;
    value, or label and predicted, or n and hits; and outcome, context, variant, confidence where they matter."""
    told = client.post_bytes(path("labels", name=file.name), file.read_bytes())
    if as_json:
        click.echo(json.dumps(told))
        return
    again = "; the same table was counted before" if told["already"] else ""
    click.echo(f"{told['counted']:,} labels counted, {told['refused']:,} lines refused{again}")
    for why in told["reasons"]:
        click.echo(f"  {why}")


@click.command()
@click.argument("model", required=False)
@click.option("--on-drift", is_flag=True, help="When the drift of a device or fleet that runs it raises an alarm.")
@click.option("--max-age-days", type=click.IntRange(1, 3650), help="When its newest package is so old.")
@click.option(
    "--webhook",
    "address",
    metavar="URL",
    help="Tell this address, too: `fleet webhook add URL --kind retrain --subject MODEL`.",
)
@click.option("--never", is_flag=True, help="Take the policy back.")
@with_hub
def retrain(
    client: HubClient,
    model: str | None,
    on_drift: bool,
    max_age_days: int | None,
    address: str | None,
    never: bool,
    as_json: bool,
) -> None:
    """Say when MODEL is to be trained again; without MODEL, show what was said. The alert of kind retrain tells what
    moved and how to fetch consented samples; examples/retrain acts on it."""
    if model is None:
        if on_drift or max_age_days or address or never:
            raise RequestError("expected the MODEL that this is about; `edgewright registry list` names them")
        rows = client.get("/api/v1/retrain")
        if as_json:
            click.echo(json.dumps({"policies": rows}))
            return
        table = Table("model", "on drift", "after days", "who", box=None, header_style="dim")
        for row in rows:
            when = ("yes" if row["on_drift"] else "no", str(row["max_age_days"] or "–"))
            table.add_row(escape(row["model"]), *when, escape(row["who"]))
        print_table(table, f"{len(rows)} models have a policy")
        return
    if never == bool(on_drift or max_age_days):
        raise RequestError("expected --on-drift, --max-age-days or both; or --never alone")
    wanted = {"on_drift": on_drift, "max_age_days": max_age_days}
    policy = client.post(path("retrain", model), wanted)
    asked = {"url": address, "kind": "retrain", "subject": model}
    hook = client.post("/api/v1/webhooks", asked) if address else None
    if as_json:
        click.echo(json.dumps({"policy": policy, "webhook": hook}))
        return
    said = [*(["drift"] if on_drift else []), *([f"an age of {max_age_days} days"] if max_age_days else [])]
    click.echo(f"{model}: {' or '.join(said) or 'nothing'} asks for training")
    if hook:
        click.echo(f"webhook {hook['id']}; its secret, told this once: {hook['secret']}")
