"""A device takes packages from a repository through all states, with real files, sessions and self-test processes."""

from __future__ import annotations

import itertools
import threading

import msgspec
import pytest

from edgewright_agent.disk import RealDisk
from edgewright_agent.updating.slots import Store
from edgewright_agent.updating.update import State
from edgewright_contracts.errors import Unavailable
from sim import packages

GOOD = ["idle", "fetch", "stage", "selftest", "warmup", "activate", "probation", "commit", "idle"]


def told(world):
    """What the device said of its model, in order."""
    return sorted((e for e in world.hub.events["dev-1"] if e.model), key=lambda e: e.seq)


class Feed:
    """Predicts on one thread until it is closed; counts for itself what the hub must find."""

    def __init__(self, agent, name: str = "digits") -> None:
        self.model, self.n, self.errors = agent.model(name), 0, []
        self.digests: list[str] = []
        self._images, self._labels = packages.draw(200, seed=3)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        for i in itertools.count():
            if self._stop.is_set():
                return
            try:
                p = self.model.predict({"image": self._images[i % 200]})
            except Unavailable as error:
                if self.n:
                    self.errors.append(error)
                self._stop.wait(0.01)
                continue
            self.n += 1
            if not self.digests or self.digests[-1] != p.digest:
                self.digests.append(p.digest)
            self._stop.wait(0.001)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def test_a_package_is_fetched_tried_and_committed_and_every_inference_is_counted_once(world):
    package = world.package("v1")
    with world.agent() as agent:
        world.want(package)
        with Feed(agent) as feed:
            assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
    assert world.hub.n("dev-1") == feed.n > 0
    assert not feed.errors
    assert {w.phase for w in world.hub.windows["dev-1"]} >= {"probation"}
    assert world.broker.status("dev-1").online is False


def test_a_package_that_fails_its_selftest_is_refused_and_the_old_one_goes_on_answering(world):
    good, bad = world.package("v1"), world.package("v2", version="2.0.0", broken_selftest=True)
    with world.agent() as agent:
        world.want(good)
        with Feed(agent) as feed:
            assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
            world.want(bad)
            assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1] == "blocked")
            before = feed.n
            assert world.hub.wait(lambda: feed.n > before + 20)
    assert feed.digests == [good.digest]
    assert not feed.errors
    last = told(world)[-1]
    assert last.failure == "model"
    assert "self-test" in last.reason
    assert last.digest == bad.digest


def test_a_switch_drops_no_inference(world):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    with world.agent() as agent:
        world.want(first)
        with Feed(agent) as feed:
            assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
            world.want(second, rollout="r1")
            assert world.hub.wait(lambda: len(world.hub.trace("dev-1")) == 17)
    assert feed.digests == [first.digest, second.digest]
    assert not feed.errors
    assert world.hub.n("dev-1") == feed.n
    by_digest = {w.digest for w in world.hub.windows["dev-1"] if w.n}
    assert by_digest == {first.digest[:16], second.digest[:16]}


def test_going_back_takes_the_other_slot_without_a_download(world):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    with world.agent() as agent, Feed(agent) as feed:
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        world.want(second)
        assert world.hub.wait(lambda: len(world.hub.trace("dev-1")) == 17)
        world.repository.requests.clear()
        world.want(first)
        assert world.hub.wait(lambda: len(world.hub.trace("dev-1")) == 25)
        assert not [path for path, _ in world.repository.requests if "/blobs/" in path]
        assert feed.digests == [first.digest, second.digest, first.digest]


def test_a_package_that_its_owner_withdrew_does_not_come_back_from_the_other_slot(world):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    with world.agent() as agent, Feed(agent) as feed:
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        world.want(second)
        assert world.hub.wait(lambda: len(world.hub.trace("dev-1")) == 17)
        world.repository.withdraw(first)
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[17:] == ["fetch", "idle"])
    last = told(world)[-1]
    assert last.failure == "hub"
    assert "signs no package digits" in last.reason
    assert feed.digests == [first.digest, second.digest]


def test_going_back_works_while_the_repository_is_down(world):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    with world.agent() as agent, Feed(agent) as feed:
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        world.want(second)
        assert world.hub.wait(lambda: len(world.hub.trace("dev-1")) == 17)
        world.repository.down = True
        world.want(first)
        assert world.hub.wait(lambda: feed.digests == [first.digest, second.digest, first.digest])


def test_a_restarted_agent_answers_with_what_it_had_before_any_hub(world):
    package = world.package("v1")
    with world.agent() as agent:
        world.want(package)
        with Feed(agent):
            assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
    world.repository.down = True
    with world.agent() as again:
        x, labels = packages.draw(1, seed=5)
        assert again.model("digits").wait(60)
        p = again.model("digits").predict({"image": x[0]})
        assert int(p.outputs["probabilities"].argmax()) == labels[0]
        assert p.digest == package.digest
        assert world.hub.wait(lambda: len(world.hub.births["dev-1"]) == 2)
    assert world.hub.births["dev-1"][1].unclean == ()
    assert [s.state for s in world.hub.births["dev-1"][1].slots] == ["active"]


def test_a_file_that_is_no_model_is_blocked_as_the_models_fault_until_it_is_cleared(world):
    bad = world.package("v1", broken_model=True)
    with world.agent():
        world.want(bad)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1:] == ["blocked"])
        assert told(world)[-1].failure == "model"
        seen = len(world.hub.trace("dev-1"))
        world.want(bad, cleared=(bad.digest,))
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[seen : seen + 2] == ["idle", "fetch"])


def test_a_broken_link_is_retried_and_blames_nobody(world):
    package = world.package("v1")
    world.repository.down = True
    with world.agent():
        world.want(package)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == ["idle", "fetch", "idle"])
        last = told(world)[-1]
        assert last.failure == "link"
        world.repository.down = False
        world.want(package)  # a new document is a reason to try at once
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1] == "probation")
        assert told(world)[-1].attempt == 2


def test_a_package_over_its_memory_budget_rolls_back(world):
    from edgewright_contracts.manifest import Budgets

    good = world.package("v1")
    bad = world.package("v2", version="2.0.0", budgets=Budgets(rss_mb=50))
    with world.agent() as agent, Feed(agent) as feed:
        world.want(good)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        world.want(bad, windows=1000)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1] == "probation")
        assert world.hub.wait(lambda: feed.digests[-1] == bad.digest)
        leak = bytearray(b"x" * (100 << 20))
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-2:] == ["rollback", "blocked"])
        assert world.hub.wait(lambda: feed.digests[-1] == good.digest)
    assert feed.digests == [good.digest, bad.digest, good.digest]
    assert len(leak) == 100 << 20
    assert world.hub.events["dev-1"][-2].reason.startswith("memory ")


def test_a_package_far_over_its_latency_budget_never_answers(world):
    from edgewright_contracts.manifest import Budgets

    bad = world.package("v1", slow=40, budgets=Budgets(p95_ms=0.01))
    with world.agent() as agent:
        world.want(bad)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-2:] == ["selftest", "blocked"], 30)
        assert agent.model("digits").active is None
    assert told(world)[-1].reason.startswith("self-test: p95 latency")


def test_without_the_hub_a_probation_lasts_longer_and_then_commits_marked_offline(world):
    package = world.package("v1")
    with world.agent() as agent, Feed(agent):
        world.want(package, windows=1, max_s=3)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1:] == ["probation"])
        world.links["dev-1"].cut()
        state = world.home("dev-1") / "models" / "digits" / "state.json"
        assert agent.model("digits").wait(1)
        deadline = threading.Event()
        for _ in range(200):
            if b'"state":"idle"' in state.read_bytes():
                break
            deadline.wait(0.1)
        world.links["dev-1"].connect()
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
    commit = next(e for e in world.hub.events["dev-1"] if e.after == "commit")
    assert commit.reason.startswith("offline:")


def test_a_probation_without_inferences_ends_in_a_rollback_that_blames_nobody(world):
    good, idle = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    with world.agent() as agent:
        with Feed(agent):
            world.want(good)
            assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        world.want(idle, max_s=2)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-2:] == ["rollback", "idle"])
        assert agent.model("digits").active.digest == good.digest
    assert told(world)[-1].failure != "model"


def test_a_damaged_slot_falls_back_to_the_other_and_with_a_damaged_state_it_still_answers(world):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    with world.agent() as agent, Feed(agent):
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        world.want(second)
        assert world.hub.wait(lambda: len(world.hub.trace("dev-1")) == 17)
    models = world.home("dev-1") / "models" / "digits"
    (models / "b" / "variants" / "onnx-fp32" / "model.onnx").write_bytes(b"rotten")
    world.repository.down = True
    with world.agent() as agent:
        assert agent.model("digits").wait(60)
        assert agent.model("digits").active.digest == first.digest
    (models / "state.json").write_bytes(b"rotten")
    world.repository.down = False
    with world.agent() as agent, Feed(agent) as feed:
        assert world.hub.wait(lambda: feed.digests == [first.digest, second.digest], 30)  # what the hub still wants


@pytest.fixture
def on_trial(world):
    """A device that answers with v2 in probation, v1 in the other slot, and was stopped: (store, v1, v2)."""
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    with world.agent() as agent, Feed(agent):
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == GOOD)
        world.want(second, windows=10_000)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-1] == "probation")
    world.repository.down = True
    return Store(RealDisk(), world.home("dev-1") / "models", "digits"), first, second


def altered(store, **fields):
    store.save(msgspec.structs.replace(store.state, record=msgspec.structs.replace(store.state.record, **fields)))


def rot(store, side):
    (store.side(side) / "variants" / "onnx-fp32" / "model.onnx").write_bytes(b"rot")


def test_a_rollback_that_a_reboot_cut_short_ends_with_the_old_package(world, on_trial):
    store, first, _ = on_trial
    altered(store, state=State.ROLLBACK, failure="operator", crashes=2)
    agent = world.agent()
    agent._installer.boot(unclean=True)
    state = agent._installer.states()["digits"]
    assert (state.record.state, state.running.digest, state.blocked) == (State.IDLE, first.digest, {})
    assert agent.model("digits").active.digest == first.digest
    agent.close()


def test_a_package_that_crashes_too_often_is_left_without_loading_it_once_more(world, on_trial, monkeypatch):
    from edgewright_agent.updating import retreat

    store, first, second = on_trial
    altered(store, crashes=2)
    loaded, load = [], retreat.load

    def noted(store, side):
        loaded.append(store.state.slot(side).digest)
        return load(store, side)

    monkeypatch.setattr(retreat, "load", noted)
    agent = world.agent()
    agent._installer.boot(unclean=True)
    state = agent._installer.states()["digits"]
    assert (state.record.state, list(state.blocked)) == (State.BLOCKED, [second.digest])
    assert loaded == [first.digest]
    agent.close()


@pytest.mark.parametrize("crashes", [0, 2])
def test_a_trial_whose_file_has_rotted_ends_with_the_old_package_answering(world, on_trial, crashes):
    store, first, second = on_trial
    altered(store, crashes=crashes)
    rot(store, store.state.active)
    agent = world.agent()
    agent._installer.boot(unclean=crashes > 0)
    state = agent._installer.states()["digits"]
    assert state.running.digest == first.digest
    assert agent.model("digits").active.digest == first.digest
    blamed = [second.digest] if crashes else []  # three crashes are the model's, rot is not
    assert list(state.blocked) == blamed
    agent.close()


def test_going_back_to_a_slot_that_has_rotted_leaves_a_withdrawn_package_answering(world, on_trial):
    store, _, second = on_trial
    altered(store, state=State.ROLLBACK, failure="operator")
    rot(store, store.state.spare)
    agent = world.agent()
    agent._installer.boot(unclean=False)
    assert agent.model("digits").active.digest == second.digest
    state = agent._installer.states()["digits"]
    assert state.slot(state.spare) is None
    agent.close()
