"""The daemon and the command: one process, the protocol on loopback, and a clean end."""

from __future__ import annotations

import base64
import errno
import fcntl
import gc
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

from edgewright.main import run
from edgewright_agent import identity
from edgewright_agent.agent import Agent
from edgewright_agent.console import status
from edgewright_agent.console.collect import facts
from edgewright_agent.disk import RealDisk, atomic_write
from edgewright_agent.enrolling import enroll
from edgewright_agent.hosting.lock import HomeLock
from edgewright_agent.serving import listening, service
from edgewright_contracts.errors import ContractError, Refused, RequestError, Unavailable
from sim import packages
from sim.broker import SimTransport


@pytest.fixture
def fed(world):
    """(world, agent) with a committed package, and its HTTP server's URL."""
    package = world.package("v1")
    x, _ = packages.draw(1, seed=5)
    with world.agent() as agent:
        world.want(package)
        assert agent.model("digits").wait(60)
        agent.model("digits").predict({"image": x[0]})
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1] == "idle" and len(world.hub.trace("dev-1")) == 9)
        server = service.serving(agent, listening.listen(listening.Port("127.0.0.1", 0)))
        thread = threading.Thread(target=server.run)
        thread.start()
        yield world, agent, server.url.removesuffix("/v2")
        server.close()
        thread.join()


def call(url, body=None, **headers):
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_protocol_answers_with_what_the_model_says_and_joins_outcomes(fed):
    world, agent, url = fed
    x, labels = packages.draw(20, seed=6)
    assert call(url + "/v2/health/live") == (200, {"live": True})
    assert call(url + "/v2/health/ready") == (200, {"ready": True})
    code, meta = call(url + "/v2/models/digits")
    assert (code, meta["inputs"]) == (200, [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8]}])
    before = world.hub.n("dev-1")
    for image, label in zip(x, labels, strict=True):
        given = {"name": "image", "shape": [1, 8, 8], "datatype": "UINT8", "data": image.reshape(-1).tolist()}
        code, answer = call(url + "/v2/models/digits/infer", {"inputs": [given], "parameters": {"context": "night"}})
        assert code == 200
        found = {o["name"]: o for o in answer["outputs"]}
        assert int(np.argmax(found["probabilities"]["data"])) == label
        assert (
            call(url + "/v2/models/digits/outcome", {"id": answer["parameters"]["prediction"], "truth": int(label)})[0]
            == 200
        )
    agent.settle()
    assert world.hub.wait(lambda: world.hub.n("dev-1") >= before + 20)
    told = world.hub.windows["dev-1"]
    assert world.hub.wait(lambda: sum(w.outcomes["correct"].hits for w in told if "correct" in w.outcomes) == 20)
    assert {w.context for w in world.hub.windows["dev-1"]} == {"", "night"}


def test_an_agent_whose_thread_ended_is_not_live(fed):
    _, agent, url = fed
    ended = threading.Thread(target=int, name="edgewright-telemetry")
    agent._threads.append(ended)
    code, answer = call(url + "/v2/health/live")
    agent._threads.remove(ended)
    assert (code, "edgewright-telemetry" in answer["error"]) == (503, True)


def test_one_home_runs_one_agent(world):
    with world.agent(), pytest.raises(RequestError, match="another agent runs"):
        world.agent()
    world.agent().close()


def test_who_looks_whether_an_agent_runs_keeps_none_from_starting(world, monkeypatch):
    home = world.home("dev-1")
    looking = os.open(home / "agent.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_EX)
    waiting = SimpleNamespace(sleep=lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
    monkeypatch.setattr("edgewright_agent.hosting.lock.time", waiting)  # of that module only: others sleep, too
    world.agent().close()
    os.close(looking)


def test_a_disk_that_became_read_only_keeps_nobody_from_answering_or_from_looking(world, monkeypatch, capsys):
    package = world.package("v1")
    with world.agent() as agent:
        world.want(package)
        assert agent.model("digits").wait(60)
    home, whole = world.home("dev-1"), os.open

    def read_only(path, flags, *mode, **more):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT) and str(path).startswith(str(home)):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return whole(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", read_only)
    assert run(["agent", "status", "--home", str(home)]) == 0
    assert "digits: 1.0.0" in capsys.readouterr().out
    with world.agent() as agent:
        agent.model("digits").predict({"image": packages.draw(1, seed=5)[0][0]})
        assert run(["agent", "status", "--home", str(home), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["alive"]
        with pytest.raises(RequestError, match="another agent"):
            world.agent()


def test_whoever_looks_at_a_home_with_a_damaged_file_sees_which_it_is(world, capsys, tmp_path):
    package = world.package("v1")
    with world.agent() as agent:
        world.want(package)
        assert agent.model("digits").wait(60)
        agent.model("digits").predict({"image": packages.draw(1, seed=5)[0][0]})
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1] == "idle")
    home = world.home("dev-1")
    (home / "models" / "digits" / "state.json").write_bytes(b"\xff")
    assert run(["agent", "status", "--home", str(home)]) == 0
    said = capsys.readouterr().out
    assert "digits: 1.0.0" in said
    assert "state.json: expected" in said
    assert run(["agent", "collect", "--home", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"]["models"][0]["state"] == "damaged"
    np.save(tmp_path / "x.npy", packages.draw(1, seed=5)[0][0])
    assert run(["agent", "predict", "--home", str(home), "digits", str(tmp_path / "x.npy")]) == 0
    (home / "identity" / "hub.json").write_bytes(b"{")
    assert run(["agent", "status", "--home", str(home)]) == 0
    assert "`edgewright agent enroll --again` with a new token makes again" in capsys.readouterr().out
    with Agent(home, runtimes=["onnxruntime"]) as agent:  # it answers; nobody else is trusted instead
        assert agent.model("digits").wait(60)
        assert agent._sideloads._enrolled
    assert run(["agent", "renew", "--home", str(home)]) == 2
    (home / "models").rename(home / "none")
    assert run(["agent", "status", "--home", str(home)]) == 2


def test_what_a_full_disk_took_half_of_is_not_left_there(tmp_path, monkeypatch):
    disk = RealDisk()
    atomic_write(disk, tmp_path / "one", b"before")

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(disk, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(disk, tmp_path / "one", b"after")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"one": b"before"}


def test_a_thread_that_does_not_end_keeps_its_home_from_a_second_agent(world, monkeypatch):
    monkeypatch.setattr("edgewright_agent.agent.JOIN_S", 0.01)
    agent, ends = world.agent(), threading.Event()
    hung = threading.Thread(target=ends.wait, name="edgewright-install")
    agent._threads = [hung]
    hung.start()
    agent.close()
    with pytest.raises(RequestError, match="another agent runs"):
        world.agent()
    ends.set()
    hung.join()
    agent.close()
    world.agent().close()


FORKS = """
import os, sys
from pathlib import Path
from edgewright_agent.hosting.lock import HomeLock
lock, (heard, told) = HomeLock(Path(sys.argv[1])), os.pipe()
if os.fork() == 0:
    lock.release()  # as at the end of its own `with` block
    os.write(told, b"x")
    os.read(int(sys.argv[2]), 1)
    os._exit(0)
os.read(heard, 1)
print("forked", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("ending", ["released", "killed"])
def test_a_worker_that_the_application_forked_neither_frees_its_home_nor_keeps_it(tmp_path, ending):
    held, working = os.pipe()
    command = [sys.executable, "-c", FORKS, str(tmp_path), str(held)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[held]
    ) as application:
        os.close(held)
        try:
            assert application.stdout.readline() == "forked\n"
            assert status.alive(tmp_path)
            if ending == "killed":
                application.kill()
                application.wait()
            else:
                application.stdin.write("\n")
                application.stdin.flush()
                assert application.stdout.readline() == "released\n"
            assert not status.alive(tmp_path)
            HomeLock(tmp_path).release()
        finally:
            os.close(working)  # the worker ends


def test_an_agent_that_fails_before_it_starts_leaves_no_lock_and_no_lost_boot(world):
    home = world.home("dev-1")
    for _ in range(2):
        with pytest.raises(RequestError, match="expected a runtime"):  # not "another agent runs"
            Agent(home, runtimes=["none"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for _ in range(2):
            with pytest.raises(Unavailable, match=f"port {port}.*--listen"):
                service.serve(world.agent(), listening.Port("127.0.0.1", port))

    class Broken(SimTransport):
        def start(self, listener):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"), Agent(home, transport=Broken(world.broker, "dev-1")):
        pass
    with world.agent():
        assert world.hub.wait(lambda: world.hub.births["dev-1"])
    assert world.hub.births["dev-1"][0].unclean == ()


def test_no_collection_of_the_daemon_goes_through_what_was_there_when_it_began(world, monkeypatch):
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    frozen: list[int] = []

    def freeze():
        real()
        frozen.append(gc.get_freeze_count())
        signal.raise_signal(signal.SIGTERM)

    real = gc.freeze
    monkeypatch.setattr(gc, "freeze", freeze)
    try:
        service.serve(world.agent(), None)
        assert [n > 10_000 for n in frozen] == [True]
    finally:
        gc.unfreeze()
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_a_disk_that_is_full_at_the_start_does_not_keep_the_model_from_answering(world):
    class Full(RealDisk):
        full = True

        def _put(self, path, data, flags):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            super()._put(path, data, flags)

    package = world.package("v1")
    x, _ = packages.draw(1, seed=5)
    with world.agent() as agent:
        world.want(package)
        assert agent.model("digits").wait(60)
        agent.model("digits").predict({"image": x[0]})
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1] == "idle" and len(world.hub.trace("dev-1")) == 9)
    before = world.hub.n("dev-1")
    disk = Full()
    with world.agent(disk=disk) as agent:
        for _ in range(7):
            agent.model("digits").predict({"image": x[0]})
        disk.full = False
        assert world.hub.wait(lambda: world.hub.n("dev-1") == before + 7)


@pytest.mark.parametrize("name", ["", "größe_ok", "x" * 65, "correct", "two\nlines"])
def test_an_outcome_whose_name_no_window_may_carry_is_refused_at_once(world, name):
    agent = world.agent()
    try:
        with pytest.raises(RequestError, match="outcome name"):
            agent.outcome(1, name, True)
    finally:
        agent.close()


def test_a_label_that_no_window_could_count_is_refused_at_once_and_spoils_no_other(world):
    agent = world.agent()
    try:
        for identifier, truth in ((1, 2.5), (1, np.arange(3)), (1, None), ("1", 2), (None, "2")):
            with pytest.raises(RequestError, match="whole number"):
                agent.label(identifier, truth)
        with pytest.raises(RequestError, match="whole number"):
            agent.outcome("1", "pick_ok", True)
        agent.label(np.int64(1), np.int64(2))
        agent.label(10**30, 2)
        agent._meter.drain()
    finally:
        agent.close()


def test_status_and_predict_read_the_disk_beside_a_running_agent(fed, tmp_path, capsys):
    world, agent, _ = fed
    home = str(world.home("dev-1"))
    while status.read(agent.home).models[0].state != "idle":  # its event is told before it is written
        agent._wake.wait(0.01)
    capsys.readouterr()
    assert run(["agent", "status", "--home", home, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["alive"] is True
    assert found["models"][0]["running"]["version"] == "1.0.0"
    assert run(["agent", "status", "--home", home]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "dev-1: running; hub 127.0.0.1:1, desired revision 1"
    assert said[2].startswith("digits: 1.0.0 onnx-fp32 on onnxruntime (")
    assert said[3].startswith("reports: ")
    x, labels = packages.draw(1, seed=9)
    np.save(tmp_path / "x.npy", x[0])
    assert run(["agent", "predict", "--home", home, "digits", str(tmp_path / "x.npy"), "--json"]) == 0
    outputs = json.loads(capsys.readouterr().out)["outputs"]
    assert int(np.argmax(outputs["probabilities"])) == labels[0]
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert run(["agent", "predict", "--home", home, "digits", str(tmp_path / "x.npy")]) == 2
    assert run(["agent", "predict", "--home", home, "other", str(tmp_path / "x.npy")]) == 2
    assert "expected an installed model among digits" in capsys.readouterr().err


def test_status_over_ssh_says_what_is_wrong_and_the_way_out(world, capsys):
    bad = world.package("v1", broken_model=True)
    home = str(world.home("dev-1"))
    assert run(["agent", "status", "--home", home]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "dev-1: not running; hub 127.0.0.1:1, nothing heard from it yet",
        f"  start it with: edgewright agent run --home {home}",
        "  no model: the hub has asked for none yet",
    ]
    with world.agent():
        world.want(bad)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1:] == ["blocked"])
    assert run(["agent", "status", "--home", home]) == 0
    said = capsys.readouterr().out
    assert "digits: no package answers\n" in said
    assert f"  update to {bad.digest[:16]}, attempt 1: blocked (model): self-test: " in said
    assert f"  blocked {bad.digest[:16]}: self-test: " in said


def test_a_home_that_was_never_enrolled_says_how_to_enrol(tmp_path, capsys):
    assert run(["agent", "status", "--home", str(tmp_path)]) == 2
    assert "agent enroll" in capsys.readouterr().err
    assert run(["agent", "run", "--home", str(tmp_path)]) == 2


@pytest.mark.parametrize("token", ["", "nothing", "ew1.", "ew1.AAAA", "ew1.e30"])
def test_a_damaged_token_is_refused_before_anything_is_asked(tmp_path, token, capsys):
    arguments = ["--home", str(tmp_path), "--hub", "https://127.0.0.1:1", "--device", "d1", "--token", token]
    assert run(["agent", "enroll", *arguments]) == 2
    assert "token" in capsys.readouterr().err
    assert not (tmp_path / "identity").exists()


def test_enrolling_at_a_hub_that_is_not_there_may_be_tried_again(tmp_path, capsys):
    token = "ew1." + __import__("base64").urlsafe_b64encode(
        json.dumps({"secret": "s", "root_sha256": "0" * 64, "ca_sha256": "0" * 64}).encode()
    ).decode().rstrip("=")
    arguments = ["--home", str(tmp_path), "--hub", "https://127.0.0.1:1", "--device", "d1", "--token", token]
    assert enroll.parse(token).secret == "s"
    assert run(["agent", "enroll", *arguments]) == 3
    assert not status.alive(tmp_path)
    assert not (tmp_path / "identity").exists()


def test_an_enrolment_that_fails_leaves_at_most_the_key_that_a_hub_may_have_answered(tmp_path, monkeypatch):
    class Full(RealDisk):
        def _put(self, path, data, flags):
            super()._put(path, data[:3], flags)
            raise OSError(errno.ENOSPC, "No space left on device")

    ca = CREDENTIALS["ca.pem"]
    said = {"secret": "s", "root_sha256": "0" * 64, "ca_sha256": hashlib.sha256(ca).hexdigest()}
    token = "ew1." + base64.urlsafe_b64encode(json.dumps(said).encode()).decode()
    posted = Refused("the hub refused: this token was used")

    def body(pool, method, url, limit, data=None):
        if method == "POST":
            raise posted
        return ca

    def ask(disk):
        enroll.enroll(disk, tmp_path, hub="https://127.0.0.1:1", token=token, device="d1")

    monkeypatch.setattr(enroll, "request", body)
    folder = tmp_path / "identity"
    with pytest.raises(OSError, match="space"):
        ask(Full())
    assert not folder.exists()
    with pytest.raises(Refused, match="used"):
        ask(RealDisk())
    assert not folder.exists()
    posted = Unavailable("the connection broke")  # behind the question: there may be an answer
    with pytest.raises(Unavailable):
        ask(RealDisk())
    assert [p.name for p in folder.iterdir()] == ["device.key"]
    key = (folder / "device.key").read_bytes()
    posted = Refused("the hub refused: try later")
    with pytest.raises(Refused):
        ask(RealDisk())
    assert [p.name for p in folder.iterdir()] == ["device.key"]
    assert (folder / "device.key").read_bytes() == key


def test_root_metadata_of_unreasonable_size_is_damaged(world):
    home = world.home("dev-1")
    (home / "identity" / "root.json").write_bytes(b"{" * (identity.ROOT_BYTES + 1))
    with pytest.raises(ContractError, match=r"root\.json"):
        identity.load(home)


@pytest.mark.process
def test_sigterm_or_a_closed_terminal_ends_the_daemon_cleanly_and_a_kill_is_declared(world):
    package = world.package("v1")
    with world.agent() as agent:
        world.want(package)
        assert agent.model("digits").wait(60)
    home = world.home("dev-1")
    for name in ("device.key", "device.crt", "ca.pem"):
        (home / "identity" / name).write_bytes(CREDENTIALS[name])
    code = "from edgewright.main import main; main()"
    command = [sys.executable, "-c", code, "agent", "run", "--home", str(home), "--listen", "127.0.0.1:0"]
    for ending, unclean in ((signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGKILL, 1)):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
        line = next(one for one in process.stderr if "serving" in one)
        url = line.split()[-1].strip('"')
        assert call(url + "/health/ready")[0] == 200
        assert status.alive(home)
        process.send_signal(ending)
        process.stderr.read()
        process.stderr.close()
        assert process.wait(60) == (-signal.SIGKILL if unclean else 0)
        assert not status.alive(home)
        assert facts(home)["boot"] == {"ended": "crash, kill or power cut" if unclean else "stopped"}
        with world.agent() as agent:
            assert agent.live().before == ("crash or kill" if unclean else "stopped")
            assert world.hub.wait(lambda: len(world.hub.births["dev-1"]) >= 2)
        assert len(world.hub.births["dev-1"][-1].unclean) == unclean
        world.hub.births["dev-1"].clear()
        world.hub.births["dev-1"].append(None)


@pytest.mark.process
def test_a_package_whose_process_is_killed_three_times_in_probation_is_rolled_back(world):
    good, bad = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    x, _ = packages.draw(1, seed=5)
    with world.agent() as agent:
        world.want(good)
        assert agent.model("digits").wait(60)
        while len(world.hub.trace("dev-1")) < 9:
            agent.model("digits").predict({"image": x[0]})
            agent._wake.wait(0.05)
        world.want(bad, windows=1000)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1] == "probation")
    home = world.home("dev-1")
    for name, data in CREDENTIALS.items():
        (home / "identity" / name).write_bytes(data)
    code = "from edgewright.main import main; main()"
    command = [sys.executable, "-c", code, "agent", "run", "--home", str(home), "--listen", "127.0.0.1:0"]
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        next(one for one in process.stderr if "serving" in one)
        process.kill()
        process.stderr.read()
        process.stderr.close()
        process.wait(60)
    with world.agent() as agent:
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-2:] == ["rollback", "blocked"])
        assert agent.model("digits").active.digest == good.digest
    assert next(e for e in world.hub.events["dev-1"] if e.after == "rollback").failure == "model"


def _credentials() -> dict[str, bytes]:
    """Any valid key and certificate: the broker that they are for is never reached."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dev-1")])
    now = datetime.datetime.now(datetime.UTC)
    own = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(1)).sign(
        key, hashes.SHA256()
    )
    pem = own.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"device.key": private, "device.crt": pem, "ca.pem": pem}


CREDENTIALS = _credentials()
