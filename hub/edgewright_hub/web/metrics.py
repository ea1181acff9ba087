"""GET /metrics: how the hub and its fleet fare, for Prometheus.

Whoever may read the API may read this: on the page's listener everybody on this machine, on the devices' one whoever
shows a token (`hub user NAME --role viewer`) as a bearer. No sample is of a single device unless `?devices=true` asks
for them, so their number does not grow with the fleet. Totals are since the hub first ran, but those of ingest and of
the export, which are since it started: Prometheus' rate() wants no more. Cost: 70 ms for 10,000 devices, 0.3 s
with each of them.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, get_args

import sqlalchemy as sa
from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse

from ..drift.verdicts import Verdict
from ..exports import exposition, progress
from ..exports.exposition import Family, one
from ..ingest import refusals
from ..rollouts.evidence import GRACE_MS
from ..rollouts.state import State
from ..storage import control, telemetry
from .api import Hub, Reader, hub_of, now_ms

STATES: Final = ("online", "overdue", "offline", "unheard")

router = APIRouter()


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, _: Reader, devices: bool = False) -> PlainTextResponse:
    """Prometheus' text format 0.0.4. `devices`: of each device, too."""
    hub = hub_of(request)
    return PlainTextResponse(exposition.text(families(hub, now_ms(), each=devices)), media_type=exposition.CONTENT_TYPE)


def families(hub: Hub, at_ms: int, *, each: bool = False) -> Iterator[Family]:
    yield from _process(hub)
    yield from _ingest(hub)
    with hub.control.connect() as control_connection, hub.telemetry.connect() as telemetry_connection:
        yield from _fleet(control_connection, telemetry_connection, at_ms, each=each)
        yield from _decided(control_connection)
        yield from _refused(telemetry_connection)
        yield from _exported(hub, telemetry_connection, at_ms)
        yield from _stored(hub, control_connection, telemetry_connection)


def _process(hub: Hub) -> Iterator[Family]:
    release = {
        "version": version("edgewright"),
        "python": platform.python_version(),
        "database": hub.control.dialect.name,
    }
    yield Family("edgewright_build_info", "gauge", "What runs; always 1.", [(release, 1)])
    yield one("edgewright_healthy", "gauge", "1 if every part of the hub works (/healthz).", float(not hub.ails()))
    used = os.times()
    yield one("process_cpu_seconds_total", "counter", "CPU seconds of the hub.", used.user + used.system)
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime ")).split()[1]
    started = int(booted) + int(stat[19]) / os.sysconf("SC_CLK_TCK")
    yield one("process_start_time_seconds", "gauge", "When the hub started, in seconds since 1970.", started)
    resident = int(stat[21]) * os.sysconf("SC_PAGE_SIZE")
    yield one("process_resident_memory_bytes", "gauge", "Memory of the hub.", resident)


def _ingest(hub: Hub) -> Iterator[Family]:
    if hub.consumer is None:
        return
    flow, waiting, room = hub.consumer.flow, *hub.consumer.waiting
    yield one("edgewright_broker_connected", "gauge", "1 if the hub is connected.", float(hub.consumer.connected))
    yield one("edgewright_ingest_queue_messages", "gauge", "Messages that wait to be counted.", waiting)
    yield one(
        "edgewright_ingest_queue_room", "gauge", "How many may wait; then the broker waits, and devices with it.", room
    )
    yield one("edgewright_ingest_messages_total", "counter", "Messages of devices that were counted.", flow.messages)
    yield one("edgewright_ingest_batches_total", "counter", "Transactions that counted them.", flow.batches)
    yield one("edgewright_ingest_batch_seconds_total", "counter", "Seconds that these took.", flow.seconds)


def _fleet(
    control_connection: sa.Connection, telemetry_connection: sa.Connection, at_ms: int, *, each: bool
) -> Iterator[Family]:
    c, d = control.devices.c, telemetry.devices.c
    enrolled = control_connection.execute(sa.select(c.id, c.fleet, c.held).where(c.state == "enrolled")).all()
    columns = (d.device, d.online, d.next_due_ms, d.last_seen_ms, d.windows, d.inferences)
    said = {row.device: row for row in telemetry_connection.execute(sa.select(*columns))}
    states = Counter((row.fleet, _state(said.get(row.id), at_ms)) for row in enrolled)
    held = Counter(row.fleet for row in enrolled if row.held)
    fleets = sorted({row.fleet for row in enrolled})
    yield Family(
        "edgewright_devices",
        "gauge",
        "Enrolled devices; overdue: connected, but its report did not come; unheard: never said anything.",
        [({"fleet": fleet, "state": state}, states[fleet, state]) for fleet in fleets for state in STATES],
    )
    yield Family(
        "edgewright_devices_held", "gauge", "Devices on hold.", [({"fleet": fleet}, held[fleet]) for fleet in fleets]
    )
    total = sum(row.windows for row in said.values())
    yield one("edgewright_windows_total", "counter", "Windows that devices reported.", total)
    total = sum(row.inferences for row in said.values())
    yield one("edgewright_inferences_total", "counter", "Inferences in them.", total)
    if not each:
        return
    heard = [({"device": row.id, "fleet": row.fleet}, said[row.id]) for row in enrolled if row.id in said]
    yield Family(
        "edgewright_device_online",
        "gauge",
        "1 if the device is connected and not overdue.",
        [(labels, float(_state(row, at_ms) == "online")) for labels, row in heard],
    )
    yield Family(
        "edgewright_device_last_seen_seconds",
        "gauge",
        "When it last said anything, in seconds since 1970.",
        [(labels, row.last_seen_ms / 1000) for labels, row in heard],
    )
    yield Family(
        "edgewright_device_windows_total",
        "counter",
        "Windows that it reported.",
        [(labels, row.windows) for labels, row in heard],
    )
    yield Family(
        "edgewright_device_inferences_total",
        "counter",
        "Inferences in them.",
        [(labels, row.inferences) for labels, row in heard],
    )


def _state(row: Any, at_ms: int) -> str:
    """As the page calls it."""
    if row is None:
        return "unheard"
    if not row.online:
        return "offline"
    return "overdue" if row.next_due_ms is not None and at_ms > row.next_due_ms + GRACE_MS else "online"


def _decided(connection: sa.Connection) -> Iterator[Family]:
    a, r, d = control.alerts.c, control.rollouts.c, control.drift.c
    number = sa.func.count()
    found = connection.execute(sa.select(a.severity, number).where(a.open_key.is_not(None)).group_by(a.severity))
    yield _counted("edgewright_alerts_open", "Alerts that nobody has closed.", "severity", ("page", "ticket"), found)
    found = connection.execute(sa.select(r.state, number).group_by(r.state))
    yield _counted("edgewright_rollouts", "Rollouts, also those that ended.", "state", get_args(State), found)
    scopes = sa.select(d.scope, d.verdict, number).group_by(d.scope, d.verdict)
    verdicts = {(scope, verdict): n for scope, verdict, n in connection.execute(scopes)}
    yield Family(
        "edgewright_drift_streams",
        "gauge",
        "Streams of counts that are watched for drift, by their verdict.",
        [
            ({"scope": scope, "verdict": verdict}, verdicts.get((scope, verdict), 0))
            for scope in ("device", "cohort")
            for verdict in get_args(Verdict)
        ],
    )


def _counted(name: str, said: str, label: str, known: Iterable[str], rows: Iterable[Any]) -> Family:
    """Known values are told when there are none, too: an alert on them needs a sample."""
    found = dict.fromkeys(known, 0) | {row[0]: row[1] for row in rows}
    return Family(name, "gauge", said, [({label: value}, n) for value, n in found.items()])


def _refused(connection: sa.Connection) -> Iterator[Family]:
    found = dict.fromkeys(get_args(refusals.Reason), 0) | refusals.totals(connection)
    said = "Messages of devices that were refused, by reason."
    yield Family("edgewright_refused_total", "counter", said, [({"reason": name}, n) for name, n in found.items()])


def _exported(hub: Hub, connection: sa.Connection, at_ms: int) -> Iterator[Family]:
    found = progress.progress(connection)
    if found is None:
        return
    late_s = max(0, at_ms - found.since_ms) / 1000 if found.since_ms is not None else 0
    yield one("edgewright_export_pending_windows", "gauge", "Windows that InfluxDB has not taken yet.", found.pending)
    yield one("edgewright_export_lag_seconds", "gauge", "Since the oldest of them arrived.", late_s)
    yield one("edgewright_export_lost_windows_total", "counter", "Windows that waited for too long.", found.lost)
    if hub.sink is not None:
        told = hub.sink.told
        said = "1 if InfluxDB took the last points; no sample before the first."
        yield Family("edgewright_export_up", "gauge", said, [] if told.up is None else [({}, float(told.up))])
        yield one("edgewright_export_points_total", "counter", "Points that InfluxDB took.", told.points)
        yield one("edgewright_export_failures_total", "counter", "Attempts that failed.", told.failures)
        yield one("edgewright_export_refused_points_total", "counter", "Points that were set aside.", told.refused)


def _stored(hub: Hub, control_connection: sa.Connection, telemetry_connection: sa.Connection) -> Iterator[Family]:
    databases = {"control": control_connection, "telemetry": telemetry_connection}
    sizes = [({"database": name}, _bytes(connection, name)) for name, connection in databases.items()]
    yield Family("edgewright_database_bytes", "gauge", "Size of a database, with what is not merged yet.", sizes)
    free = shutil.disk_usage(hub.registry.folder).free
    yield one("edgewright_disk_free_bytes", "gauge", "Room where the hub keeps its files.", free)


def _bytes(connection: sa.Connection, schema: str) -> float:
    if connection.dialect.name == "postgresql":
        size = sa.text(
            "SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = CAST(:schema AS regnamespace)"
        )
        return float(connection.execute(size, {"schema": schema}).scalar_one())
    place = Path(str(connection.engine.url.database))
    return float(sum(one.stat().st_size for one in (place, place.with_name(f"{place.name}-wal")) if one.exists()))
