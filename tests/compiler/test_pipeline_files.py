"""Files of candidates answer as they will on a device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgewright_compiler.graph.reference import run
from edgewright_compiler.packaging import npz
from edgewright_compiler.rows import Array
from edgewright_contracts.manifest import (
    Budgets,
    FileRef,
    Manifest,
    Provenance,
    TensorIn,
    TensorOut,
    Variant,
)
from edgewright_runtime.selftest import run_selftest


class ScaledByItsBatch:
    """As a dynamically quantized file: what a row answers depends on the largest value that runs beside it."""

    runtime, version, concurrent = "onnxruntime", "1", True

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = np.asarray(inputs["x"], np.float32)
        return {"values": np.round(x / x.max() * 8) / 8}


ROWS = {"x": np.array([[0.3, 0.5], [10.0, 3.0], [0.1, 0.9]], np.float32)}


def manifest(batch: int) -> Manifest:
    variant = Variant(id="onnx-int8", format="onnx", precision="int8", batch=batch)
    return Manifest(
        requires_agent="0.1",
        name="m",
        version="1",
        task="regression",
        inputs=(TensorIn(name="x", dtype="float32", shape=(2,)),),
        outputs=(TensorOut(name="values", role="values", shape=(2,)),),
        variants=(variant,),
        ranking={"*/onnxruntime": (variant.id,)},
        budgets=Budgets(),
        provenance=Provenance(recipe="r", data="0" * 64, code="0" * 64, seed=1),
        files={name: FileRef("0" * 64, 0) for name in (variant.model, variant.baseline, variant.selftest)},
    )


def test_rows_run_alone_answer_as_on_a_device() -> None:
    session = ScaledByItsBatch()
    each = [session.run({"x": ROWS["x"][i : i + 1]})["values"] for i in range(3)]
    assert (run(session, ROWS, alone=True)["values"] == np.concatenate(each)).all()
    assert (run(session, ROWS)["values"] != np.concatenate(each)).any()


def test_a_self_test_runs_as_many_rows_at_once_as_the_variant_takes() -> None:
    session = ScaledByItsBatch()
    found = run(session, ROWS, alone=True)["values"]
    arrays = npz({"input:x": ROWS["x"], "output:values": found, "fp32:values": found})
    one, many = manifest(batch=1), manifest(batch=0)
    assert run_selftest(session, arrays, one, one.variants[0]).passed
    assert not run_selftest(session, arrays, many, many.variants[0]).passed
