"""`bench --ssh` against a real sshd on a high port of this machine: what comes back, and that nothing stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgewright.main import run

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PACKAGE = Path(__file__).parent.parent / "data" / "tiny-1.0.0.ewp"

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        SSHD is None or not shutil.which("ssh") or not shutil.which("ssh-keygen"),
        reason="needs sshd and ssh (Debian: apt install openssh-server openssh-client)",
    ),
]


@dataclass(frozen=True)
class Server:
    """`folder` holds all of its files; `scratch` is TMPDIR of whoever logs in."""

    folder: Path
    scratch: Path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of its own, and an `ssh` on the path that knows the host `board` and nothing of this user's files."""
    folder, scratch, bin_ = tmp_path / "sshd", tmp_path / "scratch", tmp_path / "bin"
    for one in (folder, scratch, bin_):
        one.mkdir(mode=0o700)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    shutil.copyfile(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"""ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv TMPDIR={scratch}
"""
    )
    known = f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}"
    (folder / "known_hosts").write_text(known)
    (folder / "ssh_config").write_text(
        f"""Host board stranger locked
    HostName 127.0.0.1
    Port {port}
    User {os.environ.get("USER") or "root"}
    IdentitiesOnly yes
Host board stranger
    IdentityFile {folder}/user
Host locked
    IdentityFile {folder}/host
Host board locked
    UserKnownHostsFile {folder}/known_hosts
Host stranger
    UserKnownHostsFile {folder}/nobody
"""
    )
    (bin_ / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    (bin_ / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd started by root wants an empty directory there
    process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.PIPE)
    try:
        _until(lambda: _answers(port) or process.poll() is not None)
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.skip(f"sshd does not start here: {process.stderr.read().decode().strip()}")
        yield Server(folder, scratch)
    finally:
        process.terminate()
        process.communicate()


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _until(true: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    assert callable(true)
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(PACKAGE, tmp_path / "tiny.ewp"))


def test_evidence_of_the_host_comes_back_and_nothing_stays_there(
    server: Server, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(package), "--ssh", "board", "--python", sys.executable, "--calls", "40", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    kept = package.with_name("tiny.bench-board.json")
    assert json.loads(kept.read_text()) == told
    assert told["host"] == "board"
    assert {v["variant"] for v in told["variants"]} == {"onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8"}
    assert all(v["selftest"] and v["time_us"]["p50"] > 0 and v["memory"]["load_ms"] > 0 for v in told["variants"])
    assert list(server.scratch.iterdir()) == []
    assert run(["inspect", str(package)]) == 0
    assert "tiny 1.0.0 on board" in capsys.readouterr().out


def test_what_is_missing_there_is_told_with_the_way_out(
    server: Server, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    cases = [
        (["--python", str(bare / "bin" / "python")], "lacks numpy, msgspec, a runtime. There: python3 -m venv"),
        (["--python", "/nowhere/python"], "has no Python where one was looked for; name it with --python"),
    ]
    for options, message in cases:
        assert run(["bench", str(package), "--ssh", "board", *options]) == 3
        said = capsys.readouterr()
        assert message in said.err
        assert len(said.err.strip().splitlines()) == 1
    assert list(server.scratch.iterdir()) == []
    assert not list(tmp_path.glob("*bench*.json"))


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("stranger", "ssh does not trust the key of stranger"),
        ("locked", "locked does not accept this user's key"),
        ("nobody.invalid", "no connection to nobody.invalid"),
    ],
)
def test_a_host_that_does_not_let_us_in_is_one_line(
    server: Server, package: Path, host: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(package), "--ssh", host]) == 3
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_bench_that_is_cut_off_cleans_up_after_itself(server: Server, package: Path) -> None:
    """The client is killed in the midst: the host's shell notices when it has nobody left to answer."""
    command = [sys.executable, "-m", "edgewright", "bench", str(package), "--ssh", "board", "--python", sys.executable]
    client = subprocess.Popen([*command, "--calls", "3000"], start_new_session=True)
    try:
        _until(lambda: list(server.scratch.glob("edgewright-bench.*/package/manifest.json")))
        os.killpg(client.pid, signal.SIGKILL)
        client.wait()
        _until(lambda: not list(server.scratch.iterdir()))
    finally:
        if client.poll() is None:
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()
