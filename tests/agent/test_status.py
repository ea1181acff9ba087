"""What a person reads over ssh, and what is told of a configuration that came from afar."""

from __future__ import annotations

import json
import time

import msgspec
import pytest

from edgewright.main import main
from edgewright_agent.console import status
from edgewright_agent.disk import RealDisk
from edgewright_agent.hosting import live
from edgewright_agent.hosting.presence import Presence
from edgewright_agent.updating.slots import Store
from edgewright_agent.updating.update import Record, State
from edgewright_contracts.desired import Config, Desired, DesiredModel, Limits, Probation
from sim import homes


def run(arguments, monkeypatch):
    monkeypatch.setattr("sys.argv", ["edgewright", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_status_tells_the_link_the_days_left_and_what_is_wrong_within_80_columns(world, capsys, monkeypatch):
    with world.agent("dev-1", runtimes=[]) as agent:
        home = agent.home
        said = json.loads((home / "identity" / "hub.json").read_bytes()) | {"proxy": "http://me:secret@proxy:3128"}
        (home / "identity" / "hub.json").write_text(json.dumps(said))
        agent._spool.trouble = "read-only file system"
        with Presence(agent, home, {}):
            while live.ask(home) is None:
                time.sleep(0.01)
            found = status.read(home)
            code = run(["agent", "status", "--home", str(home)], monkeypatch)
            text = capsys.readouterr().out
            assert run(["agent", "status", "--home", str(home), "--json"], monkeypatch) == 0
            assert json.loads(capsys.readouterr().out)["live"]["link"]["online"]
    assert code == 0
    assert found.alive
    assert found.live is not None
    assert found.live.boot_id == agent.boot_id
    assert "connected for" in text
    assert "through proxy:3128" in text
    assert "secret" not in text
    assert "in memory only" in text
    assert all(len(line) <= 80 for line in text.splitlines() if str(home) not in line), text


def test_status_says_what_a_probation_waits_for_and_that_a_disk_is_full(world, capsys, monkeypatch):
    monkeypatch.setattr(RealDisk, "free", lambda self, path: 3 << 20)
    homes.install(world.home("dev-1") / "models", world.package("v1"))
    store = Store(RealDisk(), world.home("dev-1") / "models", "digits")
    wanted = DesiredModel(name="digits", digest=store.state.running.digest, probation=Probation(windows=3, max_s=3600))
    record = Record(state=State.PROBATION, wanted=wanted, healthy=1, tried_s=720.0)
    store.save(msgspec.structs.replace(store.state, record=record))
    assert run(["agent", "status", "--home", str(world.home("dev-1"))], monkeypatch) == 0
    text = capsys.readouterr().out
    assert "1 of 3 healthy windows (with an inference), 12 of 60 min" in text
    assert "is full (3 MB are free): no update can be taken" in text


def test_status_says_that_an_agent_within_an_application_answers_no_questions(world, capsys, monkeypatch):
    with world.agent("dev-1", runtimes=[]) as agent:
        assert run(["agent", "status", "--home", str(agent.home)], monkeypatch) == 0
        text = capsys.readouterr().out
    assert "running" in text
    assert "answers no questions" in text
    assert all(len(line) <= 80 for line in text.splitlines()), text


def test_status_says_what_an_agent_that_does_not_run_leaves_and_how_a_certificate_that_ended_comes_back(
    world, capsys, monkeypatch
):
    home = world.home("dev-1")
    monkeypatch.setattr("edgewright_agent.identity.Identity.validity", lambda self: Ended())
    assert run(["agent", "status", "--home", str(home)], monkeypatch) == 0
    text = capsys.readouterr().out
    assert "not running" in text
    assert "agent run --home" in text
    assert "enroll --again" in text
    assert status.read(home).live is None


class Ended:
    ends = 1_700_000_000.0


def test_a_configuration_takes_effect_without_a_restart_and_its_version_is_told_once(world):
    with world.agent("dev-1", runtimes=[]) as agent:
        config = Config(version=7, window_s=60.0, compress=True, log_level="warning", limits=Limits(rss_mb=500.0))
        for rev in (1, 2):  # the second revision changes nothing of it
            world.hub.want("dev-1", Desired(rev=rev, config=config))
        assert world.hub.wait(lambda: any(e.after == "config 7" for e in world.hub.events["dev-1"]))
        assert agent._reporter.windows.window_s == 60.0
        assert agent.live().config_version == 7
        world.hub.want("dev-1", Desired(rev=3, config=Config(version=8, window_s=60.0)))
        assert world.hub.wait(lambda: any(e.after == "config 8" for e in world.hub.events["dev-1"]))
    told = [e for e in world.hub.events["dev-1"] if e.after.startswith("config")]
    assert [(e.before, e.after) for e in told] == [("config 0", "config 7"), ("config 7", "config 8")]
    assert "window_s 300.0 → 60.0" in told[0].reason
    assert "log_level info → warning" in told[0].reason
