"""Every reference recipe, in its smallest form, from its data to a package for two devices."""

from __future__ import annotations

import importlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from edgewright_compiler.compilation import compile_recipe
from edgewright_compiler.pipeline.runs import all_runs
from edgewright_contracts.errors import Unavailable
from edgewright_devices import load
from edgewright_models import RECIPES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# The front of announcer, a spectrum, costs more to quantize than all the others together, and fashion is mnist with
# more channels: one format of each is enough.
FORMATS = {"announcer": ("onnx",), "fashion": ("tflite",), "mnist": ("onnx",)}
FEWER = {"fashion": {"rows": 300}, "mnist": {"rows": 300}}


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "digits"])
def test_a_recipe_compiles_for_two_devices_and_the_second_trains_nothing(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("edgewright_compiler.graph.graph.FIT_ROWS", 1024)
    module = importlib.import_module(RECIPES[name])
    work = tmp_path / "work"
    try:
        recipe = module.recipe(replace(module.QUICK, **FEWER.get(name, {})))
    except Unavailable as reason:
        pytest.skip(str(reason))
    for device in ("raspberry-pi-4", "x86-gateway"):
        result = compile_recipe(
            recipe,
            load(device),
            tmp_path / device,
            seed=1,
            now=datetime(2026, 3, 1, tzinfo=UTC),
            progress=lambda _stage, _share: None,
            work=work,
            formats=FORMATS.get(name, ("onnx", "tflite")),
            thorough=False,
        )
        result.package.verify()
        assert result.package.manifest.name == name
        assert {v.loss is not None for v in result.evidence.variants} >= {True}
    second = all_runs(work)[-1]
    trained = [s for s in second.steps if s.seconds is not None and s.name.split("-")[0] in ("teacher", "student")]
    assert not trained
    capfd.readouterr()  # exporters write to the process's streams
