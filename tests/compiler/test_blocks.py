"""Preprocessing is what it says, and ONNX and TFLite files of it answer as torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from edgewright_compiler.export.onnx import export_onnx
from edgewright_compiler.export.tflite import export_tflite
from edgewright_compiler.graph.blocks.images import Letterbox, Resize
from edgewright_compiler.graph.blocks.scaling import Normalise
from edgewright_compiler.graph.blocks.series import Spectrum, Window
from edgewright_compiler.graph.blocks.text import HashedNgrams, Vocabulary, encoded
from edgewright_compiler.graph.reference import run
from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import TensorIn, TensorOut
from edgewright_runtime.runtime import open_session

RNG = np.random.default_rng(11)
IMAGES = RNG.integers(0, 256, (3, 30, 41, 3)).astype(np.uint8)
SOUND = RNG.integers(-20000, 20000, (3, 4000)).astype(np.int16)
TEXTS = ["Turn ON the lights", "", "ab", "größer als alles, was in eine Zeile passt"]


def of(block: nn.Module, x: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    with torch.no_grad():
        return block(torch.from_numpy(x)).numpy()


def test_normalised_channels_come_first() -> None:
    mean, deviation = [10.0, 20, 30], np.array([2.0, 4, 8])
    expected = ((IMAGES - np.array(mean)) / deviation).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(of(Normalise(mean, deviation, channels="last"), IMAGES), expected, rtol=1e-6)
    grey = IMAGES[..., 0]
    np.testing.assert_allclose(of(Normalise(5, 2, channels="new"), grey)[:, 0], (grey - 5.0) / 2, rtol=1e-6)
    vector = RNG.normal(size=(4, 3)).astype(np.float32)
    np.testing.assert_allclose(of(Normalise(mean, deviation), vector), (vector - mean) / deviation, rtol=1e-5)
    assert of(Normalise(), vector) is not None
    x = torch.from_numpy(vector)
    assert Normalise()(x) is x, "nothing to do is no operator"


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.0), (0.0, [1.0, -1.0]), (0.0, float("nan"))])
def test_a_deviation_of_nothing_is_refused(mean: float, deviation: float) -> None:
    with pytest.raises(RequestError, match="deviations above 0"):
        Normalise(mean, deviation)


def test_resizing_keeps_a_ramp_a_ramp() -> None:
    ramp = np.tile(np.arange(40, dtype=np.float32), (1, 1, 20, 1))
    small = of(Resize(10, 20), ramp)
    assert small.shape == (1, 1, 10, 20)
    np.testing.assert_allclose(np.diff(small[0, 0], axis=1), 2, atol=1e-5)
    assert of(Resize(20, 40), ramp) is not None
    np.testing.assert_array_equal(of(Resize(20, 40), ramp), ramp)


def test_a_letterbox_keeps_proportions_and_says_where_boxes_went() -> None:
    block = Letterbox(32, 32, fill=-1)
    image = np.zeros((1, 1, 20, 40), np.float32)
    image[:, :, 5:15, 10:30] = 1  # the middle of both axes
    canvas = of(block, image)[0, 0]
    assert canvas.shape == (32, 32)
    assert (canvas[:8] == -1).all()
    assert (canvas[24:] == -1).all()
    assert (canvas[8:24] >= 0).all()
    box = block.onto(np.array([0.25, 0.25, 0.75, 0.75]), 20, 40)
    np.testing.assert_allclose(box, [0.25, 0.375, 0.75, 0.625])
    np.testing.assert_allclose(block.back(box, 20, 40), [0.25, 0.25, 0.75, 0.75])
    inner = canvas[int(box[1] * 32) : int(box[3] * 32), int(box[0] * 32) : int(box[2] * 32)]
    assert inner.mean() > 0.9


@pytest.mark.parametrize(("size", "hop"), [(8, 8), (8, 4), (12, 8), (5, 1), (10, 25)])
def test_windows_are_slices_of_the_series(size: int, hop: int) -> None:
    x = RNG.normal(size=(2, 61, 3)).astype(np.float32)
    got = of(Window(size, hop), x)
    expected = np.stack([x[:, at : at + size] for at in range(0, 61 - size + 1, hop)], axis=1)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(of(Window(size, hop), x[..., 0]), expected[..., 0])


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RequestError, match="at least 8 steps, which one window takes, got 7"):
        Window(8, 4)(torch.zeros(1, 7))
    with pytest.raises(RequestError, match="takes 401 slices: expected at most 64"):
        Window(401, 100)
    with pytest.raises(RequestError, match="at least 1 sample"):
        Window(8, 0)


@pytest.mark.parametrize(("size", "hop"), [(16, 8), (64, 48), (128, 128), (512, 256)])
def test_the_spectrum_is_that_of_a_fourier_transform(size: int, hop: int) -> None:
    x = RNG.normal(size=(2, 1000)).astype(np.float32)
    got = of(Spectrum(8000, size=size, hop=hop, floor=1e-12), x)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    frames = np.stack([x[:, at : at + size] for at in range(0, 1000 - size + 1, hop)], axis=1)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    np.testing.assert_allclose(np.exp(got).transpose(0, 2, 1), power, rtol=1e-3, atol=1e-5 * power.max())


def test_a_tone_is_loudest_in_its_band() -> None:
    t = np.arange(8000) / 16000
    tones = np.stack([8000 * np.sin(2 * np.pi * f * t) for f in (300, 1000, 3000, 7000)])
    loudest = of(Spectrum(16000, bands=24), tones.astype(np.int16)).mean(2).argmax(1).tolist()
    assert loudest == sorted(set(loudest))
    silent = of(Spectrum(16000, bands=24), np.zeros((1, 8000), np.int16))
    np.testing.assert_allclose(silent, np.log(1e-6), rtol=1e-5)


def test_the_constants_of_a_spectrum_are_small() -> None:
    assert sum(b.numel() * b.element_size() for b in Spectrum(16000, size=256).buffers()) < 12_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 100}, r"2\^k samples, at least 16, got 100"),
        ({"high": 9000.0}, r"within 0 \.\. 8000\.0 Hz, half the rate, got 20\.0 \.\. 9000\.0"),
        ({"size": 64, "bands": 40}, r"band 1 of 40 lies between two bins of 250\.0 Hz"),
    ],
)
def test_a_spectrum_that_cannot_be_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Spectrum(16000, **options)  # type: ignore[arg-type]


def test_ngrams_are_hashed_as_written_down_here() -> None:
    block = HashedNgrams(1000, orders=(2, 3))
    got = of(block, encoded(TEXTS, 24))
    assert got.shape == (4, block.places(24)) == (4, 23 + 22)
    for text, row in zip(TEXTS, got, strict=True):
        data = bytes(b + 32 if 65 <= b <= 90 else b for b in text.encode()[:24]).ljust(24, b"\0")
        expected = []
        for order in (2, 3):
            c = block.coefficients(order)
            for at in range(24 - order + 1):
                gram = data[at : at + order]
                expected.append(0 if 0 in gram else 1 + sum(b * k for b, k in zip(gram, c, strict=True)) % 999)
        assert row.tolist() == expected
    assert got.max() < 1000


def test_capitals_count_only_when_asked_and_grams_spread_over_the_buckets() -> None:
    a, b = encoded(["lights"], 8), encoded(["LIGHTS"], 8)
    assert (of(HashedNgrams(500), a) == of(HashedNgrams(500), b)).all()
    assert not (of(HashedNgrams(500, fold=False), a) == of(HashedNgrams(500, fold=False), b)).all()
    letters = np.array([[x, y, z] for x in range(97, 123) for y in range(97, 123) for z in range(97, 123)], np.uint8)
    counts = np.bincount(of(HashedNgrams(1024), letters).ravel().astype(np.int64), minlength=1024)[1:]
    assert counts.max() < 4 * counts.mean()


def test_ngrams_that_cannot_be_are_refused() -> None:
    with pytest.raises(RequestError, match="3 to 1048576 buckets, got 2"):
        HashedNgrams(2)
    with pytest.raises(RequestError, match="n-grams of 1 to 7 bytes"):
        HashedNgrams(100, orders=(8,))
    with pytest.raises(RequestError, match="at least 3 bytes, got 2"):
        HashedNgrams(100)(torch.zeros(1, 2, dtype=torch.uint8))


def test_a_vocabulary_is_the_most_frequent_words_and_is_read_as_written(tmp_path: Path) -> None:
    words = Vocabulary.fit(["on on off", "off on lamp!", "Lamp"], 5)
    assert words.words == ("on", "lamp", "off")
    assert len(words) == 5
    np.testing.assert_array_equal(words.encode(["off, lamp", "", "on on on"], 3), [[4, 1, 3], [0, 0, 0], [2, 2, 2]])
    words.write(tmp_path / "words.txt")
    assert Vocabulary.read(tmp_path / "words.txt").words == words.words
    (tmp_path / "twice.txt").write_text("on\non\n")
    with pytest.raises(RequestError, match=r"twice\.txt: expected one word a line in UTF-8, each once"):
        Vocabulary.read(tmp_path / "twice.txt")


class Together(nn.Module):
    """Several blocks over one input: one export proves them all."""

    def __init__(self, **blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(block(x) for block in self.blocks.values())


TOGETHER = {
    "images": (
        Together(
            resize=nn.Sequential(Normalise([1.0, 2, 3], [50.0, 60, 70], channels="last"), Resize(17, 24)),
            letterbox=nn.Sequential(Normalise(128, 64, channels="last"), Letterbox(48, 48, fill=-2)),
        ),
        IMAGES,
    ),
    "sound": (
        Together(
            window=nn.Sequential(Normalise(0, 32768), Window(24, 16)),
            bins=Spectrum(8000, size=128, hop=64),
            mel=Spectrum(16000, bands=20),
        ),
        SOUND,
    ),
    "text": (
        Together(ngrams=HashedNgrams(2048, orders=(2, 3)), cased=HashedNgrams(64, fold=False)),
        encoded(TEXTS, 32),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_files_of_both_formats_answer_as_torch(name: str, tmp_path: Path) -> None:
    block, x = TOGETHER[name]
    with torch.no_grad():
        expected = dict(zip(block.blocks, (y.numpy() for y in block(torch.from_numpy(x))), strict=True))
    inputs = (TensorIn(name="x", dtype=x.dtype.name, shape=x.shape[1:]),)  # type: ignore[arg-type]
    outputs = tuple(
        TensorOut(name=key, role="values", dtype=y.dtype.name, shape=y.shape[1:])  # type: ignore[arg-type]
        for key, y in expected.items()
    )
    example = torch.from_numpy(x[:1])
    export_onnx(block, example, tmp_path / "m.onnx", inputs=["x"], outputs=list(expected))
    export_tflite(block, example, tmp_path / "m.tflite")
    for path, runtime in ((tmp_path / "m.onnx", "onnxruntime"), (tmp_path / "m.tflite", "litert")):
        got = run(open_session(path, runtime, inputs=inputs, outputs=outputs), {"x": x})
        for key, y in expected.items():
            if y.dtype.kind == "i":
                np.testing.assert_array_equal(got[key], y, err_msg=f"{runtime} {key}")
            else:
                np.testing.assert_allclose(got[key], y, atol=1e-4, err_msg=f"{runtime} {key}")
