"""A candidate beside the model that answers: what it may see, cost and say, and how its trial ends."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from edgewright_agent.inference import shadow as shadows
from edgewright_agent.inference.agreement import compared
from edgewright_agent.inference.model import Active, Model
from edgewright_agent.inference.shadow import Allowance, Shadow
from edgewright_agent.telemetry.counts import Clocks
from edgewright_agent.telemetry.meter import Meter
from edgewright_agent.telemetry.rows import Subject
from edgewright_agent.updating import trial
from edgewright_agent.updating.update import Event, Record, State
from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.desired import Config, Desired, DesiredModel, Probation
from edgewright_contracts.desired import Shadow as Rule
from edgewright_contracts.manifest import SessionOptions, TensorOut
from edgewright_contracts.report import Hits, Shift, Usage
from sim import packages
from sim.clock import SimClock

CLOCKS = Clocks("1" * 16, 0, 1000, None, "unknown", 10)
IMAGE = packages.draw(1, seed=1)[0][0]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return packages.make_package(tmp_path_factory.mktemp("package") / "p")


def outputs(label: int, sure: float) -> dict[str, np.ndarray]:
    p = np.full((1, 10), (1 - sure) / 9, np.float32)
    p[0, label] = sure
    return {"probabilities": p, "monitor": np.zeros((1, 6), np.float32)}


class Answers:
    """A session that says what it is told to, and takes `lasts_s` of a simulated clock."""

    runtime, version, concurrent = "onnxruntime", "1", True

    def __init__(self, said, clock: SimClock, lasts_s: float = 0.0) -> None:
        self.said, self.clock, self.lasts_s = said, clock, lasts_s
        self.seen: list[np.ndarray] = []

    def run(self, inputs):
        self.seen.append(inputs["image"])
        self.clock.advance(self.lasts_s)
        if isinstance(self.said, Exception):
            raise self.said
        return dict(self.said)


class Bench:
    """A model that answers 3 with 0.5, a candidate, and their shadow run without a thread of its own: `turn` is it."""

    def __init__(self, package, said, *, share=1.0, uniform=lambda: 0.0, lasts_s=0.0, manifest=None, threads=1) -> None:
        self.clock, self.meter, self.allowed = SimClock(), Meter(threading.Event()), Allowance(permille=1000)
        variant = package.manifest.variant("onnx-fp32")
        baseline = decode_baseline(package.read(variant.baseline))
        first = Subject("digits", package.manifest, "a" * 64, variant, baseline)
        wide = msgspec.structs.replace(variant, session=SessionOptions(threads=threads))
        second = Subject("digits", manifest or package.manifest, "b" * 64, wide, baseline, "shadow", "r1")
        self.model = Model("digits", self.meter, self.clock, itertools.count(1))
        self.model.switch(Active(first, Answers(outputs(3, 0.5), self.clock)))
        self.candidate = Answers(said, self.clock, lasts_s)
        self.shadow = Shadow(
            self.model.active, Active(second, self.candidate), attach=self.model.watch, share=share, meter=self.meter,
            allowance=lambda: self.allowed, now_ns=self.clock.monotonic_ns, uniform=uniform,
        )  # fmt: skip
        self.model.watch(self.shadow.look)

    def predict(self, n: int = 1, image=IMAGE, context: str = "") -> None:
        for _ in range(n):
            assert self.model.predict({"image": image}, context=context).digest == "a" * 64

    def windows(self):
        self.meter.drain()
        return [w for _, w in self.meter.take([], CLOCKS, Usage()) if w.phase == "shadow"]


def test_a_shadow_counts_agreement_and_sureness_in_windows_of_its_own(package):
    bench = Bench(package, outputs(3, 0.75))
    bench.predict(2)
    bench.predict(1, context="night")
    bench.candidate.said = outputs(4, 0.25)
    bench.shadow.turn()  # all three
    bench.candidate.said = outputs(3, 0.75)
    bench.predict(4)
    bench.shadow.turn()
    by_context = {w.context: w for w in bench.windows()}
    day, night = by_context[""], by_context["night"]
    assert (day.digest, day.rollout, day.n, day.n_monitored) == ("b" * 16, "r1", 6, 6)
    assert (day.shadow, night.shadow) == (Hits(6, 4), Hits(1, 0))
    assert day.shadow_confidence == Shift(6, 4 * 250_000, 2 * 250_000)
    assert day.latency_total
    assert day.cells


def test_only_what_is_drawn_is_copied_and_what_is_copied_stays_as_it_was(package):
    bench = Bench(package, outputs(3, 0.5), share=0.3, uniform=itertools.cycle([0.1, 0.3, 0.9, 0.5]).__next__)
    image = IMAGE.copy()
    for value in range(8):
        image[:] = value
        bench.predict(1, image)
    image[:] = 16
    bench.shadow.turn()
    assert [int(x[0, 0, 0]) for x in bench.candidate.seen] == [0, 4]


def test_what_does_not_fit_into_the_queue_is_shed_and_counted(package):
    bench = Bench(package, outputs(3, 0.5))
    bench.predict(shadows.WAITING + 5)
    bench.shadow.turn()
    (window,) = bench.windows()
    assert (window.n, window.shed) == (shadows.WAITING, {"shadow": 5})


def test_large_inputs_wait_in_few(package, monkeypatch):
    monkeypatch.setattr(shadows, "HELD_BYTES", 3 * IMAGE.nbytes)
    bench = Bench(package, outputs(3, 0.5))
    bench.predict(5)
    bench.shadow.turn()
    assert bench.windows()[0].n == 3


def test_a_device_that_is_short_of_something_runs_no_candidate(package):
    bench = Bench(package, outputs(3, 0.5))
    bench.allowed = Allowance(go=False)
    bench.predict(3)
    bench.shadow.turn()
    (window,) = bench.windows()
    assert (window.n, window.shed) == (0, {"shadow": 3})


def test_a_candidate_takes_no_more_than_its_share_of_a_core(package):
    bench = Bench(package, outputs(3, 0.5), lasts_s=0.01)
    bench.allowed = Allowance(permille=100)
    ran = []
    for _ in range(200):  # 2 s
        bench.predict(1)
        bench.shadow.turn()
        bench.clock.advance(0.01)
        ran.append(len(bench.candidate.seen))
    assert ran[-1] == pytest.approx(22, abs=2)  # 0.22 s of 2.2 s
    (window,) = bench.windows()
    assert window.n + window.shed["shadow"] == 200


def test_a_candidate_that_runs_on_several_cores_rests_for_each_of_them(package, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    bench = Bench(package, outputs(3, 0.5), lasts_s=0.01, threads=8)
    bench.allowed = Allowance(permille=100)
    for _ in range(200):
        bench.predict(1)
        bench.shadow.turn()
        bench.clock.advance(0.01)
    assert len(bench.candidate.seen) == pytest.approx(5, abs=1)  # 0.05 s on 4 cores of 2.05 s


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (ValueError("kernel"), "onnxruntime failed: kernel"),
        (outputs(3, np.nan), "output 'probabilities' is not a number"),
    ],
)
def test_a_candidate_that_throws_or_says_nan_has_failed_and_is_not_run_again(package, said, why):
    bench = Bench(package, said)
    bench.predict(3)
    bench.shadow.turn()
    assert bench.shadow.broken() == why
    assert len(bench.candidate.seen) == 1
    (window,) = bench.windows()
    assert window.error_count == isinstance(said, Exception)


def test_a_monitor_may_miss_a_number_and_want_of_memory_is_not_the_candidates_fault(package):
    bench = Bench(package, {**outputs(3, 0.5), "monitor": np.full((1, 6), np.nan, np.float32)})
    bench.predict(1)
    bench.shadow.turn()
    bench.candidate.said = MemoryError()
    bench.predict(1)
    bench.shadow.turn()
    assert bench.shadow.broken() == ""
    (window,) = bench.windows()
    assert (window.n, window.shed) == (1, {"shadow": 1})


def test_a_candidate_that_does_not_come_back_has_failed(package):
    bench = Bench(package, outputs(3, 0.5))
    seen = []

    def hang(inputs):
        bench.clock.advance(shadows.HUNG_S + 1)
        seen.append(bench.shadow.broken())
        return outputs(3, 0.5)

    bench.shadow._candidate.run = hang
    bench.predict(1)
    bench.shadow.turn()
    assert seen == ["one inference has not ended after 60 s"]


def test_an_input_that_the_candidate_does_not_allow_is_rejected_and_nobodys_error(package):
    narrow = msgspec.structs.replace(package.manifest.inputs[0], valid=(0, 1))
    bench = Bench(package, outputs(3, 0.5), manifest=msgspec.structs.replace(package.manifest, inputs=(narrow,)))
    bench.predict(1)
    bench.shadow.turn()
    (window,) = bench.windows()
    assert (window.n, window.rejected, bench.shadow.broken()) == (0, {"range": 1}, "")


def test_a_tap_outlives_a_change_of_rollout_and_ends_with_the_run(package):
    bench = Bench(package, outputs(3, 0.5))
    active = bench.model.active
    bench.model.switch(Active(msgspec.structs.replace(active.subject, rollout="r2"), active.session))
    bench.predict(1)
    bench.shadow.turn()
    assert len(bench.candidate.seen) == 1
    bench.shadow.stop()
    assert bench.model.active.tap is None


def test_answers_agree_by_what_the_task_is_about(package):
    def between(task, role, a, b):
        out = (TensorOut(name="y", role=role, shape=(len(a),)),)
        manifest = msgspec.structs.replace(package.manifest, task=task, outputs=out)
        rule = compared(manifest, manifest)
        return rule.verdict([np.array([a], np.float32)], [np.array([b], np.float32)])

    assert between("classification", "probabilities", [0.4, 0.6], [0.25, 0.75]) == (True, 150_000)
    assert between("multilabel", "probabilities", [0.6, 0.5], [0.5, 0.4])[0] is False
    assert between("multilabel", "probabilities", [0.6, 0.5], [0.9, 0.6])[0] is True
    assert between("regression", "values", [100.0, 1.0], [104.0, 5.0]) == (True, None)
    assert between("regression", "values", [100.0, 1.0], [100.0, 7.0]) == (False, None)
    assert between("anomaly", "score", [0.01], [0.05]) == (True, None)
    assert between("anomaly", "score", [0.01], [0.07]) == (False, None)
    assert compared(package.manifest, msgspec.structs.replace(package.manifest, task="multilabel")) is None


def found(*objects, order=None):
    """Outputs of a detection: (x0, y0, x1, y1, score, class) each, padded with boxes that nobody is sure of."""
    rows = np.array([*objects, *[(0, 0, 0, 0, 0, 0)] * (4 - len(objects))], np.float32)[order or range(4)]
    return [rows[None, :, :4], rows[None, :, 4], rows[None, :, 5].astype(np.int32)]


def test_found_objects_agree_in_whatever_order_they_come(package):
    boxes = (
        TensorOut(name="boxes", role="boxes", shape=(4, 4)),
        TensorOut(name="scores", role="score", shape=(4,)),
        TensorOut(name="classes", role="classes", shape=(4,), dtype="int32"),
    )
    manifest = msgspec.structs.replace(package.manifest, task="detection", outputs=boxes)
    rule = compared(manifest, manifest)
    cat, dog = (0, 0, 2, 2, 0.9, 1), (5, 5, 8, 8, 0.8, 2)

    def agree(a, b):
        said = rule.verdict(a, b)[0]
        assert rule.verdict(b, a)[0] is said
        return said

    assert rule.verdict(found(cat, dog), found(dog, cat, order=[2, 1, 3, 0])) == (True, 0)
    assert agree(found(cat), found((0, 0, 2, 1.5, 0.6, 1)))  # three quarters of it
    assert not agree(found(cat), found((0, 0, 2, 0.9, 0.9, 1)))
    assert not agree(found(cat), found((*cat[:5], 2)))
    assert not agree(found(cat, dog), found(cat))
    assert not agree(found(cat, (*cat[:4], 0.7, 1)), found(cat))  # the same thing twice
    assert agree(found(cat, (5, 5, 8, 8, 0.51, 2)), found(cat, (5, 5, 8, 8, 0.49, 2)))  # hardly surer than not
    assert agree(found(), found((5, 5, 8, 8, 0.3, 2)))
    first, second, third = (0, 0, 3, 3, 0.9, 1), (1, 0, 4, 3, 0.9, 1), (0, 0, 2.9, 3, 0.9, 1)
    assert agree(found(first, third), found(second, third))  # the first leaves the second its only partner
    bare = msgspec.structs.replace(manifest, outputs=boxes[:1])
    assert compared(bare, bare).active == ("boxes",)


# The state `shadow`.


class Desk:
    """What `trial` sees of a job and of the host."""

    def __init__(self, package, *, room=None, loaded=True, rule=Rule(share=1, windows=2), slot=True) -> None:  # noqa: B008
        self.record = Record(
            state=State.SHADOW, rev=1, wanted=DesiredModel(name="digits", digest="b" * 64, shadow=rule, rollout="r")
        )
        self.wanted, self.loaded = self.record.wanted, None
        self.watch = None
        self.rollout = "r"
        self.now_s = self.trial_since_s = self.tried_s = 0.0
        self.rooms = list(room or [])
        self.moved: list[tuple[Event, str]] = []
        self.store = self
        self.name = "digits"
        self.package = package
        if loaded:
            self.loaded = self
        self.broke = ""

    def staged(self):
        return "b", self

    variant = "onnx-fp32"

    def verified(self, side):
        return self.package

    def room_mb(self):
        return self.rooms.pop(0) if self.rooms else None

    def go(self, event, *, reason=""):
        self.moved.append((event, reason))

    def keep(self, record):
        self.record = record

    def broken(self):
        return self.broke


def test_a_shadow_run_that_cannot_be_is_left_out_and_says_why(package, monkeypatch):
    monkeypatch.setattr(trial, "load", lambda store, side: None)
    other = msgspec.structs.replace(package.manifest.inputs[0], shape=(9, 9))
    unlike = msgspec.structs.replace(package.manifest, version="0.9.0", inputs=(other,))
    for desk, host, why in (
        (Desk(package, loaded=False), Desk(package), "no model answers"),
        (Desk(package), Desk(package, room=[0.0]), "0 MB of memory are left"),
        (Desk(package), Desk(package, room=[50.0, -7.0]), "7 MB over this agent's memory limit"),
        (Desk(package, rule=None), Desk(package), "asks for none any more"),
    ):
        trial.begin(desk, host)
        ((event, reason),) = desk.moved
        assert event is Event.DONE
        assert reason.startswith("no shadow run: ")
        assert why in reason
        assert desk.watch is None
    desk = Desk(package)
    desk.loaded = Desk(package)
    desk.loaded.package = SimpleNamespace(manifest=unlike)
    trial.begin(desk, Desk(package))
    assert desk.moved[0][1] == "no shadow run: 1.0.0 takes other inputs than 0.9.0"


def test_a_shadow_run_ends_by_its_windows_by_its_failure_or_by_time(package):
    desk = Desk(package)
    desk.watch = desk
    assert trial.conclude(desk) is None
    desk.record = msgspec.structs.replace(desk.record, watched=2)
    assert trial.conclude(desk).event is Event.DONE
    desk.broke = "onnxruntime failed: x"
    end = trial.conclude(desk)
    assert (end.event, end.failure, end.reason) == (Event.BROKEN, "model", "shadow: onnxruntime failed: x")
    late = Desk(package)
    late.watch, late.tried_s = late, Probation().max_s + 1
    end = trial.conclude(late)
    assert (end.event, end.failure) == (Event.DELAYED, "operator")
    assert "0 of 2 windows" in end.reason
    dropped = Desk(package, rule=None)
    dropped.watch = dropped
    assert trial.conclude(dropped).event is Event.DONE


# On a device.


def wish(world, package, *, windows: int = 1, share: float = 1.0) -> None:
    world.rev += 1
    model = DesiredModel(
        name="digits", digest=package.digest, shadow=Rule(share=share, windows=windows), probation=Probation(windows=1)
    )
    config = Config(window_s=0.5, rollout_window_s=0.5)
    world.hub.want("dev-1", Desired(rev=world.rev, config=config, models=(model,)))


@pytest.fixture
def feed():
    stop, threads = threading.Event(), []
    digests: list[str] = []

    def start(agent):
        def run():
            x, _ = packages.draw(200, seed=3)
            while not agent.model("digits").wait(0.05):
                if stop.is_set():
                    return
            for i in itertools.count():
                if stop.wait(0.002):
                    return
                digest = agent.model("digits").predict({"image": x[i % 200]}).digest
                if digests[-1:] != [digest]:
                    digests.append(digest)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return digests

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def test_a_candidate_runs_in_shadow_then_answers_and_a_first_package_has_nothing_to_run_beside(world, feed):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    with world.agent() as agent:
        digests = feed(agent)
        wish(world, first)
        states = ["idle", "fetch", "stage", "selftest", "shadow", "warmup", "activate", "probation", "commit", "idle"]
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == states)
        left_out = next(e for e in world.hub.events["dev-1"] if e.before == "shadow")
        assert left_out.reason == "no shadow run: no model answers that it could be compared with"
        wish(world, second, windows=2)
        assert world.hub.wait(lambda: world.hub.trace("dev-1") == states + states[1:])
        assert agent.model("digits").active.tap is None
        assert "edgewright-shadow" not in [t.name for t in threading.enumerate()]
    assert digests == [first.digest, second.digest]
    done = [e for e in world.hub.events["dev-1"] if e.before == "shadow"][-1]
    assert done.reason == "2 shadow windows"
    seen = [w for w in world.hub.windows["dev-1"] if w.phase == "shadow"]
    assert {w.digest for w in seen} == {second.digest[:16]}
    compared_n, agreed = sum(w.shadow.n for w in seen), sum(w.shadow.hits for w in seen)
    assert 0.8 * compared_n < agreed <= compared_n == sum(w.n for w in seen)
    assert sum(w.shadow_confidence.n for w in seen if w.shadow_confidence) == compared_n
    assert not any(w.n for w in world.hub.windows["dev-1"] if w.phase == "normal" and w.digest == second.digest[:16]
                   and w.mono_start_ms < seen[0].mono_start_ms)  # fmt: skip


def test_a_candidate_that_fails_beside_the_model_is_blocked_and_never_answers(world, feed, monkeypatch):
    first, second = world.package("v1"), world.package("v2", version="2.0.0", seed=1)
    load = trial.load

    class Failing:
        runtime, version, concurrent = "onnxruntime", "1", True

        def run(self, inputs):
            raise ValueError("kernel")

    monkeypatch.setattr(trial, "load", lambda store, side: load(store, side)._replace(session=Failing()))
    with world.agent() as agent:
        digests = feed(agent)
        world.want(first)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-2:] == ["commit", "idle"])
        wish(world, second)
        assert world.hub.wait(lambda: world.hub.trace("dev-1")[-2:] == ["shadow", "blocked"])
        assert agent.model("digits").active.tap is None
    last = next(e for e in reversed(world.hub.events["dev-1"]) if e.model)
    assert (last.failure, last.reason) == ("model", "shadow: onnxruntime failed: kernel")
    assert digests == [first.digest]


# Switching.


def test_a_session_is_let_go_behind_the_last_call_that_holds_it(package):
    clock, meter = SimClock(), Meter(threading.Event())
    variant = package.manifest.variant("onnx-fp32")
    subject = Subject("digits", package.manifest, "a" * 64, variant, decode_baseline(package.read(variant.baseline)))
    model = Model("digits", meter, clock, itertools.count(1))
    began, end = threading.Event(), threading.Event()

    class Slow(Answers):
        def run(self, inputs):
            began.set()
            end.wait(60)
            return dict(self.said)

    old = Slow(outputs(3, 0.5), clock)
    held = weakref.ref(old)
    model.switch(Active(subject, old))
    del old
    answers = []
    call = threading.Thread(target=lambda: answers.append(model.predict({"image": IMAGE})))
    call.start()
    assert began.wait(60)
    model.switch(Active(msgspec.structs.replace(subject, digest="b" * 64), Answers(outputs(4, 0.5), clock)))
    assert model.predict({"image": IMAGE}).digest == "b" * 64
    gc.collect()
    assert held() is not None
    end.set()
    call.join()
    assert answers[0].digest == "a" * 64
    gc.collect()
    assert held() is None
    meter.drain()
    assert sum(w.n for _, w in meter.take([], CLOCKS, Usage())) == 2
