"""The folder of `hub broker-config`, with a real mosquitto: who is let in, who is not any more, and who may look."""

from __future__ import annotations

import json
import os
import pwd
import queue
import ssl
import stat
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgewright.demo.fleet import free_port
from edgewright.main import run
from edgewright_contracts import topics
from edgewright_hub.fleet import enrolment, tokens
from edgewright_hub.fleet.ca import HUB_NAME, Authority, open_authority
from edgewright_hub.fleet.revoked import revocation_list, revoked
from edgewright_hub.mqtt.mosquitto import MONITOR
from edgewright_hub.storage.control import open_control
from sim import wire
from sim.postgresql import chosen
from sim.wire import WireClient

NOW = datetime.now(UTC)
ROOT = ["--user", "root"] if os.geteuid() == 0 else []


class House:
    """A hub's data directory, and devices that enrol there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.engine = open_control(chosen(place).control)
        self.authority = open_authority(place / "ca", now=NOW)
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}

    def enrol(self, device: str, key: str) -> ssl.SSLContext:
        """With the key of this name."""
        mine = self._keys.setdefault(key, ec.generate_private_key(ec.SECP256R1()))
        now_ms = int(NOW.timestamp() * 1000)
        token = tokens.issue(
            self.engine,
            uses=1,
            expires_s=60.0,
            pattern=device,
            fleet="lab",
            root_sha256="0" * 64,
            ca_sha256=self.authority.ca_sha256,
            now_ms=now_ms,
        )
        csr, secret = wire.signing_request(device, mine)
        signed = enrolment.enrol(
            self.engine, self.authority, enrolment.Request(token=token, device=device, csr=csr), now_ms=now_ms
        )
        assert signed is not None
        return wire.client_context(self.authority.folder / "ca.pem", signed, secret, self.place / key)


class Broker:
    """mosquitto as an operator runs it: by the command's own words."""

    def __init__(self, house: House, until: Callable[..., None]) -> None:
        self.folder = house.place / "mosquitto"
        self.port, self.monitor = free_port(), free_port()
        self._words = ["hub", "broker-config", str(self.folder), "--data", str(house.place), *ROOT]
        self._words += ["--listen", f"127.0.0.1:{self.port}", "--monitor-port", str(self.monitor), "--json"]
        self._until = until
        assert run(self._words) == 0
        log = (house.place / "log").open("wb")
        self._process = subprocess.Popen(["/usr/sbin/mosquitto", "-c", self.folder / "mosquitto.conf"], stderr=log)
        log.close()
        self._log = house.place / "log"
        until(lambda: b"running" in self._log.read_bytes(), "mosquitto to run")

    def again(self) -> None:
        """The folder is written anew, and mosquitto told."""
        assert run(self._words) == 0
        before = self._log.read_bytes().count(b"Reloading config")
        self._process.send_signal(1)
        self._until(lambda: self._log.read_bytes().count(b"Reloading config") > before, "mosquitto to read it")

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    one = House(tmp_path)
    yield one
    one.engine.dispose()


@pytest.mark.process
def test_a_retired_device_and_a_replaced_key_are_out_after_a_signal_and_nobody_else_notices(
    house: House, until: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stays, leaves, lost = house.enrol("stays", "a"), house.enrol("leaves", "b"), house.enrol("again", "c")
    broker = Broker(house, until)
    assert json.loads(capsys.readouterr().out)["revoked"] == 0
    try:
        with (
            WireClient(broker.port, house.authority.client_context(), HUB_NAME) as hub,
            WireClient(broker.port, stays, "stays") as one,
            WireClient(broker.port, leaves, "leaves") as two,
        ):
            hub.subscribe(topics.ALL_UP)
            for name, device in (("stays", one), ("leaves", two)):
                device.subscribe(topics.all_down(name))
                device.up(name, "report", b"counts")
                assert hub.next("report") == b"counts"
            enrolment.retire(house.engine, "leaves", who="op", now_ms=1)
            fresh = house.enrol("again", "d")
            broker.again()
            said = json.loads(capsys.readouterr().out)
            assert (said["retired"], said["revoked"]) == (["leaves"], 2)

            two.up("leaves", "report", b"too late")  # while it is still connected
            hub.publish(topics.topic("leaves", "ack"), b"secret")
            hub.publish(topics.topic("stays", "ack"), b"ack")
            assert one.next("ack") == b"ack"
            one.up("stays", "report", b"still here")
            assert hub.next("report") == b"still here"
            with pytest.raises(queue.Empty):
                two.received.get(timeout=0.2)
            assert not one.gone.is_set()
            assert not hub.gone.is_set()
        assert [WireClient(broker.port, c, n).connected for c, n in ((leaves, "leaves"), (lost, "again"))] == [
            False
        ] * 2
        for context, name in ((stays, "stays"), (fresh, "again")):
            with WireClient(broker.port, context, name) as device:
                assert device.connected
        back = house.enrol("leaves", "b")  # the same key, taken back with a new token
        broker.again()
        with WireClient(broker.port, back, "leaves") as device:
            assert device.connected
    finally:
        broker.end()


@pytest.mark.process
def test_the_monitor_sees_how_the_broker_fares_and_nothing_of_the_fleet(
    house: House, until: Callable[..., None]
) -> None:
    device = house.enrol("dev-1", "a")
    broker = Broker(house, until)
    password = (broker.folder / "monitor.password").read_text().strip()
    for name in ("acl", "passwords", "monitor.password", "server.key"):
        assert stat.S_IMODE((broker.folder / name).stat().st_mode) == 0o600
    assert password not in (broker.folder / "passwords").read_text()
    try:
        assert not plain(broker.monitor, None, None).connected
        assert not plain(broker.monitor, MONITOR, "guess").connected
        assert not plain(broker.monitor, HUB_NAME, "").connected
        with plain(broker.monitor, MONITOR, password) as monitor, WireClient(broker.port, device, "dev-1") as one:
            assert monitor.connected
            for topic in ("$SYS/broker/version", "#"):
                monitor.subscribe(topic)
            assert monitor.received.get(timeout=60)[0] == "$SYS/broker/version"
            one.up("dev-1", "report", b"counts")
            monitor.publish(f"ew/1/{MONITOR}/up/report", b"forged")
            with pytest.raises(queue.Empty):
                monitor.received.get(timeout=0.3)
        broker.again()
        with plain(broker.monitor, MONITOR, password) as monitor:  # the password stays what it was
            assert monitor.connected
    finally:
        broker.end()


def plain(port: int, user: str | None, password: str | None) -> WireClient:
    return WireClient(port, None, "", username=user, password=password)


def test_a_broker_on_all_interfaces_needs_the_name_that_its_certificate_shall_bear(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = house.place / "mosquitto"
    words = ["hub", "broker-config", str(folder), "--data", str(house.place), "--listen", "0.0.0.0:8883", *ROOT]
    assert run(words) == 2
    assert "--name" in capsys.readouterr().err
    assert run([*words, "--name", "mqtt.example", "--name", "10.1.2.3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["broker"] == "mqtts://mqtt.example:8883"
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    hosts = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"mqtt.example", "10.1.2.3"} < {str(one.value) for one in hosts}


def test_root_writes_for_the_user_that_mosquitto_becomes_or_is_told_to_name_one(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    me = pwd.getpwuid(os.geteuid())
    other = pwd.struct_passwd((*me[:2], 12_345, 12_345, *me[4:]))
    known = {"mosquitto": me, "else": other}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getgrouplist", lambda _, gid: [gid])
    monkeypatch.setattr(pwd, "getpwnam", lambda name: known[name])
    folder = house.place / "mosquitto"
    words = ["hub", "broker-config", str(folder), "--data", str(house.place)]
    house.place.chmod(0o700)
    assert run([*words, "--user", "else"]) == 2
    assert "does not let it in: name another, for instance /etc/" in capsys.readouterr().err
    assert not folder.exists()
    assert run(words) == 0
    assert "user mosquitto" in (folder / "mosquitto.conf").read_text().splitlines()
    known.clear()
    assert run(words) == 2
    assert "--user: expected the user that mosquitto becomes" in capsys.readouterr().err


def test_a_list_of_what_is_revoked_lives_as_long_as_the_authority(house: House) -> None:
    house.enrol("one", "a")
    house.enrol("one", "a")  # again, the same key: a lost answer must not lock it out
    with house.engine.connect() as connection:
        assert revoked(connection) == ((), ())
    house.enrol("one", "b")
    with house.engine.connect() as connection:
        gone = revoked(connection)
    assert gone.devices == ()
    body = revocation_list(house.authority, gone.serials, now=NOW)
    assert body is not None
    listed = x509.load_pem_x509_crl(body)
    assert listed.is_signature_valid(house.authority.certificate.public_key())  # type: ignore[arg-type]
    assert len(list(listed)) == 2
    assert listed.next_update_utc == house.authority.certificate.not_valid_after_utc


def test_an_authority_that_may_sign_no_list_has_none(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Own root")])
    bits = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "crl_sign", "encipher_only", "decipher_only"), False)  # fmt: skip
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=9))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    made = made.add_extension(x509.KeyUsage(key_cert_sign=True, **bits), critical=True)
    own = Authority(tmp_path, key, made.sign(key, hashes.SHA256()))
    assert revocation_list(own, ["a"], now=NOW) is None
