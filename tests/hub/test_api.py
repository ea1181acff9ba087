from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.testclient import TestClient

from edgewright_hub.fleet import tokens
from edgewright_hub.fleet.ca import HUB_NAME, Authority
from edgewright_hub.ingest.writer import commit
from edgewright_hub.registry.registry import Registry
from edgewright_hub.rollouts.conductor import Conductor
from edgewright_hub.storage import control, telemetry
from edgewright_hub.web.api import Hub
from edgewright_hub.web.app import device_app, page_app
from sim import wire
from sim.releases import files_of, manifest_of, targets_of


@pytest.fixture
def hub(control_engine: sa.Engine, telemetry_engine: sa.Engine, registry: Registry, authority: Authority) -> Hub:
    return Hub(
        control=control_engine,
        telemetry=telemetry_engine,
        registry=registry,
        authority=authority,
        conductor=Conductor(control_engine, telemetry_engine, registry, lambda *_: None),
        broker=("127.0.0.1", 8883),
        repo="https://127.0.0.1:8443/repo/",
        open_to_read=False,
        ails=list,
    )


@pytest.fixture
def client(hub: Hub) -> Iterator[TestClient]:
    with TestClient(device_app(hub), base_url="https://127.0.0.1", raise_server_exceptions=False) as one:
        yield one


def bearer(hub: Hub, role: tokens.Role) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.grant(hub.control, role=role, name=role)}"}


@pytest.mark.parametrize("app", [device_app, page_app])
def test_anyone_may_ask_whether_the_hub_is_well(hub: Hub, app: Any) -> None:
    reasons: list[str] = []
    client = TestClient(app(replace(hub, ails=lambda: reasons)), base_url="http://127.0.0.1")
    assert (client.get("/healthz").status_code, client.get("/healthz").json()) == (200, {"ok": True, "reasons": []})
    reasons.append("the broker is not connected")
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (503, {"ok": False, "reasons": ["the broker is not connected"]})


# Enrolment.


def token(client: TestClient, hub: Hub, **body: Any) -> str:
    answer = client.post("/api/v1/tokens", json=body, headers=bearer(hub, "operator"))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


def enrol(client: TestClient, text: str, device: str = "cam-1", csr: str | None = None) -> Any:
    csr = csr or wire.signing_request(device)[0]
    return client.post("/api/v1/enroll", json={"token": text, "device": device, "csr": csr})


def test_a_device_enrols_and_can_check_all_it_is_given_against_its_token(client: TestClient, hub: Hub) -> None:
    text = token(client, hub, fleet="plant-7")
    inside = json.loads(base64.urlsafe_b64decode(text.removeprefix("ew1.") + "=="))
    ca = client.get("/enroll/ca.pem").content
    assert hashlib.sha256(ca).hexdigest() == inside["ca_sha256"]
    answer = enrol(client, text).json()
    assert hashlib.sha256(answer["root"].encode()).hexdigest() == inside["root_sha256"]
    certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
    assert certificate.subject.rfc4514_string() == "CN=cam-1"
    assert answer["broker"] == {"host": "127.0.0.1", "port": 8883}
    assert answer["repo"] == "https://127.0.0.1:8443/repo/"
    (device,) = client.get("/api/v1/devices", headers=bearer(hub, "viewer")).json()
    assert (device["device"], device["fleet"], device["online"]) == ("cam-1", "plant-7", False)


def test_the_token_is_kept_only_as_a_hash(client: TestClient, hub: Hub) -> None:
    secret = tokens.parse(token(client, hub)).secret
    with hub.control.connect() as connection:
        rows = connection.execute(sa.select(control.enrol_tokens)).all()
    assert secret not in str(rows)


def refused(answer: Any, text: str) -> None:
    """The request was right, and the answer is no."""
    assert answer.status_code == 422, answer.text
    assert text in answer.json()["error"]


def wrong(answer: Any, text: str) -> None:
    assert answer.status_code == 400, answer.text
    assert text in answer.json()["error"]


def test_a_token_that_is_spent_unknown_expired_or_for_others_is_refused(client: TestClient, hub: Hub) -> None:
    one = token(client, hub, uses=1, pattern="cam-[0-9]+")
    refused(enrol(client, one, "dev-1"), "device ids like")
    refused(enrol(client, one, "cam-1x"), "device ids like")  # the whole id must match
    assert enrol(client, one, "cam-1").status_code == 200
    refused(enrol(client, one, "cam-2"), "spent")
    late = token(client, hub)
    with hub.control.begin() as connection:
        connection.execute(control.enrol_tokens.update().values(expires_ms=1))
    refused(enrol(client, late, "cam-3"), "expired")
    unknown = tokens.PREFIX + base64.urlsafe_b64encode(b'{"secret":"x","root_sha256":"","ca_sha256":""}').decode()
    refused(enrol(client, unknown), "unknown")
    for broken in ("", "ew1.", "ew1.!!!", one[:-20], "ew1." + "A" * 900):
        wrong(enrol(client, broken), "token")


def test_a_refused_request_spends_nothing(client: TestClient, hub: Hub) -> None:
    one = token(client, hub, uses=1)
    refused(enrol(client, one, "cam-1", wire.signing_request("cam-2")[0]), "common name")
    wrong(enrol(client, one, "cam-1", "no request"), "csr")
    wrong(enrol(client, one, "CAM"), "device")
    wrong(enrol(client, one, HUB_NAME), "not the hub's")
    assert enrol(client, one).status_code == 200


def test_a_key_on_another_curve_is_refused(client: TestClient, hub: Hub) -> None:
    csr, _ = wire.signing_request("cam-1", ec.generate_private_key(ec.SECP384R1()))
    wrong(enrol(client, token(client, hub), "cam-1", csr), "P-256")


def test_two_devices_cannot_both_have_the_last_use(client: TestClient, hub: Hub) -> None:
    one = token(client, hub, uses=1)
    answers: list[int] = []
    start = threading.Barrier(4)

    def ask(number: int) -> None:
        csr = wire.signing_request(f"cam-{number}")[0]
        start.wait()
        answers.append(enrol(client, one, f"cam-{number}", csr).status_code)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 422, 422, 422]


def test_a_lost_answer_may_be_asked_for_again_with_the_same_key(client: TestClient, hub: Hub) -> None:
    one = token(client, hub, uses=1)
    csr = wire.signing_request("cam-1")[0]
    assert enrol(client, one, csr=csr).status_code == 200
    assert enrol(client, one, csr=csr).status_code == 200
    refused(enrol(client, one, "cam-2"), "spent")


def test_a_fleet_token_cannot_take_over_a_device_but_one_for_this_device_can(client: TestClient, hub: Hub) -> None:
    fleet = token(client, hub, uses=9)
    assert enrol(client, fleet).status_code == 200
    refused(enrol(client, fleet), "enrolled already")
    assert enrol(client, token(client, hub, pattern="cam-1")).status_code == 200


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"uses": 0}, "uses"),
        ({"uses": "x"}, "uses"),
        ({"expires_s": -1}, "expires_s"),
        ({"pattern": "("}, "pattern"),
        ({"fleet": "A B"}, "fleet"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(client: TestClient, hub: Hub, body: dict[str, Any], named: str) -> None:
    wrong(client.post("/api/v1/tokens", json=body, headers=bearer(hub, "operator")), named)


# Roles.


@pytest.mark.parametrize(
    ("method", "path", "roles"),
    [
        ("GET", "/api/v1/devices", {"viewer", "operator", "publisher", "admin"}),
        ("GET", "/api/v1/events", {"viewer", "operator", "publisher", "admin"}),
        ("POST", "/api/v1/tokens", {"operator", "admin"}),
        ("POST", "/api/v1/rollouts", {"operator", "admin"}),
        ("PUT", "/api/v1/blobs/" + "0" * 64, {"publisher", "admin"}),
        ("POST", "/api/v1/targets", {"publisher", "admin"}),
    ],
)
def test_who_may_do_what(client: TestClient, hub: Hub, method: str, path: str, roles: set[str]) -> None:
    nobody = client.request(method, path, json={})
    assert nobody.status_code == 401
    assert "error" in nobody.json()
    for wrong in ("Bearer wrong", "Basic x", "Bearer", "Bearer " + "x" * 5000):
        assert client.request(method, path, json={}, headers={"Authorization": wrong}).status_code == 401
    for role in ("viewer", "operator", "publisher", "admin"):
        status = client.request(method, path, json={}, headers=bearer(hub, role)).status_code  # type: ignore[arg-type]
        assert (status not in {401, 403}) == (role in roles), role


def test_the_page_may_be_read_without_a_token_on_this_machine_only(hub: Hub) -> None:
    page = replace(hub, open_to_read=True)
    with TestClient(page_app(page), base_url="http://127.0.0.1") as client:
        assert client.get("/api/v1/devices").json() == []
        assert client.post("/api/v1/tokens", json={}).status_code == 401
        assert client.get("/api/v1/devices", headers={"Host": "evil.example"}).status_code == 400
        assert client.get("/repo/metadata/timestamp.json").status_code == 404


def test_errors_are_json_and_say_what_was_expected(client: TestClient, hub: Hub) -> None:
    for path in ("/nothing", "/repo/blobs/nothing", "/repo/metadata/../../keys/snapshot.pem"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert set(answer.json()) == {"error"}
    unknown = client.get("/api/v1/rollouts/r9", headers=bearer(hub, "viewer"))
    assert unknown.status_code == 404
    assert "r9" in unknown.json()["error"]
    assert client.post("/api/v1/enroll", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400


def test_a_rollout_of_what_is_not_there_is_a_wrong_request(client: TestClient, hub: Hub, owner: Path) -> None:
    headers = bearer(hub, "operator")

    def ask(**spec: Any) -> Any:
        return client.post("/api/v1/rollouts", json={"model": "digits", "version": "1.0.0", **spec}, headers=headers)

    wrong(ask(), "digits 1.0.0 is not in the registry")
    publish(client, hub, owner)
    refused(ask(), "no device is enrolled yet")
    assert enrol(client, token(client, hub)).status_code == 200
    wrong(ask(version="", digest="e" * 64), "is not in the registry")
    wrong(ask(devices=["nodev"]), "no enrolled device is called nodev")
    wrong(ask(fleet="moon"), "no enrolled device is in a fleet 'moon'")
    wrong(ask(stages=["x"]), "1, 25%, 100%, or selectors, as site=berlin; got x")
    wrong(ask(gate={"alhpa": 0.1}), "alhpa")
    wrong(ask(selector=""), "rollout.selector: expected whom it means, or no such field for all devices")
    assert ask().status_code == 201


def test_a_body_that_is_too_large_is_refused_by_header_or_while_it_comes(client: TestClient) -> None:
    assert client.post("/api/v1/enroll", content=b"x" * 300_000).status_code == 413
    chunks = (b"x" * 50_000 for _ in range(10))
    assert client.post("/api/v1/enroll", content=chunks).status_code == 413


def test_openapi_describes_the_interface(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/api/v1/enroll", "/api/v1/targets", "/api/v1/devices"} <= set(paths)


# Publishing and serving.


def publish(client: TestClient, hub: Hub, owner: Path) -> bytes:
    manifest = manifest_of()
    for data in (*files_of("1.0.0").values(), manifest):
        digest = hashlib.sha256(data).hexdigest()
        answer = client.put(f"/api/v1/blobs/{digest}", content=data, headers=bearer(hub, "publisher"))
        assert answer.status_code == 201
    answer = client.post("/api/v1/targets", content=targets_of(owner, 2, manifest), headers=bearer(hub, "publisher"))
    assert answer.status_code == 200, answer.text
    return manifest


def test_publishing_over_http(client: TestClient, hub: Hub, owner: Path) -> None:
    headers = bearer(hub, "publisher")
    manifest = publish(client, hub, owner)
    again = client.post("/api/v1/targets", content=targets_of(owner, 2, manifest), headers=headers)
    assert again.status_code == 409
    assert "expected a version above 2" in again.json()["error"]
    missing = manifest_of("2.0.0")
    refused(client.post("/api/v1/targets", content=targets_of(owner, 3, missing), headers=headers), "put it first")
    wrong(client.post("/api/v1/targets", content=b"{}", headers=headers), "targets.json")
    digest = hashlib.sha256(manifest).hexdigest()
    assert client.put(f"/api/v1/blobs/{digest}", content=manifest, headers=headers).status_code == 200
    wrong(client.put("/api/v1/blobs/" + "0" * 64, content=b"other", headers=headers), "sha256")
    (package,) = client.get("/api/v1/packages", headers=headers).json()
    assert (package["name"], package["version"], package["digest"]) == ("digits", "1.0.0", digest)
    assert client.get(f"/repo/targets/packages/digits/1.0.0/{digest}.manifest.json").content == manifest


def test_the_repository_serves_ranges_and_what_has_not_changed(client: TestClient, hub: Hub, owner: Path) -> None:
    data = publish(client, hub, owner)
    url = f"/repo/blobs/{hashlib.sha256(data).hexdigest()}"
    whole = client.get(url)
    assert whole.content == data
    assert "immutable" in whole.headers["Cache-Control"]
    part = client.get(url, headers={"Range": "bytes=10-"})
    assert (part.status_code, part.content) == (206, data[10:])
    assert client.get(url, headers={"Range": f"bytes={len(data)}-"}).status_code == 416
    same = client.get(url, headers={"If-None-Match": whole.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    stale = client.get(url, headers={"Range": "bytes=10-", "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, data)
    assert client.head(url).headers["Content-Length"] == str(len(data))
    assert client.get("/repo/metadata/timestamp.json").headers["Cache-Control"] == "no-cache"
    assert client.get("/repo/blobs/").status_code == 404
    assert client.get("/repo/").status_code == 404


def test_what_is_being_written_is_not_served(client: TestClient, hub: Hub) -> None:
    (hub.registry.blobs / "abc.part").write_bytes(b"half")
    (hub.registry.metadata / ".timestamp.json.part").write_bytes(b"half")
    assert client.get("/repo/blobs/abc.part").status_code == 404
    assert client.get("/repo/metadata/.timestamp.json.part").status_code == 404


# Reading.


def test_devices_and_events_as_ingest_wrote_them(client: TestClient, hub: Hub) -> None:
    enrol(client, token(client, hub), "cam-1")
    from edgewright_hub.ingest.messages import Message

    now = int(datetime.now(UTC).timestamp() * 1000)
    messages = [
        Message("ew/1/cam-1/up/birth", wire.birth_bytes("cam-1"), now),
        *(Message("ew/1/cam-1/up/event", wire.event_bytes(seq), now) for seq in (1, 2, 3)),
    ]
    commit(hub.telemetry, messages, lambda _: "default")
    headers = bearer(hub, "viewer")
    (device,) = client.get("/api/v1/devices", headers=headers).json()
    assert device["online"]
    assert device["birth"]["boot_id"] == wire.BOOT
    assert [e["seq"] for e in client.get("/api/v1/events?after=1", headers=headers).json()] == [2, 3]
    with hub.telemetry.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(telemetry.events)).scalar_one() == 3
