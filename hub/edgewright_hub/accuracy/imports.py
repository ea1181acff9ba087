"""Labels that only the hub's people know, from a table: a quality check, a customer's return, a second look.

    device, digest | model + version | model + time     whose answers, and of which package
    variant, context                                    where it matters
    outcome                                             a name; none is `correct`, the delayed label
    value | label + predicted | n + hits                true or false; or the truth and what was predicted; or counts
    confidence                                          of a `correct`, where it is known: 0 to 1

The hub never saw an answer, so a truth alone cannot be judged here: give what was predicted too, or send the label to
the device, which joins it by the prediction's id. What the table counts becomes a window without inferences of each
device and package, in telemetry.windows: gates and accuracy read it by arrival, like labels that devices send late.

Guarantee: a file is counted once, whatever its name (its hash is the window's spool); a line that cannot be used is
refused with a reason and keeps no other from being counted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from edgewright_contracts.built import built
from edgewright_contracts.codec import MAX_COUNT, Label
from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.report import CONFIDENCE_BINS, CORRECT, MAX_OUTCOMES

from ..storage import control, telemetry
from ..storage.store import insert
from .labels import Labels
from .packages import Packages

FILE_BYTES: Final = 8 << 20
HOUR_MS: Final = 3600_000
SHOWN: Final = 10  # reasons, with a line for each
_TRUE: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class Line(NamedTuple):
    """What a line says, once it is understood."""

    device: str
    digest: str  # "" where model and time say it
    model: str
    version: str
    at_ms: int | None
    variant: str
    context: str
    outcome: str
    n: int
    hits: int
    confidence: float | None


class Told(NamedTuple):
    counted: int  # labels
    refused: int  # lines
    reasons: list[str]
    already: bool  # the same file was counted before


def take(
    control_engine: sa.Engine, telemetry_engine: sa.Engine, packages: Packages, data: bytes, name: str,
    *, who: str, now_ms: int,
) -> Told:  # fmt: skip
    """Count a file of CSV with a header, or of JSON lines. Raises Refused when nothing in it can be counted, and
    RequestError for what is no table."""
    sha256 = hashlib.sha256(data).hexdigest()
    i = control.label_imports.c
    with control_engine.connect() as connection:
        before = connection.execute(sa.select(control.label_imports).where(i.sha256 == sha256)).first()
        d = control.devices.c
        fleets = {row.id: row.fleet for row in connection.execute(sa.select(d.id, d.fleet))}
    if before is not None:
        return Told(before.counted, before.refused, [], already=True)
    reasons: Counter[str] = Counter()
    first: dict[str, int] = {}
    found: dict[tuple[str, str, str, str], Labels] = defaultdict(Labels)
    with telemetry_engine.connect() as connection:
        ran = Ran(connection, packages)
        for number, fields in _rows(data):
            try:
                line = understood(fields, fleets)
                digest, variant = ran.of(line)
                _add(found[line.device, digest, variant, line.context], line)
            except ValueError as error:
                reasons[str(error)] += 1
                first.setdefault(str(error), number)
    refused = reasons.total()
    said = [f"{n} lines, the first is {first[why]}: {why}" for why, n in reasons.most_common(SHOWN)]
    counted = sum(n for labels in found.values() for n, _ in labels.outcomes.values())
    if not counted:
        raise Refused(f"no line of {name} can be counted; {'; '.join(said) or 'it has none'}")
    windows = [
        _window(sha256[:16], number, key, labels, fleets[key[0]], packages, now_ms)
        for number, (key, labels) in enumerate(
            sorted((key, labels) for key, labels in found.items() if labels.outcomes), 1
        )
    ]
    with telemetry_engine.begin() as connection:
        once = ["device", "spool_id", "seq"]
        connection.execute(insert(connection, telemetry.windows).on_conflict_do_nothing(index_elements=once), windows)
    row = {"sha256": sha256, "at_ms": now_ms, "who": who, "name": name[:200], "counted": counted, "refused": refused}
    with control_engine.begin() as connection:
        once = ["sha256"]
        connection.execute(insert(connection, control.label_imports).on_conflict_do_nothing(index_elements=once), row)
        note = {"at_ms": now_ms, "who": who, "what": "labels import", "detail": f"{name[:200]}: {counted} labels"}
        connection.execute(control.audit.insert().values(**note))
    return Told(counted, refused, said, already=False)


def understood(fields: Mapping[str, Any], devices: Container[str]) -> Line:
    """Raises ValueError, which says what was expected."""
    given = {str(key).strip().lower(): value for key, value in fields.items() if value not in (None, "")}
    if not given:
        raise ValueError("nothing in it can be read: expected cells, or an object of JSON")
    if odd := [key for key, value in given.items() if isinstance(value, (dict, list))]:
        raise ValueError(f"expected words and numbers, got a list or an object as {odd[0][:64]}")
    told = {key: str(value).strip() for key, value in given.items()}
    if not told.get("device"):
        raise ValueError("expected a device")
    if told["device"] not in devices:
        raise ValueError("no device of this hub has this id")
    if not (told.get("digest") or (told.get("model") and (told.get("version") or told.get("time")))):
        raise ValueError("expected a digest, a model and version, or a model and time")
    outcome = told.get("outcome", CORRECT)
    try:
        msgspec.convert(outcome, built(Label))
    except msgspec.ValidationError:
        raise ValueError("expected an outcome of at most 64 plain characters") from None
    n, hits = _judged(told)
    sure = _number(told["confidence"], "expected a confidence from 0 to 1", 1.0) if "confidence" in told else None
    at_ms = _time(told["time"]) if "time" in told else None
    names = (told.get("digest", "")[:16], told.get("model", ""), told.get("version", ""))
    place = (told.get("variant", ""), told.get("context", ""))
    return Line(told["device"], *names, at_ms, *place, outcome, n, hits, sure)


def _judged(told: Mapping[str, str]) -> tuple[int, int]:
    if "n" in told:
        said = "expected n and hits, whole numbers with 0 <= hits <= n"
        n = _number(told["n"], said, MAX_COUNT)
        hits = _number(told.get("hits", ""), said, n)
        if n < 1 or n % 1 or hits % 1:
            raise ValueError(said)
        return int(n), int(hits)
    if "value" in told:
        if (value := _TRUE.get(told["value"].lower())) is None:
            raise ValueError("expected a value of true or false")
        return 1, int(value)
    if "label" in told and "predicted" in told:
        return 1, int(told["label"] == told["predicted"])
    if "label" in told:
        raise ValueError(
            "a label alone: the hub never saw the answer. Add what was predicted, or send it to the device"
        )
    raise ValueError("expected value, label and predicted, or n and hits")


def _number(text: str, said: str, most: float) -> float:
    """From 0 to `most`. Raises ValueError."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(said) from None
    if not 0 <= number <= most:
        raise ValueError(said)
    return number


def _time(text: str) -> int:
    """Seconds or milliseconds since 1970, or ISO 8601 (without a zone: UTC)."""
    try:
        number = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError("expected a time as 2026-05-01T12:00:00Z, or in seconds since 1970") from None
        return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
    if not 0 <= number < 2**53:
        raise ValueError("expected a time as 2026-05-01T12:00:00Z, or in seconds since 1970")
    return int(number if number > 1e11 else number * 1000)


class Ran:
    """Which package and variant a device ran."""

    def __init__(self, connection: sa.Connection, packages: Packages) -> None:
        self._connection, self._packages = connection, packages
        self._hours: dict[str, list[Any]] = {}
        self._steps: dict[str, list[Any]] = {}

    def of(self, line: Line) -> tuple[str, str]:
        """Digest and variant. Raises ValueError."""
        digest = line.digest or (self._packages.digest(line.model, line.version) if line.version else "")
        if line.version and not digest:
            raise ValueError(f"{line.model} {line.version} is not in the registry")
        if not digest:
            assert line.at_ms is not None
            digest = self._at(line.device, line.model, line.at_ms)
        known = self._packages.variants(digest)
        if not known:
            raise ValueError("no package of this hub has this digest")
        if line.variant and line.variant not in known:
            raise ValueError(f"its package has no variant {line.variant}, but {', '.join(known)}")
        return digest, line.variant or self._variant(line.device, digest, known)

    def _at(self, device: str, model: str, at_ms: int) -> str:
        """By the hours that it reported, else by its last step of an update before that."""
        hour = at_ms - at_ms % HOUR_MS
        mine = self._packages.digests(model)
        there = {row.digest for row in self._of(device) if row.t0_ms == hour} & mine
        if len(there) > 1:
            raise ValueError("the device ran several packages of this model in that hour: name the digest")
        if there:
            return str(there.pop())
        if device not in self._steps:
            e = telemetry.events.c
            query = sa.select(e.model, e.digest, e.at_ms).where(
                e.device == device, e.after.in_(("probation", "commit"))
            )
            self._steps[device] = list(self._connection.execute(query.order_by(e.at_ms)))
        steps = [row.digest[:16] for row in self._steps[device] if row.model == model and row.at_ms <= at_ms]
        if not steps:
            raise ValueError("the hub does not know what the device ran at that time: name the digest")
        return str(steps[-1])

    def _variant(self, device: str, digest: str, known: tuple[str, ...]) -> str:
        seen = {row.variant for row in self._of(device) if row.digest == digest} or set(known)
        if len(seen) > 1:
            raise ValueError(f"expected a variant, one of {', '.join(sorted(seen))}")
        return str(seen.pop())

    def _of(self, device: str) -> list[Any]:
        if device not in self._hours:
            h = telemetry.device_hours.c
            query = sa.select(h.t0_ms, h.digest, h.variant).where(h.device == device)
            self._hours[device] = list(self._connection.execute(query))
        return self._hours[device]


def _rows(data: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Lines of JSON or of CSV, with their numbers. Raises RequestError."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError("expected a table as CSV or JSON lines in UTF-8, got other bytes") from None
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, _object(line)
        return
    number = 1
    # strict: a quote that is never closed would take every line that follows into one cell, without a word
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if "device" not in [str(name).strip().lower() for name in reader.fieldnames or ()]:
            raise RequestError("expected a first line that names the columns, `device` among them; or JSON lines")
        number = reader.line_num + 1
        for fields in reader:
            fields.pop(None, None)  # cells beyond the header
            yield reader.line_num, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise RequestError(
            f"line {number}: expected cells of CSV, a quote within quotes doubled and each closed; got {error}. "
            "Nothing was counted"
        ) from None


def _object(line: str) -> Mapping[str, Any]:
    """Nothing, where the line is no object of JSON."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _add(labels: Labels, line: Line) -> None:
    if line.outcome not in labels.outcomes and len(labels.outcomes) >= MAX_OUTCOMES:
        raise ValueError(f"more than {MAX_OUTCOMES} outcomes of a device and package")
    labels.add({line.outcome: (line.n, line.hits)}, b"")
    if line.outcome == CORRECT and line.confidence is not None:
        at = min(int(line.confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)
        labels.confidence[:, at] += line.n, line.hits


def _window(
    spool: str, number: int, key: tuple[str, str, str, str], labels: Labels, fleet: str, packages: Packages, now_ms: int
) -> dict[str, Any]:
    device, digest, variant, context = key
    told = labels.columns()
    n, hits = told["outcomes"].get(CORRECT, (0, 0))
    nothing = ("n", "n_monitored", "errors", "rejected", "mono_start_ms", "mono_end_ms")
    return {
        "device": device, "spool_id": spool, "seq": number, "arrived_ms": now_ms, "start_ms": now_ms,
        "placed": "import", "boot_id": "", "cohort": fleet, "digest": digest, "variant": variant, "context": context,
        "edge_hash": packages.edge_hash(digest, variant), "phase": "normal", "rollout": "",
        **dict.fromkeys(nothing, 0), "labels_n": n, "labels_wrong": n - hits, **told,
        **dict.fromkeys(("latency_total", "latency_run", "input_age", "cells", "body"), b""),
    }  # fmt: skip


def listed(engine: sa.Engine) -> Iterable[dict[str, Any]]:
    """What was imported, the newest first."""
    query = sa.select(control.label_imports).order_by(control.label_imports.c.at_ms.desc()).limit(200)
    with engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]
