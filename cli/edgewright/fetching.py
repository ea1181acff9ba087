"""`edgewright fleet samples` and `edgewright fleet collect`: what is fetched from devices, inputs and what ails one."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgewright_contracts import durable
from edgewright_contracts.errors import RequestError, Unavailable

from .groups import ShownByDefault
from .hub_client import HubClient, path, with_hub
from .inventory import named
from .tables import ago, print_table, toned

UNPACKED_BYTES: Final = 1 << 20  # of a sample; a device takes none beyond 256 KiB
POLL_S: Final = 1.0


@click.group(cls=ShownByDefault)
def samples() -> None:
    """Inputs of devices, where their owners consented (`edgewright agent consent`)."""


@samples.command()
@click.argument("who", metavar="DEVICE|SELECTOR")
@click.option("--count", type=click.IntRange(1, 1000), default=10, show_default=True, help="Of each model and device.")
@click.option("--hours", type=click.FloatRange(0.1, 24), default=24.0, show_default=True, help="Then it ends.")
@click.option("--reason", required=True, help="Why somebody is to look at people's inputs; it is kept.")
@with_hub
def request(client: HubClient, who: str, count: int, hours: float, reason: str, as_json: bool) -> None:
    """Ask devices for some of their inputs, for a while. One whose owner has not consented sends none."""
    key = "selector" if set(who) & set("=,;!*") else "device"
    asked = {key: "id=*" if who == "*" else who, "count": count, "hours": hours, "reason": reason}
    made = client.post("/api/v1/samples/requests", asked)
    said = f"request {made['id']}: {len(made['devices'])} devices, {count} of each model within {hours:g} h"
    click.echo(json.dumps(made) if as_json else f"{said}, if their owners have consented")


@samples.command("show")
@with_hub
def listed(client: HubClient, as_json: bool) -> None:
    """Samples on the hub, which keeps them for 30 days, and the requests that brought them."""
    told = client.get("/api/v1/samples")
    if as_json:
        click.echo(json.dumps(told))
        return
    table = Table("request", "devices", "each", "came", "state", "reason", box=None, header_style="dim")
    for row in told["requests"][:10]:
        came = str(sum(row["arrived"].values()))
        numbers = (str(row["id"]), str(len(row["devices"])), str(row["count"]), came)
        table.add_row(*numbers, toned(row["state"]), escape(row["reason"]))
    if table.row_count:
        Console().print(table)
    table = Table("device", "sample", "bytes", "came", box=None, header_style="dim")
    for one in told["samples"][:50]:
        table.add_row(escape(one["device"]), one["id"], f"{one['bytes']:,}", ago(one["at_ms"]))
    print_table(table, f"{len(told['samples'])} samples")


samples.add_command(listed, "list")


@samples.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write.")
@click.option("--model", default="", help="Only inputs of this one.")
@click.option("--device", default="", callback=named, help="Only of this one.")
@with_hub
def export(client: HubClient, out: Path, model: str, device: str, as_json: bool) -> int:
    """Fetch samples into OUT: DEVICE/ID.npz, and manifest.json with what each is. Every file is looked through before
    it is kept; what is not as a device packs it is left out, and then the command exits with 1."""
    kept: list[dict[str, Any]] = []
    refused: list[str] = []
    if device:
        client.get(path("devices", device))  # or one that there is not would be one without samples
    for one in client.get("/api/v1/samples")["samples"]:
        if device not in ("", one["device"]):
            continue
        data = client.get_bytes(path("samples", one["device"], one["id"]))
        try:
            about = verified(data)
        except ValueError as error:
            refused.append(f"{one['device']}/{one['id']}: {error}")
            continue
        if model in ("", about["model"]):
            file = out / one["device"] / f"{one['id']}.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            durable.replace(file, data, mode=0o600)
            kept.append(
                {"file": str(file.relative_to(out)), "sha256": hashlib.sha256(data).hexdigest(), **one, **about}
            )
    if kept:
        durable.replace(out / "manifest.json", json.dumps({"samples": kept}, indent=1).encode(), mode=0o600)
    if as_json:
        click.echo(json.dumps({"out": str(out), "samples": len(kept), "refused": refused}))
    else:
        click.echo(f"{len(kept)} samples in {out}; {len(refused)} refused")
        for why in refused[:10]:
            click.echo(f"  {why}")
    return 1 if refused else 0


def verified(data: bytes) -> dict[str, Any]:
    """What a sample says of itself. Raises ValueError for a file that is not as a device packs it."""
    import numpy as np

    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        raise ValueError("expected an .npz file") from None
    names = archive.namelist()
    if sum(part.file_size for part in archive.infolist()) > UNPACKED_BYTES or len(set(names)) != len(names):
        raise ValueError(f"expected distinct parts of at most {UNPACKED_BYTES} bytes in all")
    try:
        about = json.loads(archive.read("about.json"))
        for name in names:
            if name != "about.json":
                np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"expected about.json and arrays without objects: {error}") from None
    if not (isinstance(about, dict) and isinstance(about.get("model"), str)):
        raise ValueError("expected about.json to name the model")  # noqa: TRY004 (the file's content, not our argument)
    return {name: about.get(name) for name in ("model", "digest", "variant", "prediction", "wall_ms")}


@click.command()
@click.argument("device", required=False, callback=named)
@click.option("--wait", "wait_s", type=click.FloatRange(0, 3600), default=60.0, show_default=True, help="Seconds.")
@click.option("--hours", type=click.FloatRange(0.1, 720), default=24.0, show_default=True,
              help="So long the request waits for a device that is away.")  # fmt: skip
@click.option("--newest", is_flag=True, help="Show what it answered last, and ask nothing.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write it there; else it is printed.")
@with_hub
def collect(
    client: HubClient,
    device: str | None,
    wait_s: float,
    hours: float,
    newest: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Ask a device what ails it: status, configuration, errors, spool, log; no keys, no inputs. Exits with 3 when no
    answer came in time; the request stays open. Without DEVICE: what was asked of whom, and what became of it."""
    if device is None:
        _tell_orders(client.get("/api/v1/orders"), as_json)
        return
    if newest:
        found = client.get(path("orders", device=device))
        order = next((one for one in found if one["state"] == "arrived" and one["verb"] == "collect"), None)
        if order is None:
            raise RequestError(f"{device} has answered nothing yet; `edgewright fleet collect {device}` asks it")
    else:
        order = client.post(path("devices", device, "collect"), {"hours": hours})
    _keep(_awaited(client, device, order, wait_s), out, as_json)


def _awaited(client: HubClient, device: str, order: dict[str, Any], wait_s: float) -> str:
    """What the device said. Raises Unavailable."""
    until = time.monotonic() + wait_s
    while True:
        told = client.get(path("devices", device, "answers", order["id"]))
        if told["answer"] is not None:
            if not told["answer"]["text"]:
                raise Unavailable(f"{device}: {told['answer']['reason']}")
            return str(told["answer"]["text"])
        if told["state"] in ("arrived", "failed"):
            raise RequestError(f"{device} answered {ago(told['arrived_ms'])}, and events that old are gone: ask again")
        if not time.monotonic() < until:  # nor is it for nan
            where = (
                "it is under way" if told["state"] == "under way" else "the device is away, and is asked when it comes"
            )
            left = max(0.0, told["expires_ms"] / 1000 - time.time()) / 3600
            raise Unavailable(
                f"{device} has not answered within {wait_s:g} s: {where}, for {left:.1f} more hours. "
                f"`edgewright fleet collect` says what became of it, `fleet collect {device} --newest` what it answered"
            )
        time.sleep(POLL_S)


def _keep(text: str, out: Path | None, as_json: bool) -> None:
    try:
        found = json.loads(text)
    except ValueError:
        raise RequestError(f"expected JSON from the device, got {text[:200]!r}") from None
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
        click.echo(json.dumps({"file": str(out)}) if as_json else f"{out}: {len(text)} bytes")
        return
    click.echo(text if as_json else json.dumps(found, indent=1))


def _tell_orders(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"orders": rows}))
        return
    table = Table("device", "asked for", "by", "", "state", box=None, header_style="dim")
    for row in rows[:50]:
        who = (escape(row["device"]), row["verb"], escape(row["who"]), ago(row["at_ms"]))
        table.add_row(*who, toned(row["state"]) + (f": {escape(row['said'])}" if row["said"] else ""))
    print_table(table, f"{sum(row['state'] in ('asked', 'under way') for row in rows)} of {len(rows)} are open")
