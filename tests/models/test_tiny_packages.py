"""The prebuilt packages run on every runtime here, agree between variants, and see the shifts of the digits feed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewright_contracts.baseline import Baseline, decode_baseline, per_channel
from edgewright_contracts.channels import Binner
from edgewright_contracts.package import Package, read_package, unpack
from edgewright_hub.drift.measures import pad, simes, window_p
from edgewright_models.digits import data
from edgewright_runtime.runtime import Session, open_session
from edgewright_runtime.selftest import run_selftest

DATA = Path(__file__).parent.parent / "data"
RUNTIME = {"onnx": "onnxruntime", "tflite": "litert"}
VARIANTS = ("onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8")
STATISTICS = slice(0, 9)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return unpack(DATA / "tiny-1.1.0.ewp", tmp_path_factory.mktemp("tiny") / "package")


def opened(package: Package, identifier: str) -> Session:
    variant = package.manifest.variant(identifier)
    m = package.manifest
    path = package.root / variant.model
    return open_session(path, RUNTIME[variant.format], inputs=m.inputs, outputs=m.outputs)


def baseline_of(package: Package, identifier: str) -> Baseline:
    return decode_baseline(package.read(package.manifest.variant(identifier).baseline))


def test_the_packages_are_whole_and_small() -> None:
    paths = sorted(DATA.glob("tiny-*.ewp"))
    assert [p.name for p in paths] == ["tiny-1.0.0.ewp", "tiny-1.1.0.ewp", "tiny-1.2.0.ewp"]
    for path in paths:
        read_package(path).verify()
    assert sum(p.stat().st_size for p in paths) < 500_000


@pytest.mark.parametrize("identifier", VARIANTS)
def test_every_variant_passes_its_self_test(package: Package, identifier: str) -> None:
    variant = package.manifest.variant(identifier)
    result = run_selftest(opened(package, identifier), package.read(variant.selftest), package.manifest, variant)
    assert result.passed, result.reason


def test_variants_agree_and_the_monitor_stays_float_under_int8(package: Package) -> None:
    images, labels = data.feed(np.random.default_rng(8), 1500)
    runs = {name: opened(package, name).run({"image": images}) for name in VARIANTS}
    fp32 = runs["onnx-fp32"]
    np.testing.assert_allclose(runs["tflite-fp32"]["probabilities"], fp32["probabilities"], atol=1e-5)
    np.testing.assert_allclose(runs["tflite-fp32"]["monitor"], fp32["monitor"], rtol=1e-3, atol=1e-4)
    for name in ("onnx-int8", "tflite-int8"):
        monitor = runs[name]["monitor"]
        assert monitor.dtype == np.float32
        assert (monitor[:, STATISTICS] == fp32["monitor"][:, STATISTICS]).all(), "statistics are not rounded at all"
        scale = fp32["monitor"].std(0)
        assert (np.abs(monitor - fp32["monitor"]).mean(0) < 0.1 * scale).all()
        assert len(np.unique(monitor[:, 9])) > 500, "an int8 component has at most 256 values"
    for name, run in runs.items():
        assert (run["probabilities"].argmax(1) == labels).mean() > 0.9, name


def test_all_variants_share_their_channels_and_count_for_themselves(package: Package) -> None:
    baselines = [baseline_of(package, name) for name in VARIANTS]
    assert len({b.edge_hash for b in baselines}) == 1
    assert len(baselines[0].channels) == 22
    assert {c.group for c in baselines[0].channels} == {"input", "embedding", "output"}
    assert len({b.counts for b in baselines}) > 2


@pytest.mark.parametrize("identifier", ["onnx-fp32", "tflite-int8"])
def test_fresh_frames_raise_no_alarm_and_each_shift_does_at_200(package: Package, identifier: str) -> None:
    session, baseline = opened(package, identifier), baseline_of(package, identifier)
    reference = pad(per_channel(baseline.channels, baseline.cells()))

    def alarms(shift: str | None, windows: int) -> int:
        rng = np.random.default_rng(12)
        found = 0
        for _ in range(windows):
            binner = Binner(baseline.channels)
            binner.add(session.run({"image": data.feed(rng, 200, shift)[0]}))
            found += simes(window_p(pad(per_channel(baseline.channels, binner.take())), reference)) < 0.001
        return found

    assert alarms(None, 30) == 0
    for shift in data.SHIFTS:
        assert alarms(shift, 5) == 5, shift
