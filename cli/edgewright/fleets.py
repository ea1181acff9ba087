"""`edgewright fleet` and `edgewright rollout`: what the devices of a hub run and are set to, whether they drifted, who
gets what next.

Both talk to the hub's HTTPS API. Without --hub they take the hub whose data directory is --data, on this machine.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgewright_contracts.errors import RequestError

from .hub_client import HubClient, read_token

F = TypeVar("F", bound=Callable[..., Any])

POLL_S: Final = 1.0
_TONES: Final = {
    "promoted": "green", "done": "green", "running": "cyan", "alarm": "red", "ok": "green",
    "rolled back": "red", "refused by self-test": "red", "aborted": "yellow", "paused": "yellow",
}  # fmt: skip
_FOLDER = click.Path(path_type=Path, file_okay=False)
_DATA_HELP: Final = "Data directory of a hub on this machine, instead of the three above."
_FILE = click.Path(path_type=Path, dir_okay=False)


def _with_hub(command: F) -> F:
    """Gives the command a HubClient and --json."""

    @click.option("--hub", "url", metavar="URL", help="https://HOST:PORT of the hub.")
    @click.option("--ca", type=_FILE, help="The hub's CA certificate (ca.pem).")
    @click.option("--token-file", type=_FILE, help="File with a token of the hub.")
    @click.option("--data", type=_FOLDER, default=Path("hub-data"), show_default=True, help=_DATA_HELP)
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, url: str | None, ca: Path | None, token_file: Path | None, data: Path, **kwargs: Any
    ) -> Any:
        return command(_client(url, ca, token_file, data), *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def _client(url: str | None, ca: Path | None, token_file: Path | None, data: Path) -> HubClient:
    if url is None:
        place = data / "hub.json"
        if not place.is_file():
            raise RequestError(
                f"no hub is named and none runs on {data} ({place} is absent). "
                "Name one with --hub URL --ca FILE --token-file FILE, or a running one's directory with --data"
            )
        try:
            url = str(json.loads(place.read_bytes())["https"])
        except (ValueError, KeyError, TypeError):
            raise RequestError(
                f"{place}: expected the addresses of a hub, got something else; start the hub again"
            ) from None
        ca, token_file = ca or data / "ca.pem", token_file or data / "admin.token"
    return HubClient(url, ca=ca, token=read_token(token_file))


# Fleet.


@click.group()
def fleet() -> None:
    """Devices of a hub and their drift."""


@fleet.command()
@_with_hub
def devices(client: HubClient, as_json: bool) -> None:
    """Every enrolled device: what it runs, and when it was last seen."""
    rows = client.get("/api/v1/devices")
    if as_json:
        click.echo(json.dumps({"devices": rows}))
        return
    table = Table("device", "fleet", "state", "runs", "last seen", box=None, header_style="dim")
    for row in rows:
        state = "[green]online[/]" if row["online"] else "[red]offline[/]"
        runs = f"{row['running']['digest'][:12]} {row['running']['variant']}" if row["running"] else "nothing"
        table.add_row(escape(row["device"]), escape(row["fleet"]), state, escape(runs), _ago(row["last_seen_ms"]))
    _print(table, f"{sum(row['online'] for row in rows)} of {len(rows)} online")


@fleet.command()
@click.option("--all", "everything", is_flag=True, help="Also what has not moved.")
@_with_hub
def drift(client: HubClient, everything: bool, as_json: bool) -> int:
    """Which devices and fleets drifted, since when and in what. Exits with 1 while there is an alarm."""
    rows = client.get("/api/v1/drift")
    alarms = [row for row in rows if row["verdict"] == "alarm"]
    if as_json:
        click.echo(json.dumps({"alarms": len(alarms), "drift": rows if everything else alarms}))
        return 1 if alarms else 0
    table = Table("", "who", "model", "part", "verdict", "since", "n", "what moved", box=None, header_style="dim")
    for row in rows if everything else alarms:
        moved = ", ".join(f"{c['name']} (JS {c['js']:.2f})" for c in row["channels"][:4]) or "–"
        more = f" and {len(row['channels']) - 4} more" if len(row["channels"]) > 4 else ""
        since = _ago(row["since_ms"]) if row["since_ms"] else "–"
        who = (row["scope"], escape(row["subject"]), escape(f"{row['model']} {row['variant']}"), row["part"])
        table.add_row(*who, _toned(row["verdict"]), since, f"{row['n']:,}", escape(moved + more))
    watched = sum(row["scope"] == "device" and row["verdict"] in ("ok", "alarm") for row in rows)
    _print(table, f"{len(alarms)} alarms; {watched} streams of devices are watched")
    return 1 if alarms else 0


@fleet.command()
@click.argument("subject")
@_with_hub
def acknowledge(client: HubClient, subject: str, as_json: bool) -> None:
    """End the drift alarms of a device or a fleet: somebody has looked. Its detectors begin anew."""
    answer = client.post(f"/api/v1/drift/{subject}/acknowledge")
    click.echo(json.dumps(answer) if as_json else f"{answer['acknowledged']} alarms of {subject} ended")


@fleet.command()
@click.argument("device")
@_with_hub
def retire(client: HubClient, device: str, as_json: bool) -> None:
    """Let a device in no more: its certificate ends now. A new token takes it back."""
    answer = client.post(f"/api/v1/devices/{device}/retire")
    click.echo(json.dumps(answer) if as_json else f"{device} is retired")


@fleet.command()
@click.argument("names", metavar="[DEVICE]...", nargs=-1)
@click.option("--fleet", "fleet_name", default="", help="A whole fleet instead of devices; neither: all devices.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Set it there; more than once for more keys.")
@click.option("--reset", is_flag=True, help="Forget what was set there before.")
@click.option("--reason", default="", help="Why, for who reads it later.")
@_with_hub
def config(
    client: HubClient,
    names: tuple[str, ...],
    fleet_name: str,
    pairs: tuple[str, ...],
    reset: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Show or set how devices are to behave: profile, limits, windows, samples. A device's settings win over its
    fleet's, and those over what is set for all; devices follow as soon as they hear of it."""
    if pairs or reset:
        settings = dict(_setting(pair) for pair in pairs)
        asked = {"devices": names, "fleet": fleet_name, "settings": settings, "reset": reset, "reason": reason}
        found = client.post("/api/v1/config", asked)
    elif reason:
        raise RequestError("--reason belongs to a change: add --set KEY=VALUE or --reset")
    else:
        query = urlencode([("fleet", fleet_name), *(("device", name) for name in names)])
        found = client.get(f"/api/v1/config?{query}")
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
    _print(table, "all else is as the hub has it" if found["settings"] else "nothing is set: all is as the hub has it")
    if found["narrower"]:
        others = ", ".join(_whom(one) for one in found["narrower"])
        console.print(f"set otherwise for {escape(others)}", style="dim", highlight=False)
    table = Table("version", "for", "when", "who", "set to", "why", box=None, header_style="dim")
    for one in found["history"][:10]:
        values = ", ".join(f"{key}={json.dumps(value)}" for key, value in one["settings"].items()) or "nothing"
        who, why = escape(one["who"]), escape(one["reason"])
        table.add_row(str(one["version"]), escape(_whom(one)), _ago(one["at_ms"]), who, escape(values), why)
    if table.row_count:
        console.print()
        console.print(table)


def _whom(one: dict[str, Any]) -> str:
    if one["scope"] == "device":
        return str(one["subject"])
    return f"fleet {one['subject']}" if one["scope"] == "fleet" else "all"


# Rollouts.


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
@_with_hub
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
@_with_hub
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
        state = _toned(row["outcome"] or row["state"])
        table.add_row(row["id"], package, escape(row["fleet"] or "all"), state, stage, devices, escape(row["reason"]))
    _print(table, f"{len(rows)} rollouts")
    return 0


def _verb(verb: str, text: str) -> None:
    @rollout.command(verb, help=text)
    @click.argument("rollout_id", metavar="ID")
    @_with_hub
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
    console.print(f"{head}  {_toned(state['outcome'] or state['state'])}")
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


def _print(table: Table, summary: str) -> None:
    console = Console()
    if table.row_count:
        console.print(table)
    console.print(summary, style="dim", highlight=False)


def _toned(word: str) -> str:
    return f"[{_TONES.get(word, 'default')}]{escape(word)}[/]"


def _ago(then_ms: int | None) -> str:
    if then_ms is None:
        return "never"
    seconds = max(0.0, time.time() - then_ms / 1000)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
