"""The builder of the demonstration's versions, with real compilations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgewright.demo import builder
from edgewright_contracts.package import read_package
from edgewright_models.digits.recipe import FIRST


@pytest.mark.slow
def test_a_hardly_trained_version_still_holds_the_variants_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = replace(FIRST, reference_rows=2_000)
    settings = {"v1": replace(fewer, epochs=2, tune_epochs=1), "v2": replace(fewer, version="1.1.0")}
    monkeypatch.setattr(builder, "SETTINGS", settings)
    monkeypatch.setattr(builder, "MAX_DROP", 60.0)  # after two epochs
    monkeypatch.setattr("edgewright_compiler.graph.graph.FIT_ROWS", 1024)
    builder.build(tmp_path, seed=1)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (
        set(figures["v1"]["variants"])
        == set(figures["v2"]["variants"])
        == {f"{form}-{precision}" for form in ("onnx", "tflite") for precision in ("fp32", "int8")}
    )
    wrong, first = read_package(tmp_path / "v3a"), read_package(tmp_path / "v1")
    wrong.verify()
    model = wrong.manifest.variant("onnx-int8").model
    assert wrong.read(model) == first.read(model)
