"""A package that was carried by hand: who is trusted, what goes through the machine, and who has the last word."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from edgewright.main import run
from edgewright_agent.agent import Agent
from edgewright_agent.delivery import journal
from edgewright_agent.delivery.nohub import NoHub
from edgewright_agent.disk import RealDisk
from edgewright_agent.updating import sideload
from edgewright_compiler.keys import init_keys
from edgewright_contracts.desired import Config, Desired, DesiredModel, Probation
from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.event import decode_event
from edgewright_contracts.package import read_package, write_ewp
from edgewright_contracts.report import Hits, decode_window
from edgewright_contracts.signature import Signature, decode_signature, encode_signature
from sim import packages


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with packages as files, and two owners' keys."""
    folder = tmp_path_factory.mktemp("shelf")
    for owner in ("mine", "other"):
        init_keys(folder / owner, now=datetime.now(UTC))
    for label, knobs in {"v1": {}, "v2": {"version": "2.0.0", "seed": 1}, "bad": {"broken_selftest": True}}.items():
        packages.make_package(folder / label, **knobs)
        write_ewp(folder / label, folder / f"{label}.ewp")
    return folder


def signed(shelf, label, owner, out, capsys):
    """(file, key) of a package that this owner signed."""
    capsys.readouterr()
    assert run(["sign", str(shelf / f"{label}.ewp"), "--keys", str(shelf / owner), "--out", str(out), "--json"]) == 0
    return str(out), json.loads(capsys.readouterr().out)["key"]


def test_one_package_and_two_commands_without_a_hub(shelf, tmp_path, capsys):
    home = str(tmp_path / "home")
    assert run(["sign", str(shelf / "v1"), "--keys", str(shelf / "mine"), "--out", str(tmp_path / "digits.ewp")]) == 0
    said = capsys.readouterr().out
    key = re.search(r"--key ([0-9a-f]{64})", said)[1]
    assert all(len(line) <= 80 or key in line or "signed" in line for line in said.splitlines())
    assert run(["agent", "sideload", str(tmp_path / "digits.ewp"), "--home", home, "--key", key]) == 0
    said = capsys.readouterr().out
    assert "digits 1.0.0" in said
    assert "self-test passed; trusted by key" in said
    x, labels = packages.draw(1, seed=9)
    np.save(tmp_path / "x.npy", x[0])
    assert run(["agent", "predict", "--home", home, "digits", str(tmp_path / "x.npy"), "--json"]) == 0
    assert int(np.argmax(json.loads(capsys.readouterr().out)["outputs"]["probabilities"])) == labels[0]
    assert run(["agent", "status", "--home", home]) == 0
    assert "no hub: nothing is sent" in capsys.readouterr().out
    with Agent(tmp_path / "home") as agent:
        for _ in range(5):
            agent.model("digits").predict({"image": x[0]})
    with Agent(tmp_path / "home") as agent:  # and what was counted stayed on the device
        assert agent._spool.told().sealed >= 1
    assert [p.name for p in (tmp_path / "home" / "sideload").iterdir() if p.suffix == ".ewp"] == []  # it is in a slot


def test_a_label_that_is_told_after_a_restart_is_counted_for_no_other_inference(shelf, tmp_path):
    home = tmp_path / "home"
    assert run(["agent", "sideload", str(shelf / "v1.ewp"), "--home", str(home), "--trust-this-file"]) == 0
    x, labels = packages.draw(20, seed=9)
    with Agent(home) as agent:
        before = [agent.model("digits").predict({"image": one}).id for one in x]
    with Agent(home) as agent:
        after = [agent.model("digits").predict({"image": one}).id for one in x[::-1]]
        for identifier, label in zip(before, labels, strict=True):
            agent.label(identifier, int(label))
        agent.label(after[0], int(labels[-1]))
    assert max(before + after) < 2**53  # what float64 tells apart
    sealed = [decode_window(i.body) for i in journal.read(RealDisk(), home / "spool").state.items if i.kind == "report"]
    assert [w.outcomes for w in sealed if w.outcomes] == [{"correct": Hits(1, 1)}]
    assert sum(w.shed.get("outcomes", 0) for w in sealed) == 20


def test_a_package_that_nobody_vouches_for_is_refused(shelf, tmp_path, capsys):
    home, v1 = tmp_path / "home", str(shelf / "v1.ewp")
    assert run(["agent", "sideload", v1, "--home", str(home)]) == 1
    said = capsys.readouterr().err
    assert "bears no signature" in said
    assert "--trust-this-file" in said
    file, key = signed(shelf, "v1", "mine", tmp_path / "s.ewp", capsys)
    assert run(["agent", "sideload", file, "--home", str(home)]) == 1
    assert f"--key {key}" in capsys.readouterr().err
    assert run(["agent", "sideload", file, "--home", str(home), "--key", "ab"]) == 2
    assert not (home / "sideload").exists()
    assert run(["agent", "sideload", file, "--home", str(home), "--key", key]) == 0
    foreign, other = signed(shelf, "v2", "other", tmp_path / "o.ewp", capsys)
    for more, reason in (([], "expected a package signed by key"), (["--key", other], "this device trusts key"),
                         (["--trust-this-file"], "expected a package signed by")):  # fmt: skip
        assert run(["agent", "sideload", foreign, "--home", str(home), *more]) == 1
        assert reason in capsys.readouterr().err
    assert run(["agent", "sideload", str(shelf / "v2.ewp"), "--home", str(home), "--trust-this-file"]) == 1


def test_a_signature_is_of_one_package_and_one_key(shelf, tmp_path, capsys):
    _, key = signed(shelf, "v1", "mine", tmp_path / "s.ewp", capsys)
    package = read_package(tmp_path / "s.ewp")
    signature = decode_signature(package.signature())
    sideload.verify(signature, package.digest)
    _, other = signed(shelf, "v1", "other", tmp_path / "o.ewp", capsys)
    for wrong in (
        Signature(digest="0" * 64, key=key, signature=signature.signature),
        Signature(digest=package.digest, key=other, signature=signature.signature),
        Signature(digest=package.digest, key=key, signature="0" * 128),
        Signature(digest=package.digest, key="0" * 64, signature=signature.signature),
    ):
        with pytest.raises(Refused, match="signature"):
            sideload.verify(wrong, package.digest)
    moved = tmp_path / "moved.ewp"
    write_ewp(shelf / "v2", moved, encode_signature(signature))  # the signature of another package
    assert run(["agent", "sideload", str(moved), "--home", str(tmp_path / "h"), "--key", key]) == 1
    write_ewp(shelf / "v2", moved, b"{")
    assert run(["agent", "sideload", str(moved), "--home", str(tmp_path / "h"), "--key", key]) == 2
    assert run(["sign", str(shelf / "v1"), "--keys", str(tmp_path)]) == 2
    assert read_package(tmp_path / "s.ewp").digest == read_package(shelf / "v1.ewp").digest
    write_ewp(tmp_path / "s.ewp", tmp_path / "again.ewp")
    assert (tmp_path / "again.ewp").read_bytes() == (tmp_path / "s.ewp").read_bytes()


def test_a_package_that_fails_its_self_test_is_refused_and_a_good_one_still_taken(shelf, tmp_path, capsys):
    home = str(tmp_path / "home")
    done = ["agent", "sideload", "--home", home, "--trust-this-file", "--json"]
    assert run([*done, str(shelf / "v1.ewp")]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["answers"], first["trusted"]) == (True, "this file")
    assert run([*done, str(shelf / "bad.ewp")]) == 1
    assert "does not work on this device: self-test: " in capsys.readouterr().err
    assert run([*done, str(shelf / "v2.ewp")]) == 0
    assert run(["agent", "status", "--home", home, "--json"]) == 0
    told = json.loads([line for line in capsys.readouterr().out.splitlines() if "models" in line][-1])["models"][0]
    assert told["running"]["version"] == "2.0.0"
    assert list(told["blocked"]) == [read_package(shelf / "bad.ewp").digest]


def test_a_person_clears_what_is_blocked_and_is_told_so_when_it_comes_again(shelf, tmp_path, capsys):
    home = tmp_path / "home"
    done = ["agent", "sideload", "--home", str(home), "--trust-this-file", "--json"]
    clear = ["agent", "clear", "--home", str(home), "digits"]
    assert run(clear) == 2
    assert run([*done, str(shelf / "v1.ewp")]) == 0
    assert run([*clear, "--json"]) == 2
    assert "nothing of digits is blocked or held here" in capsys.readouterr().err
    assert run([*done, str(shelf / "bad.ewp")]) == 1
    digest = read_package(shelf / "bad.ewp").digest
    capsys.readouterr()
    assert run([*done, str(shelf / "bad.ewp")]) == 1
    said = capsys.readouterr().err
    assert "digits 1.0.0 is blocked on this device: self-test" in said
    assert f"edgewright agent clear --home {home} digits" in said
    assert run(["agent", "status", "--home", str(home)]) == 0
    assert f"edgewright agent clear --home {home} digits" in capsys.readouterr().out
    assert run([*clear, "ffff"]) == 2
    assert f"held here ({digest[:16]}), got 'ffff'" in capsys.readouterr().err
    assert run([*done, str(shelf / "v1.ewp")]) == 0  # else it would be tried again at once
    capsys.readouterr()
    offered = (home / "sideload" / "digits.json").read_bytes()
    assert run([*clear, digest[:8], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "digits", "cleared": [digest]}
    told = [e for e in events(home) if "cleared by hand" in e.reason]
    assert [(e.model, e.failure, digest[:16] in e.reason) for e in told] == [("digits", "operator", True)]
    assert (home / "sideload" / "digits.json").read_bytes() == offered
    assert run([*done, str(shelf / "bad.ewp")]) == 1  # it is tested again
    assert "does not work on this device: self-test: " in capsys.readouterr().err
    with Agent(home, transport=NoHub()) as agent:
        assert run(clear) == 0
        assert "may be tried again" in capsys.readouterr().out
        (home / "sideload" / "digits.clear").write_bytes(b"{")  # damaged: nobody knows what was meant
        agent._errands.turn()
        assert not (home / "sideload" / "digits.clear").exists()


def events(home):
    held = journal.read(RealDisk(), home / "spool").state
    return [decode_event(item.body) for item in (*held.numbered, *held.unnumbered) if item.kind == "event"]


def test_damaged_files_are_refused_and_nothing_is_made_of_them(shelf, tmp_path):
    whole = (shelf / "v1.ewp").read_bytes()
    (tmp_path / "cut.ewp").write_bytes(whole[:-500])
    (tmp_path / "flip.ewp").write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    for file in (tmp_path / "cut.ewp", tmp_path / "flip.ewp", shelf / "v1"):
        home = tmp_path / "home"
        assert run(["agent", "sideload", str(file), "--home", str(home), "--trust-this-file"]) == 2
        assert not (home / "sideload").exists()


def test_a_running_agent_takes_a_package_up_and_a_later_wish_of_the_hub_wins(world, shelf, tmp_path, capsys):
    v1, v2 = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    files = {}
    for label, package in (("v1", v1), ("v2", v2)):
        files[label] = str(tmp_path / f"{label}.ewp")
        write_ewp(package.root, tmp_path / f"{label}.ewp")
    home = str(world.home("dev-1"))
    with world.agent() as agent:
        world.want(v1)
        assert agent.model("digits").wait(60)
        agent.model("digits").predict({"image": packages.draw(1, seed=5)[0][0]})
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1:] == ["idle"])
        world.repository.down = True  # so the last verified list must do
        assert run(["agent", "sideload", files["v2"], "--home", home, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["answers"] is False
        agent._errands.turn()
        assert world.hub.wait(lambda: agent.model("digits").active.digest == v2.digest)
    with world.agent() as agent:  # the hub's old wish does not come back with a restart
        agent._errands.turn()
        assert agent.model("digits").active.digest == v2.digest
        assert agent._sideloads.over(agent._reporter.desired).models[0].digest == v2.digest
        world.repository.down = False
        world.want(v1)
        assert world.hub.wait(lambda: agent.model("digits").active.digest == v1.digest)


def test_an_enrolled_device_runs_only_what_its_owner_lists(world, shelf, tmp_path, capsys):
    home = world.home("dev-1")
    stranger = packages.make_package(tmp_path / "stranger", version="7.0.0", seed=4)
    write_ewp(stranger.root, tmp_path / "stranger.ewp")
    done = ["agent", "sideload", str(tmp_path / "stranger.ewp"), "--home", str(home)]
    assert run([*done, "--trust-this-file"]) == 2
    assert "owner's list" in capsys.readouterr().err
    assert run(done) == 1
    assert "signs no package digits with digest" in capsys.readouterr().err
    assert run(["agent", "predict", "--home", str(home), "digits", str(tmp_path / "x.npy")]) == 2


def test_whose_wish_counts_is_told_by_revisions(world):
    home = world.home("dev-1")
    agent = world.agent()
    try:
        (home / "sideload").mkdir()
        mine = sideload.Sideload("digits", "1.0.0", "a" * 64, 5, "key")
        (home / "sideload" / "digits.json").write_bytes(msgspec.json.encode(mine))
        (home / "sideload" / "torn.json").write_bytes(b"{")
        hub = DesiredModel(name="digits", digest="b" * 64, probation=Probation())
        other = DesiredModel(name="words", digest="c" * 64)
        for rev, models, digest in ((5, (hub, other), "a"), (6, (hub, other), "b"), (6, (other,), "a"), (0, (), "a")):
            said = agent._sideloads.over(Desired(rev=rev, config=Config(), models=models))
            assert {m.name: m.digest[:1] for m in said.models}["digits"] == digest
            assert len(said.models) == (2 if models else 1)
    finally:
        agent.close()


def test_a_home_that_is_neither_enrolled_nor_sideloaded_runs_nothing(tmp_path):
    with pytest.raises(RequestError, match="enroll"):
        Agent(tmp_path, transport=NoHub())
