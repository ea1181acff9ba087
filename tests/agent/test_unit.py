"""The agent as a service: its unit, systemd's notifications, its log lines, and what it says when it is asked."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from edgewright_agent.delivery.mqtt import Condition
from edgewright_agent.hosting import live, logs, notify, unit
from edgewright_agent.hosting.live import Live
from edgewright_agent.hosting.owner import act_as_owner
from edgewright_agent.hosting.presence import Presence
from edgewright_contracts.errors import Refused, RequestError, Unavailable


def unit_of(tmp_path, **options):
    return unit.text(unit.Options(tmp_path / "home", **options))


@pytest.fixture
def enrolled(tmp_path):
    folder = tmp_path / "home" / "identity"
    folder.mkdir(parents=True)
    said = {"device": "d1", "broker": {"host": "127.0.0.1", "port": 1}, "repo": "https://127.0.0.1/"}
    (folder / "hub.json").write_text(json.dumps(said))
    (folder / "root.json").write_text("{}")
    (tmp_path / "units").mkdir()
    return unit.Options(tmp_path / "home", user="root")


def test_the_unit_lets_the_agent_write_its_home_and_nothing_else(tmp_path):
    lines = unit_of(tmp_path, memory_high="200M", cpu_quota="50%").splitlines()
    for line in (
        "Type=notify", "NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes", "CapabilityBoundingSet=",
        f"ReadWritePaths={tmp_path}/home", "WatchdogSec=60", "Restart=always", "MemoryHigh=200M", "CPUQuota=50%",
        "User=edgewright", "SystemCallFilter=@system-service adjtimex clock_adjtime",
    ):  # fmt: skip
        assert line in lines
    assert not any(line.startswith(("MemoryHigh", "CPUQuota")) for line in unit_of(tmp_path).splitlines())


def test_a_home_with_odd_characters_stays_one_word_and_a_line_break_is_refused(tmp_path):
    text = unit.text(unit.Options(tmp_path / 'a b%c"d'))
    assert f'ReadWritePaths="{tmp_path}/a b%%c\\"d"' in text.splitlines()
    with pytest.raises(RequestError, match="one line"):
        unit.text(unit.Options(tmp_path, user="root\nExecStartPre=/bin/evil"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd")
def test_systemd_understands_every_line_and_finds_little_exposed(tmp_path):
    (tmp_path / "home").mkdir()
    path = tmp_path / unit.NAME
    path.write_text(unit_of(tmp_path, user="root", memory_high="200M", cpu_quota="50%"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "edgewright" not in done.stderr, done.stderr
    command = ["systemd-analyze", "security", "--offline=yes", str(path)]
    rated = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unrecognized option" not in rated.stderr:  # before systemd 250
        exposure = re.search(r"exposure level for \S+: (\d+\.\d)", rated.stdout)
        assert exposure
        assert float(exposure[1]) < 3.0


def test_installing_again_changes_nothing_and_uninstalling_keeps_the_home(tmp_path, enrolled, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(unit, "_give", lambda home, user: None)
    ran = []
    where = {"folder": tmp_path / "units", "booted": tmp_path, "run": ran.append}
    assert unit.install(enrolled, **where).changed
    assert ["systemctl", "restart", unit.NAME] in ran
    ran.clear()
    assert not unit.install(enrolled, **where).changed
    assert ran == [["systemctl", "enable", unit.NAME], ["systemctl", "start", unit.NAME]]
    assert unit.install(enrolled._replace(cpu_quota="20%"), **where).changed
    assert unit.uninstall(**where)
    assert not unit.uninstall(**where)
    assert (enrolled.home / "identity" / "hub.json").exists()


def test_without_systemd_without_root_or_without_an_identity_it_says_what_to_do(tmp_path, enrolled, monkeypatch):
    where = {"folder": tmp_path / "units", "booted": tmp_path, "run": lambda words: None}
    with pytest.raises(Refused, match="agent run --home"):
        unit.install(enrolled, **{**where, "booted": tmp_path / "none"})
    with pytest.raises(RequestError, match="enroll"):
        unit.install(enrolled._replace(home=tmp_path / "other"), **where)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Refused, match="sudo"):
        unit.install(enrolled, **where)
    with pytest.raises(Unavailable, match="No such unit"):
        unit.run(["sh", "-c", "echo No such unit >&2; exit 5"])
    assert list((tmp_path / "units").iterdir()) == []


@pytest.mark.parametrize("bounds", [{"memory_high": "lots"}, {"memory_high": "0"}, {"cpu_quota": "half"}])
def test_bounds_that_systemd_would_ignore_are_refused(tmp_path, bounds):
    with pytest.raises(RequestError, match="expected a bound such as"):
        unit_of(tmp_path, **bounds)


def test_a_unit_is_refused_that_could_never_listen(tmp_path, enrolled):
    home = enrolled.home
    for good in ("127.0.0.1:8500", "unix:/run/edgewright/agent.sock", f"unix:{home}/oip.sock"):
        assert f"--listen {good}" in unit.text(enrolled._replace(listen=good))
    for bad in ("garbage", "0.0.0.0:8500", "unix:relative", "unix:/tmp/oip.sock"):
        with pytest.raises(RequestError, match="expected"):
            unit.text(enrolled._replace(listen=bad))


def test_a_device_without_a_hub_is_a_service_too(tmp_path, enrolled, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(unit, "_give", lambda home, user: None)
    (tmp_path / "lone" / "sideload").mkdir(parents=True)
    where = {"folder": tmp_path / "units", "booted": tmp_path, "run": lambda words: None}
    assert unit.install(enrolled._replace(home=tmp_path / "lone"), **where).changed


BY_HAND = """
import os, sys
from pathlib import Path
from edgewright_agent.disk import RealDisk
from edgewright_agent.hosting.owner import act_as_owner
from edgewright_agent.samples import consent
act_as_owner(Path(sys.argv[1]))
consent.write(RealDisk(), Path(sys.argv[1]), consent.Consent(samples=True))
print(os.getuid())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_root_does_in_the_home_of_a_service_stays_the_services(tmp_path):
    home = Path(tempfile.mkdtemp())
    os.chown(home, 65534, 65534)
    said = subprocess.run([sys.executable, "-c", BY_HAND, home], check=True, capture_output=True, text=True, timeout=60)
    assert said.stdout == "65534\n"
    assert (home / "consent.json").stat().st_uid == 65534
    act_as_owner(tmp_path)  # its own: nothing changes
    act_as_owner(tmp_path / "none")
    assert os.geteuid() == 0
    shutil.rmtree(home)


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path.replace("@", "\0", 1))
        self._socket.settimeout(10)
        self.environment = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "300000", "WATCHDOG_PID": str(os.getpid())}

    def next(self) -> str:
        return self._socket.recv(4096).decode()

    def until(self, wanted: str) -> list[str]:
        heard = []
        while not heard or heard[-1] != wanted:
            heard.append(self.next())
        return heard

    def quiet(self) -> bool:
        self._socket.settimeout(0.4)
        try:
            while self.next():
                pass
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


class Fake:
    def __init__(self) -> None:
        self.ended = ["edgewright-link"]

    def dead(self):
        return self.ended

    def live(self):
        link = Condition(online=True, way="wss://hub:443/mqtt")
        return Live(
            pid=1, boot_id="b" * 16, before="stopped", uptime_s=2.0, clock="synced", link=link, dead=self.ended,
            shed=["shadow"], used={},
            window_s=300.0, profile="normal", desired_rev=3, config_version=4, traffic=(1, 2), overhead=(3, 4), disk="",
        )  # fmt: skip


@pytest.mark.parametrize("address", ["{}/notify", "@edgewright-test-{pid}"])
def test_systemd_hears_ready_when_all_threads_run_and_nothing_more_once_one_has_ended(tmp_path, address):
    agent, systemd = Fake(), Systemd(address.format(tmp_path, pid=os.getpid()))
    try:
        with Presence(agent, tmp_path, systemd.environment):
            agent.ended = []
            assert systemd.next() == "READY=1"
            assert systemd.until("STATUS=connected by wss://hub:443/mqtt")[0] == "WATCHDOG=1"
            assert systemd.next() == "WATCHDOG=1"
            agent.ended = ["edgewright-telemetry"]
            assert "telemetry" in systemd.until("STATUS=ended, to be started anew: edgewright-telemetry")[-1]
            assert systemd.quiet()
        systemd._socket.settimeout(10)
        assert systemd.next() == "STOPPING=1"
    finally:
        systemd.close()


def test_the_watchdog_of_another_process_is_not_ours_and_without_systemd_nothing_is_said():
    assert notify.watchdog_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, pid=7) == 30.0
    assert notify.watchdog_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, pid=8) is None
    assert notify.watchdog_s({}) is None
    assert not notify.notify("READY=1", {})
    assert not notify.notify("READY=1", {"NOTIFY_SOCKET": "/nowhere/notify"})


def test_whoever_may_read_the_home_may_ask_the_running_agent_and_an_absent_one_is_none(tmp_path):
    home = tmp_path / ("long" * 30) / ("longer" * 20)  # beyond what a socket's address holds
    home.mkdir(parents=True)
    agent = Fake()
    assert live.ask(home) is None
    with Presence(agent, home, {}):
        deadline = time.monotonic() + 60
        while (said := live.ask(home)) is None and time.monotonic() < deadline:
            pass
        assert said == agent.live()
        assert (home / live.NAME).stat().st_mode & 0o777 == 0o600
    assert live.ask(home) is None
    assert not (home / live.NAME).exists()
    dead = live.listen(home)  # a process that was killed leaves its name there
    dead.close()
    with Presence(agent, home, {}):
        while live.ask(home) is None:
            pass


def lines(form, *records):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter({"kv": logs.KeyValue(), "json": logs.Json()}[form])
    for record in records:
        handler.emit(record)
    return stream.getvalue().splitlines()


def record(message, *arguments, line=1, level=logging.INFO, error=None):
    name = "edgewright_agent.delivery.mqtt"
    return logging.LogRecord(name, level, "mqtt.py", line, message, arguments, error and (type(error), error, None))


def test_a_record_is_one_line_whatever_it_says_and_nothing_in_it_forges_a_field():
    evil = 'x" level=error\n2026-01-01 forged=1 \u2028 \x1b[31m\\'
    (line,) = lines("kv", record("said %s", evil))
    assert re.fullmatch(r'time=\S+Z level=info from=delivery\.mqtt message=(".*")', line)
    assert json.loads(line.partition("message=")[2]) == f"said {evil}"
    (line,) = lines("json", record("said %s", evil, error=ValueError("a\nb")))
    found = json.loads(line)
    assert found["message"] == f"said {evil}"
    assert "ValueError: a\nb" in found["exception"]
    assert lines("kv", record("plain"))[0].endswith(" message=plain")
    assert lines("kv", record("fetch → stage"))[0].endswith(' message="fetch → stage"')  # as a person reads it


def test_lines_that_repeat_are_left_out_and_counted_and_others_are_not():
    now = [0.0]
    repeats = logs.Repeats(lambda: now[0])
    assert [repeats.filter(record("again")) for _ in range(25)].count(True) == logs.BURST
    assert repeats.filter(record("another", line=2))
    assert repeats.filter(record("again", level=logging.ERROR))
    now[0] = logs.REPEAT_S
    late = record("again")
    assert repeats.filter(late)
    assert late.left_out == 15
    assert lines("kv", late)[0].endswith("left_out=15")


def test_the_level_follows_what_is_wished_unless_it_was_pinned(monkeypatch):
    root, ours = logging.getLogger(), logging.getLogger("edgewright_agent")
    before = root.handlers[:], root.level, ours.level
    try:
        logs.begin("kv", verbose=False, stream=io.StringIO())
        logs.follow("warning")
        assert ours.level == logging.WARNING
        logs.begin("kv", verbose=True, stream=io.StringIO())
        logs.follow("warning")
        assert ours.level == logging.DEBUG
    finally:
        root.handlers[:], ours.level = before[0], before[2]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        monkeypatch.setattr(logs, "_pinned", False)
