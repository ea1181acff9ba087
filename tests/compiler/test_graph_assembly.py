"""From a net to the graph that a package carries: for every task, the same each time, with the monitor left alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewright_compiler.export.onnx import export_onnx
from edgewright_compiler.export.tflite import export_tflite
from edgewright_compiler.graph.blocks.scaling import Normalise
from edgewright_compiler.graph.features import Feature
from edgewright_compiler.graph.graph import FIT_ROWS, ROUNDS, Assembled, assemble, fitting_rows, plain
from edgewright_compiler.graph.reference import Outputs, count, cut, run
from edgewright_compiler.quantization.apply import quantize
from edgewright_compiler.quantization.schemes import Scheme
from edgewright_compiler.recipe import Recipe, Schedule, Statistics
from edgewright_compiler.rows import Data, Labelled
from edgewright_contracts.channels import Channel
from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import TensorIn
from edgewright_runtime.runtime import open_session
from sim.nets import Case, Cnn, case, zoo

KINDS: dict[str, Statistics] = {
    "cnn": "image", "depthwise": "image", "gru": "series", "mlp": "vector", "tagger": "vector",
    "transformer": "tokens", "autoencoder": "vector", "detector": "image",
}  # fmt: skip


def told(one: Case) -> tuple[Recipe, Data]:
    rows = Labelled("train", {"x": one.rows}, one.labels)
    recipe = Recipe(
        name=one.name,
        version="1.0.0",
        task=one.task,
        input=TensorIn(name="x", dtype=one.rows.dtype.name, shape=one.rows.shape[1:]),  # type: ignore[arg-type]
        data=lambda: data,
        source="",
        settings="",
        sources=(),
        front=lambda _data: nn.Identity(),
        statistics=KINDS[one.name],
        teacher=None,
        student=None,
        schedule=Schedule(epochs=1),
    )
    data = Data(rows, rows, rows, "0" * 64)
    return recipe, data


def made(one: Case, **changed: object) -> tuple[Assembled, Recipe]:
    recipe, data = told(one)
    recipe = replace(recipe, **changed)  # type: ignore[arg-type]
    torch.manual_seed(4)
    return assemble(recipe, data, one.build(), temperature=1.5, seed=7), recipe


def answered(graph: nn.Module, assembled: Assembled, x: Tensor) -> Outputs:
    with torch.no_grad():
        return {t.name: y.numpy() for t, y in zip(assembled.outputs, graph(x), strict=True)}


@pytest.mark.parametrize("one", zoo(), ids=lambda one: one.name)
def test_every_task_gives_what_it_declares_and_channels_to_count(one: Case) -> None:
    assembled, _ = made(one)
    got = answered(assembled.graph, assembled, torch.from_numpy(one.rows))
    for tensor in assembled.outputs:
        assert got[tensor.name].shape == (len(one.rows), *tensor.shape)
        assert got[tensor.name].dtype == tensor.dtype
        assert np.isfinite(got[tensor.name]).all()
    assert [t.role for t in assembled.outputs][-1] == "monitor"
    channels = cut(assembled.features, got)
    assert {c.group for c in channels} == {"input", "embedding", "output"}
    assert len({f.name for f in assembled.features}) == len(assembled.features)
    assert all(isinstance(c, Channel) and re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,62}", c.name) for c in channels)
    assert count(channels, got).n == len(one.rows)
    names = {f.name for f in assembled.features}
    assert ("distance-class" in names) == (one.task == "classification")
    assert "distance-all" in names


def levels() -> tuple[Case, tuple[Assembled, Recipe]]:
    """Grey images as a sensor gives them, normalised in the graph."""
    one = case("cnn")
    one = replace(one, rows=np.clip(one.rows * 4 + 8, 0, 16).astype(np.uint8)[:, 0])
    seen = TensorIn(name="x", dtype="uint8", shape=(8, 8), valid=(0, 16))
    return one, made(one, input=seen, front=lambda _data: Normalise(8, 4, channels="new"))


def test_the_channels_of_grey_images_and_classes_keep_their_names() -> None:
    assembled, _ = levels()[1]
    assert [f.name for f in assembled.features] == [
        "mean", "row-gradient", "column-gradient", "dark-share", "bright-share", "strong", "top-bottom", "left-right",
        "quietest-row", *(f"pca-{i}" for i in range(1, 9)), "distance-class", "distance-all", "confidence", "entropy",
        "class",
    ]  # fmt: skip
    assert not assembled.graph.apart, "what was normalised is a tensor apart already"


def test_equal_seeds_give_equal_graphs_and_other_seeds_other_constants() -> None:
    one = case("cnn")

    def noisy(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        return (rows + rng.normal(0, 0.1, rows.shape)).astype(rows.dtype)

    recipe, data = told(one)
    recipe = replace(recipe, augment=noisy)
    net = one.build()
    a, b, c = (assemble(recipe, data, net, temperature=1.0, seed=seed).graph.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    assert not torch.equal(a["monitor.embedding.project.weight"], c["monitor.embedding.project.weight"])


def test_constants_come_from_augmented_rows_a_bounded_number_of_them() -> None:
    recipe, data = told(case("cnn"))
    few = fitting_rows(replace(recipe, augment=lambda rng, rows: rows), data, 0)[0]
    assert len(few) == ROUNDS * len(data.train)
    many = Labelled("train", {"x": np.zeros((FIT_ROWS + 500, 2), np.float32)}, np.arange(FIT_ROWS + 500))
    rows, labels = fitting_rows(recipe, replace(data, train=many), 0)
    assert len(rows) == len(set(labels.tolist())) == FIT_ROWS


def test_a_graph_is_the_plain_one_with_a_monitor_beside_it() -> None:
    one = case("gru")
    recipe, data = told(one)
    net = one.build()
    whole = assemble(recipe, data, net, temperature=2.0, seed=1)
    without = plain(recipe, data, net, temperature=2.0, seed=1)
    x = torch.from_numpy(one.rows)
    assert torch.equal(whole.graph(x)[0], without(x)[0])
    assert whole.outputs[:-1] == without.outputs
    layers = {name for name, _ in whole.graph.named_parameters()}
    assert {name for name in layers if name.startswith("net.")} == {f"net.net.{n}" for n, _ in net.named_parameters()}


def test_half_of_the_score_is_the_error_that_one_in_a_hundred_training_rows_exceeds() -> None:
    one = case("autoencoder")
    rng = np.random.default_rng(2)
    one = replace(one, rows=rng.normal(size=(2000, 6)).astype(np.float32), labels=np.zeros(2000, np.int64))
    assembled, _ = made(one)
    scores = answered(assembled.graph, assembled, torch.from_numpy(one.rows))["score"]
    assert abs(np.mean(scores > 0.5) - 0.01) < 0.002


class Blind(Cnn):
    """Answers two classes too few."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :2]


class Diverged(Cnn):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.nan)


class Dead(Cnn):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 0)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Blind, r"expected labels in 0\.\.1, got 2 in the training rows"),
        (Diverged, r"training row 0 has an embedding that is not finite"),
        (Dead, r"the embedding of the training rows: .* never vary"),
    ],
)
def test_a_net_that_cannot_be_assembled_is_told_why(net: type[nn.Module], message: str) -> None:
    recipe, data = told(case("cnn"))
    with pytest.raises(RequestError, match=message):
        assemble(recipe, data, net(), temperature=1.0, seed=0)


def test_an_augmentation_that_changes_the_rows_form_is_told() -> None:
    recipe, data = told(case("cnn"))
    wrong = replace(recipe, augment=lambda rng, rows: rows.astype(np.float64))
    with pytest.raises(RequestError, match=r"augment: expected rows \(1, 8, 8\) of float32, .* got .* of float64"):
        assemble(wrong, data, Cnn(), temperature=1.0, seed=0)


def static(form: str) -> Scheme:
    return Scheme(
        format=form,  # type: ignore[arg-type]
        precision="int8",
        method="static",
        calibration="minmax",
        activations="u8" if form == "onnx" else "s8",
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["levels", "autoencoder", "detector"])
def test_both_formats_answer_as_torch_and_int8_leaves_the_monitor_what_it_sees(name: str, tmp_path: Path) -> None:
    """If net and monitor read one tensor, or net and head, rows far outside the calibrated range would show it."""
    one, (assembled, recipe) = levels() if name == "levels" else (case(name), made(case(name)))
    assert assembled.graph.apart == (name != "levels")
    outside = (one.rows * 3).astype(one.rows.dtype)
    expected = answered(assembled.graph, assembled, torch.from_numpy(outside))
    seen = [at for at, (_, group) in enumerate(assembled.graph.monitor.columns) if group == "input"]
    for form, runtime in (("onnx", "onnxruntime"), ("tflite", "litert")):
        path, small = tmp_path / f"float.{form}", tmp_path / f"int8.{form}"
        if form == "onnx":
            export_onnx(assembled.graph, one.example, path, inputs=["x"], outputs=[t.name for t in assembled.outputs])
        else:
            export_tflite(assembled.graph, one.example, path)
        quantize(static(form), path, small, {"x": one.rows})
        exact, rounded = (
            run(open_session(p, runtime, inputs=(recipe.input,), outputs=assembled.outputs), {"x": outside})
            for p in (path, small)
        )
        for tensor, y in expected.items():
            scale = max(1.0, float(np.abs(y).max()))
            np.testing.assert_allclose(exact[tensor], y, atol=1e-4 * scale, err_msg=f"{form} {tensor}")
        assert (rounded["monitor"][:, seen] == exact["monitor"][:, seen]).all(), form
        if name == "autoencoder":  # the head looks at the input too: clipped, no anomaly would be left of this
            assert np.abs(rounded["score"] - exact["score"]).max() < 0.05


def test_what_a_graph_declares_can_be_stored() -> None:
    assembled, _ = made(case("detector"))
    assert msgspec.json.decode(msgspec.json.encode(assembled.features), type=tuple[Feature, ...]) == assembled.features
