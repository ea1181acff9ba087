"""What may be wrong with a hub, found on its data directory, whether or not it runs. Changes nothing.

Each check says what it found and, when that is not well, the way out. The two databases are read whole once
(PRAGMA quick_check): about 1 s for 300 MB.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from tuf.api.metadata import Metadata, Targets, Timestamp  # type: ignore[attr-defined]

from .repository import RENEWAL, TARGETS_ALERT

FREE_BYTES: Final = 1024**3
DAY_MS: Final = 86_400_000


class Finding(NamedTuple):
    check: str
    well: bool
    said: str


def examine(data: Path, *, now: datetime) -> list[Finding]:
    """All findings, in a fixed order; a check that cannot be made is a finding too."""
    out: list[Finding] = []
    for check in (_process, _databases, _certificates, _metadata, _letters, _disk):
        try:
            out += check(data, now)
        except (OSError, ValueError, sqlite3.Error) as error:
            out.append(Finding(check.__name__.removeprefix("_"), well=False, said=f"could not be examined: {error}"))
    return out


def _process(data: Path, _now: datetime) -> Iterator[Finding]:
    with (data / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield Finding("process", well=True, said="the hub runs")
        else:
            yield Finding("process", well=False, said="the hub does not run: start it with `edgewright hub serve`")


def _databases(data: Path, _now: datetime) -> Iterator[Finding]:
    for name in ("hub.db", "telemetry.db"):
        with _reading(data / name) as connection:
            said = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        well = said == "ok"
        yield Finding(name, well, "sound" if well else f"damaged: {said}; stop the hub and restore it from a backup")


def _certificates(data: Path, now: datetime) -> Iterator[Finding]:
    for name in ("ca", "server", "hub"):
        certificate = x509.load_pem_x509_certificate((data / "ca" / f"{name}.pem").read_bytes())
        days = (certificate.not_valid_after_utc - now).days
        way = "" if days >= 30 else "; restart the hub, which renews it"
        yield Finding(f"certificate {name}", days >= 30, f"valid for {days} days{way}")


def _metadata(data: Path, now: datetime) -> Iterator[Finding]:
    folder = data / "repo" / "metadata"
    timestamp = Metadata[Timestamp].from_bytes((folder / "timestamp.json").read_bytes())
    hours = int((timestamp.signed.expires - now).total_seconds() // 3600)
    said = f"signed for {hours} more hours"
    if hours < 24:
        said += ": devices will refuse to update; the running hub signs daily, so look at its log"
    yield Finding("timestamp", hours >= 24, said)
    newest = max(folder.glob("*.targets.json"), key=lambda path: int(path.name.partition(".")[0]))
    targets = Metadata[Targets].from_bytes(newest.read_bytes())
    left = targets.signed.expires - now
    said = f"the owner's list (version {targets.signed.version}) is valid for {left.days} days"
    well = left > TARGETS_ALERT
    yield Finding("owner's list", well, said if well else f"{said}: {RENEWAL['targets']}")


def _letters(data: Path, now: datetime) -> Iterator[Finding]:
    since = int(now.timestamp() * 1000) - DAY_MS
    with _reading(data / "telemetry.db") as connection:
        query = "SELECT count(*), max(reason) FROM dead_letters WHERE arrived_ms >= ?"
        number, reason = connection.execute(query, (since,)).fetchone()
    said = "none in 24 hours" if not number else f"{number} in 24 hours; one of them: {reason}"
    yield Finding("dead letters", not number, said)


def _disk(data: Path, _now: datetime) -> Iterator[Finding]:
    free = shutil.disk_usage(data).free
    said = f"{free / 1024**3:.1f} GiB free"
    yield Finding("disk", free >= FREE_BYTES, said if free >= FREE_BYTES else f"{said}: make room, at least 1 GiB")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write, closed at the end."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        yield connection
    finally:
        connection.close()
