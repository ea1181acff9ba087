"""What is chosen among measured candidates, and what is said when nothing fits."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgewright_compiler.pipeline.choice import Arch, Candidate, Limits, misses, pareto
from edgewright_compiler.pipeline.choosing import choose
from edgewright_compiler.pipeline.recorded import read_choice, write_choice
from edgewright_contracts.errors import Refused, RequestError

WHOLE, HALF = Arch(), Arch(share=0.5)


def candidate(scheme: str, arch: Arch = WHOLE, **measured: float) -> Candidate:
    form = "tflite" if scheme.startswith("tflite") else "onnx"
    facts = {"drop": 0.1, "half_width": 0.3, "bytes": 1000, "relative": 1.0, "p95_ms": 1.0, **measured}
    return Candidate(arch=arch, scheme=scheme, format=form, precision=scheme.partition("-")[2], **facts)  # type: ignore[arg-type]


FLOAT = candidate("onnx-fp32", drop=0.0, bytes=4000, relative=3.0)
INT8 = candidate("onnx-int8")
SMALL = candidate("onnx-int8", HALF, drop=0.8, bytes=400, relative=0.5)


def test_among_those_within_the_limits_the_smallest_and_fastest_is_taken() -> None:
    choice = choose([FLOAT, INT8], Limits(), [WHOLE])
    assert choice.chosen == {"onnx": "onnx-int8"}
    assert choice.candidate("onnx") == INT8


def test_what_a_clock_cannot_tell_apart_is_decided_by_the_loss() -> None:
    lossy = candidate("onnx-int8-ent", drop=0.9, relative=0.97)
    assert choose([FLOAT, lossy, INT8], Limits(), [WHOLE]).chosen == {"onnx": "onnx-int8"}
    faster = candidate("onnx-int8-ent", drop=0.9, relative=0.8)
    assert choose([FLOAT, faster, INT8], Limits(), [WHOLE]).chosen == {"onnx": "onnx-int8-ent"}


def test_of_equal_loss_the_answers_nearest_to_the_float_file_decide_and_not_the_clock() -> None:
    close = candidate("onnx-int8", error=0.01)
    far = candidate("onnx-int8-ent", error=0.2, relative=0.95)
    assert choose([FLOAT, close, far], Limits(), [WHOLE]).chosen == {"onnx": "onnx-int8"}
    assert choose([FLOAT, far, close], Limits(), [WHOLE]).chosen == {"onnx": "onnx-int8"}
    assert close in pareto([close, far]), "a faster one that answers worse does not beat it"
    alike = candidate("onnx-int8-ent", error=0.01, relative=0.95)
    assert choose([FLOAT, close, alike], Limits(), [WHOLE]).chosen == {"onnx": "onnx-int8"}, (
        "schemes come simplest first"
    )


def test_float_is_kept_where_int8_is_hardly_smaller_and_slower() -> None:
    gru = candidate("onnx-int8", bytes=3800, relative=4.0)
    assert choose([FLOAT, gru], Limits(), [WHOLE]).chosen == {"onnx": "onnx-fp32"}


def test_all_formats_come_from_one_architecture() -> None:
    lite = candidate("tflite-int8", bytes=900)
    lossy = candidate("tflite-int8", HALF, drop=5.0, bytes=300, relative=0.3)
    choice = choose([INT8, lite, SMALL, lossy], Limits(), [WHOLE, HALF])
    assert choice.arch == WHOLE
    assert choice.chosen == {"onnx": "onnx-int8", "tflite": "tflite-int8"}


def test_a_limit_on_the_loss_counts_the_width_that_the_test_set_will_have() -> None:
    assert choose([FLOAT, INT8, SMALL], Limits(), [WHOLE, HALF]).arch == HALF
    assert choose([FLOAT, INT8, SMALL], Limits(max_drop=1.0), [WHOLE, HALF]).arch == WHOLE
    assert "expected bound on the loss 1.10 points > --max-drop 1" in misses(SMALL, Limits(max_drop=1.0))[0]


def test_without_a_limit_the_least_loss_is_taken_when_nothing_comes_near() -> None:
    bad, worse = candidate("onnx-fp32", drop=4.0), candidate("onnx-int8", drop=6.0, bytes=100)
    choice = choose([worse, bad], Limits(), [WHOLE])
    assert choice.chosen == {"onnx": "onnx-fp32"}
    assert "least loss" in choice.why


def test_a_refusal_names_the_nearest_candidates_and_the_limits_that_bind() -> None:
    with pytest.raises(Refused) as refused:
        choose([FLOAT, INT8, SMALL], Limits(max_drop=0.2, max_size_kb=0.5), [WHOLE, HALF])
    said = str(refused.value)
    assert "no candidate of 3 keeps every limit" in said
    assert "w1-p0.5/onnx-int8 (onnx): expected bound on the loss 1.10 points > --max-drop 0.2" in said
    assert "1 kB > --max-size-kb 0.5" in said


def test_a_refusal_for_want_of_test_rows_says_how_many_there_are_and_how_many_would_do() -> None:
    near = candidate("onnx-int8", drop=0.1, half_width=0.4, rows=597, rows_needed=1234)
    far = candidate("onnx-fp32", drop=0.0, half_width=0.4, rows=597, rows_needed=987, bytes=9000)
    with pytest.raises(Refused) as refused:
        choose([far, near], Limits(max_drop=0.3, max_size_kb=2), [WHOLE])
    said = "w1-p1/onnx-int8 loses 0.10 points by estimate, and the number of test rows is the limit (n = 597): at these"
    assert f"{said} rates 1,234 would do" in str(refused.value), "rows do not help what is too large"
    with pytest.raises(Refused, match="The loss itself is the limit, more test rows would not help"):
        choose([candidate("onnx-int8", drop=0.5, rows=597)], Limits(max_drop=0.3), [WHOLE])
    with pytest.raises(Refused) as refused:
        choose([near], Limits(max_drop=0.6, max_size_kb=0.5), [WHOLE])
    assert "test rows" not in str(refused.value), "it is the size that binds"


def test_a_limit_that_nothing_comes_near_says_the_least_there_is_and_ranks_by_what_is_missing() -> None:
    large = candidate("onnx-fp32", drop=0.0, bytes=200_000, relative=3.0)
    small = candidate("onnx-int8", drop=1.5, bytes=13_000)
    lite = candidate("tflite-int8", bytes=900)
    with pytest.raises(Refused) as refused:
        choose([large, small, lite], Limits(max_drop=1.2, max_size_kb=1), [WHOLE], [HALF])
    said = str(refused.value)
    assert said.index("w1-p1/onnx-int8") < said.index("w1-p1/onnx-fp32"), "13 times too large is nearer than 200 times"
    assert (
        "The smallest here is 13 kB (onnx): raise --max-size-kb, or let smaller ones be tried: more --minutes" in said
    )
    assert "--format tflite alone keeps every limit" in said
    assert "1 planned architecture was not tried, no minutes were left (w1-p0.5): more --minutes tries them" in said
    with pytest.raises(
        Refused, match=r"fastest here is 1 ms \(onnx\), an estimate until the device has measured: raise"
    ):
        choose([FLOAT, INT8], Limits(max_p95_ms=0.1), [WHOLE])


def test_a_refusal_on_loss_tells_the_estimate_and_the_rows() -> None:
    with pytest.raises(Refused) as refused:
        choose([candidate("onnx-int8", drop=0.5, rows=597)], Limits(max_drop=0.3), [WHOLE])
    assert "expected bound on the loss 0.80 points > --max-drop 0.3 (estimate 0.50, n = 597)" in str(refused.value)
    assert "The least loss is 0.50 points by estimate (n = 597), of w1-p1/onnx-int8. The loss itself" in str(
        refused.value
    )


def test_architectures_that_minutes_did_not_reach_are_in_the_choice() -> None:
    choice = choose([FLOAT, INT8], Limits(), [WHOLE], [HALF])
    assert choice.untried == (HALF,)
    assert choice.why == "least bytes × time of the only architecture within the limits"


def test_a_candidate_that_could_not_be_made_is_never_taken_and_says_why() -> None:
    broken = msgspec.structs.replace(INT8, refused="nothing to quantize", bytes=0)
    assert choose([FLOAT, broken], Limits(), [WHOLE]).chosen == {"onnx": "onnx-fp32"}
    with pytest.raises(Refused, match="None could be made: nothing to quantize"):
        choose([broken], Limits(), [WHOLE])


def test_the_front_holds_what_nothing_else_beats_in_everything() -> None:
    beaten = candidate("onnx-fp16", drop=0.2, bytes=5000, relative=4.0)
    assert pareto([FLOAT, INT8, SMALL, beaten]) == (FLOAT, INT8, SMALL)


def test_limits_must_be_above_zero() -> None:
    with pytest.raises(RequestError, match="--max-p95-ms: expected a number above 0, got 0"):
        Limits(max_p95_ms=0.0)
    with pytest.raises(RequestError, match="--max-drop"):
        Limits(max_drop=float("nan"))


def test_a_recorded_choice_is_read_back_as_it_was(tmp_path: Path) -> None:
    choice = choose([FLOAT, INT8], Limits(max_drop=1.0), [WHOLE])
    write_choice(choice, tmp_path / "choice.json")
    assert read_choice(tmp_path / "choice.json") == choice
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(RequestError, match=r"other\.json is no choice\.json"):
        read_choice(tmp_path / "other.json")
    with pytest.raises(RequestError, match=r"expected a choice\.json of an earlier run"):
        read_choice(tmp_path / "none.json")
