"""`edgewright agent`: run the agent, look at it, ask it for one prediction."""

from __future__ import annotations

import json
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec
import numpy as np

from edgewright_contracts.errors import RequestError

from . import onboarding
from .inquiries import bench, clear, collect, consent
from .sideloading import sideload

if TYPE_CHECKING:
    from edgewright_agent.console.status import Status
    from edgewright_agent.hosting.live import Live
    from edgewright_agent.updating.slots import Slot

WIDTH = 80
SPARE_MB = 4  # that an update leaves free (edgewright_agent.updating.steps)
TODAY = {"link_bytes": "on the link", "written_bytes": "written"}

HOME = click.option(
    "--home", type=click.Path(file_okay=False, path_type=Path), required=True, help="The device's directory."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def agent() -> None:
    """Run and inspect the agent on a device."""


for _one in (onboarding.enroll, onboarding.renew, onboarding.install, onboarding.uninstall):
    agent.add_command(_one)


@agent.command()
@HOME
@click.option(
    "--listen",
    metavar="127.0.0.1:PORT|unix:PATH",
    help="Serve the Open Inference Protocol v2 there; a socket has mode 0660.",
)
@click.option("--log-format", type=click.Choice(["kv", "json"]), default="kv", show_default=True)
@click.option("--verbose", is_flag=True, help="Log details, too, whatever the hub asks for.")
@JSON
def run(home: Path, listen: str | None, log_format: Literal["kv", "json"], verbose: bool, as_json: bool) -> None:
    """Run the agent until SIGTERM."""
    import os

    from edgewright_agent.agent import Agent
    from edgewright_agent.hosting import logs
    from edgewright_agent.hosting.owner import act_as_owner
    from edgewright_agent.hosting.presence import Presence
    from edgewright_agent.serving.listening import place
    from edgewright_agent.serving.service import serve

    where = place(listen) if listen is not None else None
    act_as_owner(home)
    logs.begin(log_format, verbose=verbose)
    found = Agent(home)
    with Presence(found, home, os.environ):
        serve(found, where)
    if as_json:
        _print({"ended": True})


@agent.command()
@HOME
@JSON
def status(home: Path, as_json: bool) -> None:
    """What runs on this device, and how it fares: from its disk, and from the running agent."""
    from edgewright_agent.console import status as status_

    found = status_.read(home)
    if as_json:
        _print(msgspec.to_builtins(found))
        return
    for line in told(found, home):
        click.echo(line)


def told(found: Status, home: Path) -> list[str]:
    """A device's status in lines that read alike in a terminal and in a log."""
    heard = f"desired revision {found.desired_rev}" if found.desired_rev else "nothing heard from it yet"
    hub = f"hub {found.hub}, {heard}" if found.hub else "no hub: nothing is sent, packages come by hand"
    lines = [f"{found.device if found.hub else 'this device'}: {'running' if found.alive else 'not running'}; {hub}"]
    if not found.alive:
        lines.append(f"  start it with: edgewright agent run --home {home}")
    if found.damage:
        lines.append(f"  {found.damage}")
    if found.certificate_ends is not None:
        lines.append(_certificate(found.certificate_ends))
    if found.live is not None:
        lines += _linked(found.live, found.proxy) if found.hub else []
        lines += _living(found.live)
    elif found.alive:
        lines.append("  answers no questions: it is in an application, or its disk is read-only")
    if not found.models:
        lines.append("  no model: the hub has asked for none yet")
    for m in found.models:
        lines.append(f"{m.name}: {_slot(m.running) if m.running else 'no package answers'}")
        if m.previous:
            lines.append(f"  before: {_slot(m.previous)}")
        if m.state == "damaged":
            lines.append(f"  {m.reason}")
        elif m.state != "idle" or m.failure:
            blame = f" ({m.failure})" if m.failure else ""
            lines.append(f"  update to {m.wanted[:16]}, attempt {m.attempt}: {m.state}{blame}: {m.reason}".rstrip(": "))
        if m.waits:
            lines.append(f"  {m.waits}")
        lines += [f"  blocked {digest[:16]}: {why}" for digest, why in m.blocked.items()]
        if m.blocked:
            lines.append(f"  tried again only when cleared: edgewright agent clear --home {home} {m.name}")
    if found.free_mb < SPARE_MB:
        lines.append(f"  the disk of {home} is full ({found.free_mb} MB are free): no update can be taken")
    open_, waiting = found.unacknowledged, found.sealed
    lines.append(f"reports: {open_} offered and not acknowledged, {waiting} waiting, {found.dropped} dropped")
    return lines


def _certificate(ends: float) -> str:
    left, until = (ends - time.time()) / 86400, datetime.fromtimestamp(ends, UTC).date()
    if left < 0:
        return f"  certificate ended {until}: `edgewright agent enroll --again` with a new token"
    return f"  certificate until {until}, {left:.0f} days left"


def _linked(live: Live, proxy: str) -> list[str]:
    """How the hub is reached."""
    link = live.link
    through = f" through {proxy}" if proxy else ""
    state = "connected" if link.online else "no connection"
    lines = [f"  {state} for {_span(link.since_s)} by {link.way or 'nothing yet'}{through}"]
    if link.trouble:
        lines.append(f"  last trouble: {link.trouble}")
    if live.profile == "metered":
        lines.append(f"  metered: pings every {_span(link.keepalive_s)}")
    sent, received = (a + b for a, b in zip(live.traffic, live.overhead, strict=True))
    lines.append(f"  link: {sent / 1000:.0f} kB sent, {received / 1000:.0f} kB received since it started")
    return lines


def _living(live: Live) -> list[str]:
    """What only the running agent knows."""
    lines = [f"  up {_span(live.uptime_s)}, clock {live.clock}, windows of {live.window_s:.0f} s"]
    if "rss_mb" in live.used:  # else it has not looked yet
        lines.append("  " + _using(live.used))
    if live.shed:
        lines.append("  held back to stay within its limits: " + ", ".join(live.shed))
    if live.disk:
        lines.append(f"  reports are in memory only, and lost with the process: {live.disk}")
    if live.dead:
        lines.append(f"  ended, and must be started again: {', '.join(live.dead)}")
    return lines


def _using(used: dict[str, float]) -> str:
    words = [f"memory {used['rss_mb']:.0f} MB"]
    if "background_permille" in used:
        words.append(f"{used['background_permille'] / 10:.1f} % of a core beside inference")
    if "temperature_c" in used:
        words.append(f"{used['temperature_c']:.0f} °C")
    today = [f"{used[name] / 1000:.0f} kB {what}" for name, what in TODAY.items() if name in used]
    return ", ".join(words) + (f"; today {', '.join(today)}" if today else "")


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _short(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 2] + " …"


def _slot(slot: Slot) -> str:
    return f"{slot.version} {slot.variant} on {slot.runtime} ({slot.digest[:16]})"


@agent.command()
@HOME
@click.argument("model")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@JSON
def predict(home: Path, model: str, file: Path, as_json: bool) -> None:
    """Run the installed MODEL on one sample, a FILE.npy, without counting it."""
    from edgewright_agent.console import sideline

    try:
        x = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile):
        x = None
    if not isinstance(x, np.ndarray):
        raise RequestError(f"{file}: expected one array as numpy.save writes it, got something else")
    found = sideline.predict(home, model, x)
    if as_json:
        _print(found)
        return
    click.echo(f"{model} {found['version']} {found['variant']}")
    for name, values in found["outputs"].items():
        click.echo(_short(f"  {name}: {np.round(values, 4).tolist()}"))


for command in (sideload, bench, collect, consent, clear):
    agent.add_command(command)


def _print(answer: Any) -> None:
    click.echo(json.dumps(answer))
