"""What operators ask of the hub about quality: accuracy, labels, alerts, samples, collected reports, training again."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from edgewright_contracts.desired import Command, decode_command
from edgewright_contracts.package import Package
from edgewright_hub.accuracy import retraining
from edgewright_hub.alerts import alerts, expiry
from edgewright_hub.alerts.expiry import Ending
from edgewright_hub.fleet import tokens
from edgewright_hub.fleet.orders import AGAIN_MS, Orders
from edgewright_hub.rollouts import sampling
from edgewright_hub.rollouts.conductor import Conductor
from edgewright_hub.storage import control, telemetry
from edgewright_hub.web.api import Hub, now_ms
from edgewright_hub.web.app import device_app
from edgewright_hub.web.samples import KEPT_S, Samples
from sim.house import House

DAY_MS = 86_400_000


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> Iterator[House]:
    one = House(tmp_path, packages)
    one.publish_package("1.0.0")
    one.enrol("pi-0", "pi-1")
    yield one
    one.control.dispose()
    one.telemetry.dispose()


@pytest.fixture
def ordered() -> list[tuple[str, Command]]:
    return []


@pytest.fixture
def hub(house: House, ordered: list[tuple[str, Command]], tmp_path: Path) -> Hub:
    def publish(device: str, kind: str, body: bytes, _retain: bool) -> None:
        if kind == "command":
            ordered.append((device, decode_command(body)))

    return Hub(
        control=house.control, telemetry=house.telemetry, registry=house.registry, authority=None,
        conductor=Conductor(house.control, house.telemetry, house.registry, publish), broker=("127.0.0.1", 1883),
        repo="", ails=list, open_to_read=False, samples=Samples(tmp_path / "samples"),
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture
def client(hub: Hub) -> Iterator[TestClient]:
    with TestClient(device_app(hub), base_url="https://127.0.0.1") as one:
        one.headers |= bearer(hub, "admin")
        yield one


def bearer(hub: Hub, role: tokens.Role) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.grant(hub.control, role=role, name=role)}"}


def drifted(house: House, device: str, verdict: str = "alarm", *, pages: bool = True) -> None:
    channel = {"name": "mean", "js": 0.4, "p": 1e-9, "psi": 1.0, "psi_chance": 0.1}
    row = {
        "scope": "device", "subject": device, "digest": house.packages["1.0.0"].digest[:16], "variant": "onnx-fp32",
        "context": "", "part": "input", "model": "digits", "state": {"channels": [channel], "pages": pages},
        "verdict": verdict,
        "since_ms": house.now - 5000, "updated_ms": house.now,
    }  # fmt: skip
    with house.control.begin() as connection:
        connection.execute(control.drift.delete())
        connection.execute(control.drift.insert().values(**row))


# Accuracy and labels.


def test_a_table_of_labels_is_posted_once_and_seen_in_the_accuracy(client: TestClient, house: House, hub: Hub) -> None:
    table = "device,model,version,value,confidence\npi-0,digits,1.0.0,1,0.9\nnobody,digits,1.0.0,1,0.9\n"
    told = client.post("/api/v1/labels?name=qa.csv", content=table).json()
    assert (told["counted"], told["refused"], told["already"]) == (1, 1, False)
    assert client.post("/api/v1/labels", content=table).json()["already"]
    assert [one["name"] for one in client.get("/api/v1/labels").json()] == ["qa.csv"]
    house.tick()
    (model,) = client.get("/api/v1/accuracy?model=digits").json()["models"]
    assert (model["labelled"]["n"], model["slices"][0]["cohort"], model["expected"]) == (1, "lab", None)
    answer = client.post("/api/v1/labels", content="device,value\npi-0,1\n")
    assert (answer.status_code, "expected a digest" in answer.json()["error"]) == (422, True)
    assert client.post("/api/v1/labels", content=table, headers=bearer(hub, "viewer")).status_code == 403


# Alerts.


def test_alerts_are_acknowledged_and_closed_by_operators_and_webhooks_are_an_admins(
    client: TestClient, house: House, hub: Hub
) -> None:
    with house.control.begin() as connection:
        alerts.open_alert(connection, "k", severity="page", kind="drift", subject="pi-0", text="moved", now_ms=1)
    (one,) = client.get("/api/v1/alerts").json()
    assert client.post(f"/api/v1/alerts/{one['id']}/acknowledge").json()["acknowledged_by"] == "admin"
    operator, viewer = bearer(hub, "operator"), bearer(hub, "viewer")
    assert client.post(f"/api/v1/alerts/{one['id']}/close", headers=viewer).status_code == 403
    assert client.post(f"/api/v1/alerts/{one['id']}/close", headers=operator).json()["closed_by"] == "operator"
    assert client.get("/api/v1/alerts").json() == []
    assert client.get("/api/v1/alerts?closed=true").json()[0]["key"] == "k"
    assert client.post(f"/api/v1/alerts/{one['id']}/close").status_code == 400
    body = {"url": "https://pager.example/x", "pages_only": True}
    assert client.post("/api/v1/webhooks", json=body, headers=operator).status_code == 403
    made = client.post("/api/v1/webhooks", json=body).json()
    assert made["secret"] not in client.get("/api/v1/webhooks").text
    assert client.post(f"/api/v1/webhooks/{made['id']}/test").json() == {"delivery": 1}
    assert client.get("/api/v1/webhooks/deliveries").json()[0]["body"]["what"] == "test"
    assert client.post(f"/api/v1/webhooks/{made['id']}/remove").json() == {"removed": made["id"]}


def test_what_ends_soon_is_a_ticket_then_a_page_and_closed_when_it_was_renewed(house: House) -> None:
    end = datetime(2027, 1, 1, tzinfo=UTC)

    def at(days: float, *, renewed: bool = False) -> list[tuple[str, str]]:
        lasting = end + timedelta(days=365 if renewed else 0)
        expiry.tick(
            house.control, [Ending("root", lasting, timedelta(days=60), "renew it")], end - timedelta(days=days)
        )
        return [(one["severity"], one["text"]) for one in alerts.listed(house.control)]

    assert at(61) == []
    assert at(59) == [("ticket", "root ends in 59 days: renew it")]
    assert at(6)[0][0] == "page"
    assert at(-2) == [("page", "root ended 2 days ago: renew it")]
    assert at(-2, renewed=True) == []


# Training again.


def test_drift_asks_for_training_with_what_moved_and_how_to_fetch_samples(client: TestClient, house: House) -> None:
    assert client.post("/api/v1/retrain/digits", json={"on_drift": True}).status_code == 200
    assert client.post("/api/v1/retrain/words", json={"on_drift": True}).status_code == 400
    client.post("/api/v1/webhooks", json={"url": "https://x.example/", "kind": "retrain", "subject": "digits"})
    retraining.tick(house.control, house.now)
    assert client.get("/api/v1/alerts").json() == []
    drifted(house, "pi-1", pages=False)  # its first day: it may be the evening
    retraining.tick(house.control, house.now)
    assert client.get("/api/v1/alerts").json() == []
    drifted(house, "pi-1")
    retraining.tick(house.control, house.now)
    retraining.tick(house.control, house.now + 1)
    (one,) = client.get("/api/v1/alerts").json()
    assert (one["kind"], one["severity"], one["subject"]) == ("retrain", "ticket", "digits")
    assert one["text"] == "train digits again: input of 1 devices drifted from 1.0.0"
    detail = one["detail"]
    assert detail["digest"] == house.packages["1.0.0"].digest
    (stream,) = detail["drift"]
    assert (stream["since_ms"], stream["until_ms"]) == (house.now - 5000, house.now)
    assert [channel["name"] for channel in stream["channels"]] == ["mean"]
    assert detail["samples"][0].startswith("edgewright fleet samples request 'id=pi-1'")
    assert [d["body"]["what"] for d in client.get("/api/v1/webhooks/deliveries").json()] == ["opened"]
    drifted(house, "pi-1", "ok")
    retraining.tick(house.control, house.now + 2)
    assert client.get("/api/v1/alerts").json() == []


def test_age_asks_for_training_until_a_newer_package_is_published(client: TestClient, house: House) -> None:
    client.post("/api/v1/retrain/digits", json={"max_age_days": 30})
    retraining.tick(house.control, house.now + 29 * DAY_MS)
    assert alerts.listed(house.control) == []
    retraining.tick(house.control, house.now + 30 * DAY_MS)
    (one,) = alerts.listed(house.control)
    assert one["text"] == "train digits again: 1.0.0 is 30 days old"
    house.now += 30 * DAY_MS
    house.publish_package("2.0.0")
    retraining.tick(house.control, house.now)
    assert alerts.listed(house.control) == []
    client.post("/api/v1/retrain/digits", json={})
    assert client.get("/api/v1/retrain").json() == []


# Samples.


def _sample() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("about.json"), json.dumps({"model": "digits"}))  # of 1980: the same bytes
    return out.getvalue()


def test_a_request_for_samples_reaches_its_devices_and_ends_by_itself(
    client: TestClient, house: House, hub: Hub
) -> None:
    house.start("1.0.0", stages=("100%",))
    house.tick()
    made = client.post("/api/v1/samples/requests", json={"selector": "id=pi-0", "count": 2, "reason": "odd inputs"})
    assert (made.status_code, made.json()["devices"]) == (201, ["pi-0"])
    house.tick()
    asked = house.wanted("pi-0")
    assert asked is not None
    assert asked.config.samples is not None
    assert (asked.config.samples.per_day, asked.config.samples.ttl_s) == (2, 86400)
    other = house.wanted("pi-1")
    assert other is not None
    assert other.config.samples is None
    assert hub.samples is not None
    (row,) = client.get("/api/v1/samples").json()["requests"]
    assert (row["state"], row["arrived"]) == ("asked", {"pi-0": 0})
    assert sampling.end(house.control, hub.samples.arrived, row["at_ms"] + 1) == 0
    for number in range(2):
        assert client.get("/api/v1/samples").json()["requests"][0]["state"] == ("under way" if number else "asked")
        hub.samples.keep("pi-0", f"{number:016x}", _sample())
    assert sampling.end(house.control, hub.samples.arrived, now_ms()) == 1
    (row,) = client.get("/api/v1/samples").json()["requests"]
    assert (row["state"], row["arrived"]) == ("arrived", {"pi-0": 2})
    house.tick()
    ended = house.wanted("pi-0")
    assert ended is not None
    assert ended.config.samples is None
    client.post("/api/v1/samples/requests", json={"device": "pi-1", "hours": 1, "reason": "odd inputs"})
    newest = client.get("/api/v1/samples").json()["requests"][0]
    later = newest["at_ms"] + 3600_000
    assert sampling.end(house.control, hub.samples.arrived, later) == 1
    assert sampling.listed(house.control, hub.samples.arrived, later)[0]["state"] == "expired"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"device": "pi-0"}, "--reason"),
    ({"device": "nobody", "reason": "x"}, "no enrolled device is meant by 'nobody'"),
    ({"device": "pi-0", "reason": "x", "count": 0}, "expected 1 to 1000 samples"),
    ({"device": "pi-0", "reason": "x", "hours": 48}, "0.1 to 24 hours"),
    ({"selector": "colour=red", "reason": "x"}, "selector: expected one of"),
]


def test_a_wrong_request_for_samples_is_refused(client: TestClient) -> None:
    for body, why in WRONG:
        answer = client.post("/api/v1/samples/requests", json=body)
        assert answer.status_code == 400
        assert why in answer.json()["error"]


def test_samples_are_listed_and_taken_by_operators_only_noted_and_gone_after_a_month(
    client: TestClient, hub: Hub, house: House, tmp_path: Path
) -> None:
    assert hub.samples is not None
    hub.samples.keep("pi-0", "0" * 16, _sample())
    (one,) = client.get("/api/v1/samples").json()["samples"]
    assert (one["device"], one["id"], one["bytes"]) == ("pi-0", "0" * 16, len(_sample()))
    assert client.get(f"/api/v1/samples/pi-0/{'0' * 16}").content == _sample()
    assert client.get(f"/api/v1/samples/pi-0/{'0' * 16}", headers=bearer(hub, "viewer")).status_code == 403
    assert client.get("/api/v1/samples/..%2f..%2fhub/0").status_code == 404
    assert client.get(f"/api/v1/samples/pi-1/{'0' * 16}").status_code == 404
    with house.control.connect() as connection:
        notes = connection.execute(sa.select(control.audit).where(control.audit.c.what == "samples read")).all()
    assert [(note.who, note.subject) for note in notes] == [("admin", "pi-0")]
    (file,) = (tmp_path / "samples" / "pi-0").iterdir()
    hub.samples.expire(file.stat().st_mtime + KEPT_S - 1)
    assert hub.samples.listed()
    os.utime(file, (1, 1))
    hub.samples.expire(KEPT_S + 2)
    assert hub.samples.listed() == []


# A device's own report.


def test_a_device_is_asked_what_ails_it_and_its_answer_is_found(
    client: TestClient, house: House, ordered: list[tuple[str, Command]]
) -> None:
    answer = client.post("/api/v1/devices/pi-0/collect")
    order = answer.json()["id"]
    assert (answer.status_code, answer.json()["state"]) == (202, "under way")
    assert [(device, one.id, one.verb) for device, one in ordered] == [("pi-0", order, "collect")]
    assert client.get(f"/api/v1/devices/pi-0/answers/{order}").json()["answer"] is None
    assert client.post("/api/v1/devices/pi-0/collect").json()["id"] == order  # it is open: no second one
    told = {"model": "", "digest": "", "reason": f"answer to command {order}", "log": '{"disk": "ok"}'}
    house.event("pi-0", "1.0.0", "collect", "collect", **told)
    assert client.get(f"/api/v1/devices/pi-0/answers/{order}").json()["answer"]["text"] == '{"disk": "ok"}'
    assert client.post("/api/v1/devices/nobody/collect").status_code == 400
    assert client.post("/api/v1/devices/pi-1/collect", json={"hours": 1000}).status_code == 400
    assert client.get("/api/v1/devices/pi-1/answers/0123456789abcdef").status_code == 400


def _connected(house: House, device: str, online: bool, birth_ms: int | None = None) -> None:
    d = telemetry.devices
    with house.telemetry.begin() as connection:
        connection.execute(d.update().where(d.c.device == device).values(online=online, birth_ms=birth_ms))


def test_a_device_that_is_away_is_asked_when_it_comes_until_the_time_is_over(
    hub: Hub, house: House, ordered: list[tuple[str, Command]]
) -> None:
    orders, start = hub.conductor.orders, house.now
    _connected(house, "pi-0", online=False)
    order = orders.place("pi-0", "collect", hours=2, who="ann", now_ms=start)
    assert (order["state"], ordered) == ("asked", [])
    orders.tick(start + 60_000)
    assert ordered == []
    _connected(house, "pi-0", online=True, birth_ms=start + 61_000)
    orders.tick(start + 62_000)
    orders.tick(start + 64_000)
    assert [one.id for _, one in ordered] == [order["id"]]
    assert ordered[0][1].expires_at == start + 2 * 3600_000
    assert orders.find("pi-0", order["id"])["state"] == "under way"
    _connected(house, "pi-0", online=True, birth_ms=start + 70_000)  # it may have lost it with its power
    orders.tick(start + 72_000)
    orders.tick(start + 72_000 + AGAIN_MS)  # the broker may have been away from the hub
    assert len(ordered) == 3
    orders.tick(start + 2 * 3600_000)
    assert orders.listed("pi-0")[0]["state"] == "expired"
    assert orders.place("pi-0", "collect", who="ann", now_ms=start + 3 * 3600_000)["id"] != order["id"]
    house.event("pi-0", "1.0.0", "collect", "collect", model="", digest="", reason=f"answer to command {order['id']}")
    orders.tick(start + 4 * 3600_000)
    assert [one["state"] for one in orders.listed()] == ["under way", "arrived"]  # late, and still an answer


def test_a_device_that_cannot_answer_says_why(hub: Hub, house: House) -> None:
    orders = hub.conductor.orders
    order = orders.place("pi-1", "collect", who="ann", now_ms=house.now)
    why = f"command {order['id']} failed: the disk is full"
    house.event("pi-1", "1.0.0", "collect", "collect", model="", digest="", reason=why)
    again = Orders(house.control, house.telemetry, lambda *_: None)  # the hub was restarted before it looked
    again.tick(house.now + 1)
    assert (orders.listed()[0]["state"], orders.listed()[0]["said"]) == ("failed", why)
    with house.control.connect() as connection:
        notes = connection.execute(sa.select(control.audit).where(control.audit.c.subject == "pi-1")).all()
    assert [(note.who, note.what) for note in notes] == [("ann", "order collect")]
