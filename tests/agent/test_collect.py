"""What a device tells of itself when it is asked, at its own shell and by the hub's command."""

from __future__ import annotations

import json
import logging
import shutil

import msgspec
import pytest

from edgewright.main import run
from edgewright_agent.console import bench, collect
from edgewright_agent.console.logtail import LINES, LogTail
from edgewright_agent.disk import RealDisk
from edgewright_agent.updating.slots import Store
from edgewright_agent.updating.update import Record, State
from edgewright_contracts.desired import Command
from edgewright_contracts.errors import RequestError, Unavailable
from sim import homes, packages
from sim.clock import SimClock

LATER = 2**45  # of a command's end, ms


@pytest.fixture
def installed(world):
    """(world, agent) with a model that answers."""
    package = world.package("v1")
    with world.agent() as agent:
        world.want(package)
        assert agent.model("digits").wait(60)
        agent.model("digits").predict({"image": packages.draw(1, seed=5)[0][0]})
        yield world, agent


def answer(world, verb):
    return next((e for e in world.hub.events["dev-1"] if e.before == verb), None)


def test_the_hub_asks_for_a_bench_and_a_collection_and_gets_one_event_each(installed):
    world, _ = installed
    for number, verb in enumerate(("bench", "collect", "collect")):
        world.hub.command("dev-1", Command(id=f"{min(number, 1):016x}", verb=verb, expires_at=LATER))
    assert world.hub.wait(lambda: answer(world, "bench") and answer(world, "collect"), 30)
    (measured,) = json.loads(answer(world, "bench").log)
    assert (measured["model"], measured["variant"]) == ("digits", "onnx-fp32")
    assert 0 < measured["p50_ms"] <= measured["p95_ms"] <= measured["max_ms"]
    assert measured["rss_mb"] >= measured["base_mb"] > 5
    told = json.loads(answer(world, "collect").log)
    assert told["status"]["device"] == "dev-1"
    assert told["config"]["window_s"] == 0.5
    assert {"agent", "device", "boots", "errors", "events", "limits", "rss_mb", "log"} <= set(told)
    assert any("probation" in line for line in told["log"])
    assert sum(e.before == "collect" for e in world.hub.events["dev-1"]) == 1  # once per id


def test_a_person_asks_beside_a_running_agent(installed, tmp_path, capsys):
    home = str(installed[0].home("dev-1"))
    assert run(["agent", "bench", "--home", home, "digits"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("digits 1.0.0 onnx-fp32 on onnxruntime, ")
    assert max(map(len, said)) <= 80
    assert run(["agent", "bench", "--home", home, "other"]) == 2
    assert "expected an installed model among digits" in capsys.readouterr().err
    out = tmp_path / "collected.json"
    assert run(["agent", "collect", "--home", home, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == out.stat().st_size - 1
    assert json.loads(out.read_text())["status"]["alive"] is True
    assert run(["agent", "collect", "--home", home, "--json"]) == 0
    assert len(capsys.readouterr().out) <= collect.BUDGET + 1


def test_a_bench_whose_process_fails_says_so(installed, monkeypatch):
    home = installed[0].home("dev-1")
    with pytest.raises(RequestError):
        bench.bench(home, "other")
    monkeypatch.setattr(bench.sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="exit 1"):
        bench.bench(home, "digits")


SECRETS = {
    "token": "enrolled with ew1.eyJzZWNyZXQiOiJzIn0-_x",
    "bearer": "Authorization: Bearer abcdef123",
    "proxy": "http://user:pa55word@proxy:8080",
    "key": "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----",
    "half a key": "-----BEGIN PRIVATE KEY-----\nMHcCAQ",
    "password": "password=hunter2",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_leaves_the_device(world, kind):
    home = world.home("dev-1")
    text = collect.collect(home, log=f"before\n{SECRETS[kind]}", more={"note": SECRETS[kind]})
    for secret in ("eyJz", "abcdef123", "pa55word", "MHcCAQ", "hunter2"):
        assert secret not in text
    assert "before" in json.loads(text)["log"]


def test_a_long_log_is_cut_from_its_beginning_until_it_fits(world):
    home = world.home("dev-1")
    lines = [f"line {n} " + "é" * 60 for n in range(500)]
    text = collect.collect(home, log="\n".join(lines))
    assert len(text) <= collect.BUDGET
    kept = json.loads(text)["log"]
    assert kept == lines[-len(kept) :]
    assert len(kept) > 20
    assert json.loads(collect.collect(home, log="", budget=10)).keys() == {"error"}


def test_of_many_models_in_trouble_the_collection_keeps_what_it_can_and_counts_the_rest(world, tmp_path):
    home = world.home("dev-1")
    homes.install(tmp_path / "models", world.package("v1"))
    for n in range(60):
        shutil.copytree(tmp_path / "models" / "digits", home / "models" / f"m{n:02}")
        store = Store(RealDisk(), home / "models", f"m{n:02}")
        if n % 3 == 0:
            blocked = {f"{k:064x}": "self-test: " + "why " * 200 for k in range(5)}
            record = Record(state=State.BLOCKED, failure="model", reason="why " * 200)
            store.save(msgspec.structs.replace(store.state, blocked=blocked, record=record))
    text = collect.collect(home, log="a line\n" * 100)
    assert len(text) <= collect.BUDGET
    told = json.loads(text)
    kept = told["status"]["models"]
    assert told["left_out"] + len(kept) == 60
    assert [m["state"] for m in kept[:20]] == ["blocked"] * 20
    assert told["config"] == json.loads(collect.collect(home, log="", budget=10**6))["config"]


def test_the_tail_of_the_log_is_kept_for_the_boot_after_and_the_flash_is_spared(tmp_path):
    disk, clock = RealDisk(), SimClock()
    tail = LogTail(disk, tmp_path, clock)
    logger = logging.getLogger("tests.tail")
    logger.setLevel(logging.INFO)
    logger.addHandler(tail)
    logger.info("well")
    tail.keep()
    assert not (tmp_path / "log.tail").exists()  # nothing to warn of
    for number in range(1000):
        logger.warning("trouble %d\nand more", number)
    tail.keep()
    assert (tmp_path / "log.tail").read_text().endswith("trouble 999\nand more")
    assert len(tail.text().splitlines()) == LINES
    before = disk.written
    logger.warning("again")
    tail.keep()
    assert disk.written == before
    tail.keep(last=True)
    assert "again" in (tmp_path / "log.tail").read_text()
    logger.removeHandler(tail)
