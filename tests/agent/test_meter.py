"""What is counted is exact, whatever thread it comes from and however late its label."""

from __future__ import annotations

import itertools
import threading

import msgspec
import numpy as np
import pytest

from edgewright_agent.inference.model import Active, InferenceFailed, Model, Rejected, sample
from edgewright_agent.telemetry import rows
from edgewright_agent.telemetry.counts import Clocks
from edgewright_agent.telemetry.meter import Meter
from edgewright_agent.telemetry.ring import RING, Outcome
from edgewright_agent.telemetry.rows import Subject
from edgewright_contracts import binning
from edgewright_contracts.baseline import decode_baseline, per_channel
from edgewright_contracts.errors import Unavailable
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
    x, labels = packages.draw(1, seed=4)
    identifier = model.predict({"image": x[0]}).id
    for _ in range(RING + 7):
        meter.outcome(Outcome(identifier, "correct", int(labels[0])))
    (window,) = take(meter, subject)
    assert (window.outcomes["correct"], window.shed["outcomes"]) == (Hits(RING, RING), 7)


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


def test_nan_and_range_of_floats(package):
    from edgewright_agent.inference.model import checker
    from edgewright_contracts.manifest import TensorIn

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


def test_repeated_inputs_are_counted(device):
    model, meter, subject = device
    x, _ = packages.draw(3, seed=4)
    for i in (0, 0, 0, 1, 2, 2):
        model.predict({"image": x[i]})
    assert take(meter, subject)[0].repeated == 3
    model.predict({"image": x[2]})
    assert take(meter, subject)[0].repeated == 1


def test_a_small_input_is_compared_whole_and_a_large_one_by_its_steps():
    x = np.zeros((64, 64), np.float32)
    y = x.copy()
    y[63, 62] = 1
    assert sample(x) != sample(y)
    large = np.zeros((256, 256, 3), np.uint8)
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
