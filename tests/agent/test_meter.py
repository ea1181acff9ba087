"""What is counted is exact, whatever thread it comes from and however late its label."""

from __future__ import annotations

import itertools
import threading

import msgspec
import numpy as np
import pytest

from edgewright_agent.inference.breaker import FAILURES
from edgewright_agent.inference.checks import LARGEST, Rejected, checker, sampler
from edgewright_agent.inference.model import Active, InferenceFailed, Model
from edgewright_agent.telemetry import rows
from edgewright_agent.telemetry.counts import Clocks
from edgewright_agent.telemetry.meter import Meter
from edgewright_agent.telemetry.outcomes import Outcome
from edgewright_agent.telemetry.ring import RING
from edgewright_agent.telemetry.rows import Subject
from edgewright_contracts import binning
from edgewright_contracts.baseline import decode_baseline, per_channel
from edgewright_contracts.errors import Unavailable
from edgewright_contracts.manifest import TensorIn
from edgewright_contracts.report import Hits, Usage
from edgewright_runtime.runtime import open_session
from sim import packages
from sim.clock import SimClock

CLOCKS = Clocks("1" * 16, 0, 1000, None, "unknown", 10)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return packages.make_package(tmp_path_factory.mktemp("package") / "p")


@pytest.fixture
def device(package):
    """(model, meter, subject): a model that answers, metered, without threads of its own."""
    variant = package.manifest.variant("onnx-fp32")
    subject = Subject(
        "digits", package.manifest, package.digest, variant, decode_baseline(package.read(variant.baseline))
    )
    session = open_session(
        package.root / variant.model, "onnxruntime", inputs=package.manifest.inputs, outputs=package.manifest.outputs
    )
    meter = Meter(threading.Event())
    model = Model("digits", meter, SimClock(), itertools.count(1))
    model.switch(Active(subject, session))
    return model, meter, subject


OUTPUTS = {"probabilities": np.zeros((1, 10), np.float32), "monitor": np.zeros((1, 6), np.float32)}


class Answers:
    """A session that gives the same outputs, unless it is told to fail."""

    runtime, version, concurrent = "onnxruntime", "1", True

    def __init__(self, outputs=None):
        self.outputs, self.failing, self.calls = outputs, False, 0

    def run(self, inputs):
        self.calls += 1
        if self.failing:
            raise ValueError("kernel")
        return dict(self.outputs)


def take(meter, *subjects):
    meter.drain()
    return [w for _, w in meter.take(subjects, CLOCKS, Usage())]


def test_a_window_counts_what_the_binner_of_the_reference_counts(device):
    model, meter, subject = device
    x, _ = packages.draw(300, seed=4)
    outputs = [model.predict({"image": one}).outputs for one in x]
    (window,) = take(meter, subject)
    assert window.n == window.n_monitored == 300
    assert int(binning.unpack_grid(window.latency_total).sum()) == 300
    cells = per_channel(subject.baseline.channels, binning.unpack(window.cells))
    assert [int(c.sum()) for c in cells] == [300] * len(cells)
    classes = np.bincount([int(o["probabilities"].argmax()) for o in outputs], minlength=11)
    at = [c.name for c in subject.baseline.channels].index("output.class")
    np.testing.assert_array_equal(cells[at], classes)
    assert window.digest == subject.digest[:16]
    assert take(meter, subject)[0].n == 0


def test_counts_stay_exact_from_many_threads_and_when_rows_overflow(device):
    model, meter, subject = device
    model.active.rows.limit = 100
    x, _ = packages.draw(10, seed=4)

    def run():
        for i in range(500):
            model.predict({"image": x[i % 10]})

    threads = [threading.Thread(target=run) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    (window,) = take(meter, subject)
    assert window.n == 2000
    assert window.n_monitored + window.shed["rows"] == 2000
    assert 100 <= window.n_monitored < 110


def test_a_full_queue_sheds_rows_but_no_count_of_errors_contexts_or_labels(device):
    model, meter, subject = device
    x, labels = packages.draw(1, seed=4)
    good = model.active.session

    class Sometimes:
        runtime, version, concurrent = "onnxruntime", "1", False
        calls = 0

        def run(self, inputs):
            self.calls += 1
            if self.calls % 4 == 0:
                raise ValueError("kernel")
            return good.run(inputs)

    model.switch(Active(subject, Sometimes()))
    model.active.rows.limit = 64
    ids = []
    for i in range(400):
        try:
            ids.append(model.predict({"image": x[0]}, context="night" if i % 2 else "").id)
        except InferenceFailed:
            ids.append(None)
    for identifier in ids:
        if identifier is not None:
            meter.outcome(Outcome(identifier, "correct", int(labels[0])))
    windows = {w.context: w for w in take(meter, subject)}
    assert {c: w.n for c, w in windows.items()} == {"": 200, "night": 200}
    assert sum(w.error_count for w in windows.values()) == 100
    assert sum(w.shed["rows"] for w in windows.values()) == 400 - 64
    assert sum(int(binning.unpack_grid(w.latency_total).sum()) for w in windows.values()) == 64
    joined = sum(w.outcomes["correct"].n for w in windows.values())
    assert joined == sum(w.n_monitored for w in windows.values()) == 48
    assert sum(w.shed.get("outcomes", 0) for w in windows.values()) == 300 - joined


def test_labels_that_nobody_takes_in_time_are_shed_and_counted(device):
    model, meter, subject = device
    model.switch(Active(subject, Answers(OUTPUTS)))
    x, _ = packages.draw(1, seed=4)
    ids = [model.predict({"image": x[0]}).id for _ in range(RING)]
    for identifier in (*ids[:7], *ids):
        meter.outcome(Outcome(identifier, "correct", 0))
    (window,) = take(meter, subject)
    assert (window.outcomes["correct"], window.shed["outcomes"]) == (Hits(RING, RING), 7)


def test_what_is_told_again_of_one_inference_counts_once_as_it_was_told_first(device):
    model, meter, subject = device
    x, labels = packages.draw(2, seed=4)
    one, other = (model.predict({"image": image}).id for image in x)
    wrong = (int(labels[0]) + 1) % 10
    told = [
        Outcome(one, "correct", "no such label"),  # tells nothing
        Outcome(one, "correct", int(labels[0])),
        Outcome(one, "correct", wrong),
        Outcome(one, "pick_ok", 0),
        Outcome(one, "pick_ok", 1),
        Outcome(other, "pick_ok", 1),
    ]
    for outcome in told:
        meter.outcome(outcome)
    (window,) = take(meter, subject)
    assert window.outcomes == {"correct": Hits(1, 1), "pick_ok": Hits(2, 1)}
    assert int(binning.unpack(window.correct_by_confidence).sum()) == 2  # in all, and of the right ones
    assert window.shed == {"outcomes": 3}
    for outcome in told:
        meter.outcome(outcome)
    (window,) = take(meter, subject)  # nor in a later window
    assert (window.outcomes, window.shed) == ({}, {"outcomes": 6})


def test_an_inference_takes_the_place_of_an_older_one_and_has_been_told_nothing(device):
    model, meter, subject = device
    model.switch(Active(subject, Answers(OUTPUTS)))
    x, _ = packages.draw(1, seed=4)
    meter.outcome(Outcome(model.predict({"image": x[0]}).id, "pick_ok", 1))
    for _ in range(RING - 1):
        model.predict({"image": x[0]})
    meter.drain()
    meter.outcome(Outcome(model.predict({"image": x[0]}).id, "pick_ok", 1))
    (window,) = take(meter, subject)
    assert (window.outcomes, window.shed) == ({"pick_ok": Hits(2, 2)}, {})


def test_outcomes_beyond_fifteen_names_are_shed_and_a_label_is_not(device):
    model, meter, subject = device
    x, labels = packages.draw(1, seed=4)
    identifier = model.predict({"image": x[0]}).id
    for i in range(20):
        meter.outcome(Outcome(identifier, f"step{i}", 1))
    meter.outcome(Outcome(identifier, "correct", int(labels[0])))
    (window,) = take(meter, subject)
    assert window.outcomes == {"correct": Hits(1, 1)} | {f"step{i}": Hits(1, 1) for i in range(15)}
    assert window.shed == {"outcomes": 5}


def test_an_inference_that_ends_after_a_switch_is_counted_under_what_it_ran_with(device, package):
    model, meter, subject = device
    x, _ = packages.draw(1, seed=4)
    later = Subject("digits", package.manifest, "f" * 64, subject.variant, subject.baseline)

    class SwitchedMeanwhile:
        runtime, version, concurrent = "onnxruntime", "1", True
        session = model.active.session

        def run(self, inputs):
            model.switch(Active(later, self.session))
            meter.drain()  # the old one has left no row yet
            return self.session.run(inputs)

    model.switch(Active(subject, SwitchedMeanwhile()))
    model.predict({"image": x[0]})
    model.predict({"image": x[0]})
    windows = {w.digest: w.n for w in take(meter, subject, later)}
    assert windows == {subject.digest[:16]: 1, "f" * 16: 1}
    assert [r.subject for r in meter._rows] == [later]  # the others were counted to the last, and are gone


def test_contexts_are_windows_of_their_own_and_unknown_ones_are_refused(device):
    model, meter, subject = device
    x, _ = packages.draw(1, seed=4)
    for context in ("", "night", "night"):
        model.predict({"image": x[0]}, context=context)
    with pytest.raises(Rejected, match="night"):
        model.predict({"image": x[0]}, context="fog")
    windows = {w.context: w for w in take(meter, subject)}
    assert {c: w.n for c, w in windows.items()} == {"": 1, "night": 2}
    assert windows[""].rejected == {"context": 1}


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({}, "missing"),
        (None, "missing"),
        ([np.zeros((8, 8), np.uint8)], "missing"),
        ({"image": None}, "missing"),
        ({"image": np.zeros((8, 8), np.uint8), "more": 1, 2: 3}, "unknown"),
        ({"image": b"\0" * 64}, "dtype"),
        ({"image": np.full((8, 8), None, object)}, "dtype"),
        ({"image": np.zeros((8, 8), ">u2")}, "dtype"),
        ({"image": np.uint8(3)}, "dtype"),
        ({"image": np.array(3, np.uint8)}, "shape"),
        ({"image": np.zeros((0, 8), np.uint8)}, "shape"),
        ({"image": np.zeros((), np.uint8)}, "shape"),
        ({"image": np.zeros(64, np.uint8)}, "shape"),
        ({"image": np.broadcast_to(np.uint8(0), (LARGEST + 1,))}, "size"),
        ({"image": [[0] * 8] * 8}, "dtype"),
        ({"image": np.zeros((8, 8), np.float32)}, "dtype"),
        ({"image": np.zeros((1, 8, 8), np.uint8)}, "shape"),
        ({"image": np.full((8, 8), 17, np.uint8)}, "range"),
    ],
)
def test_an_input_that_the_manifest_does_not_allow_never_reaches_the_model(device, inputs, reason):
    model, meter, subject = device
    with pytest.raises(Rejected) as caught:
        model.predict(inputs)
    assert caught.value.reason == reason
    assert "expected" in str(caught.value)
    (window,) = take(meter, subject)
    assert (window.n, window.rejected) == (0, {reason: 1})


def test_what_is_refused_leaves_no_trace_in_the_statistics_of_the_model(device):
    model, meter, subject = device
    x, _ = packages.draw(1, seed=4)
    model.predict({"image": x[0]})
    for bad in (np.full((8, 8), 200, np.uint8), x[0].astype(np.float64), x):
        with pytest.raises(Rejected):
            model.predict({"image": bad}, context="night")
    with pytest.raises(Rejected):
        model.predict({"image": x[0]}, context=["night"])
    model.predict({"image": x[0]})
    windows = {w.context: w for w in take(meter, subject)}
    assert (windows[""].n, windows[""].n_monitored, windows[""].repeated) == (2, 2, 1)
    assert windows[""].rejected == {"context": 1}
    night = windows["night"]
    assert (night.n, night.rejected) == (0, {"range": 1, "dtype": 1, "shape": 1})
    assert (night.cells, night.latency_total, night.errors, night.shed) == (b"", b"", {}, {})


def test_arrays_need_not_be_contiguous_nor_of_the_class_itself(device, tmp_path):
    model, _, _ = device
    x, _ = packages.draw(1, seed=4)
    plain = model.predict({"image": x[0]}).outputs["probabilities"]
    mapped = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(8, 8))
    mapped[:] = x[0]
    wide = np.zeros((8, 16), np.uint8)
    wide[:, ::2] = x[0]
    for same in (mapped, wide[:, ::2], np.asfortranarray(x[0]), x[0][::-1][::-1]):
        np.testing.assert_array_equal(model.predict({"image": same}).outputs["probabilities"], plain)


def test_nan_and_range_of_floats():
    check = checker(TensorIn(name="x", dtype="float32", shape=(3,), valid=(-1, 1)))
    assert check({"x": np.array([-1, 0, 1], np.float32)}).shape == (1, 3)
    for values, reason in (
        ([0, np.nan, 5], "nan"),
        ([0, 1.5, 0], "range"),
        ([-2, 0, 0], "range"),
        ([np.inf, 0, 0], "range"),
    ):
        with pytest.raises(Rejected) as caught:
            check({"x": np.array(values, np.float32)})
        assert caught.value.reason == reason
    free = checker(TensorIn(name="x", dtype="float32", shape=(2,)))
    free({"x": np.array([np.inf, 0], np.float32)})
    with pytest.raises(Rejected):
        free({"x": np.array([np.nan, 0], np.float32)})


@pytest.mark.parametrize("high", [1.0, 0.1, 255.0, 1e39, 0.0])
def test_a_range_from_zero_is_kept_to_the_last_bit(high):
    check = checker(TensorIn(name="x", dtype="float32", shape=(2,), valid=(0.0, high)))
    tiny = np.float32(1e-45)
    top = np.float32(min(high, float(np.finfo(np.float32).max)))
    top = top if float(top) <= high else np.nextafter(top, np.float32(0))
    for good in (0.0, -0.0, top):
        check({"x": np.array([0, good], np.float32)})
        check({"x": np.array([[0, 9], [good, 9]], np.float32)[:, 0]})
    with np.errstate(over="ignore"):
        above = np.nextafter(top, np.float32(np.inf))
    for bad, reason in ((above, "range"), (-tiny, "range"), (np.inf, "range"), (-np.inf, "range"), (np.nan, "nan")):
        for x in (np.array([0, bad], np.float32), np.array([[0, 0], [bad, 0]], np.float32)[:, 0]):
            with pytest.raises(Rejected) as caught:
                check({"x": x})
            assert caught.value.reason == reason


def test_late_labels_join_their_inference_by_confidence(device):
    model, meter, subject = device
    x, labels = packages.draw(100, seed=4)
    ids = [model.predict({"image": one}).id for one in x]
    first = take(meter, subject)
    for i, identifier in enumerate(ids):
        truth = int(labels[i]) if i % 2 else str(labels[i])
        meter.outcome(Outcome(identifier, "correct", truth if i >= 10 else (int(labels[i]) + 1) % 10))
    meter.outcome(Outcome(ids[0], "pick_ok", 1))
    meter.outcome(Outcome(10**9, "correct", 1))
    (window,) = take(meter, subject)
    assert first[0].outcomes == {}
    assert window.outcomes == {"correct": Hits(100, 90), "pick_ok": Hits(1, 1)}
    bins = binning.unpack(window.correct_by_confidence)
    assert (int(bins[:10].sum()), int(bins[10:].sum())) == (100, 90)
    assert window.shed == {"outcomes": 1}
    assert window.n == 0


def test_a_label_that_comes_with_its_inference_in_one_round_is_joined(device):
    model, meter, subject = device
    x, labels = packages.draw(1, seed=4)
    meter.outcome(Outcome(model.predict({"image": x[0]}).id, "correct", int(labels[0])))
    assert take(meter, subject)[0].outcomes == {"correct": Hits(1, 1)}


def test_a_label_of_any_inference_that_waits_to_be_counted_is_joined(device):
    model, meter, subject = device
    model.switch(Active(subject, Answers(OUTPUTS)))
    x, _ = packages.draw(1, seed=4)
    for i in range(rows.ROWS):
        identifier = model.predict({"image": x[0]}).id
        if i % 1000 == 0:
            meter.outcome(Outcome(identifier, "pick_ok", 1))
    (window,) = take(meter, subject)
    assert (window.n, window.shed) == (rows.ROWS, {})
    assert window.outcomes == {"pick_ok": Hits(17, 17)}


def test_a_label_of_no_inference_or_of_a_class_without_a_name_spoils_no_other(device):
    model, meter, subject = device
    few = msgspec.structs.replace(subject, manifest=msgspec.structs.replace(subject.manifest, labels=("0", "1")))
    model.switch(Active(few, model.active.session))
    x, _ = packages.draw(50, seed=4)
    found = [model.predict({"image": one}) for one in x]
    classes = [int(p.outputs["probabilities"].argmax()) for p in found]
    for identifier in (-1, 0, 2**70, -(2**70)):
        meter.outcome(Outcome(identifier, "correct", 1))
    for prediction in found:
        meter.outcome(Outcome(prediction.id, "correct", "1"))
    meter.outcome(Outcome(found[0].id, "correct", "no such label"))
    (window,) = take(meter, few)
    assert max(classes) > 1
    assert window.outcomes == {"correct": Hits(50, classes.count(1))}
    assert window.shed == {"outcomes": 5}


def test_the_ring_forgets_the_oldest(device):
    model, meter, subject = device
    x, labels = packages.draw(1, seed=4)
    old = model.predict({"image": x[0]}).id
    for i in range(RING):
        model.predict({"image": x[0]})
        if i % rows.BATCH == 0:
            meter.drain()
    meter.drain()
    meter.outcome(Outcome(old, "correct", int(labels[0])))
    assert take(meter, subject)[0].shed["outcomes"] == 1


def test_labels_find_their_inferences_in_32_models_of_9_contexts_and_behind_many_switches(package):
    meter, clock = Meter(threading.Event()), SimClock()
    variant = package.manifest.variant("onnx-fp32")
    baseline = decode_baseline(package.read(variant.baseline))
    contexts = tuple(f"c{i}" for i in range(8))
    manifest = msgspec.structs.replace(package.manifest, contexts=contexts)
    subjects = [Subject(f"m{i}", manifest, package.digest, variant, baseline) for i in range(32)]
    ids = itertools.count(1)
    models = [Model(subject.model, meter, clock, ids) for subject in subjects]
    image = packages.draw(1, seed=4)[0][0]

    def predict(model, context):
        identifier = model.predict({"image": image}, context=context).id
        meter.outcome(Outcome(identifier, "pick_ok", 1))

    for model, subject in zip(models, subjects, strict=True):
        model.switch(Active(subject, Answers(OUTPUTS)))
        for context in ("", *contexts):
            predict(model, context)
        meter.drain()
    early = models[0].predict({"image": image}).id
    for _ in range(300):  # other packages
        models[1].switch(Active(msgspec.structs.replace(subjects[1]), Answers(OUTPUTS)))
        predict(models[1], "")
        meter.drain()
    meter.outcome(Outcome(early, "pick_ok", 1))
    windows = take(meter)
    assert sum(w.outcomes["pick_ok"].n for w in windows if w.outcomes) == 32 * 9 + 300 + 1
    assert not any(w.shed for w in windows)


def test_repeated_inputs_are_counted(device):
    model, meter, subject = device
    x, _ = packages.draw(3, seed=4)
    for i in (0, 0, 0, 1, 2, 2):
        model.predict({"image": x[i]})
    assert take(meter, subject)[0].repeated == 3
    model.predict({"image": x[2]})
    assert take(meter, subject)[0].repeated == 1


def test_a_stuck_camera_shows_beside_one_that_works(device):
    model, meter, subject = device
    x, _ = packages.draw(20, seed=4)
    for one in x:
        model.predict({"image": x[0]}, context="night")  # a context of its own: the other one lies between
        model.predict({"image": one})
    windows = {w.context: w for w in take(meter, subject)}
    assert {c: (w.n, w.repeated) for c, w in windows.items()} == {"": (20, 0), "night": (20, 19)}


def test_every_input_must_repeat_for_an_inference_to_be_a_repeated_one(package):
    both = msgspec.structs.replace(
        package.manifest, inputs=(TensorIn(name="a", dtype="float32", shape=(1,)), *package.manifest.inputs)
    )
    variant = both.variant("onnx-fp32")
    subject = Subject("digits", both, package.digest, variant, decode_baseline(package.read(variant.baseline)))
    meter = Meter(threading.Event())
    model = Model("digits", meter, SimClock(), itertools.count(1))
    model.switch(Active(subject, Answers(OUTPUTS)))
    x, _ = packages.draw(2, seed=4)
    for a, image in ((1, 0), (1, 0), (1, 1), (2, 1), (2, 1)):
        model.predict({"a": np.array([a], np.float32), "image": x[image]})
    assert take(meter, subject)[0].repeated == 2


def test_the_age_of_an_input_is_counted_where_it_can_be_true(device):
    model, meter, subject = device
    x, _ = packages.draw(1, seed=4)
    now = SimClock().monotonic_ns()
    for captured_at in (now - 250_000_000, now - 250_000_000, now + 1, now - 90_000 * 10**9, None, 0):
        model.predict({"image": x[0]}, captured_at=captured_at)
    for wrong in (0.25, "now"):
        with pytest.raises(Rejected, match="nanoseconds"):
            model.predict({"image": x[0]}, captured_at=wrong)
    (window,) = take(meter, subject)
    ages = binning.unpack_grid(window.input_age)
    assert window.n == 6
    assert int(ages.sum()) == 3
    assert ages[binning.grid_index(250_000_000)] == 2
    assert window.shed == {"input_age": 2}
    assert window.rejected == {"captured_at": 2}


def test_frames_of_one_scene_are_one_sample_and_every_one_is_an_inference(device):
    model, meter, subject = device
    clock = SimClock()
    model = Model("digits", meter, clock, itertools.count(1))
    model.switch(Active(subject, device[0].active.session))
    meter.scene_ns = 10 * 10**9
    x, _ = packages.draw(1, seed=4)
    for _ in range(30):
        model.predict({"image": x[0]})
        model.predict({"image": x[0]}, context="night")
        clock.advance(1)
    windows = {w.context: w for w in take(meter, subject)}
    assert {c: (w.n, w.n_monitored, w.shed) for c, w in windows.items()} == {"": (30, 3, {}), "night": (30, 3, {})}


def test_a_label_of_an_inference_whose_channels_nobody_counts_is_joined_all_the_same(device):
    model, meter, subject = device
    meter.asked_every = meter.monitor_every = 10
    x, labels = packages.draw(40, seed=4)
    for one, label in zip(x, labels, strict=True):
        meter.outcome(Outcome(model.predict({"image": one}).id, "correct", int(label)))
    (window,) = take(meter, subject)
    assert (window.n, window.n_monitored, window.outcomes["correct"].n, window.shed) == (40, 4, 40, {})
    cells = per_channel(subject.baseline.channels, binning.unpack(window.cells))
    assert [int(c.sum()) for c in cells] == [4] * len(cells)


def test_what_the_governor_spares_is_counted_and_what_the_hub_leaves_out_is_not(device):
    model, meter, subject = device
    meter.asked_every, meter.monitor_every = 2, 20
    x, _ = packages.draw(1, seed=4)
    for _ in range(40):
        model.predict({"image": x[0]})
    (window,) = take(meter, subject)
    assert (window.n, window.n_monitored, window.shed) == (40, 2, {"channels": 18})


def test_what_is_shed_waits_for_a_window_that_can_say_so(device):
    _, meter, subject = device
    meter.outcome(Outcome(10**9, "correct", 1))
    meter.shed("samples", 3)
    meter.drain()
    assert meter.take([], CLOCKS, Usage()) == []
    assert take(meter, subject)[0].shed == {"outcomes": 1, "samples": 3}


def test_a_small_input_is_compared_whole_and_a_large_one_by_its_steps():
    x = np.zeros((64, 64), np.float32)
    y = x.copy()
    y[63, 62] = 1
    sample = sampler(TensorIn(name="x", dtype="float32", shape=x.shape))
    assert sample(x) != sample(y)
    large = np.zeros((256, 256, 3), np.uint8)
    sample = sampler(TensorIn(name="x", dtype="uint8", shape=large.shape))
    assert len(sample(large)) <= 512
    assert sample(large + np.uint8(1)) != sample(large)


def test_a_failed_run_is_counted_by_kind_and_raised_as_unavailable(device):
    model, meter, subject = device

    class Broken:
        runtime, version, concurrent = "onnxruntime", "1", False

        def run(self, inputs):
            raise ValueError("kernel")

    model.switch(Active(subject, Broken()))
    x, _ = packages.draw(1, seed=4)
    for _ in range(3):
        with pytest.raises(InferenceFailed, match="kernel"):
            model.predict({"image": x[0]})
    (window,) = take(meter, subject)
    assert (window.n, window.n_monitored, window.errors) == (3, 0, {"ValueError": 3})


def test_outputs_of_another_shape_than_declared_are_counted_but_not_monitored(device):
    model, meter, subject = device

    class Other:
        runtime, version, concurrent = "onnxruntime", "1", True

        def run(self, inputs):
            return {"probabilities": np.zeros((1, 3), np.float32), "monitor": np.zeros((1, 6), np.float32)}

    model.switch(Active(subject, Other()))
    x, _ = packages.draw(1, seed=4)
    model.predict({"image": x[0]})
    (window,) = take(meter, subject)
    assert (window.n, window.n_monitored, window.shed) == (1, 0, {"monitored": 1})


def test_without_a_package_predict_says_so(device):
    model, _, _ = device
    model.switch(None)
    assert not model.wait(0)
    with pytest.raises(Unavailable, match="no package"):
        model.predict({})


def test_only_every_nth_inference_is_monitored_when_asked(device):
    model, meter, subject = device
    meter.monitor_every = 4
    x, _ = packages.draw(1, seed=4)
    for _ in range(40):
        model.predict({"image": x[0]})
    (window,) = take(meter, subject)
    assert (window.n, window.n_monitored) == (40, 10)


def test_models_and_contexts_that_take_turns_are_monitored_alike(device):
    model, meter, subject = device
    other = Model("other", meter, SimClock(), model._ids)
    twin = msgspec.structs.replace(subject, model="other")
    other.switch(Active(twin, model.active.session))
    meter.asked_every, meter.monitor_every = 2, 4
    x, _ = packages.draw(1, seed=4)
    for _ in range(40):
        for one in (model, other):
            for context in ("", "night"):
                one.predict({"image": x[0]}, context=context)
    windows = take(meter, subject, twin)
    assert [(w.n, w.n_monitored, w.shed) for w in windows] == [(40, 10, {"channels": 10})] * 4


@pytest.fixture
def fragile(device):
    """(model, session, clock, meter, subject, what was told of the breaker)"""
    _, meter, subject = device
    clock, told = SimClock(), []
    model = Model("digits", meter, clock, itertools.count(1), told.append)
    session = Answers(OUTPUTS)
    model.switch(Active(subject, session))
    return model, session, clock, meter, subject, told


def fails(model, times, error=InferenceFailed):
    x, _ = packages.draw(1, seed=4)
    for _ in range(times):
        with pytest.raises(error) as caught:
            model.predict({"image": x[0]})
        assert type(caught.value) is error


def test_a_model_that_fails_again_and_again_is_left_alone_and_probed_ever_more_rarely(fragile):
    model, session, clock, meter, subject, told = fragile
    session.failing = True
    fails(model, FAILURES)
    assert [t.open for t in told] == [True]
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        fails(model, 3, Unavailable)
        clock.advance(pause - 0.1)
        fails(model, 1, Unavailable)
        clock.advance(0.1)
        before = session.calls
        fails(model, 1)  # the probe, and only one
        fails(model, 1, Unavailable)
        assert session.calls == before + 1
    (window,) = take(meter, subject)
    assert (window.n, window.errors) == (FAILURES + 8, {"ValueError": FAILURES + 8})
    assert window.shed == {"refused": 8 * 5}
    session.failing = False
    clock.advance(60)
    x, _ = packages.draw(1, seed=4)
    for _ in range(3):
        assert not model.predict({"image": x[0]}).fallback
    assert [t.open for t in told] == [True, False]


def test_errors_with_a_success_between_them_open_nothing(fragile):
    model, session, _, _, _, told = fragile
    x, _ = packages.draw(1, seed=4)
    for _ in range(5):
        session.failing = True
        fails(model, FAILURES - 1)
        session.failing = False
        model.predict({"image": x[0]})
    assert told == []


def test_another_package_is_not_refused_for_what_the_one_before_did(fragile):
    model, session, _, _, subject, _ = fragile
    session.failing = True
    fails(model, FAILURES)
    model.switch(Active(subject, session))  # the same one in another phase
    fails(model, 1, Unavailable)
    model.switch(Active(subject, Answers(session.outputs)))
    x, _ = packages.draw(1, seed=4)
    assert model.predict({"image": x[0]}).id > 0


def test_a_bad_input_is_no_probe(fragile):
    model, session, clock, _, _, _ = fragile
    session.failing = True
    fails(model, FAILURES)
    clock.advance(1)
    with pytest.raises(Rejected):
        model.predict({})
    fails(model, 1)


@pytest.mark.parametrize("declared", [{"score": np.float32(0.5)}, lambda inputs: {"score": np.float32(0.5)}])
def test_the_declared_fallback_answers_for_a_model_that_cannot_and_says_so(fragile, declared):
    model, session, _, meter, subject, _ = fragile
    model.fallback = declared
    session.failing = True
    x, _ = packages.draw(1, seed=4)
    for _ in range(FAILURES + 3):
        found = model.predict({"image": x[0]})
        assert (found.id, found.digest, found.fallback, found.outputs) == (0, "", True, {"score": np.float32(0.5)})
    with pytest.raises(Rejected):
        model.predict({})
    (window,) = take(meter, subject)
    assert (window.n, window.shed) == (FAILURES, {"refused": 3, "fallback": FAILURES + 3})
    model.switch(None)
    assert model.predict({"image": x[0]}).fallback


def test_a_fallback_may_ask_the_model_that_another_thread_would_have_to_wait_for(fragile):
    model, session, _, _, subject, _ = fragile
    session.concurrent, session.failing = False, True
    model.switch(Active(subject, session))
    x, _ = packages.draw(1, seed=4)

    def again(inputs):
        session.failing, model.fallback = False, None
        return model.predict(inputs).outputs

    model.fallback = again
    assert set(model.predict({"image": x[0]}).outputs) == set(OUTPUTS)


def test_a_fallback_that_fails_is_unavailable(fragile):
    model, _, _, _, _, _ = fragile
    model.switch(None)
    model.fallback = lambda inputs: inputs["no such"]
    fails(model, 1, Unavailable)
