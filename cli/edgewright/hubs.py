"""`edgewright hub`: run the hub, keep its databases up to date, back up, restore, configure a broker."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from edgewright_contracts.errors import RequestError

from . import credentials, registries
from .hub_folder import DATA, JSON, say, served_before

if TYPE_CHECKING:
    from edgewright_hub.serve import Address, Running


@click.group()
def hub() -> None:
    """Run the hub."""


@hub.command()
@DATA
@click.option("--trust", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="The owner's hub folder (`edgewright keys init`); needed at the first start.")  # fmt: skip
@click.option("--database", metavar="URL", help="Keep what is known on PostgreSQL: postgresql://USER@HOST/NAME.")
@click.option("--https", default="127.0.0.1:8443", show_default=True, help="HOST:PORT for devices and publishers.")
@click.option("--page", default="127.0.0.1:8080", show_default=True, help="HOST:PORT of the page; loopback only.")
@click.option("--mqtt", default="127.0.0.1:8883", show_default=True, help="HOST:PORT of the embedded broker.")
@click.option("--broker", help="Use this broker instead: mqtts://HOST:PORT (see `hub broker-config`).")
@click.option("--websocket", metavar="HOST:PORT", help="Where that broker speaks MQTT over WebSocket and TLS.")
@click.option("--name", "names", multiple=True, help="Name or address by which devices reach this machine.")
@click.option("--tick-s", type=click.FloatRange(0.05, 3600), default=1.0, show_default=True,
              help="Seconds between two looks at rollouts and drift.")  # fmt: skip
@click.option("--require-approval", is_flag=True,
              help="What is published waits for `registry approve` before it may be rolled out.")  # fmt: skip
@click.option("--approvals", type=click.IntRange(0, 2), default=0, show_default=True,
              help="Other persons who must approve each rollout; one may ask for more.")  # fmt: skip
@click.option("--ack-interval-s", type=click.FloatRange(0, 7200), default=7200.0, show_default=True,
              help="Seconds that an acknowledgement may wait for others.")  # fmt: skip
@click.option("--window-s", type=click.FloatRange(0.5, 86400), default=300.0, show_default=True,
              help="Seconds of one report of a device; a rollout may ask for shorter ones.")  # fmt: skip
@click.option("--influx", metavar="URL",
              help="Write every window to this InfluxDB, too; its token is EDGEWRIGHT_INFLUX_TOKEN.")  # fmt: skip
@click.option("--influx-org", default="edgewright", show_default=True, help="Its organisation.")
@click.option("--influx-bucket", default="edgewright", show_default=True, help="Its bucket.")
@click.option("--influx-token-file", type=click.Path(path_type=Path, dir_okay=False), help="A file with its token.")
@JSON
def serve(
    data: Path,
    trust: Path | None,
    database: str | None,
    https: str,
    page: str,
    mqtt: str,
    broker: str | None,
    websocket: str | None,
    names: tuple[str, ...],
    tick_s: float,
    require_approval: bool,
    approvals: int,
    ack_interval_s: float,
    window_s: float,
    influx: str | None,
    influx_org: str,
    influx_bucket: str,
    influx_token_file: Path | None,
    as_json: bool,
) -> None:
    """Run the hub until it is stopped (Ctrl-C). Port 0 takes a free one; DATA/hub.json says which."""
    from edgewright_hub.exports.destination import Destination
    from edgewright_hub.serve import Config, run

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = Config(
        data=data,
        trust=trust,
        database=database,
        https=_address(https, "--https"),
        page=_address(page, "--page"),
        mqtt=_address(mqtt, "--mqtt"),
        broker=_broker(broker) if broker else None,
        websocket=_address(websocket, "--websocket") if websocket else None,
        names=names,
        tick_s=tick_s,
        require_approval=require_approval,
        approvals=approvals,
        ack_s=ack_interval_s,
        window_s=window_s,
        influx=Destination(influx, influx_org, influx_bucket, influx_token_file) if influx else None,
    )

    def ready(running: Running) -> None:
        if as_json:
            place = running.broker
            click.echo(json.dumps({"https": running.https, "page": running.page, "broker": place, "pid": running.pid}))
        else:
            where = f"page {running.page}  devices {running.https}"
            click.echo(f"ready  {where}  mqtt {running.broker['host']}:{running.broker['port']}")

    run(config, ready=ready)


@hub.command()
@DATA
@JSON
def migrate(data: Path, as_json: bool) -> None:
    """Bring both databases to this release's schema. `hub serve` does it too."""
    from edgewright_hub.storage.control import open_control
    from edgewright_hub.storage.places import NAME, places
    from edgewright_hub.storage.telemetry import open_telemetry

    if not (data / "hub.db").exists() and not (data / NAME).exists():
        raise RequestError(f"--data: expected a hub's directory, there is none at {data}")
    stored = places(data)
    open_control(stored.control).dispose()
    open_telemetry(stored.telemetry).dispose()
    say({"ok": True, "databases": ["hub.db", "telemetry.db"]}, "both databases are up to date", as_json)


@hub.command()
@DATA
@JSON
def doctor(data: Path, as_json: bool) -> int:
    """Say what may be wrong with the hub. Exits with 1 if anything is."""
    from edgewright_hub.doctor import examine

    served_before(data)
    findings = examine(data, now=datetime.now(UTC))
    well = all(one.well for one in findings)
    text = "\n".join(f"{'ok  ' if one.well else 'BAD '} {one.check:<18} {one.said}" for one in findings)
    say({"ok": well, "findings": [one._asdict() for one in findings]}, text, as_json)
    return 0 if well else 1


@hub.command("broker-config")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@DATA
@click.option("--listen", default="127.0.0.1:8883", show_default=True, help="HOST:PORT of mosquitto.")
@click.option("--websocket-port", type=click.IntRange(1, 65535), help="Speak MQTT over WebSocket there, too.")
@click.option("--monitor-port", type=click.IntRange(1, 65535),
              help="Tell one user with a password, on this machine, how the broker fares ($SYS).")  # fmt: skip
@click.option("--name", "names", multiple=True, help="Name or address by which devices and the hub reach it.")
@click.option("--user", help="The user that mosquitto becomes when root starts it.  [default for root: mosquitto]")
@JSON
def broker_config(
    directory: Path,
    data: Path,
    listen: str,
    websocket_port: int | None,
    monitor_port: int | None,
    names: tuple[str, ...],
    user: str | None,
    as_json: bool,
) -> None:
    """Write all that mosquitto needs into DIRECTORY, for `hub serve --broker`. Again, after devices were retired or
    enrolled with new keys, or within 60 days of its certificate's end; then send mosquitto SIGHUP."""
    from edgewright_hub.fleet.ca import open_authority
    from edgewright_hub.fleet.revoked import NOBODY, revoked
    from edgewright_hub.mqtt.mosquitto import becomes, write_configuration
    from edgewright_hub.storage.control import open_control
    from edgewright_hub.storage.places import NAME, places

    address = _address(listen, "--listen")
    now = datetime.now(UTC)
    if address.host in {"0.0.0.0", "::"} and not names:  # noqa: S104 - compared
        raise RequestError(f"--listen {address} is all interfaces: add --name HOST, by which devices reach the broker")
    if address.port in (websocket_port, monitor_port) or (websocket_port and websocket_port == monitor_port):
        raise RequestError("--listen, --websocket-port and --monitor-port: expected ports that differ")
    authority = open_authority(data / "ca", now=now)
    gone = NOBODY
    if (data / "hub.db").exists() or (data / NAME).exists():
        engine = open_control(places(data).control)
        with engine.connect() as connection:
            gone = revoked(connection)
        engine.dispose()
    conf = write_configuration(
        authority,
        directory,
        port=address.port,
        bind=address.host,
        user=becomes(user, directory),
        now=now,
        websocket_port=websocket_port,
        monitor_port=monitor_port,
        names=names,
        revoked=gone,
    )
    told = replace(address, host=names[0]) if names else address
    web = f" --websocket {replace(told, port=websocket_port)}" if websocket_port else ""
    use = f"edgewright hub serve --broker mqtts://{told}{web}"
    text = f"wrote {conf}: {len(gone.devices)} devices retired, {len(gone.serials)} certificates revoked\n"
    text += f"start it:  mosquitto -c {conf}\nif it runs: kill -HUP its process\nuse it:    {use}"
    answer = {"configuration": str(conf), "broker": f"mqtts://{told}"}
    say({**answer, "retired": list(gone.devices), "revoked": len(gone.serials)}, text, as_json)


@hub.command()
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@DATA
@JSON
def backup(target: Path, data: Path, as_json: bool) -> None:
    """Write everything of the hub to TARGET, one file, while it runs or not. It holds the hub's secrets."""
    from edgewright_hub.backup.backup import make

    served_before(data)
    made = make(data, target, now=datetime.now(UTC))
    size = target.stat().st_size
    text = f"wrote {target} ({size / 1e6:.1f} MB, {len(made.files)} files): {_counted(made.counts)}"
    note = "it holds the hub's keys: keep it where only you can read it"
    answer = {"file": str(target), "bytes": size, "files": len(made.files), "counts": made.counts}
    say({**answer, "revisions": made.revisions}, f"{text}\n{note}", as_json)


@hub.command()
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@DATA
@click.option("--database", metavar="URL", help="Put both databases on this PostgreSQL server; it has none of a hub.")
@JSON
def restore(archive: Path, data: Path, database: str | None, as_json: bool) -> None:
    """Make the hub of ARCHIVE again in an empty directory, here or on another machine (docs/operations.md)."""
    from edgewright_hub.backup.restore import restore as make

    done = make(archive, data, now=datetime.now(UTC), database=database)
    older = "".join(f"\nupgraded the schema {name} from {was}" for name, was in done.upgraded.items())
    text = (
        f"restored {done.data} as of {done.made} ({done.host}): {_counted(done.counts)}{older}\n"
        "see that the hub before it never runs again, then:\n"
        f"  edgewright hub serve --data {shlex.quote(done.data)} --name NAME\n"
        f"the owner's list is version {done.targets}; publish again what was published since"
    )
    say(msgspec.to_builtins(done), text, as_json)


for command in (credentials.token, credentials.user, credentials.users, registries.gc):
    hub.add_command(command)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _address(text: str, option: str) -> Address:
    from edgewright_hub.serve import Address

    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise RequestError(f"{option}: expected HOST:PORT, for instance 127.0.0.1:8443, got {text!r}")
    return Address(host, int(port))


def _broker(url: str) -> Address:
    if not url.startswith("mqtts://"):
        raise RequestError(f"--broker: expected mqtts://HOST:PORT (TLS with client certificates), got {url!r}")
    rest = url.removeprefix("mqtts://").rstrip("/")
    return _address(rest if rest.rpartition(":")[2].isdigit() else f"{rest}:8883", "--broker")
