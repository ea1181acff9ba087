"""Whether a file answers what the reference answered."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_compiler.export.parity import compare
from edgewright_contracts.errors import Refused

RNG = np.random.default_rng(0)
ANSWERS = RNG.dirichlet(np.full(4, 0.2), 50).astype(np.float32)
CLASSES = frozenset({"p"})


def test_equal_outputs_agree_in_every_precision():
    for precision in ("fp32", "fp16", "int8", "mixed"):
        assert compare("v", {"p": ANSWERS}, {"p": ANSWERS}, precision, classes=CLASSES).passed


def test_a_float_file_may_differ_by_the_order_of_its_sums_and_no_more():
    near, far = ANSWERS + np.float32(5e-5), ANSWERS.copy()
    far[17, 2] += 1e-3
    assert compare("v", {"p": ANSWERS}, {"p": near}, "fp32").passed
    found = compare("v", {"p": ANSWERS}, {"p": far}, "fp32")
    assert not found.passed
    assert "p: " in found.reason
    assert "sample 17" in found.reason


def test_every_column_is_measured_in_its_own_range():
    monitor = np.stack([np.linspace(0, 1000, 50), np.linspace(0, 2, 50)], axis=1).astype(np.float32)
    off = monitor + np.float32([0, 0.01])
    assert not compare("v", {"monitor": monitor}, {"monitor": off}, "fp32").passed  # 0.01 of 1000 would be nothing
    assert compare("v", {"monitor": monitor}, {"monitor": monitor + np.float32([0.01, 0])}, "fp32").passed


def test_a_column_that_never_changes_is_not_compared_with_nothing():
    column = np.concatenate([ANSWERS, np.zeros((50, 1), np.float32)], axis=1)
    assert compare("v", {"p": column}, {"p": column + np.float32(1e-8)}, "fp32").passed


def test_a_quantized_file_is_held_to_agreement_where_the_reference_was_sure():
    noisy = np.clip(ANSWERS + RNG.normal(0, 0.01, ANSWERS.shape), 0, 1).astype(np.float32)
    assert compare("v", {"p": ANSWERS}, {"p": noisy}, "int8", classes=CLASSES).passed
    turned = ANSWERS.copy()
    turned[:10] = turned[:10, ::-1]
    found = compare("v", {"p": ANSWERS}, {"p": turned}, "int8", classes=CLASSES)
    assert not found.passed
    assert found.agree < 0.95


def test_what_is_not_finite_must_be_the_same():
    broken = ANSWERS.copy()
    broken[3, 1] = np.nan
    assert not compare("v", {"p": ANSWERS}, {"p": broken}, "fp32").passed
    assert compare("v", {"p": broken}, {"p": broken}, "fp32").passed


def test_a_missing_output_and_another_shape_are_named():
    assert "'p'" in compare("v", {"p": ANSWERS}, {"q": ANSWERS}, "fp32").reason
    assert "(50, 4)" in compare("v", {"p": ANSWERS}, {"p": ANSWERS[:, :3]}, "fp32").reason


def test_what_is_required_and_fails_is_refused_with_the_way_out():
    with pytest.raises(Refused, match=r"tflite-fp32 does not answer.*sample 4.*the way out"):
        compare("tflite-fp32", {"p": ANSWERS}, {"p": ANSWERS + np.eye(1, 4, dtype=np.float32)}, "fp32").required()
