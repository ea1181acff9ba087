"""The hub as a process: it starts, says where it is, refuses a second one, and ends quickly and cleanly."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edgewright_compiler.keys import init_keys
from edgewright_hub.storage.control import open_control

pytestmark = pytest.mark.process

Start = Callable[..., subprocess.Popen[str]]


@contextlib.contextmanager
def starting(place: Path) -> Iterator[Start]:
    """Starts hubs on `place`/data, for the owner in `place`/owner, and leaves none of them behind."""
    running: list[subprocess.Popen[str]] = []

    def one(*options: str, trust: bool = True) -> subprocess.Popen[str]:
        ports = ["--https", "127.0.0.1:0", "--page", "127.0.0.1:0", "--mqtt", "127.0.0.1:0"]
        given = ["--trust", str(place / "owner" / "hub")] if trust else []
        command = [sys.executable, "-c", "from edgewright.main import main; main()", "hub", "serve"]
        process = subprocess.Popen(
            [*command, "--data", str(place / "data"), *ports, *given, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield one
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


@pytest.fixture
def start(tmp_path: Path, owner: Path) -> Iterator[Start]:
    assert owner == tmp_path / "owner"
    with starting(tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """Data directory and pid of a hub that runs for all tests that leave it as it is."""
    place = tmp_path_factory.mktemp("served")
    init_keys(place / "owner", now=datetime.now(UTC))
    with starting(place) as one:
        hub = one()
        ready(hub)
        yield place / "data", hub.pid


def ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=60)[1]
    return line


def get(data: Path, path: str, token: str = "") -> Any:
    url = json.loads((data / "hub.json").read_bytes())["https"]
    token = token or (data / "admin.token").read_text().strip()
    request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {token}"})
    context = ssl.create_default_context(cafile=str(data / "ca.pem"))
    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
        return json.loads(answer.read())


def end(hub: subprocess.Popen[str], number: signal.Signals) -> None:
    """By itself and without complaint: no thread, task or connection holds it up, and none is given up on."""
    hub.send_signal(number)
    _, errors = hub.communicate(timeout=60)
    assert (hub.returncode, errors) == (0, "")


def test_it_says_where_it_is_answers_and_ends_when_it_is_told_to(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    hub = start("--json")
    said = json.loads(ready(hub))
    assert said == json.loads((data / "hub.json").read_bytes())
    assert said["pid"] == hub.pid
    assert (data / "admin.token").stat().st_mode & 0o777 == 0o600
    assert get(data, "/api/v1/devices") == []
    with urllib.request.urlopen(said["page"] + "api/v1/devices", timeout=60) as answer:
        assert json.loads(answer.read()) == []
    with urllib.request.urlopen(said["page"] + "healthz", timeout=60) as answer:
        assert json.loads(answer.read()) == {"ok": True, "reasons": []} == get(data, "/healthz", "none")
    listening = urllib.request.urlopen(said["page"] + "live", timeout=60)  # a browser that follows the page
    assert listening.readline().startswith(b"event")
    end(hub, signal.SIGTERM)
    listening.close()
    assert not (data / "hub.json").exists()


def test_a_second_hub_on_the_same_directory_is_refused_and_the_first_goes_on(
    served: tuple[Path, int], capsys: pytest.CaptureFixture[str]
) -> None:
    data, pid = served
    assert run("hub", "serve", "--data", str(data), "--https", "127.0.0.1:0") == 3
    assert f"process {pid}" in capsys.readouterr().err
    assert get(data, "/api/v1/devices") == []


def test_after_a_kill_it_starts_again_with_the_same_identity_and_token(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = start()
    ready(first)
    before = ((data / "admin.token").read_text(), (data / "ca.pem").read_bytes())
    first.kill()
    first.communicate(timeout=60)
    second = start(trust=False)
    ready(second)
    assert ((data / "admin.token").read_text(), (data / "ca.pem").read_bytes()) == before
    assert get(data, "/api/v1/packages") == []
    end(second, signal.SIGINT)


def run(*arguments: str) -> int:
    from edgewright.main import run as command

    return command(list(arguments))


@pytest.mark.parametrize("option", ["--https", "--page", "--mqtt"])
def test_a_port_that_is_taken_is_named_with_the_way_out(
    option: str, tmp_path: Path, owner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        ports = {"--https": "127.0.0.1:0", "--page": "127.0.0.1:0", "--mqtt": "127.0.0.1:0"}
        ports[option] = f"127.0.0.1:{holder.getsockname()[1]}"
        options = [word for pair in ports.items() for word in pair]
        assert run("hub", "serve", "--data", str(tmp_path / "data"), "--trust", str(owner / "hub"), *options) == 3
    errors = capsys.readouterr().err
    assert ports[option] in errors
    assert option in errors
    assert [place.name for place in (tmp_path / "data").iterdir()] == ["lock"], "nothing belongs to an owner yet"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--page", "0.0.0.0:0"], "loopback"),
        (["--https", "0.0.0.0:0"], "--name"),  # devices cannot be told 0.0.0.0
        (["--https", "127.0.0.1:0", "--mqtt", "[::]:0"], "--name"),
        (["--mqtt", "here"], "HOST:PORT"),
        (["--broker", "mqtt://127.0.0.1:1883"], "mqtts://"),
        (["--tick-s", "0"], "tick-s"),
        ([], "--trust"),  # the first start needs the owner
    ],
)
def test_what_is_wrong_with_the_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    data = tmp_path / "data"
    assert run("hub", "serve", "--data", str(data), *options) == 2
    assert said in capsys.readouterr().err
    assert not data.exists() or [place.name for place in data.iterdir()] == ["lock"]


def test_an_owner_whose_files_do_not_fit_leaves_nothing_behind(
    tmp_path: Path, owner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (owner / "hub" / "snapshot.pem").write_bytes((owner / "hub" / "timestamp.pem").read_bytes())
    data = tmp_path / "data"
    assert run("hub", "serve", "--data", str(data), "--trust", str(owner / "hub")) == 2
    assert "snapshot key" in capsys.readouterr().err
    assert [place.name for place in data.iterdir()] == ["lock"]


def test_a_server_that_cannot_be_reached_is_not_remembered(
    tmp_path: Path, owner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    ports = [one for name in ("https", "page", "mqtt") for one in (f"--{name}", "127.0.0.1:0")]
    nowhere = ["--trust", str(owner / "hub"), "--database", "postgresql://hub@127.0.0.1:1/hub"]
    assert run("hub", "serve", "--data", str(data), *ports, *nowhere) == 3
    err = capsys.readouterr().err
    assert ("the database hub cannot be used" in err, err.count("\n")) == (True, 1)
    assert not (data / "database").exists()
    assert run("hub", "migrate", "--data", str(data)) == 2
    assert "expected a hub's directory" in capsys.readouterr().err


def test_what_a_kill_cut_off_is_gone_after_the_next_start(start: Start, tmp_path: Path) -> None:
    for folder in ("", "ca", "keys", "repo/metadata", "repo/blobs"):
        place = tmp_path / "data" / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / ".some.0123.part").write_bytes(b"half")
    ready(start())
    assert not list(tmp_path.glob("data/**/.some.0123.part"))  # a running hub has parts of its own for a moment


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        ("serve", 100),  # not even a certificate
        ("serve", 5000),  # no database
        ("token", 100),
        ("user ada --role viewer", 100),
    ],
)
def test_a_disk_that_is_full_is_one_message_and_no_half_files(
    command: str, limit: int, served: tuple[Path, int], tmp_path: Path, owner: Path
) -> None:
    data, options = served[0], ""
    if command == "serve":
        data, options = tmp_path / "data", f"--trust {owner / 'hub'} --https=[::1]:0 --page=127.0.0.1:0 --mqtt=[::1]:0"
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from edgewright.main import main; main()"
    )
    words = ["hub", *command.split(), "--data", str(data), *options.split()]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "disk" in done.stderr
    assert not list(data.glob("**/*.part"))


def test_a_token_is_made_beside_a_running_hub_and_not_without_one(
    served: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("hub", "token", "--data", str(tmp_path / "data")) == 2
    assert "--trust" in capsys.readouterr().err
    place, _ = served
    data = str(place)
    certificate = (place / "ca" / "server.pem").read_bytes()
    assert run("hub", "token", "--data", data, "--uses", "3", "--expires", "2h", "--json") == 0
    assert json.loads(capsys.readouterr().out)["token"].startswith("ew1.")
    assert run("hub", "token", "--data", data, "--expires", "soon") == 2
    assert run("hub", "user", "ada", "--role", "viewer", "--data", data, "--json") == 0
    viewer = json.loads(capsys.readouterr().out)["token"]
    assert get(place, "/api/v1/packages", viewer) == []
    assert run("hub", "user", "ada", "--role", "admin", "--data", data) == 1
    assert "ada has a token already" in capsys.readouterr().err
    assert run("hub", "user", "ada", "--role", "operator", "--replace", "--data", data, "--json") == 0
    capsys.readouterr()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(place, "/api/v1/packages", viewer)  # the one before has ended
    assert run("hub", "users", "--data", data, "--json") == 0
    told = json.loads(capsys.readouterr().out)["users"]
    assert told == [{"name": "ada", "role": "operator"}, {"name": "admin", "role": "admin"}]
    assert run("hub", "user", "ada", "--revoke", "--data", data) == 0
    assert capsys.readouterr().out == "ada has no token any more (1 ended)\n"
    for wrong in (("--revoke",), ("--revoke", "--role", "viewer"), ()):
        assert run("hub", "user", "ada", *wrong, "--data", data) == 2
    capsys.readouterr()
    assert run("hub", "migrate", "--data", data, "--json") == 0
    assert (place / "ca" / "server.pem").read_bytes() == certificate


def test_the_hub_on_mosquitto_configured_by_the_hub(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], until: Any
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{one.getsockname()[1]}"
    user = ["--user", "root"] if os.geteuid() == 0 else []
    folder = tmp_path / "mosquitto"
    assert (
        run("hub", "broker-config", str(folder), "--data", str(tmp_path / "data"), "--listen", place, *user, "--json")
        == 0
    )
    conf = json.loads(capsys.readouterr().out)["configuration"]
    hub = start("--broker", f"mqtts://{place}")  # before its broker: it waits, and then goes on trying
    broker = subprocess.Popen(["/usr/sbin/mosquitto", "-c", conf], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert place in ready(hub)
        hub.send_signal(signal.SIGTERM)
        hub.communicate(timeout=60)
        assert hub.returncode == 0
    finally:
        broker.terminate()
        broker.wait(60)


def test_the_doctor_finds_nothing_on_a_healthy_hub_and_says_what_is_wrong_with_another(
    served: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("hub", "doctor", "--data", str(served[0]), "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    data = tmp_path / "data"
    shutil.copytree(served[0], data)  # nobody holds the lock of the copy
    open_control(data / "hub.db").dispose()  # which moves what was written last into the file itself
    with (data / "hub.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    (data / "ca" / "hub.pem").unlink()
    assert run("hub", "doctor", "--data", str(data), "--json") == 1
    findings = {one["check"]: one["well"] for one in json.loads(capsys.readouterr().out)["findings"]}
    assert not findings["process"]
    assert not findings["certificates"]
    assert not findings.get("hub.db", findings.get("databases"))
    assert findings["timestamp"]
