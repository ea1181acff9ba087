"""Enrolment, renewal and the way to the broker, against a real hub in a thread of this process, over real sockets."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from edgewright_agent import identity, tls
from edgewright_agent.agent import Agent
from edgewright_agent.clock import SystemClock
from edgewright_agent.delivery.mqtt import MqttTransport
from edgewright_agent.disk import RealDisk
from edgewright_agent.enrolling import enroll as enrolling
from edgewright_agent.enrolling import names
from edgewright_agent.enrolling.enroll import Waiting, Way, enroll
from edgewright_agent.enrolling.renew import renew
from edgewright_agent.renewal import in_a_child
from edgewright_agent.samples.sending import Sender
from edgewright_agent.updating.fetch import Link
from edgewright_contracts.binning import pack
from edgewright_contracts.codec import MAX_COUNT
from edgewright_contracts.errors import ContractError, Refused, RequestError, Unavailable
from edgewright_contracts.report import MAX_CELLS
from edgewright_hub.fleet import ca, queue
from edgewright_hub.storage import control
from edgewright_hub.web import samples
from sim import homes, packages, wire
from sim.clock import SimClock
from sim.connect_proxy import ConnectProxy
from sim.devicehub import DeviceHub

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with DeviceHub(tmp_path_factory.mktemp("hub")) as one:
        yield one


def test_a_device_that_nobody_named_gets_an_id_that_its_token_allows_and_the_same_at_every_try(hub, tmp_path):
    first = enroll(RealDisk(), tmp_path / "a", hub=hub.url, token=hub.token("line-[a-f0-9]{8}"))
    assert first.device.startswith("line-")
    again = enroll(RealDisk(), tmp_path / "a", hub=hub.url, token=hub.token("line-.*"), again=True)
    assert again == first
    assert names.fitting("cam-7") == "cam-7"
    assert names.fitting("cam\\-7") == "cam-7"
    with pytest.raises(RequestError, match="--device"):
        names.fitting("[0-9]{3}", host="pi", sources=())
    assert names.fitting("", host="Pi 4.local", sources=()).startswith("pi-4-")


def test_two_machines_of_one_image_differ_where_the_board_has_a_number(tmp_path):
    machine, one, other = (tmp_path / n for n in ("machine-id", "one", "other"))
    for path, said in ((machine, "same"), (one, "1"), (other, "2")):
        path.write_text(said)
    assert names.fitting("", host="pi", sources=(machine, one)) != names.fitting(
        "", host="pi", sources=(machine, other)
    )


@pytest.mark.parametrize("url", ["http://hub.example", "hub.example", "https://[::1", "https://hub.example:99999"])
def test_an_address_that_is_none_is_refused_before_anything_is_made(hub, tmp_path, url):
    with pytest.raises(RequestError, match="begins with https://"):
        enroll(RealDisk(), tmp_path / "d", hub=url, token=hub.token(), device="a")
    assert not (tmp_path / "d").exists()


def test_an_enrolled_home_is_enrolled_again_only_when_asked_and_keeps_its_key_and_what_it_holds(hub, tmp_path):
    home = tmp_path / "d"
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="again-1")
    key, certificate = ((home / "identity" / n).read_bytes() for n in ("device.key", "device.crt"))
    (home / "spool").mkdir()
    (home / "spool" / "kept").write_bytes(b"windows")
    with pytest.raises(RequestError, match="--again"):
        enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="again-1")
    with pytest.raises(RequestError, match="reports as it"):
        enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="other", again=True)
    with pytest.raises(Refused):
        enroll(RealDisk(), home, hub=hub.url, token=hub.token("nobody"), again=True)
    assert (home / "identity" / "device.crt").read_bytes() == certificate  # a refusal leaves what works
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(uses=1), again=True)
    assert (home / "identity" / "device.key").read_bytes() == key
    assert (home / "identity" / "device.crt").read_bytes() != certificate
    assert (home / "spool" / "kept").read_bytes() == b"windows"


@pytest.mark.parametrize("lost", ["hub.json", "root.json"])
def test_a_lost_file_of_the_identity_is_made_again_under_the_same_name(hub, tmp_path, lost):
    home, name = tmp_path / "d", f"holed-{lost[:3]}"
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device=name)
    folder = home / "identity"
    before = {file: (folder / file).read_bytes() for file in ("device.key", "hub.json", "root.json")}
    (folder / lost).unlink()
    with pytest.raises(RequestError, match=f"enrolled already as {name}. Add --again"):
        enroll(RealDisk(), home, hub=hub.url, token=hub.token())
    assert enroll(RealDisk(), home, hub=hub.url, token=hub.token(), again=True).device == name
    assert {file: (folder / file).read_bytes() for file in before} == before
    (folder / "hub.json").write_bytes(b"{")
    (folder / "device.crt").unlink()
    with pytest.raises(RequestError, match="add --device with the id that the hub knows"):
        enroll(RealDisk(), home, hub=hub.url, token=hub.token(), again=True)
    assert enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device=name, again=True).device == name


def test_a_device_that_must_wait_for_a_yes_says_so_and_comes_in_by_the_same_key(hub, tmp_path):
    asked = {"hub": hub.url, "token": hub.token(kind="queue"), "device": "patient-1"}
    for _ in range(2):
        with pytest.raises(Waiting, match=r"patient-1 waits for a yes of the hub's operator\. Run this again") as said:
            enroll(RealDisk(), tmp_path, **asked)
    with hub.control.connect() as connection:
        (seen,) = queue.waiting(connection)
    assert str(said.value).endswith(f"begins with {seen['key_sha256'][:16]}")
    key = (tmp_path / "identity" / "device.key").read_bytes()
    with hub.control.begin() as connection:
        queue.decide(connection, ["patient-1"], accept=True, who="op", now_ms=0)
    assert enroll(RealDisk(), tmp_path, **asked).device == "patient-1"
    assert (tmp_path / "identity" / "device.key").read_bytes() == key


def test_a_certificate_is_renewed_over_mutual_tls_for_the_same_key(hub, tmp_path):
    home = tmp_path / "d"
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="renew-1")
    before = (home / "identity" / "device.crt").read_bytes()
    key = (home / "identity" / "device.key").read_bytes()
    ends = renew(RealDisk(), home, SystemClock())
    who = identity.load(home)
    assert who.validity() == ends
    assert who.certificate.read_bytes() != before
    assert who.key.read_bytes() == key
    tls.context(who, SystemClock())  # key and certificate fit
    with hub.control.connect() as connection:
        said = connection.execute(sa.select(control.audit.c.what).where(control.audit.c.who == "renew-1")).scalars()
        assert list(said) == ["enrol", "renew"]


def test_the_agent_renews_in_a_process_of_its_own_and_hears_why_it_could_not(hub, tmp_path):
    home = tmp_path / "d"
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="child-1")
    who = identity.load(home)
    before = who.certificate.read_bytes()
    done = in_a_child(who)
    assert done.ends == who.validity().ends
    assert who.certificate.read_bytes() != before
    who.key.unlink()
    assert "enrol the device anew" in in_a_child(who).reason


def test_nobody_renews_without_a_certificate_for_another_key_or_once_retired(hub, tmp_path):
    home = tmp_path / "d"
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="retired-1")
    who = identity.load(home)
    nameless = tls.connections(who, SystemClock(), hub.url)()
    with pytest.raises(Refused, match="client certificate"):
        enrolling.request(nameless, "POST", hub.url + "/api/v1/renew", 10_000, json.dumps({"csr": "x"}).encode())
    stranger = enrolling.ec.generate_private_key(enrolling.ec.SECP256R1())
    body = json.dumps({"csr": enrolling.signing_request("retired-1", stranger)}).encode()
    named = tls.connections(who, SystemClock(), hub.url, named=True)()
    with pytest.raises(Refused, match="another key"):
        enrolling.request(named, "POST", hub.url + "/api/v1/renew", 10_000, body)
    hub.retire("retired-1")
    with pytest.raises(Refused, match="not in force: it is retired"):
        renew(RealDisk(), home, SystemClock())
    token = hub.token("retired-1", uses=1)
    hub.spend(token)
    with pytest.raises(Refused, match="all its uses"):  # its old key alone does not take it back
        enroll(RealDisk(), home, hub=hub.url, token=token, again=True)


def test_a_sample_goes_to_the_hub_by_the_devices_certificate_within_its_quota(hub, tmp_path, monkeypatch):
    home = tmp_path / "d"
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="sampled-1")
    who = identity.load(home)

    def send(device="sampled-1", identifier="0" * 16, data=b"PK\x03\x04", named=True):
        sender = Sender(tls.connections(who, SystemClock(), hub.url, named=named), hub.url, device)
        sender(identifier, data)
        return sender.traffic

    kept = hub.data / "samples" / "sampled-1"
    for n in (1, 2, 2):
        send(identifier=f"{n:016x}", data=b"PK\x03\x04" + bytes([n]))
    assert sorted(p.name for p in kept.iterdir()) == [f"{n:016x}.npz" for n in (1, 2)]
    sent, received = send(identifier=f"{2:016x}", data=b"PK\x03\x04\x02" + bytes(20_000))
    assert 21_000 < sent < 30_000  # the handshake of TLS is counted, too
    assert 1000 < received < 6000
    send(identifier=f"{2:016x}", data=b"PK\x03\x04\x02")
    assert (kept / f"{2:016x}.npz").read_bytes() == b"PK\x03\x04\x02"
    for wrong, reason in (
        ({"named": False}, "client certificate"),
        ({"device": "other-1"}, "whose certificate this is"),
        ({"identifier": "..%2f..%2fhub.db"}, "HTTP 40"),
        ({"identifier": "x" * 16}, "16 hexadecimal"),
        ({"data": b"#!/bin/sh"}, "expected an .npz"),
        ({"data": b"PK\x03\x04" + bytes(256 << 10)}, "413"),
    ):
        with pytest.raises((Unavailable, Refused), match=reason):
            send(**wrong)
    monkeypatch.setattr(samples, "DEVICE_BYTES", 100)
    send(identifier=f"{3:016x}", data=b"PK\x03\x04" + bytes(90))  # the oldest makes room
    assert sorted(p.name for p in kept.iterdir()) == [f"{n:016x}.npz" for n in (2, 3)]
    monkeypatch.setattr(samples, "SPARE_BYTES", 1 << 60)
    with pytest.raises(Unavailable, match="disk to spare"):
        send()
    monkeypatch.undo()
    hub.retire("sampled-1")
    with pytest.raises(Unavailable, match="not in force: it is retired"):
        send()
    assert sorted((hub.data / "samples").iterdir()) == [kept]


@pytest.mark.parametrize("name", ["device.crt", "device.key", "ca.pem"])
def test_an_identity_that_rotted_is_a_link_that_is_down_and_keeps_no_model_from_answering(hub, tmp_path, name):
    home = tmp_path / "d"
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="rotten-1")
    package = packages.make_package(tmp_path / "p")
    homes.install(home / "models", package)
    (home / "identity" / name).write_bytes(b"\xff")
    with Agent(home, runtimes=["onnxruntime"]) as agent:
        assert agent.model("digits").wait(60)
        agent.model("digits").predict({"image": packages.draw(1, seed=5)[0][0]})
        hub.until(lambda: "enroll --again" in agent.live().link.trouble)
        assert agent.dead() == []
    if name != "device.key":
        enroll(RealDisk(), home, hub=hub.url, token=hub.token("rotten-1"), again=True)
        assert tls.context(identity.load(home), SystemClock()).cert_store_stats()["x509_ca"] == 1
    hub.retire("rotten-1")


def test_an_ended_certificate_cannot_be_renewed_and_enrolling_again_is_the_way_back(hub, tmp_path):
    home = tmp_path / "d"
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="ended-1")
    key = enrolling.read_key(RealDisk(), home / "identity" / "device.key")
    old = datetime.now(UTC) - ca.DEVICE_LIFE - timedelta(days=2)
    ended = hub.authority.sign(enrolling.signing_request("ended-1", key), "ended-1", now=old).certificate
    (home / "identity" / "device.crt").write_text(ended)
    assert identity.load(home).validity().days_left(time.time()) < -1
    with pytest.raises(Unavailable):
        renew(RealDisk(), home, SystemClock())
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), again=True)
    renew(RealDisk(), home, SystemClock())


def test_everything_goes_through_a_proxy_that_asks_a_password_and_lets_only_the_hub_out(hub, tmp_path):
    home = tmp_path / "d"
    with ConnectProxy(user="me", password="s p", ports={hub.port}) as proxy:
        with pytest.raises(Unavailable, match="407"):
            enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="proxied-1", way=Way(proxy.url()))
        way = Way(proxy.url("me", "s p"))
        said = enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="proxied-1", way=way)
        renew(RealDisk(), home, SystemClock())
        who = identity.load(home)
        link = Link(tls.connections(who, SystemClock(), said.repo))
        assert link.open(said.repo + "metadata/timestamp.json").status == 200
        heard = Heard()
        transport = MqttTransport(who, "b" * 16, uniform=lambda: 0.0)
        try:
            transport.start(heard)
            assert heard.online.wait(60)
            assert transport.condition().way.startswith("wss://")
        finally:
            transport.stop()
        assert {port for _, port in proxy.asked} == {hub.port}


def test_mqtt_goes_over_websocket_with_the_devices_certificate_and_a_retired_device_is_sent_away(hub, tmp_path):
    home = tmp_path / "d"
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="web-1", way=Way(websocket=True))
    heard = Heard()
    transport = MqttTransport(identity.load(home), "b" * 16, uniform=lambda: 0.0)
    try:
        transport.start(heard)
        assert heard.online.wait(60)
        assert transport.condition().way == f"wss://127.0.0.1:{hub.port}/mqtt"
        assert transport.publish("birth", wire.birth_bytes("web-1"))
        assert heard.message.wait(60)
        assert heard.messages[0][0] == "ack"
        large = wire.report_bytes(1, cells=pack(np.full(MAX_CELLS, MAX_COUNT)))  # 34 kB, in several reads
        assert transport.publish("report", large)
        hub.until(lambda: hub.counted("web-1") == 1)
        hub.retire("web-1")  # while it is connected
        hub.until(lambda: "refused" in transport.condition().trouble.lower())
        assert not transport.online
    finally:
        transport.stop()


def test_where_the_brokers_own_port_is_blocked_a_device_finds_the_websocket_by_itself(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("edgewright_agent.delivery.mqtt.BACKOFF_S", (0.01, 0.02))
    home = tmp_path / "d"
    said = enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="blocked-1")
    with socket.socket() as taken:  # bound, not listening: refuses
        taken.bind(("127.0.0.1", 0))
        broker = msgspec.structs.replace(said.broker, port=taken.getsockname()[1])
        (home / "identity" / "hub.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(said, broker=broker)))
        heard = Heard()
        transport = MqttTransport(identity.load(home), "b" * 16)
        try:
            transport.start(heard)
            assert heard.online.wait(60)
            assert transport.condition().way.startswith("wss://")
        finally:
            transport.stop()


def test_a_device_without_a_clock_connects_and_still_refuses_another_hub_and_one_that_ended_long_ago(hub, tmp_path):
    home = tmp_path / "d"
    enroll(RealDisk(), home, hub=hub.url, token=hub.token(), device="clockless-1")
    who = identity.load(home)
    no_clock = SimClock(None)
    url = who.hub.repo + "metadata/timestamp.json"
    assert Link(tls.connections(who, no_clock, url)).open(url).status == 200
    behind = SimClock(int(who.validity().begins * 1000) - 86_400_000_000, synced=False)
    assert Link(tls.connections(who, behind, url)).open(url).status == 200
    context = tls.context(who, no_clock)
    context.floor_s = time.time() + 86400 * 400  # the server's certificate lives 397 days
    with (
        socket.create_connection(("127.0.0.1", hub.port)) as raw,
        pytest.raises(ssl.SSLCertVerificationError, match="ended"),
    ):
        context.wrap_socket(raw, server_hostname="127.0.0.1")
    believed = tls.context(who, SystemClock())
    with socket.create_connection(("127.0.0.1", hub.port)) as raw:
        believed.wrap_socket(raw, server_hostname="127.0.0.1").close()
        assert not int(believed.verify_flags) & 0x200000  # with a clock, time is verified by it


def test_the_validity_of_a_certificate_is_read_as_the_library_of_certificates_reads_it(hub, tmp_path):
    key = enrolling.ec.generate_private_key(enrolling.ec.SECP256R1())
    for now in (datetime.now(UTC), datetime(2049, 6, 1, tzinfo=UTC), datetime(2060, 1, 1, tzinfo=UTC)):
        pem = hub.authority.sign(enrolling.signing_request("x", key), "x", now=now).certificate.encode()
        found = enrolling.x509.load_pem_x509_certificate(pem)
        expected = (found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())
        assert identity.validity(pem) == expected
    for damaged in (b"", b"-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----", pem[:200]):
        with pytest.raises(ContractError):
            identity.validity(damaged)


class Heard:
    def __init__(self) -> None:
        self.online, self.message = threading.Event(), threading.Event()
        self.messages: list[tuple] = []

    def connected(self, connection):
        self.online.set()

    def disconnected(self, reason):
        pass

    def received(self, kind, payload):
        self.messages.append((kind, payload))
        self.message.set()
