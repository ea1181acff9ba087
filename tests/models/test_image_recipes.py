"""mnist and fashion: what their splits promise, what augmentation leaves, and nets of the sizes that were pinned.

Carriers are downloaded once into the data cache; a test is skipped where that is not possible.
"""

from __future__ import annotations

import gzip
from functools import cache
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from edgewright_compiler.recipe import Recipe
from edgewright_compiler.rows import Data
from edgewright_contracts.errors import Unavailable
from edgewright_models.convolutions import Conv, widened
from edgewright_models.fashion import data as fashion
from edgewright_models.fashion import recipe as fashion_recipe
from edgewright_models.mnist import data as mnist
from edgewright_models.mnist import recipe as mnist_recipe

DATA = {"mnist": mnist, "fashion": fashion}
RECIPES = {"mnist": mnist_recipe, "fashion": fashion_recipe}
SIZES = {"mnist": (3000, 500, 1500), "fashion": (55_000, 5_000, 10_000)}
TEACHERS = {"mnist": 241_642, "fashion": 278_890}
BOTH = pytest.mark.parametrize("name", DATA)


@cache
def rows(name: str) -> Data:
    try:
        made: Data = DATA[name].data()
    except Unavailable as error:
        pytest.skip(str(error))
    return made


@BOTH
def test_no_image_is_in_two_splits(name: str) -> None:
    data = rows(name)
    splits = [data.train, data.validation, data.test]
    assert tuple(len(split) for split in splits) == SIZES[name]
    seen = [{image.tobytes() for image in split.inputs["image"]} for split in splits]
    assert not any(a & b for a, b in combinations(seen, 2))


@BOTH
def test_rows_are_what_a_device_hands_over(name: str) -> None:
    data = rows(name)
    for split in (data.train, data.validation, data.test):
        images = split.inputs["image"]
        assert images.dtype == np.uint8
        assert images.shape[1:] == (28, 28)
        assert images.flags.writeable
        assert set(split.labels) == set(range(10))
        assert all(len(values) == len(split.origins) == len(split) for values in split.slices.values())


def test_digits_are_balanced_in_every_split() -> None:
    data = rows("mnist")
    for split, each in ((data.train, 300), (data.validation, 50), (data.test, 150)):
        assert np.bincount(split.labels).tolist() == [each] * 10


@BOTH
def test_augmentation_is_reproducible_and_keeps_what_it_is_given(name: str) -> None:
    module: ModuleType = DATA[name]
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28)).astype(np.uint8)
    before = images.copy()
    one, two, other = (module.augment(np.random.default_rng(seed), images) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert np.array_equal(images, before)
    assert (one.dtype, one.shape) == (np.uint8, images.shape)


def test_clothes_are_moved_by_a_pixel_or_mirrored_and_nothing_else() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 10:14, 3:9] = 200
    allowed = {
        np.roll(form, (dy, dx), (1, 2)).tobytes()
        for form in (image, image[:, :, ::-1])
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    drawn = {row.tobytes() for row in fashion.augment(np.random.default_rng(3), np.repeat(image, 2000, axis=0))}
    assert drawn == allowed


def test_other_hands_keep_the_ink_where_it_was() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 8:20, 12:16] = 255
    drawn = mnist.augment(np.random.default_rng(4), np.repeat(image, 300, axis=0)).astype(float)
    y, x = (np.tensordot(drawn, grid, 2) / drawn.sum((1, 2)) for grid in np.mgrid[:28, :28])
    assert np.abs(y - 13.5).max() < 5
    assert np.abs(x - 13.5).max() < 5
    assert 0.7 < drawn.sum() / (300.0 * image.sum()) < 1.4


def test_idx_files_are_read_by_their_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / fashion.FOLDER
    folder.mkdir(parents=True)
    counts = {"train": fashion.VALIDATION + 20, "t10k": 12}
    images = np.random.default_rng(5).integers(0, 256, (max(counts.values()), 28, 28)).astype(np.uint8)
    for part, n in counts.items():
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb", 1) as file:
            file.write(bytes(16) + images[:n].tobytes())
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz", "wb", 1) as file:
            file.write(bytes(8) + bytes(i % 10 for i in range(n)))
    monkeypatch.setattr(fashion, "deb_tree", lambda *_: tmp_path)
    data = fashion.data()
    assert (len(data.train), len(data.validation), len(data.test)) == (20, fashion.VALIDATION, 12)
    assert np.array_equal(data.test.inputs["image"], images[:12])
    assert data.test.labels.tolist() == [i % 10 for i in range(12)]
    assert data.test.origins[3] == "image 3 of t10k-images-idx3-ubyte"
    few = fashion.data(8)
    assert (len(few.train), len(few.validation), len(few.test)) == (8, 8, 8)
    assert np.array_equal(few.train.inputs["image"], data.train.inputs["image"][:8])
    assert few.fingerprint != data.fingerprint


@BOTH
def test_teachers_are_the_pinned_ones_and_students_fit_beside_them(name: str) -> None:
    recipe: Recipe = RECIPES[name].recipe()
    assert recipe.teacher is not None
    assert recipe.teacher.build is not None
    assert recipe.student is not None
    teacher, student = recipe.teacher.build().eval(), recipe.student(1.0).eval()
    assert sum(isinstance(m, torch.nn.Conv2d) for m in teacher.modules()) == 5
    weights = [sum(p.numel() for p in net.parameters()) for net in (teacher, student)]
    assert weights[0] == TEACHERS[name]
    assert weights[1] < weights[0] / 3.5
    levels = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        seen = recipe.front(rows(name)).eval()(levels)
        assert tuple(seen.shape) == (4, 1, 28, 28)
        assert float(seen.min()) >= 0
        assert float(seen.max()) <= 1
        assert teacher(seen).shape == student(seen).shape == (4, 10)


@BOTH
def test_the_small_form_is_another_recipe(name: str) -> None:
    module = RECIPES[name]
    full, quick = module.recipe(), module.recipe(module.QUICK)
    assert full.settings != quick.settings
    assert full.schedule.epochs > quick.schedule.epochs
    assert full.version == quick.version == "1.0.0"


def test_widths_are_multiples_of_eight() -> None:
    net = (Conv(24, pool=True), Conv(48, kernel=5, stride=2))
    assert widened(net, 1.0) == net
    assert [conv.channels for conv in widened(net, 0.6)] == [16, 32]
    assert [conv.channels for conv in widened(net, 0.01)] == [8, 8]
    assert widened(net, 0.5)[1]._replace(channels=48) == net[1]
