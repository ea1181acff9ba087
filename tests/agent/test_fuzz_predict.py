"""Whatever an application hands over, it gets an answer or a typed refusal that is counted."""

from __future__ import annotations

import itertools
import os
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgewright_agent.inference.checks import Rejected
from edgewright_agent.inference.model import Active, Model
from edgewright_agent.telemetry.counts import Clocks
from edgewright_agent.telemetry.meter import Meter
from edgewright_agent.telemetry.rows import Subject
from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.report import Usage, encode_window
from edgewright_runtime.runtime import open_session
from sim import packages
from sim.clock import SimClock

EXAMPLES = int(os.environ.get("EDGEWRIGHT_FUZZ", "100"))

SHAPES = st.sampled_from([(), (0,), (8, 8), (1, 8, 8), (8, 8, 1), (64,), (8, 0)])
ARRAYS = SHAPES.flatmap(lambda shape: arrays.arrays(arrays.scalar_dtypes(), shape))
VALUES = st.one_of(
    arrays.arrays(np.uint8, (8, 8), elements=st.integers(0, 16)),
    ARRAYS,
    st.none(),
    st.binary(max_size=64),
    st.lists(st.integers(), max_size=3),
    st.floats(),
)
INPUTS = st.one_of(
    st.dictionaries(st.sampled_from(["image", "more", "", 0]), VALUES, max_size=2),
    VALUES,
)
CONTEXTS = st.one_of(st.sampled_from(["", "night", "fog"]), VALUES)
TIMES = st.one_of(st.none(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    package = packages.make_package(tmp_path_factory.mktemp("package") / "p")
    variant = package.manifest.variant("onnx-fp32")
    baseline = decode_baseline(package.read(variant.baseline))
    io = {"inputs": package.manifest.inputs, "outputs": package.manifest.outputs}
    session = open_session(package.root / variant.model, "onnxruntime", **io)
    meter = Meter(threading.Event())
    found = Model("digits", meter, SimClock(), itertools.count(1))
    found.switch(Active(Subject("digits", package.manifest, package.digest, variant, baseline), session))
    return found, meter


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs=INPUTS, context=CONTEXTS, captured_at=TIMES)
def test_an_application_gets_an_answer_or_a_refusal_that_is_counted(model, inputs, context, captured_at):
    found, meter = model
    answered, refused, message = 0, "", "expected"
    try:
        found.predict(inputs, context=context, captured_at=captured_at)
        answered = 1
    except Rejected as error:
        refused, message = error.reason, str(error)
    assert "expected" in message
    meter.drain()
    windows = [w for _, w in meter.take([], Clocks("1" * 16, 0, 1, None, "unknown", 1), Usage())]
    assert sum(w.n for w in windows) == answered
    assert [w.rejected for w in windows if w.rejected] == ([{refused: 1}] if refused else [])
    for window in windows:
        encode_window(window)
