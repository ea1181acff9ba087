"""`edgewright rollout`: who gets what next. Talks to the hub's HTTPS API (`hub_client.with_hub`)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgewright_contracts.errors import RequestError

from .hub_client import HubClient, with_hub
from .tables import print_table, toned

POLL_S: Final = 1.0
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def rollout() -> None:
    """Staged rollouts on a hub."""


@rollout.command()
@click.argument("model")
@click.option("--version", default="", help="Version to roll out.")
@click.option("--digest", default="", help="Or its digest.")
@click.option("--fleet", "fleet_name", default="", help="Fleet to give it to; all of them if not named.")
@click.option("--device", "names", multiple=True, help="Only these devices.")
@click.option("--stages", default="1,25%,100%", show_default=True, help="Devices reached by each stage, in all.")
@click.option("--gate", type=_FILE, help="JSON file of gate margins, where they differ from the defaults.")
@click.option(
    "--window-s", type=float, default=60.0, show_default=True, help="Seconds of a report while it is on trial."
)
@click.option("--timeout-s", type=float, default=3600.0, show_default=True, help="Seconds that a device may take.")
@click.option("--wait", is_flag=True, help="Wait for the end; exits with 1 unless it is promoted.")
@with_hub
def create(
    client: HubClient,
    model: str,
    version: str,
    digest: str,
    fleet_name: str,
    names: tuple[str, ...],
    stages: str,
    gate: Path | None,
    window_s: float,
    timeout_s: float,
    wait: bool,
    as_json: bool,
) -> int:
    """Give a published version of MODEL to a fleet, stage by stage, as far as the evidence allows."""
    spec: dict[str, Any] = {
        "model": model,
        "version": version,
        "digest": digest,
        "fleet": fleet_name,
        "devices": names,
        "stages": [int(s) if s.strip().isdigit() else s.strip() for s in stages.split(",")],
        "window_s": window_s,
        "device_timeout_s": timeout_s,
    }
    if gate is not None:
        spec["gate"] = _json_file(gate)
    state = client.post("/api/v1/rollouts", spec)
    if not wait:
        return _tell(state, as_json)
    console = Console(stderr=True)
    with console.status(f"{state['id']} …") as line:
        told = ""
        while not state["outcome"] or state["state"] == "rolling-back":
            now = f"{state['id']}: stage {state['stage'] + 1} of {len(state['stages'])}, {escape(state['reason'])}"
            line.update(now)
            if now != told and not console.is_terminal:
                console.print(now, highlight=False)
            told = now
            time.sleep(POLL_S)
            state = client.get(f"/api/v1/rollouts/{state['id']}")
    _tell(state, as_json)
    return 0 if state["outcome"] == "promoted" else 1


@rollout.command()
@click.argument("rollout_id", metavar="[ID]", required=False)
@with_hub
def status(client: HubClient, rollout_id: str | None, as_json: bool) -> int:
    """All rollouts, newest first, or one with its devices and evidence."""
    if rollout_id is not None:
        return _tell(client.get(f"/api/v1/rollouts/{rollout_id}"), as_json)
    rows = client.get("/api/v1/rollouts")
    if as_json:
        click.echo(json.dumps({"rollouts": rows}))
        return 0
    table = Table("rollout", "package", "fleet", "state", "stage", "devices", "why", box=None, header_style="dim")
    for row in rows:
        package = escape(f"{row['model']} {row['version']}")
        stage, devices = f"{row['stage'] + 1}/{len(row['stages'])}", f"{row['devices_exposed']}/{row['devices_total']}"
        state = toned(row["outcome"] or row["state"])
        table.add_row(row["id"], package, escape(row["fleet"] or "all"), state, stage, devices, escape(row["reason"]))
    print_table(table, f"{len(rows)} rollouts")
    return 0


def _verb(verb: str, text: str) -> None:
    @rollout.command(verb, help=text)
    @click.argument("rollout_id", metavar="ID")
    @with_hub
    def act(client: HubClient, rollout_id: str, as_json: bool) -> int:
        return _tell(client.post(f"/api/v1/rollouts/{rollout_id}/{verb}"), as_json)


_verb("pause", "Give it to nobody else for now; harm still sends it back.")
_verb("resume", "Go on after a pause.")
_verb("abort", "Stop, and send every device that has it back.")


def _tell(state: dict[str, Any], as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(state))
        return 0
    console = Console()
    head = f"[bold]{state['id']}[/]  {escape(state['model'])} {escape(state['version'])}"
    console.print(f"{head}  {toned(state['outcome'] or state['state'])}")
    sizes = " → ".join(
        f"[bold]{s['devices']}[/]" if i == state["stage"] else str(s["devices"]) for i, s in enumerate(state["stages"])
    )
    console.print(f"stages {sizes} of {state['devices_total']} devices; {state['devices_exposed']} were given it")
    console.print(escape(state["reason"]), highlight=False)
    table = Table("", "with it", "without", "n", "measured against", box=None, header_style="dim")
    for figure in state["figures"]:
        if figure["n"]:
            rates = ("–" if figure[side] is None else f"{figure[side]:.2%}" for side in ("treated", "control"))
            table.add_row(figure["metric"], *rates, f"{figure['n']:,}", figure["basis"])
    if table.row_count:
        console.print(table)
    for member in state.get("devices", ()):
        if member["status"] == "failed":
            console.print(f"[red]{escape(member['device'])} failed[/]: {escape(member['reason'])}", highlight=False)
    return 0


def _json_file(place: Path) -> Any:
    try:
        return json.loads(place.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(f"--gate: expected a JSON file, {place}: {error}") from None
