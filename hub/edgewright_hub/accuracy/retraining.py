"""When a model is to be trained again: on drift, or with age. The reason becomes an alert of kind `retrain`, and with
it an event for webhooks, whose `detail` says all that a training needs.

    reason      drift | age
    model, version, digest       the newest package that is in force
    drift       [{scope, subject, digest, variant, context, part, since_ms, until_ms, channels, devices}]
    samples     the commands that ask for consented samples of the devices that moved, and fetch them

One is open for each model and reason; it closes by itself when its reason is gone: the drift ended or was accepted, a
newer package is published. Nothing here trains or changes a device.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from edgewright_contracts.errors import RequestError

from ..alerts.alerts import close_others, open_alert
from ..storage import control
from ..storage.store import upsert

EVERY_S: Final = 30.0
DAY_MS: Final = 24 * 3600_000
KIND: Final = "retrain"
STREAMS: Final = 50  # of an event
DEVICES: Final = 20  # that a command names


def put(
    engine: sa.Engine, model: str, *, on_drift: bool, max_age_days: int | None, who: str, now_ms: int
) -> dict[str, Any]:
    """Neither of both: never. Raises RequestError for a model that was never published, or an age below a day."""
    if max_age_days is not None and not 1 <= max_age_days <= 3650:
        raise RequestError(f"expected an age from 1 to 3650 days, got {max_age_days}")
    p, t = control.packages.c, control.retrain_policies.c
    with engine.begin() as connection:
        if connection.execute(sa.select(p.name).where(p.name == model).limit(1)).first() is None:
            raise RequestError(f"no package is called {model!r}; `edgewright publish` brings one")
        row = {"model": model, "on_drift": on_drift, "max_age_days": max_age_days, "at_ms": now_ms, "who": who}
        if on_drift or max_age_days:
            upsert(connection, control.retrain_policies, [row], keys=["model"])
        else:
            connection.execute(control.retrain_policies.delete().where(t.model == model))
        said = f"{model}: {'on drift' if on_drift else 'not on drift'}, age {max_age_days or 'any'}"
        note = {"at_ms": now_ms, "who": who, "what": "retrain policy", "detail": said, "subject": model}
        connection.execute(control.audit.insert().values(**note))
    return row


def listed(engine: sa.Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        rows = connection.execute(sa.select(control.retrain_policies).order_by(control.retrain_policies.c.model))
        return [dict(row._mapping) for row in rows]


def tick(engine: sa.Engine, now_ms: int) -> None:
    """Open and close the alerts that the policies ask for."""
    with engine.begin() as connection:
        keys = set()
        for policy in connection.execute(sa.select(control.retrain_policies)).all():
            package = _newest(connection, policy.model)
            if package is None:
                continue
            drift = _drift(connection, policy.model) if policy.on_drift else []
            if drift:
                keys.add(_open(connection, package, "drift", drift, now_ms))
            age = (now_ms - package.published_ms) // DAY_MS
            if policy.max_age_days and age >= policy.max_age_days:
                keys.add(_open(connection, package, "age", [], now_ms))
        close_others(connection, KIND, frozenset(keys), now_ms=now_ms)


def _newest(connection: sa.Connection, model: str) -> Any:
    p = control.packages.c
    query = sa.select(p.name, p.version, p.digest, p.published_ms).where(p.name == model, p.state == "allowed")
    return connection.execute(query.order_by(p.published_ms.desc()).limit(1)).first()


def _drift(connection: sa.Connection, model: str) -> list[dict[str, Any]]:
    """Streams in alarm that would wake somebody, those of cohorts first: what moves before a whole day is known may be
    the evening, and every release begins with such a day."""
    d = control.drift.c
    names = ("scope", "subject", "digest", "variant", "context", "part", "since_ms")
    query = sa.select(control.drift).where(d.model == model, d.verdict == "alarm")
    found = connection.execute(query.order_by(d.scope, d.subject, d.part)).all()
    rows = [row for row in found if row.state.get("pages")][:STREAMS]
    return [
        {
            **{name: getattr(row, name) for name in names},
            "until_ms": row.updated_ms,
            "channels": row.state.get("channels", []),
            "devices": row.state.get("devices", []) or ([row.subject] if row.scope == "device" else []),
        }
        for row in rows
    ]


def _open(connection: sa.Connection, package: Any, reason: str, drift: list[dict[str, Any]], now_ms: int) -> str:
    devices = sorted({device for stream in drift for device in stream["devices"]})
    detail = {
        "reason": reason,
        "model": package.name,
        "version": package.version,
        "digest": package.digest,
        "drift": drift,
        "samples": _commands(package.name, devices),
    }
    if reason == "drift":
        parts = ", ".join(sorted({stream["part"] for stream in drift}))
        text = f"train {package.name} again: {parts} of {len(devices)} devices drifted from {package.version}"
    else:
        text = f"train {package.name} again: {package.version} is {(now_ms - package.published_ms) // DAY_MS} days old"
    key = f"{KIND}:{package.name}:{reason}"
    open_alert(
        connection, key, severity="ticket", kind=KIND, subject=package.name, text=text, detail=detail, now_ms=now_ms
    )
    return key


def _commands(model: str, devices: list[str]) -> list[str]:
    whom = ";".join(f"id={device}" for device in devices[:DEVICES]) or "*"
    asked = "" if whom == "*" else f"edgewright fleet samples request '{whom}' --count 50 --reason 'retrain {model}'"
    return [*([asked] if asked else []), f"edgewright fleet samples export --model {model} --out samples"]
