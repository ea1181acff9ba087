"""`edgewright agent enroll | renew | install | uninstall`: how a device comes into a fleet and runs by itself."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import msgspec

from edgewright_contracts.errors import RequestError

ASK_S = 10.0  # between two questions whether an operator has said yes
HOME = click.option(
    "--home", type=click.Path(file_okay=False, path_type=Path), required=True, help="The device's directory."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command()
@HOME
@click.option("--hub", required=True, help="https://HOST:PORT of the hub.")
@click.option("--token", required=True, help="The enrolment token that `edgewright hub token` printed.")
@click.option("--device", help="The device's id: a-z, 0-9 and -; without it, one of this machine that fits the token.")
@click.option("--proxy", default="", metavar="http://[USER:PW@]HOST:PORT", help="Reach the hub through this proxy.")
@click.option("--websocket", is_flag=True, help="Speak MQTT over WebSocket only; else where TCP is blocked.")
@click.option("--again", is_flag=True, help="A new certificate for an enrolled device; models and reports stay.")
@click.option("--wait", is_flag=True, help="Where the hub's operator must say yes first, ask until that is done.")
@JSON
def enroll(
    home: Path, hub: str, token: str, device: str | None, proxy: str, websocket: bool, again: bool, wait: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Exchange a token for this device's certificate."""
    from edgewright_agent.disk import RealDisk
    from edgewright_agent.hosting.owner import act_as_owner

    enrolling = _enrolling("enroll")
    way = enrolling.Way(proxy, websocket)
    if device is not None and not device.strip():
        raise RequestError("--device is empty; leave it out for an id of this machine that fits the token")
    act_as_owner(home)
    while True:
        try:
            said = enrolling.enroll(RealDisk(), home, hub=hub, token=token, device=device, way=way, again=again)
            break
        except enrolling.Waiting:
            if not wait:
                raise
            time.sleep(ASK_S)
    if as_json:
        _print(msgspec.to_builtins(said))
    else:
        click.echo(f"{said.device} is enrolled. Start it with: edgewright agent run --home {home}")


@click.command()
@HOME
@JSON
def renew(home: Path, as_json: bool) -> None:
    """Renew this device's certificate now; a running agent does it by itself."""
    from datetime import UTC, datetime

    from edgewright_agent.clock import SystemClock
    from edgewright_agent.disk import RealDisk
    from edgewright_agent.hosting.owner import act_as_owner

    enrolling = _enrolling("renew")
    act_as_owner(home)
    found = enrolling.renew(RealDisk(), home, SystemClock())
    until = datetime.fromtimestamp(found.ends, UTC).date()
    if as_json:
        _print({"until": until.isoformat()})
    else:
        click.echo(f"the certificate is valid until {until}")


@click.command()
@HOME
@click.option("--user", default="edgewright", show_default=True, help="Runs the agent; made if it is not there.")
@click.option("--listen", default="", metavar="127.0.0.1:PORT|unix:PATH", help="As of `agent run`.")
@click.option("--log-format", type=click.Choice(["kv", "json"]), default="kv", show_default=True)
@click.option("--memory-high", default="", metavar="200M", help="Beyond it the kernel slows the agent down.")
@click.option("--cpu-quota", default="", metavar="50%", help="Share of one core.")
@click.option("--print", "only_print", is_flag=True, help="Print the systemd unit and change nothing.")
@JSON
def install(
    home: Path, user: str, listen: str, log_format: str, memory_high: str, cpu_quota: str, only_print: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Have systemd run and watch the agent, from now on and at every start."""
    from edgewright_agent.hosting import unit

    options = unit.Options(home.absolute(), user, listen, log_format, memory_high, cpu_quota)
    if only_print:
        text = unit.text(options)
        if as_json:
            _print({"unit": text})
        else:
            click.echo(text, nl=False)
        return
    done = unit.install(options)
    if as_json:
        _print({"path": str(done.path), "changed": done.changed})
        return
    click.echo(f"{done.path} {'written' if done.changed else 'was as it shall be'}; the agent runs as {user}")
    click.echo("  its log: journalctl -u edgewright-agent")


@click.command()
@JSON
def uninstall(as_json: bool) -> None:
    """Stop the agent's systemd unit and remove it. The device's directory stays."""
    from edgewright_agent.hosting import unit

    removed = unit.uninstall()
    if as_json:
        _print({"removed": removed})
    else:
        click.echo("the unit is removed" if removed else "there was no unit")


def _enrolling(module: str) -> ModuleType:
    """Raises RequestError where the extra is missing."""
    from importlib import import_module

    try:
        return import_module(f"edgewright_agent.enrolling.{module}")
    except ModuleNotFoundError as error:
        raise RequestError(
            f"enrolling needs {error.name}, which is not installed: pip install 'edgewright[agent-enroll]'"
        ) from None


def _print(answer: Any) -> None:
    click.echo(json.dumps(answer))
