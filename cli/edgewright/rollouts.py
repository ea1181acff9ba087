"""`edgewright rollout`: who gets what next. Talks to the hub's HTTPS API (`hub_client.with_hub`)."""

from __future__ import annotations

import json
import time
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgewright_contracts.errors import RequestError

from .hub_client import HubClient, path, with_hub
from .planning import lasting, print_left_out, print_plan, print_unknown, size
from .rollout_options import specified
from .tables import print_table, toned

POLL_S: Final = 1.0
PATIENCE_S: Final = 120.0  # while the hub looks at the past of a large fleet


@click.group()
def rollout() -> None:
    """Staged rollouts on a hub."""


@rollout.command()
@specified
@click.option("--force", is_flag=True, help="Also to devices that rest after a version was taken back.")
@click.option("--wait", is_flag=True, help="Wait for the end; exits with 1 unless it is promoted.")
@with_hub
def create(client: HubClient, spec: dict[str, Any], force: bool, wait: bool, as_json: bool) -> int:
    """Give a published version of MODEL to a fleet, stage by stage, as far as the evidence allows."""
    late = "the rollout may still begin; see `edgewright rollout status` before you create it again"
    state = client.post(path("rollouts", force=force), spec, patience_s=PATIENCE_S, late=late)
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
            state = client.get(path("rollouts", state["id"]))
    _tell(state, as_json)
    return 0 if state["outcome"] == "promoted" else 1


@rollout.command()
@specified
@click.option("--force", is_flag=True, help="As of `create`.")
@with_hub
def plan(client: HubClient, spec: dict[str, Any], force: bool, as_json: bool) -> int:
    """Who would get what when, and what its gates could see. Nothing moves."""
    late = "nothing was begun; ask again"
    found = client.post(path("rollouts", "plan", force=force), spec, patience_s=PATIENCE_S, late=late)
    if as_json:
        click.echo(json.dumps(found))
    else:
        print_plan(found)
    return 0


@rollout.command()
@click.argument("rollout_id", metavar="[ID]", required=False)
@with_hub
def status(client: HubClient, rollout_id: str | None, as_json: bool) -> int:
    """All rollouts, newest first, or one with its devices and evidence."""
    if rollout_id is not None:
        return _tell(client.get(path("rollouts", rollout_id)), as_json)
    rows = client.get("/api/v1/rollouts")
    if as_json:
        click.echo(json.dumps({"rollouts": rows}))
        return 0
    table = Table("rollout", "package", "for", "state", "stage", "devices", "why", box=None, header_style="dim")
    for row in rows:
        package = escape(f"{row['model']} {row['version']}")
        stage, devices = f"{row['stage'] + 1}/{len(row['stages'])}", f"{row['devices_exposed']}/{row['devices_total']}"
        state = toned(row["standing"])
        table.add_row(row["id"], package, escape(row["whom"]), state, stage, devices, escape(row["reason"]))
    print_table(table, f"{len(rows)} rollouts")
    return 0


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@click.option("--digest", required=True, help="Of the package that you looked at, whole: the consent is to that only.")
@with_hub
def approve(client: HubClient, rollout_id: str, digest: str, as_json: bool) -> int:
    """Consent to a rollout that somebody else created."""
    return _tell(client.post(path("rollouts", rollout_id, "approve"), {"digest": digest}), as_json)


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@click.option("--promote", is_flag=True, help="Go on to everyone.")
@click.option("--back", is_flag=True, help="Take it back from those that have it.")
@with_hub
def conclude(client: HubClient, rollout_id: str, promote: bool, back: bool, as_json: bool) -> int:
    """End an experiment."""
    if promote == back:
        raise RequestError("say how it ends: --promote or --back, one of them")
    answer = "promote" if promote else "take back"
    return _tell(client.post(path("rollouts", rollout_id, "conclude"), {"answer": answer}), as_json)


def _verb(verb: str, text: str, *, why: bool = False) -> None:
    default: dict[str, Any] = {} if why else {"default": ""}

    @rollout.command(verb, help=text)
    @click.argument("rollout_id", metavar="ID")
    @click.option("--reason", required=why, help="Why; kept in the audit.", **default)
    @with_hub
    def act(client: HubClient, rollout_id: str, reason: str, as_json: bool) -> int:
        return _tell(client.post(path("rollouts", rollout_id, verb), {"reason": reason}), as_json)


_verb("pause", "Give it to nobody else for now; harm still sends it back.")
_verb("resume", "Go on after a pause.")
_verb("abort", "Stop, and send every device that has it back.")
_verb("revert", "Send a rollout that is done back, at any later time; waits for no hours.", why=True)


def _tell(state: dict[str, Any], as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(state))
        return 0
    console = Console()
    head = f"[bold]{state['id']}[/]  {escape(state['model'])} {escape(state['version'])}"
    console.print(f"{head}  {toned(state['standing'])}")
    sizes = " → ".join(
        f"[bold]{s['devices']}[/]" if i == state["stage"] else str(s["devices"]) for i, s in enumerate(state["stages"])
    )
    console.print(f"stages {sizes} of {state['devices_total']} devices; {state['devices_exposed']} were given it")
    for line in _asked(state):
        console.print(escape(line), highlight=False)
    console.print(escape(state["reason"]), highlight=False)
    if state["state"] in ("draft", "unapproved", "running", "paused"):
        print_unknown(console, state["not_waited_for"])
    if state["state"] == "unapproved":
        console.print(
            f"edgewright rollout approve {state['id']} --digest {state['digest']}", highlight=False, soft_wrap=True
        )
    for effect in state["effects"]:
        low, high = 100 * effect["difference_low"], 100 * effect["difference_high"]
        change = f"{100 * effect['difference']:+.2f} points ({low:+.2f} to {high:+.2f})"
        console.print(f"effect on {escape(effect['metric'])}: {change}", highlight=False)
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
    print_left_out(console, state.get("excluded", ()))
    return 0


def _asked(state: dict[str, Any]) -> list[str]:
    """Whom it is for, and what it keeps to."""
    asked, caps = state["asked"], []
    if asked["windows"]:
        caps.append(f"in {', '.join(asked['windows'])}")
    if asked["concurrency"] is not None:
        caps.append(f"at most {asked['concurrency']} at once")
    if asked["bandwidth_bytes_s"] is not None:
        caps.append(f"at most {size(asked['bandwidth_bytes_s'])}/s")
    if asked["cooldown_s"]:
        caps.append(f"{lasting(asked['cooldown_s'])} of rest after a way back")
    lines = [f"for {state['whom']}", "; ".join(caps)]
    if (one := asked["experiment"]) is not None:
        ends = [f"by {one['outcome']}"] if one["outcome"] else []
        ends += [f"after {lasting(one['at_most_s'])}"] if one["at_most_s"] is not None else []
        rule = f"ends {' or '.join(ends)}, else {one['undecided']}" if ends else "ends when somebody concludes it"
        lines.append(f"an experiment at {one['share']}: {rule}")
    return [line for line in lines if line]
