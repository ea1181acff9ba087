"""Webhooks: alerts as JSON to other systems, signed, and tried again until they are taken.

    POST URL
    X-Edgewright-Delivery: 17
    X-Edgewright-Signature: t=1760000000,v1=<HMAC-SHA256 of "1760000000." and the body, by the webhook's secret>

    {"what": "opened" | "raised" | "closed" | "test", "alert": {...}}

Whoever receives compares the signature in constant time, refuses a `t` that is minutes old, and takes a delivery that
comes twice for one. A delivery is a row, written in the transaction of the alert, so none is lost with the hub; it is
sent by a task of its own, which nothing else waits for. Anything but 2xx is a failure; a redirect is not followed.
Order: by webhook, oldest first, but one that fails does not hold the next for longer than its own pause.
Bounds: TIMEOUT_S an attempt, TURN of them a turn, pauses that double up to an hour, given up after TRIED_MS.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import sqlalchemy as sa

from edgewright_contracts.errors import RequestError

from ..storage import control

EVERY_S: Final = 5.0
TIMEOUT_S: Final = 5.0
TURN: Final = 10
FIRST_PAUSE_MS: Final = 10_000
LONGEST_PAUSE_MS: Final = 3600_000
TRIED_MS: Final = 3 * 24 * 3600_000
KEPT_MS: Final = 30 * 24 * 3600_000  # what is over, for who asks what was sent
URL_CHARS: Final = 500
SAID_CHARS: Final = 300
_LOG = logging.getLogger(__name__)

Post = Callable[[str, bytes, Mapping[str, str]], int]  # url, body, headers → status; raises OSError or its own


def add(
    engine: sa.Engine, url: str, *, who: str, now_ms: int, pages_only: bool = False, kind: str = "", subject: str = ""
) -> dict[str, Any]:
    """`kind` and `subject`: only alerts of these; "" is any. Answers with its number and secret, which is told once.

    Raises RequestError for what is no address.
    """
    if len(url) > URL_CHARS or not _is_address(url):
        raise RequestError(f"the webhook: expected https://HOST/PATH, got {url[:100]!r}")
    secret = secrets.token_urlsafe(32)
    row = {"url": url, "secret": secret, "pages_only": pages_only, "kind": kind, "subject": subject}
    with engine.begin() as connection:
        made = control.webhooks.insert().values(**row, added_ms=now_ms, who=who).returning(control.webhooks.c.id)
        number = int(connection.execute(made).scalar_one())
        _note(connection, "webhook add", f"{number}: {_shown(url)}", who, now_ms)
    return {"id": number, "secret": secret}


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0 and url.split() == [url]
    except ValueError:  # a port beyond 65535, or half of an IPv6 address
        return False


def remove(engine: sa.Engine, identifier: int, *, who: str, now_ms: int) -> None:
    """What was not delivered yet goes with it. Raises RequestError."""
    with engine.begin() as connection:
        gone = connection.execute(control.webhooks.delete().where(control.webhooks.c.id == identifier)).rowcount
        if not gone:
            raise RequestError(f"no webhook has the number {identifier}; `edgewright fleet webhook` lists them")
        connection.execute(control.deliveries.delete().where(control.deliveries.c.webhook == identifier))
        _note(connection, "webhook remove", str(identifier), who, now_ms)


def test(engine: sa.Engine, identifier: int, *, who: str, now_ms: int) -> int:
    """Send it something; the number of the delivery. Raises RequestError."""
    with engine.begin() as connection:
        known = sa.select(control.webhooks.c.id).where(control.webhooks.c.id == identifier)
        if connection.execute(known).first() is None:
            raise RequestError(f"no webhook has the number {identifier}; `edgewright fleet webhook` lists them")
        return _enqueue(connection, identifier, json.dumps({"what": "test", "alert": None, "by": who}), now_ms)


def listed(engine: sa.Engine) -> list[dict[str, Any]]:
    """Without their secrets, and how their deliveries fare."""
    d = control.deliveries.c
    with engine.connect() as connection:
        hooks = connection.execute(sa.select(control.webhooks).order_by(control.webhooks.c.id)).all()
        counts = sa.select(d.webhook, d.state, sa.func.count().label("n")).group_by(d.webhook, d.state)
        states = {(row.webhook, row.state): row.n for row in connection.execute(counts)}
        last = sa.select(sa.func.max(d.id)).where(d.attempts > 0).group_by(d.webhook)
        said = {row.webhook: row.said for row in connection.execute(sa.select(d.webhook, d.said).where(d.id.in_(last)))}
    return [
        {
            **{name: value for name, value in row._mapping.items() if name != "secret"},
            **{state: states.get((row.id, state), 0) for state in ("due", "done", "given up")},
            "said": said.get(row.id, ""),
        }
        for row in hooks
    ]


def deliveries(engine: sa.Engine, limit: int = 100) -> list[dict[str, Any]]:
    """The newest first."""
    d = control.deliveries.c
    with engine.connect() as connection:
        rows = connection.execute(sa.select(control.deliveries).order_by(d.id.desc()).limit(limit)).all()
    return [{**row._mapping, "body": json.loads(row.body)} for row in rows]


def announce(connection: sa.Connection, what: str, alert: Mapping[str, Any], now_ms: int) -> None:
    """Leave a delivery for each webhook that this alert concerns."""
    body = json.dumps({"what": what, "alert": dict(alert)})
    for hook in connection.execute(sa.select(control.webhooks)).all():
        mine = hook.kind in ("", alert["kind"]) and hook.subject in ("", alert["subject"])
        if mine and (alert["severity"] == "page" or not hook.pages_only):
            _enqueue(connection, hook.id, body, now_ms)


def deliver(engine: sa.Engine, post: Post, now_ms: int) -> bool:
    """One turn: send what is due. True when there may be more. `post` may take its time: no transaction is open."""
    d, w = control.deliveries.c, control.webhooks.c
    due = (
        sa.select(control.deliveries, w.url, w.secret)
        .join(control.webhooks, w.id == d.webhook)
        .where(d.state == "due", d.next_ms <= now_ms)
        .order_by(d.next_ms, d.id)
        .limit(TURN)
    )
    with engine.connect() as connection:
        rows = connection.execute(due).all()
    failed: set[int] = set()
    for row in rows:
        if row.webhook not in failed:
            said = _sent(post, row, now_ms)
            if said:
                failed.add(row.webhook)
            with engine.begin() as connection:
                connection.execute(
                    control.deliveries.update().where(d.id == row.id).values(**_after(row, said, now_ms))
                )
    with engine.begin() as connection:
        over = sa.and_(d.state != "due", d.created_ms < now_ms - KEPT_MS)
        connection.execute(control.deliveries.delete().where(over))
    return len(rows) == TURN and not failed


class Sender(threading.Thread):
    """Delivers what is due every few seconds, on a thread that nobody waits for, not even the end of the hub: what it
    had begun to send is due again then, and may come twice."""

    def __init__(self, engine: sa.Engine, post: Post, now_ms: Callable[[], int], every_s: float = EVERY_S) -> None:
        super().__init__(name="webhooks", daemon=True)
        self._engine, self._post, self._now_ms, self._every_s = engine, post, now_ms, every_s
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.is_set():
            more = False
            try:
                more = deliver(self._engine, self._post, self._now_ms())
            except Exception:
                if not self._end.is_set():  # else the database is being closed
                    _LOG.exception("sending webhooks failed; it is tried again")
            if not more:
                self._end.wait(self._every_s)

    def stop(self) -> None:
        self._end.set()


def post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Over HTTP, by the system's authorities."""
    import urllib3

    timeout = urllib3.Timeout(connect=TIMEOUT_S, read=TIMEOUT_S, total=TIMEOUT_S)
    with urllib3.PoolManager(retries=False, timeout=timeout) as pool:
        answer = pool.request("POST", url, body=body, headers=dict(headers), redirect=False, preload_content=False)
        answer.close()
        return int(answer.status)


def signature(secret: str, body: bytes, at_s: int) -> str:
    """What the header holds."""
    code = hmac.new(secret.encode(), b"%d." % at_s + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={code}"


def _sent(post: Post, row: sa.Row[Any], now_ms: int) -> str:
    """Why it was not taken, or nothing."""
    body = row.body.encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "edgewright-hub",
        "X-Edgewright-Delivery": str(row.id),
        "X-Edgewright-Signature": signature(row.secret, body, now_ms // 1000),
    }
    try:
        status = post(row.url, body, headers)
    except Exception as error:  # whatever another's server and the way to it may do
        return f"{type(error).__name__}: {error}"[:SAID_CHARS]
    return "" if 200 <= status < 300 else f"it answered {status}"


def _after(row: sa.Row[Any], said: str, now_ms: int) -> dict[str, Any]:
    attempts = row.attempts + 1
    if not said:
        return {"state": "done", "attempts": attempts, "done_ms": now_ms, "said": ""}
    pause = min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS << min(attempts - 1, 20))
    over = now_ms + pause > row.created_ms + TRIED_MS
    state = {"state": "given up", "done_ms": now_ms} if over else {"next_ms": now_ms + pause}
    return {"attempts": attempts, "said": said, **state}


def _enqueue(connection: sa.Connection, webhook: int, body: str, now_ms: int) -> int:
    values = {"webhook": webhook, "body": body, "state": "due", "next_ms": now_ms, "created_ms": now_ms}
    made = control.deliveries.insert().values(**values).returning(control.deliveries.c.id)
    return int(connection.execute(made).scalar_one())


def _shown(url: str) -> str:
    """Without what may be a secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}/..."


def _note(connection: sa.Connection, what: str, detail: str, who: str, now_ms: int) -> None:
    connection.execute(control.audit.insert().values(at_ms=now_ms, who=who, what=what, detail=detail))
