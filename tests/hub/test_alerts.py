"""One alert is open for each reason, and webhooks hear of it whatever their servers do."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import RequestError
from edgewright_hub.alerts import alerts, webhooks
from edgewright_hub.storage import control
from edgewright_hub.storage.control import open_control
from edgewright_hub.storage.places import Places

NOW = 1_760_000_000_000


@pytest.fixture
def engine(control_engine: sa.Engine) -> sa.Engine:
    return control_engine


def raise_it(engine: sa.Engine, **changes: Any) -> bool:
    said = {"severity": "ticket", "kind": "drift", "subject": "pi-1", "text": "moved", "now_ms": NOW, **changes}
    with engine.begin() as connection:
        return alerts.open_alert(connection, said.pop("key", "drift:pi-1"), **said)


def close_it(engine: sa.Engine, key: str = "drift:pi-1") -> bool:
    with engine.begin() as connection:
        return alerts.close_alert(connection, key, now_ms=NOW + 1)


def test_one_alert_is_open_for_each_reason_and_a_new_one_after_it_was_closed(stores: Places) -> None:
    engine = open_control(stores.control)
    webhooks.add(engine, "https://x.example/", who="ann", now_ms=NOW)
    assert raise_it(engine)
    assert not raise_it(engine, text="moved further")
    (one,) = alerts.listed(engine)
    assert (one["text"], one["opened_ms"], one["closed_ms"]) == ("moved further", NOW, None)
    assert close_it(engine)
    assert not close_it(engine)
    assert alerts.listed(engine) == []
    assert raise_it(engine)
    assert [a["id"] for a in alerts.listed(engine, closed=True)] == [2, 1]
    assert webhooks.listed(engine)[0]["due"] == 3
    engine.dispose()


def test_a_person_acknowledges_and_closes_and_the_audit_says_who(engine: sa.Engine) -> None:
    raise_it(engine)
    seen = alerts.acknowledge(engine, 1, who="ann", now_ms=NOW + 5)
    assert (seen["acknowledged_by"], seen["closed_ms"]) == ("ann", None)
    assert alerts.dismiss(engine, 1, who="bob", now_ms=NOW + 6)["closed_by"] == "bob"
    with pytest.raises(RequestError, match="no open alert has the number 1"):
        alerts.acknowledge(engine, 1, who="ann", now_ms=NOW + 7)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(control.audit.c.who, control.audit.c.what, control.audit.c.subject)).all()
    assert [tuple(row) for row in rows] == [("ann", "alert acknowledge", "pi-1"), ("bob", "alert close", "pi-1")]


def test_what_becomes_a_page_must_be_looked_at_again_and_pages_come_first(engine: sa.Engine) -> None:
    raise_it(engine)
    raise_it(engine, key="other", subject="pi-2")
    alerts.acknowledge(engine, 1, who="ann", now_ms=NOW)
    raise_it(engine, severity="page")
    first, second = alerts.listed(engine)
    assert (first["id"], first["severity"], first["acknowledged_ms"]) == (1, "page", None)
    assert second["id"] == 2


def test_alerts_whose_reason_is_gone_are_closed_and_others_stay(engine: sa.Engine) -> None:
    for key in ("a", "b"):
        raise_it(engine, key=key)
    raise_it(engine, key="c", kind="expiry")
    with engine.begin() as connection:
        assert alerts.close_others(connection, "drift", frozenset({"b"}), now_ms=NOW) == 1
    assert {a["key"] for a in alerts.listed(engine)} == {"b", "c"}


class Server:
    """Takes what is posted; answers with `status`."""

    def __init__(self) -> None:
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.came.append((dict(self.headers), body))
                self.send_response(server.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/hook"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


def test_a_webhook_is_told_of_opening_and_closing_signed_with_its_secret(engine: sa.Engine, server: Server) -> None:
    hook = webhooks.add(engine, server.url, who="ann", now_ms=NOW)
    raise_it(engine)
    close_it(engine)
    webhooks.deliver(engine, webhooks.post, NOW + 2)
    assert [json.loads(body)["what"] for _, body in server.came] == ["opened", "closed"]
    headers, body = server.came[0]
    stamp, code = (part.partition("=")[2] for part in headers["X-Edgewright-Signature"].split(","))
    right = hmac.new(hook["secret"].encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(code, right)
    assert json.loads(body)["alert"]["subject"] == "pi-1"
    assert "secret" not in webhooks.listed(engine)[0]
    webhooks.deliver(engine, webhooks.post, NOW + 3)
    assert len(server.came) == 2, "nothing is sent twice"


def test_what_is_due_is_sent_by_a_thread_that_ends_when_told(
    engine: sa.Engine, server: Server, until: Callable[..., None]
) -> None:
    webhooks.add(engine, server.url, who="ann", now_ms=NOW)
    sender = webhooks.Sender(engine, webhooks.post, lambda: NOW, every_s=0.01)
    sender.start()
    raise_it(engine)
    until(lambda: webhooks.listed(engine)[0]["done"] == 1, "the delivery")
    sender.stop()
    sender.join(5)
    assert not sender.is_alive()


def test_what_fails_is_tried_again_ever_later_and_others_do_not_wait_for_it(engine: sa.Engine) -> None:
    tried: list[str] = []

    def send(url: str, _body: bytes, _headers: Mapping[str, str]) -> int:
        tried.append(url)
        if "bad" in url:
            raise OSError("no route to host")
        return 204

    webhooks.add(engine, "https://bad.example/", who="ann", now_ms=NOW)
    webhooks.add(engine, "https://good.example/", who="ann", now_ms=NOW)
    raise_it(engine)
    raise_it(engine, key="another")
    webhooks.deliver(engine, send, NOW)
    assert tried == ["https://bad.example/", "https://good.example/", "https://good.example/"]
    bad, good = webhooks.listed(engine)
    assert (bad["due"], bad["done"], bad["said"]) == (2, 0, "OSError: no route to host")
    assert (good["due"], good["done"]) == (0, 2)
    webhooks.deliver(engine, send, NOW + 9_000)
    assert tried[3:] == ["https://bad.example/"], "the second alert's turn; the first waits ten seconds"
    at = NOW
    while any(one["due"] for one in webhooks.listed(engine)):
        at += 3600_000
        webhooks.deliver(engine, send, at)
    assert webhooks.listed(engine)[0]["given up"] == 2
    assert at - NOW == pytest.approx(webhooks.TRIED_MS, rel=0.05)
    webhooks.deliver(engine, send, at + webhooks.KEPT_MS)
    assert webhooks.deliveries(engine) == []


def test_a_webhook_may_want_pages_one_kind_or_one_subject_only(engine: sa.Engine) -> None:
    webhooks.add(engine, "https://pager.example/", who="ann", now_ms=NOW, pages_only=True)
    webhooks.add(engine, "https://retrain.example/", who="ann", now_ms=NOW, kind="retrain", subject="digits")
    raise_it(engine)
    raise_it(engine, key="p", severity="page")
    raise_it(engine, key="r", kind="retrain", subject="digits")
    raise_it(engine, key="s", kind="retrain", subject="words")
    assert sorted((d["webhook"], d["body"]["alert"]["key"]) for d in webhooks.deliveries(engine)) == [
        (1, "p"),
        (2, "r"),
    ]


def test_a_removed_webhook_hears_no_more_and_wrong_ones_are_refused(engine: sa.Engine) -> None:
    for url in ("ftp://x.example/", "nonsense", "https:///x", "https://[::1", "https://x:99999/", "https://x y"):
        with pytest.raises(RequestError, match="expected https://HOST/PATH"):
            webhooks.add(engine, url, who="ann", now_ms=NOW)
    number = webhooks.add(engine, "https://x.example/", who="ann", now_ms=NOW)["id"]
    webhooks.test(engine, number, who="ann", now_ms=NOW)
    webhooks.remove(engine, number, who="ann", now_ms=NOW)
    assert webhooks.deliveries(engine) == []
    with pytest.raises(RequestError, match="no webhook has the number"):
        webhooks.test(engine, number, who="ann", now_ms=NOW)
