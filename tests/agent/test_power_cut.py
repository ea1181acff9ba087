"""The power is cut at each disk call of a device's life: what is left starts, answers, and has lost no sealed count.

All states are walked by benchmarks/power_cuts.py, with the same code; here it is a sample of them, spread evenly.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgewright_agent.updating.slots import ModelState, Slot, Store
from edgewright_agent.updating.update import State
from edgewright_contracts import event
from edgewright_contracts.errors import ContractError
from sim import power
from sim.disk import KEEPS, SimDisk

MODELS = Path("/home/models")


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    folder = tmp_path_factory.mktemp("life")
    with power.served(folder) as one:
        power.live(one, folder)
        yield one


def test_the_life_that_is_cut_short_passes_every_state_of_the_table(life):
    told = [event.decode_event(payload) for _, kind, payload in life.heard if kind == "event"]
    once_more = {"held"}  # one more write of idle's record, after more attempts than a life has time for
    assert {state.value for state in State} - {one.after for one in told} <= once_more
    assert any("/blobs/" in path and wanted for path, wanted in life.repository.requests)  # a download went on
    assert any("/deltas/" in path for path, _ in life.repository.requests)
    assert sum(call.what == "append" and "parts" in call.path.parts for call in life.calls) > 30  # pieces of downloads


def test_wherever_the_power_is_cut_a_good_model_answers_and_no_sealed_count_is_lost_or_doubled(life, tmp_path):
    found = list(power.cuts(life))
    assert len(found) >= 300
    assert {one.keep for one in found} == set(KEEPS)
    for number, one in enumerate(found[:: len(found) // 30]):
        verdict = power.restart(life, one, tmp_path / str(number), to_the_end=number % 8 == 4)
        assert verdict == power.Verdict(answered=True, settled=True, lost=0, doubled=0)


def test_no_cut_makes_a_device_forget_or_tear_what_it_has_seen_signed(life):
    """In every image: whole lists or none, and all of them once anything was downloaded by what they say."""
    begun = next(at for at, call in enumerate(life.calls) if "parts" in call.path.parts)
    seen = 0
    for one in power.cuts(life, every=3):
        for role in ("timestamp", "snapshot", "targets"):
            data = one.image.get(Path(f"trust/{role}.json"))
            assert data is not None or one.at <= begun
            assert data is None or msgspec.json.decode(data)["signed"]["version"] > 0
            seen += data is not None
    assert seen > 300
    assert not any(name.startswith("tmp") for call in life.calls for name in call.path.parts)


def careless(life, forgets) -> list[power.Call]:
    """The same life of an agent that forgets some fsyncs."""
    nothing = power.Call("mkdir", Path("models"))
    return [nothing if call.what == "fsync" and forgets(call.path) else call for call in life.calls]


def test_the_same_walk_finds_what_is_lost_when_the_spool_is_not_synced(life, tmp_path, monkeypatch):
    monkeypatch.setattr(life, "calls", careless(life, lambda path: path.parts[:1] == ("spool",)))
    monkeypatch.setattr(power, "ANSWER_S", 0.1)
    *_, last = power.cuts(life, keeps=("least",))
    last = last._replace(at=len(life.calls) - 1)  # the same is left until the end
    assert power.restart(life, last, tmp_path / "home", to_the_end=False).lost > 0


def test_the_same_walk_finds_what_does_not_answer_when_a_model_is_not_synced(life, tmp_path, monkeypatch):
    monkeypatch.setattr(life, "calls", careless(life, lambda path: "parts" in path.parts))
    committed = life.runs[0][0]
    first = next(one for one in power.cuts(life, keeps=("names",)) if one.at > committed)
    assert not power.restart(life, first, tmp_path / "home", to_the_end=False).answered


def test_a_damaged_state_file_is_named():
    disk = SimDisk()
    disk.mkdir(MODELS / "digits")
    disk.write(MODELS / "digits" / "state.json", b"{")
    with pytest.raises(ContractError, match=r"state\.json"):
        Store(disk, MODELS, "digits")


def test_state_comes_back_as_it_was():
    disk = SimDisk()
    store = Store(disk, MODELS, "digits")
    state = ModelState(active="b", b=Slot("a" * 64, "1.0", "onnx-fp32", "onnxruntime"), blocked={"c" * 64: "self-test"})
    store.save(state)
    assert Store(disk, MODELS, "digits").state == state
