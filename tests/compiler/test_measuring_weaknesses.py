"""Slices with their intervals, named shifts, the adversarial step, and estimates that say what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import binomtest
from torch import Tensor, nn

from edgewright.compiled import show, summary
from edgewright.evidence_tables import show_evidence
from edgewright.main import run
from edgewright_compiler.measuring.dearer import dearer
from edgewright_compiler.measuring.estimate import fits, predict, replaced
from edgewright_compiler.measuring.evidence import (
    Bench,
    Benched,
    Calibration,
    Evidence,
    Figure,
    Loss,
    Machine,
    Memory,
    Parity,
    Reference,
    Shift,
    Slice,
    Time,
    VariantEvidence,
    decode_bench,
    decode_evidence,
    encode,
)
from edgewright_compiler.measuring.metrics import metric
from edgewright_compiler.measuring.robustness import STEP, adversarial, shifted
from edgewright_compiler.measuring.slices import by_slice, figure, with_labels, worst
from edgewright_compiler.packaging import facts_of, write_package
from edgewright_compiler.pipeline import weaknesses
from edgewright_compiler.pipeline.choice import Arch, Candidate, Choice, Limits
from edgewright_compiler.pipeline.refinement import drawn
from edgewright_compiler.pipeline.weaknesses import SHIFTED_ROWS
from edgewright_compiler.rows import Labelled
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import Task, TensorIn
from edgewright_contracts.package import read_package
from edgewright_devices import load

TINY = Path(__file__).parent.parent / "data" / "tiny-1.0.0.ewp"
ACCURACY = metric("accuracy", "classification")


def right_in(shares: dict[str, float], n: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Outputs, labels (all 1) and sites: of every site's n rows this share is right."""
    right = np.concatenate([np.arange(n) < share * n for share in shares.values()])
    sites = np.repeat(list(shares), n)
    return {"probabilities": np.stack([~right, right], 1).astype(np.float32)}, np.ones(len(right), np.int64), sites


def test_a_figure_of_right_and_wrong_rows_has_wilsons_interval() -> None:
    outputs, labels, _ = right_in({"a": 0.9}, 50)
    found = figure(ACCURACY, outputs, labels, seed=1)
    low, high = binomtest(45, 50).proportion_ci(0.95, method="wilson")
    assert (found.value, found.n, found.method) == (0.9, 50, "Wilson")
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_a_figure_of_a_set_has_an_interval_from_resamples() -> None:
    outputs, labels, _ = right_in({"a": 0.9}, 200)
    labels[::3] = 0
    found = figure(metric("macro_f1", "classification"), outputs, labels, seed=1)
    assert found.low is not None
    assert found.high is not None
    assert 0.02 < found.value - found.low < 0.2
    assert 0.02 < found.high - found.value < 0.2
    assert figure(metric("macro_f1", "classification"), outputs, labels, seed=1) == found


def test_the_worst_slice_is_the_poorest_of_those_with_enough_rows() -> None:
    outputs, labels, sites = right_in({"hall": 0.95, "kitchen": 0.7, "yard": 0.9}, 100)
    numbers = np.arange(300)
    few = np.where(np.arange(300) >= 295, "rare", "often")  # of which every one is wrong
    found = by_slice(ACCURACY, outputs, labels, {"site": sites, "number": numbers, "few": few}, seed=1)
    assert [(s.attribute, s.value, s.figure.n) for s in found] == [
        ("site", "hall", 100),
        ("site", "kitchen", 100),
        ("site", "yard", 100),
        ("few", "often", 295),
        ("few", "rare", 5),
    ], "an attribute that tells single rows apart is left out"
    poorest = worst(ACCURACY, found)
    assert poorest is not None
    assert (poorest.value, poorest.figure.value) == ("kitchen", pytest.approx(0.7))
    assert worst(ACCURACY, found[-1:]) is None


def test_a_slice_without_a_figure_is_left_out_and_classes_are_slices_too() -> None:
    labels = np.array([0, 0, 1, 1, 0, 0])
    sites = np.array(["a", "a", "a", "a", "b", "b"])
    found = by_slice(metric("auroc", "anomaly"), {"score": np.linspace(0, 1, 6)}, labels, {"site": sites}, seed=1)
    assert [s.value for s in found] == ["a"]
    both = with_labels({"site": sites}, labels, "classification", ("no", "yes"))
    assert both["label"].tolist() == ["no", "no", "yes", "yes", "no", "no"]
    assert list(with_labels({"site": sites}, labels, "anomaly", ("no", "yes"))) == ["site"]


IMAGE = TensorIn(name="image", dtype="uint8", shape=(12, 12), valid=(0.0, 255.0))
COLOUR = TensorIn(name="image", dtype="uint8", shape=(3, 12, 10), valid=(0.0, 255.0))
SERIES = TensorIn(name="window", dtype="float32", shape=(50, 4))
VECTOR = TensorIn(name="readings", dtype="float32", shape=(6,))
TOKENS = TensorIn(name="ids", dtype="int32", shape=(16,), valid=(0.0, 99.0))


@pytest.mark.parametrize(
    ("statistics", "tensor", "names"),
    [
        ("image", IMAGE, ["noise", "blur", "contrast", "brightness", "shift"]),
        ("image", COLOUR, ["noise", "blur", "contrast", "brightness", "shift"]),
        ("series", SERIES, ["noise", "gain", "late", "dead sensor"]),
        ("vector", VECTOR, ["noise", "gain", "dead sensor"]),
        ("tokens", TOKENS, ["erased", "swapped"]),
    ],
)
def test_shifts_keep_what_a_device_may_hand_over(statistics: str, tensor: TensorIn, names: list[str]) -> None:
    """Same shape, dtype and range, other values; equal seeds give equal rows."""
    rng = np.random.default_rng(1)
    low, high = tensor.valid or (-3.0, 3.0)
    rows = rng.uniform(low + 1, high - 1, (40, *tensor.shape)).astype(tensor.dtype)
    before = rows.copy()
    found = list(shifted(statistics, tensor, rows, seed=7))  # type: ignore[arg-type]
    assert [name for name, _, _ in found] == names
    for _, detail, changed in found:
        assert detail
        assert (changed.shape, changed.dtype) == (rows.shape, rows.dtype)
        assert changed.min() >= low
        assert changed.max() <= high
        assert np.mean(changed != rows) > 0.01
    assert (rows == before).all()
    again = shifted(statistics, tensor, rows, seed=7)  # type: ignore[arg-type]
    assert all((a == b).all() for (_, _, a), (_, _, b) in zip(found, again, strict=True))


def test_shifts_do_what_they_say() -> None:
    rows = np.zeros((2, 12, 12), np.uint8)
    rows[:, 5, 5] = 90
    of = {name: changed for name, _, changed in shifted("image", IMAGE, rows, seed=1)}
    assert of["blur"][0, 4:7, 4:7].tolist() == [[10] * 3] * 3
    assert np.argwhere(of["shift"][0]).tolist() == [[6, 6]]
    assert of["brightness"][0, 0, 0] == 51
    series = np.arange(2 * 50 * 4, dtype=np.float32).reshape(2, 50, 4)
    of = {name: changed for name, _, changed in shifted("series", SERIES, series, seed=1)}
    assert (of["late"][:, 5:] == series[:, :-5]).all()
    for row, channel in ((0, 0), (1, 1)):
        dead = of["dead sensor"][row]
        assert (dead[:, channel] == np.median(series[:, :, channel])).all()
        assert (np.delete(dead, channel, 1) == np.delete(series[row], channel, 1)).all()


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 255


def test_the_adversarial_step_hurts_more_than_noise_of_its_size() -> None:
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    rows = rng.integers(60, 190, (300, 12, 12)).astype(np.uint8)
    rows[:, :6] += (np.arange(300) % 2 * 8).astype(np.uint8)[:, None, None]
    labels = np.arange(300) % 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    x, y = torch.from_numpy(rows).float() / 255, torch.from_numpy(labels)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    front = Scaled().eval()
    found = adversarial("image", front, net.eval(), IMAGE, rows, labels, "classification")
    assert found is not None
    detail, moved = found
    assert detail == "5.1 of the input along the float model's gradient"
    assert (moved.shape, moved.dtype) == (rows.shape, rows.dtype)
    assert np.abs(moved.astype(int) - rows).max() <= round(STEP * 255)
    noisy = np.clip(rows + rng.choice([-5, 5], rows.shape), 0, 255).astype(np.uint8)

    def right(r: np.ndarray) -> float:
        with torch.no_grad():
            return float((net(front(torch.from_numpy(r))).argmax(1).numpy() == labels).mean())

    assert right(moved) < right(noisy) - 0.3
    assert all(p.grad is None or p.grad.abs().sum() >= 0 for p in net.parameters())


def test_a_step_of_whole_numbers_is_at_least_one() -> None:
    few = TensorIn(name="image", dtype="uint8", shape=(8, 8), valid=(0.0, 16.0), unit="level")
    rows = np.full((3, 8, 8), 8, np.uint8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    found = adversarial("image", Scaled(), net, few, rows, np.zeros(3, np.int64), "classification")
    assert found is not None
    assert found[0].startswith("1 level along")
    assert (np.abs(found[1].astype(int) - rows) == 1).all()


def test_noise_goes_by_each_channels_middle_and_not_by_what_lies_far_outside() -> None:
    rows = np.random.default_rng(1).standard_normal((2000, 6)).astype(np.float32)
    rows[:20] = 1000.0
    name, _, changed = next(iter(shifted("vector", VECTOR, rows, seed=1)))
    assert name == "noise"
    assert np.std(changed[20:] - rows[20:]) == pytest.approx(0.2, rel=0.1)


def test_where_a_gradient_has_no_meaning_there_is_no_adversarial_step() -> None:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids.long()).mean(1)

    class Strict(Looked):
        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids).mean(1)

    rows, labels = np.ones((4, 16), np.int32), np.zeros(4, np.int64)
    for net in (Looked().eval(), Strict().eval()):
        assert adversarial("tokens", nn.Identity(), net, TOKENS, rows, labels, "classification") is None
        assert adversarial("series", nn.Identity(), net, TOKENS, rows, labels, "classification") is None
    numbers = np.ones((4, 6), np.float32)
    assert adversarial("vector", nn.Identity(), nn.Linear(6, 6), VECTOR, numbers, labels, "anomaly") is None


def test_evidence_is_measured_on_rows_from_all_over_a_sorted_split() -> None:
    sorted_labels = np.repeat(np.arange(10), 500)
    at = drawn(5000, 512, 1, b"ranked")
    assert len(np.unique(at)) == 512
    assert (np.diff(at) > 0).all()
    assert np.bincount(sorted_labels[at], minlength=10).min() > 20
    assert (drawn(5000, 512, 1, b"ranked") == at).all()
    assert (drawn(5000, 512, 2, b"ranked") != at).any()
    assert (drawn(5000, 512, 1, b"parity") != at).any()
    assert drawn(3, 512, 1, b"ranked").tolist() == [0, 1, 2]


class Summed:
    """A session whose anomaly score is the sum of the row."""

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"score": inputs["readings"].sum(axis=1, keepdims=True)}


@pytest.mark.parametrize(("classes", "shifts", "reasons"), [(2, 3, 0), (1, 0, 3)])
def test_a_shift_without_a_figure_is_left_out_with_its_reason(classes: int, shifts: int, reasons: int) -> None:
    """Of one class AUROC is not defined; sorted by class, of two classes it is."""
    n = 2 * SHIFTED_ROWS
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(classes), n // classes)
    readings = (rng.standard_normal((n, 6)) + labels[:, None]).astype(np.float32)
    bench = SimpleNamespace(
        data=SimpleNamespace(test=Labelled("test", {"readings": readings}, labels)),
        recipe=SimpleNamespace(input=VECTOR, statistics="vector", task="anomaly"),
        front=nn.Identity(),
        metric=metric("auroc", "anomaly"),
        seed=1,
    )
    part = SimpleNamespace(file=SimpleNamespace(open=Summed, alone=False))
    left_out: list[str] = []
    found = weaknesses.under_shifts(bench, SimpleNamespace(built=SimpleNamespace(net=None)), part, left_out)  # type: ignore[arg-type]
    assert [one.figure.n for one in found] == [SHIFTED_ROWS] * shifts
    assert len(left_out) == reasons
    assert all("auroc is nan on these 2000 rows" in reason for reason in left_out)


@pytest.mark.parametrize("classes", [1, 2])
def test_the_sensitivity_of_layers_is_left_out_where_the_metric_is_not_defined(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1)).eval()

    def answers(graph: nn.Module, rows: Labelled) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {"score": graph(torch.from_numpy(rows.inputs["readings"])).numpy()}

    monkeypatch.setattr(weaknesses, "student", lambda *_: SimpleNamespace(net=lambda: net))
    monkeypatch.setattr(weaknesses, "plain", lambda _recipe, _data, trial, **_: trial)
    monkeypatch.setattr(weaknesses, "answered", answers)
    readings = np.random.default_rng(1).standard_normal((2000, 6)).astype(np.float32)
    labels = np.repeat(np.arange(classes), 2000 // classes)
    bench = SimpleNamespace(
        data=SimpleNamespace(validation=Labelled("validation", {"readings": readings}, labels)),
        recipe=SimpleNamespace(prune=SimpleNamespace(round_to=8)),
        example=torch.zeros(1, 6),
        metric=metric("auroc", "anomaly"),
        seed=1,
    )
    taken = SimpleNamespace(choice=SimpleNamespace(arch=Arch()))
    left_out: list[str] = []
    found = weaknesses.layer_drops(bench, taken, None, left_out)  # type: ignore[arg-type]
    assert len(found) == classes - 1
    assert len(left_out) == 2 - classes
    assert all("auroc is nan on these 512 rows" in reason for reason in left_out)


def windows(rng: np.random.Generator, people: int, each: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Outputs, labels (all 1) and the person of each window; of every person another share is right, 0.8 on average."""
    share = np.repeat(rng.beta(8, 2, people), each)
    right = rng.random(people * each) < share
    outputs = {"probabilities": np.stack([~right, right], 1).astype(np.float32), "values": right[:, None] * 1.0}
    return outputs, np.ones(len(right), np.int64), np.repeat(np.arange(people), each)


@pytest.mark.parametrize("people", [2, 3, 10])
def test_an_interval_of_grouped_rows_covers_as_often_as_it_says(people: int) -> None:
    rng, covered, alone = np.random.default_rng(1), 0, 0
    for _ in range(200):
        outputs, labels, person = windows(rng, people, 100)
        found, single = (
            figure(ACCURACY, outputs, labels, seed=1, groups=person),
            figure(ACCURACY, outputs, labels, seed=1),
        )
        assert (found.method, found.n, found.value) == ("Wilson, by groups", 100 * people, single.value)
        assert found.low is not None
        assert found.high is not None
        assert single.low is not None
        assert single.high is not None
        covered += found.low <= 0.8 <= found.high
        alone += single.low <= 0.8 <= single.high
    assert covered >= 0.9 * 200
    assert alone < 0.7 * 200


@pytest.mark.parametrize(
    ("name", "task", "method"),
    [
        ("mae", "regression", "Student's t, by groups"),
        ("macro_f1", "classification", "percentile bootstrap, by groups"),
    ],
)
def test_groups_widen_every_kind_of_interval(name: str, task: Task, method: str) -> None:
    outputs, labels, person = windows(np.random.default_rng(1), 10, 100)
    truth = labels if task == "classification" else labels[:, None] * 1.0
    found = figure(metric(name, task), outputs, truth, seed=1, groups=person)
    single = figure(metric(name, task), outputs, truth, seed=1)
    assert (found.method, found.n, found.value) == (method, 1000, single.value)
    assert found.low is not None
    assert found.high is not None
    assert single.low is not None
    assert single.high is not None
    assert found.high - found.low > 2 * (single.high - single.low)


def test_a_slice_has_the_groups_of_its_own_rows_and_one_group_is_rows() -> None:
    outputs, labels, person = windows(np.random.default_rng(1), 4, 50)
    slices = {"half": np.where(person < 2, "a", "b"), "person": person}
    found = by_slice(ACCURACY, outputs, labels, slices, seed=1, groups=person)
    assert [s.figure.method for s in found] == ["Wilson, by groups"] * 2 + ["Wilson"] * 4
    assert [s.figure.n for s in found] == [100] * 2 + [50] * 4
    assert figure(ACCURACY, outputs, labels, seed=1, groups=np.zeros(200)) == figure(ACCURACY, outputs, labels, seed=1)


HERE = Machine(
    arch="x86_64", system="Linux", cpu="a workstation", cores=2, int8_dot=True, python="3", numpy="2", runtimes={}
)
TIME = Time(p50=100.0, p95=150.0, p99=200.0, calls=350, per_reference=0.5)


def test_an_estimate_says_what_it_rests_on_and_that_its_error_is_unknown() -> None:
    pi = load("raspberry-pi-4")
    found = predict(pi, HERE, TIME, int8=False)
    assert found.low_ms < found.p50_ms < found.high_ms
    noisy = msgspec.structs.replace(TIME, p95=900.0)
    assert predict(pi, HERE, noisy, int8=False) == found, "the tail of the machine that compiles is its own"
    assert found.p95_ms == pytest.approx(1.2 * found.p50_ms)
    assert found.p95_basis.startswith("1.2 × p50, assumed of a device")
    assert "a workstation" in found.basis
    assert "the device is aarch64" in found.basis
    assert found.error.startswith("unknown")
    int8 = predict(pi, HERE, TIME, int8=True)
    assert (int8.low_ms, int8.high_ms) == (found.low_ms, 2 * found.high_ms), "no dot product there"
    assert predict(load("raspberry-pi-5"), HERE, TIME, int8=True).p50_ms < found.p50_ms
    slow = msgspec.structs.replace(HERE, int8_dot=False)
    assert predict(load("raspberry-pi-5"), slow, TIME, int8=True).low_ms == pytest.approx(
        predict(load("raspberry-pi-5"), slow, TIME, int8=False).low_ms / 2
    )


def a_bench(host: str, digest: str, p50: float, arch: str = "aarch64") -> Bench:
    time = Time(p50=p50, p95=p50 * 1.2, p99=p50 * 1.5, calls=350, per_reference=0.4)
    return Bench(
        host=host,
        made="2026-01-02T03:04:05+00:00",
        name="tiny",
        version="1.0.0",
        digest=digest,
        machine=msgspec.structs.replace(HERE, arch=arch, int8_dot=False, cpu="Cortex-A72"),
        reference_us=900.0,
        variants=(
            Benched(variant="onnx-int8", runtime="onnxruntime", version="1", bytes=9, selftest=True, time_us=time,
                    memory=Memory(load_ms=9.0, peak_rss_mb=60.0, growth_mb=2.0)),
            Benched(variant="tflite-int8", runtime="litert", version="1", bytes=9, failed="does not load"),
        ),
    )  # fmt: skip


def test_what_a_device_measured_stands_beside_its_estimate() -> None:
    pi = load("raspberry-pi-4")
    estimate, bench = predict(pi, HERE, TIME, int8=True), a_bench("pi", "0" * 64, 400.0)
    assert fits(pi, bench)
    assert not fits(load("raspberry-pi-5"), bench)
    assert not fits(load("x86-gateway"), bench)
    assert replaced(estimate, bench, "onnx-int8") == (0.4, pytest.approx(estimate.p50_ms / 0.4))
    assert replaced(estimate, bench, "tflite-int8") is None


def all_evidence() -> Evidence:
    share = Figure(value=0.9812, n=1000, low=0.971, high=0.988, method="Wilson")
    dark = Slice(attribute="site", value="kitchen", figure=Figure(value=0.81, n=120, low=0.73, high=0.87))
    candidates = tuple(
        Candidate(arch=Arch(width=w), scheme=s, format=f, precision="int8", value=0.98, drop=d, half_width=0.4,
                  bytes=b, p50_us=60.0, relative=0.5)
        for w, s, f, d, b in ((1.0, "static-u8s8", "onnx", 0.2, 17000), (1.0, "static", "tflite", 0.3, 16000),
                              (0.5, "static-u8s8", "onnx", 1.9, 8000), (0.5, "dynamic", "onnx", 2.5, 9000))
    )  # fmt: skip
    return Evidence(
        made="2026-01-02T03:04:05+00:00",
        seconds=61.0,
        device="raspberry-pi-4",
        machine=HERE,
        metric="accuracy",
        reference=Reference(
            name="teacher", bytes={"onnx": 960_000, "tflite": 970_000}, metric={"test": share},
            time_us={"onnx": TIME, "tflite": TIME}, macs=5_000_000, params=241_000,
        ),
        variants=(
            VariantEvidence(
                id="onnx-int8", scheme="static-u8s8", bytes=17_000, metric={"test": share}, time_us=TIME,
                monitor_us=4.0,
                loss=Loss(estimate=0.3, bound=0.8, n=1000, discordant=11, confidence=0.95, method="paired score"),
                memory=Memory(load_ms=7.0, peak_rss_mb=66.0, growth_mb=2.5),
                parity=Parity(n=256, max_error=0.04, mean_error=0.003, within=0.99, agree=1.0, tolerance=0.1,
                              asked=0.9, reference="torch"),
            ),
        ),
        macs=400_000,
        params=20_000,
        max_drop=1.0,
        choice=Choice(arch=Arch(), chosen={"onnx": "static-u8s8", "tflite": "static"}, limits=Limits(max_drop=1.0),
                      candidates=candidates, why="least bytes × time", tried=(Arch(),)),
        calibration=Calibration(temperature=1.7, ece_before=0.06, ece_after=0.011, n=1000),
        slices=(Slice(attribute="site", value="hall", figure=share), dark),
        worst=dark,
        robustness=(
            Shift(name="blur", detail="mean of 3 × 3 pixels", figure=share),
            Shift(name="FGSM", detail="2 % of the range", figure=share, adversarial=True),
        ),
        estimates={"onnx-int8": predict(load("raspberry-pi-4"), HERE, TIME, int8=True)},
        deterministic=True,
        suspects=("train/17.png",),
        warnings=("two classes have fewer than 50 rows",),
    )  # fmt: skip


def test_evidence_comes_back_as_it_was_and_other_things_are_told_from_it() -> None:
    evidence = all_evidence()
    assert decode_evidence(encode(evidence)) == evidence
    assert encode(evidence) == encode(evidence)
    assert decode_evidence(b'{"latency_us": {}}') is None
    with pytest.raises(ContractError, match=r"evidence\.json: expected one JSON object"):
        decode_evidence(b"no json")
    bench = a_bench("pi", "0" * 64, 400.0)
    assert decode_bench(encode(bench), "bench-pi.json") == bench
    with pytest.raises(ContractError, match=r"bench-pi\.json: expected what edgewright bench"):
        decode_bench(b"{}", "bench-pi.json")


def test_what_costs_more_than_the_reference_is_told_with_and_without_monitor() -> None:
    evidence = all_evidence()
    assert dearer(evidence) == (), "as fast as the reference within what timing tells"
    (v,) = evidence.variants
    slow = msgspec.structs.replace(v, time_us=msgspec.structs.replace(TIME, p50=130.0), monitor_us=40.0,
                                   bytes=961_000, monitor_bytes=5_000)  # fmt: skip
    assert dearer(msgspec.structs.replace(evidence, variants=(slow,))) == (
        "onnx-int8 is larger than teacher (onnx): 961,000 bytes (956,000 without its monitor), not 960,000",
        "onnx-int8 is slower than teacher (onnx): p50 130 µs (90 without its monitor) here, not 100",
    )
    other = msgspec.structs.replace(slow, scheme="none")
    assert dearer(msgspec.structs.replace(evidence, variants=(other,))) == (), "what is shipped beside the chosen one"
    assert dearer(msgspec.structs.replace(evidence, variants=(other,), choice=None))


def test_a_package_that_costs_more_is_warned_of_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = read_package(TINY)
    evidence = all_evidence()
    (v,) = evidence.variants
    large = msgspec.structs.replace(evidence, variants=(msgspec.structs.replace(v, bytes=960_001),))
    files = {name: tiny.read(name) for name in tiny.manifest.files}
    package = write_package(tmp_path / "tiny", facts_of(tiny.manifest), files, encode(large))
    said = "warning onnx-int8 is larger than teacher (onnx): 960,001 bytes, not 960,000"
    assert run(["inspect", str(package.root)]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    show(Console(width=200), package, large)
    assert said in " ".join(capsys.readouterr().out.split())
    assert summary(package, large, tmp_path)["dearer"] == dearer(large)


def test_inspect_shows_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = read_package(TINY)
    files = {name: tiny.read(name) for name in tiny.manifest.files}
    package = write_package(tmp_path / "tiny", facts_of(tiny.manifest), files, encode(all_evidence()))
    (package.root / "bench-pi.json").write_bytes(encode(a_bench("pi", package.digest, 400.0)))
    (package.root / "bench-desk.json").write_bytes(encode(a_bench("desk", package.digest, 40.0, arch="x86_64")))
    (package.root / "bench-old.json").write_bytes(encode(a_bench("old", "f" * 64, 9.0)))
    assert run(["inspect", str(package.root)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for shown in (
        "98.12 (97.1–98.8)",
        "teacher (onnx)",
        "onnx-int8: loses 0.30 points against teacher, at most 0.80 with 95 % confidence, asked for at most 1",
        "calibration error 6.0 % before and 1.1 % after temperature 1.70",
        "an estimate, until it has measured",
        "measured by pi",
        "0.40 ms",
        "answers of every variant against torch, errors in units of each output's range",
        "tolerance within it asked same class rows",
        "0.1 99.00 % 90 % 100.00 % 256",
        "p95, assumed",
        "p95: 1.2 × p50, assumed",
        "made twice: the same bytes",
        "chosen",
        "limits: --max-drop 1",
        "4 tried; least bytes × time",
        "worst slice: site = kitchen at 81.00 (73.0–87.0)",
        "FGSM (adversarial)",
        "two classes have fewer than 50 rows",
        "1 training row stands out, worth a look (by their place in your data): train/17.png",
        "tiny 1.0.0 on pi",
    ):
        assert shown in out, shown
    assert "measured by desk" not in out, "an x86 machine says nothing about a Raspberry Pi"
    assert "tiny 1.0.0 on desk" in out
    assert "on old" not in out, "a bench of another digest is not this package's"
    assert run(["inspect", str(package.root), "--json"]) == 0
    told = msgspec.json.decode(capsys.readouterr().out)
    assert told["evidence"]["metric"] == "accuracy"
    assert [b["host"] for b in told["benches"]] == ["desk", "pi"]


def test_of_many_rows_that_stand_out_the_first_are_shown_and_the_rest_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = tuple(f"train/{n}.png: looks like no other row" for n in range(20))
    show_evidence(Console(width=100), msgspec.structs.replace(all_evidence(), suspects=rows))
    out = capsys.readouterr().out
    assert "20 training rows stand out, worth a look" in out
    assert "train/4.png" in out
    assert "train/5.png" not in out
    assert "  and 15 more in evidence.json" in out


def test_inspecting_loads_no_part_of_the_compiler(tmp_path: Path) -> None:
    code = (
        "import sys; from edgewright.main import run; "
        f"code = run(['inspect', {str(TINY)!r}]); "
        "print(code, [n for n in ('torch', 'onnx', 'scipy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
