"""One small convolutional net on scikit-learn's digits, and three fine-tuned successors, as packages.

`head`: the last layer alone was trained on; `light`: all layers, 20 steps at a tenth of the learning rate; `full`: all
layers, as long as at first. About 93,000 parameters, 375 kB of fp32 in ONNX. One thread, about 5 s of training.
"""

from __future__ import annotations

import copy
import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgewright_contracts import baseline, binning
from edgewright_contracts import manifest as m
from edgewright_contracts.channels import Binner, Channel, Source
from edgewright_contracts.package import Package, read_package
from edgewright_models.digits import data
from edgewright_runtime.runtime import open_session

WIDTHS: Final = (32, 64, 64, 64)  # channels of the 3x3 convolutions
COLUMNS: Final = 20  # of `monitor`: projections of the image, the same in every version
NAMES: Final = ("base", "head", "light", "full")
INPUTS: Final = (m.TensorIn(name="image", dtype="float32", shape=(8, 8, 1), valid=(0.0, 1.0)),)
OUTPUTS: Final = (
    m.TensorOut(name="probabilities", role="probabilities", shape=(10,)),
    m.TensorOut(name="monitor", role="monitor", shape=(COLUMNS,)),
)

Weights = dict[str, np.ndarray]


def rows(seed: int, n: int) -> np.ndarray:
    """float32[n, 8, 8, 1] of 0..1."""
    images, _ = data.feed(np.random.default_rng(seed), n)
    return (images[..., None] / 16).astype(np.float32)


def trained() -> dict[str, Weights]:
    """Weights of each of `NAMES`: kernels k0.. as [out, 3, 3, in], biases b0.., head [64, 10], head_bias [10]."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers: list[nn.Module] = []
    for before, width in zip((1, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))
    train = data.split().train
    x = torch.tensor(train.images[:, None] / 16, dtype=torch.float32)
    y = torch.tensor(train.labels)

    def tune(net: Any, of: Any, *, lr: float, steps: int) -> Weights:
        optimizer = torch.optim.Adam(of.parameters(), lr)
        chosen = np.random.default_rng(steps)
        for _ in range(steps):
            batch = chosen.integers(0, len(x), 64)
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found: Weights = {}
        for i, layer in enumerate(one for one in net if isinstance(one, nn.Conv2d)):
            found[f"k{i}"] = layer.weight.detach().numpy().transpose(0, 2, 3, 1).copy()
            found[f"b{i}"] = layer.bias.detach().numpy().copy()
        found["head"], found["head_bias"] = (
            net[-1].weight.detach().numpy().T.copy(),
            net[-1].bias.detach().numpy().copy(),
        )
        return found

    base = tune(net, net, lr=2e-3, steps=150)
    made = {"base": base}
    for name, of, lr, steps in (("head", -1, 1e-3, 100), ("light", None, 2e-4, 20), ("full", None, 2e-3, 150)):
        one = copy.deepcopy(net)
        made[name] = tune(one, one if of is None else one[of], lr=lr, steps=steps)
    return made


def projection() -> np.ndarray:
    return np.random.default_rng(2).normal(0, 1 / 8, (64, COLUMNS)).astype(np.float32)


def onnx_file(w: Weights) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    node, info = helper.make_node, helper.make_tensor_value_info
    const = {"head": w["head"], "head_bias": w["head_bias"], "columns": projection(), "flat": np.array([-1, 64])}
    nodes = [node("Transpose", ["image"], ["y0"], perm=[0, 3, 1, 2])]
    for i in range(len(WIDTHS)):
        const[f"k{i}"], const[f"b{i}"] = np.ascontiguousarray(w[f"k{i}"].transpose(0, 3, 1, 2)), w[f"b{i}"]
        nodes.append(node("Conv", [f"y{i}", f"k{i}", f"b{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(node("Relu", [f"c{i}"], [f"y{i + 1}"]))
    nodes += [
        node("GlobalAveragePool", [f"y{len(WIDTHS)}"], ["pooled"]),
        node("Flatten", ["pooled"], ["features"]),
        node("Gemm", ["features", "head", "head_bias"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=-1),
        node("Reshape", ["image", "flat"], ["raw"]),
        node("MatMul", ["raw", "columns"], ["monitor"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tuned",
        [info("image", TensorProto.FLOAT, ["n", 8, 8, 1])],
        [info("probabilities", TensorProto.FLOAT, ["n", 10]), info("monitor", TensorProto.FLOAT, ["n", COLUMNS])],
        [numpy_helper.from_array(value, key) for key, value in const.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    made: bytes = model.SerializeToString()
    return made


def write(weights: Weights, version: str, folder: Path) -> Package:
    """The package, into the new folder."""
    variant = m.Variant(id="onnx-fp32", format="onnx", precision="fp32")
    file = onnx_file(weights)
    reference = rows(7, 500)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        path.write_bytes(file)
        session = open_session(path, "onnxruntime", inputs=INPUTS, outputs=OUTPUTS)
        answers = [session.run({"image": row[None]}) for row in reference]
    y = {key: np.concatenate([one[key] for one in answers]) for key in answers[0]}
    channels = [
        Channel(
            name=f"monitor.{i}", group="embedding", kind="numeric", source=Source("monitor", "column", i),
            edges=binning.quantile_edges(y["monitor"][:, i]),
        )
        for i in range(COLUMNS)
    ]  # fmt: skip
    top, source = tuple(range(10)), Source("probabilities", "argmax")
    channels.append(Channel(name="class", group="output", kind="categorical", source=source, values=top))
    channels.append(Channel(name="confidence", group="output", kind="score", source=Source("probabilities", "max")))
    binner = Binner(channels)
    binner.add(y)
    arrays = {"input:image": reference[:32]}
    arrays |= {f"{kind}:{key}": value[:32] for key, value in y.items() for kind in ("output", "fp32")}
    selftest = io.BytesIO()
    np.savez(selftest, **arrays)
    files = {
        variant.model: file,
        variant.baseline: baseline.encode_baseline(baseline.make(tuple(channels), binner.take(), len(reference))),
        variant.selftest: selftest.getvalue(),
        "card.md": b"# Tuned digits\n",
    }
    manifest = m.Manifest(
        requires_agent="0.1.0", name="tuned", version=version, task="classification", inputs=INPUTS, outputs=OUTPUTS,
        labels=tuple(str(i) for i in range(10)), variants=(variant,), ranking={"*/onnxruntime": ("onnx-fp32",)},
        provenance=m.Provenance(recipe="tuned", data="0" * 64, code="0" * 64, seed=0),
        files={key: m.FileRef(hashlib.sha256(value).hexdigest(), len(value)) for key, value in files.items()},
    )  # fmt: skip
    for name, value in {**files, "manifest.json": m.encode_manifest(manifest), "evidence.json": b"{}"}.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(value)
    return read_package(folder)
