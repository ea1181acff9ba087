"""Fronts and nets of activity, intents, anomaly and announcer, before any training: what fits what."""

from __future__ import annotations

from dataclasses import asdict
from types import ModuleType

import numpy as np
import pytest
import torch

from edgewright_compiler.recipe import Recipe
from edgewright_compiler.rows import Data
from edgewright_contracts.errors import Unavailable
from edgewright_models.activity import recipe as activity
from edgewright_models.announcer import recipe as announcer
from edgewright_models.anomaly import recipe as anomaly
from edgewright_models.intents import recipe as intents

MODULES = {"activity": activity, "intents": intents, "anomaly": anomaly, "announcer": announcer}


def declared(module: ModuleType, *, quick: bool) -> Recipe:
    made: Recipe = module.recipe(module.QUICK) if quick else module.recipe()
    return made


def rows(recipe: Recipe) -> Data:
    try:
        return recipe.data()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", MODULES)
def test_teacher_and_student_answer_alike_and_the_student_is_smaller(name: str) -> None:
    recipe = declared(MODULES[name], quick=False)
    data = rows(recipe)
    raw = torch.from_numpy(np.asarray(data.train.inputs[recipe.input.name][:4]))
    assert tuple(raw.shape[1:]) == recipe.input.shape
    assert str(raw.dtype) == f"torch.{recipe.input.dtype}"
    if recipe.input.valid is not None:
        assert recipe.input.valid[0] <= float(raw.min()) <= float(raw.max()) <= recipe.input.valid[1]
    front = recipe.front(data).eval()
    expected = (4, *recipe.input.shape) if recipe.task == "anomaly" else (4, len(data.labels))
    for small in (declared(MODULES[name], quick=True), recipe):
        assert small.teacher is not None
        assert small.teacher.build is not None
        assert small.student is not None
        nets = [small.teacher.build().eval(), *(small.student(width).eval() for width in small.widths)]
        for net in nets:
            with torch.no_grad():
                assert tuple(net(front(raw)).shape) == expected
        sizes = [sum(p.numel() for p in net.parameters()) for net in nets]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("name", MODULES)
def test_settings_that_change_weights_or_rows_change_the_recipe(name: str) -> None:
    module = MODULES[name]
    full, quick = declared(module, quick=False), declared(module, quick=True)
    assert full.settings != quick.settings
    assert all(f"{key}=" in full.settings for key in asdict(module.Settings()) if key != "version")


def test_odd_readings_are_clipped_and_normal_ones_centred() -> None:
    recipe = anomaly.recipe()
    data = rows(recipe)
    front = recipe.front(data)
    normal = front(torch.from_numpy(np.asarray(data.train.inputs["readings"])))
    assert float(normal.abs().max()) == anomaly.CLIP
    assert float(normal.mean(0).abs().max()) < 0.2


def test_no_token_is_nothing_to_the_nets_of_intents() -> None:
    net = intents.Convolution(8, 16).eval()
    table = net.table(torch.zeros(1, intents.PLACES, dtype=torch.int32))
    assert not table.any()
