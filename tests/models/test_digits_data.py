"""The digits: one fixed split, one sensor for training, reference and feed, and a feed that needs numpy only."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgewright_contracts.errors import RequestError
from edgewright_models.digits import data


def test_the_split_is_fixed_and_whole() -> None:
    split = data.split()
    assert [len(rows) for rows in (split.train, split.validation, split.held_out)] == [1000, 200, 597]
    assert data.fingerprint() == "efdd72423d80fc587a297b2500dc4a5e8a5c6c3c3177a5524f8001bd5ab31575"
    assert split.train.images.dtype == np.uint8
    assert {int(split.train.images.min()), int(split.held_out.images.max())} == {0, data.TOP}
    assert np.unique(split.held_out.labels).tolist() == list(range(10))


def test_equal_generators_give_equal_frames() -> None:
    a, b = (data.feed(np.random.default_rng(4), 50, "sensor-noise") for _ in range(2))
    assert (a[0] == b[0]).all()
    assert (a[1] == b[1]).all()
    assert (a[0] != data.feed(np.random.default_rng(5), 50, "sensor-noise")[0]).any()


def test_frames_keep_the_range_and_stay_close_to_the_digit() -> None:
    images = data.split().train.images
    seen = data.augment(np.random.default_rng(0), images)
    assert seen.shape == images.shape
    assert seen.max() <= data.TOP
    assert abs(float(seen.mean()) - float(images.mean())) < 0.3
    assert np.corrcoef(seen.ravel(), images.ravel())[0, 1] > 0.85


def test_shifts_do_what_their_names_say() -> None:
    plain = data.feed(np.random.default_rng(1), 400)[0]
    dead = data.feed(np.random.default_rng(1), 400, "dead-row")[0]
    assert not dead[:, data.DEAD_ROW].any()
    untouched = [row for row in range(8) if row != data.DEAD_ROW]
    assert (dead[:, untouched] == plain[:, untouched]).all()
    noisy = data.feed(np.random.default_rng(1), 400, "sensor-noise")[0]
    assert (noisy == 0).mean() < 0.8 * (plain == 0).mean()
    both = data.feed(np.random.default_rng(1), 400, "sensor-noise+dead-row")[0]
    assert (both[:, untouched] == noisy[:, untouched]).all()
    assert not both[:, data.DEAD_ROW].any()


def test_an_unknown_shift_is_told_the_known_ones() -> None:
    with pytest.raises(RequestError, match="expected one of sensor-noise, dead-row"):
        data.feed(np.random.default_rng(0), 1, "fog")


@pytest.mark.process
def test_drawing_frames_loads_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys; import numpy as np; from edgewright_models.digits import data;"
        "data.feed(np.random.default_rng(0), 5);"
        "print(*[m for m in ('torch', 'sklearn', 'scipy', 'edgewright_compiler') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
