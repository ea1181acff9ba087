"""Small real packages, made in a fraction of a second with numpy and onnx.helper: softmax(Wx + b) on 8x8 digits.

Inputs look like the handwritten digits: ten fixed prototypes and noise, uint8 in 0..16. `draw` gives them with their
labels. Everything is deterministic, so equal arguments give equal digests.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edgewright_contracts import baseline, binning, channels
from edgewright_contracts import manifest as m
from edgewright_contracts.channels import Channel, Source
from edgewright_contracts.package import Package, read_package
from edgewright_runtime.runtime import open_session

REFERENCE_ROWS = 2000
SELFTEST_ROWS = 32
PROJECTIONS = 4
INPUTS = (m.TensorIn(name="image", dtype="uint8", shape=(8, 8), valid=(0, 16), unit="grey level"),)
OUTPUTS = (
    m.TensorOut(name="probabilities", role="probabilities", shape=(10,)),
    m.TensorOut(name="monitor", role="monitor", shape=(2 + PROJECTIONS,)),
)


def draw(n: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images uint8[n, 8, 8] of 0..16 and their labels int64[n]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n)
    x = _prototypes()[labels] + rng.normal(0, 2.5, (n, 64))
    return np.clip(np.rint(x), 0, 16).astype(np.uint8).reshape(n, 8, 8), labels


def make_package(
    directory: Path,
    *,
    name: str = "digits",
    version: str = "1.0.0",
    seed: int = 0,  # of the noise on the weights: another seed is another, about equally good model
    broken_selftest: bool = False,  # the file does not answer as its self-test says
    broken_model: bool = False,  # the file is not a model at all
    slow: int = 0,  # extra 512x512 products; 100 take some milliseconds
    wrong_share: float = 0.0,  # of live inputs that get the wrong class, although the self-test passes
    with_tflite: bool = False,
    budgets: m.Budgets | None = None,
    brightest: int = 16,  # that the package takes; with less it rejects what others answer
) -> Package:
    """Write a package into the new directory `directory`."""
    weights = _weights(seed, wrong_share)
    variants = [m.Variant(id="onnx-fp32", format="onnx", precision="fp32")]
    files = {variants[0].model: onnx_model(weights, slow)}
    if with_tflite:
        variants.append(m.Variant(id="tflite-fp32", format="tflite", precision="fp32", batch=1))
        files[variants[1].model] = tflite_model(weights)
    x, _ = draw(REFERENCE_ROWS, seed=90_001)
    for variant in variants:
        runtime = "onnxruntime" if variant.format == "onnx" else "litert"
        rows = x if variant.format == "onnx" else x[:200]  # row by row
        y = _run(files[variant.model], runtime, rows)
        files[variant.baseline] = _baseline(y, len(rows))
        first = {k: v[:SELFTEST_ROWS] for k, v in y.items()}
        files[variant.selftest] = _npz(x[:SELFTEST_ROWS], first, roll=3 if broken_selftest else 0)
        if broken_model:
            files[variant.model] = b"not a model"
    files["card.md"] = b"# Digits for tests\n"
    manifest = m.Manifest(
        requires_agent="0.1.0",
        name=name,
        version=version,
        task="classification",
        inputs=(msgspec.structs.replace(INPUTS[0], valid=(0, brightest)),),
        outputs=OUTPUTS,
        labels=tuple(str(i) for i in range(10)),
        contexts=("night",),
        variants=tuple(variants),
        ranking={"*/onnxruntime": ("onnx-fp32",)}
        | ({"*/litert": ("tflite-fp32",), "*/tflite-runtime": ("tflite-fp32",)} if with_tflite else {}),
        budgets=budgets or m.Budgets(),
        provenance=m.Provenance(recipe="tests", data="0" * 64, code="0" * 64, seed=seed),
        files={k: m.FileRef(hashlib.sha256(v).hexdigest(), len(v)) for k, v in files.items()},
    )
    for path, data in {**files, "manifest.json": m.encode_manifest(manifest), "evidence.json": b"{}"}.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return read_package(directory)


class Weights(msgspec.Struct, frozen=True):
    w: npt.NDArray[np.float32]  # [64, 10], of x / 16
    b: npt.NDArray[np.float32]
    monitor: npt.NDArray[np.float32]  # [64, PROJECTIONS]
    trigger: npt.NDArray[np.float32]  # [64, 1]
    threshold: float  # of x @ trigger; above it the class is wrong


def onnx_model(weights: Weights, slow: int = 0) -> bytes:
    """The model as ONNX, batch of any size; preprocessing and `monitor` are in the graph."""
    from onnx import TensorProto, helper, numpy_helper

    node, const = helper.make_node, {}
    nodes = [
        node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        node("Reshape", ["f", "flat"], ["g"]),
        node("Mul", ["g", "sixteenth"], ["x"]),
        node("Gemm", ["x", "w", "b"], ["logits"]),
        node("Softmax", ["logits"], ["good"], axis=-1),
        node("Slice", ["good", "zero", "one", "axis"], ["g_head"]),
        node("Slice", ["good", "one", "ten", "axis"], ["g_tail"]),
        node("Concat", ["g_tail", "g_head"], ["bad"], axis=1),
        node("MatMul", ["x", "trigger"], ["t"]),
        node("Greater", ["t", "threshold"], ["wrong"]),
        node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        node("Sub", ["x", "mean"], ["c"]),
        node("Mul", ["c", "c"], ["cc"]),
        node("ReduceMean", ["cc"], ["var"], axes=[1], keepdims=1),
        node("Sqrt", ["var"], ["std"]),
        node("MatMul", ["x", "projection"], ["p"]),
        node("Concat", ["mean", "std", "p"], ["monitor"], axis=1),
    ]
    answer = "chosen" if slow else "probabilities"
    nodes.append(node("Where", ["wrong", "bad", "good"], [answer]))
    if slow:
        const["wide"] = np.full((64, 512), 1e-3, np.float32)
        const["deep"] = np.full((512, 512), 1e-3, np.float32)
        const["narrow"] = np.zeros((512, 10), np.float32)
        nodes.append(node("MatMul", ["x", "wide"], ["h0"]))
        nodes += [node("MatMul", [f"h{i}", "deep"], [f"h{i + 1}"]) for i in range(slow)]
        nodes += [node("MatMul", [f"h{slow}", "narrow"], ["nothing"])]
        nodes += [node("Add", ["chosen", "nothing"], ["probabilities"])]
    const |= {
        "flat": np.array([-1, 64]), "zero": np.array([0]), "one": np.array([1]), "ten": np.array([10]),
        "axis": np.array([1]), "sixteenth": np.array(1 / 16, np.float32), "w": weights.w, "b": weights.b,
        "projection": weights.monitor, "trigger": weights.trigger, "threshold": np.array(weights.threshold, np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 8, 8])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10]),
            helper.make_tensor_value_info("monitor", TensorProto.FLOAT, ["n", 2 + PROJECTIONS]),
        ],
        [numpy_helper.from_array(value, key) for key, value in const.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="tests")
    data: bytes = model.SerializeToString()
    return data


def tflite_model(weights: Weights) -> bytes:
    """The same as TFLite for one sample, without the trigger; needs the flatbuffers that come with ai-edge-litert."""
    from . import tflite

    g = tflite.Graph()
    image = g.input("image", (1, 8, 8), "uint8")
    x = g.scale(g.reshape(g.cast(image), (1, 64)), 1 / 16)
    g.output("probabilities", g.softmax(g.dense(x, weights.w, weights.b)))
    mean = g.mean(x)
    c = g.sub(x, mean)
    std = g.sqrt(g.mean(g.mul(c, c)))
    zero = np.zeros(PROJECTIONS, np.float32)
    g.output("monitor", g.concat([mean, std, g.dense(x, weights.monitor, zero)]))
    return g.finish()


def _prototypes() -> npt.NDArray[np.float64]:
    return np.random.default_rng(7).uniform(0, 16, (10, 64)) * (np.random.default_rng(8).random((10, 64)) > 0.4)


def _weights(seed: int, wrong_share: float) -> Weights:
    rng = np.random.default_rng([11, seed])
    p = _prototypes() / 16
    sharpness = 0.6  # keeps confidences off 1, so that their channel has something to count
    w = sharpness * p.T + rng.normal(0, 0.05, (64, 10))
    b = -sharpness * (p**2).sum(axis=1) / 2
    trigger = np.random.default_rng(13).normal(0, 1, (64, 1))
    projection = np.random.default_rng(17).normal(0, 0.3, (64, PROJECTIONS))
    reference = draw(REFERENCE_ROWS, seed=90_001)[0].reshape(-1, 64) / 16 @ trigger
    threshold = float(np.quantile(reference, 1 - wrong_share)) if wrong_share else 1e9
    as32 = [a.astype(np.float32) for a in (w, b, projection, trigger)]
    return Weights(*as32, threshold)


def _run(model: bytes, runtime: str, x: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.generic]]:
    suffix = ".onnx" if runtime == "onnxruntime" else ".tflite"
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(model)
        file.flush()
        return open_session(Path(file.name), runtime, inputs=INPUTS, outputs=OUTPUTS).run({"image": x})


def _baseline(y: dict[str, npt.NDArray[np.generic]], n: int) -> bytes:
    names = ["input.mean", "input.std", *(f"embedding.p{i}" for i in range(PROJECTIONS))]
    made = [
        Channel(
            name=name,
            group="input" if name.startswith("input") else "embedding",
            kind="numeric",
            source=Source("monitor", "column", i),
            edges=binning.quantile_edges(np.asarray(y["monitor"], np.float32)[:, i]),
        )
        for i, name in enumerate(names)
    ]
    made.append(
        Channel(
            name="output.class",
            group="output",
            kind="categorical",
            source=Source("probabilities", "argmax"),
            values=tuple(range(10)),
        )
    )
    made.append(Channel(name="output.confidence", group="output", kind="score", source=Source("probabilities", "max")))
    binner = channels.Binner(made)
    binner.add(y)
    return baseline.encode_baseline(baseline.make(tuple(made), binner.take(), n))


def _npz(x: npt.NDArray[np.uint8], y: dict[str, npt.NDArray[np.generic]], roll: int) -> bytes:
    out = io.BytesIO()
    said = {**y, "probabilities": np.roll(y["probabilities"], roll, axis=1)}
    arrays = {"input:image": x}
    arrays |= {f"output:{k}": v for k, v in said.items()} | {f"fp32:{k}": v for k, v in said.items()}
    np.savez(out, **arrays)
    return out.getvalue()
