"""Which of ten announcers speaks: one second of sound, from a children's game that people of many countries recorded.

Source: Debian's ktuberling-data, real recordings of object names, one voice a language as far as one can hear. Speaker,
microphone, room and language are **confounded**: a model may tell them apart by any of these, so this is neither
language identification nor speaker recognition. Held out are words: what is said in a test clip ("camel", in any
language) was said in no training clip. A row is the loudest second, 8 kHz, 16 bit, mono. Order and split are fixed.

Needs apt (or the archive by hand), and soundfile to decode; else numpy only. Cost: some 10 s, and a tenth of a second
when the decoded clips lie in the data cache from an earlier time.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from edgewright_compiler.rows import Array, Data, Labelled, fingerprint
from edgewright_contracts.errors import Unavailable
from edgewright_models.carriers import cache, deb_tree, derived

PIN: Final = ("ktuberling-data=4:22.12.3-1", "fba44c875bfa31ea488dadd9263e87a4dcaea0bd47d28817f6c0dc6d2af970ed")
SOUNDS: Final = "usr/share/ktuberling/sounds"
LABELS: Final = {
    "ca": "Catalan",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "fr": "French",
    "lt": "Lithuanian",
    "nn": "Norwegian",
    "ru": "Russian",
    "uk": "Ukrainian",
}  # those with at least 70 clips
RATE: Final = 8000  # Hz
SAMPLES: Final = RATE  # one second
FRAME: Final = 80  # 10 ms, the grid on which the loudest second is looked for
SEED: Final = 20260101
SHARES: Final = {"test": 0.3, "validation": 0.15}  # of the words; the rest train

SHIFT: Final = 1200  # samples, 150 ms
GAIN_DB: Final = 8.0
NOISE_DB: Final = (-75.0, -45.0)  # of full scale


def data() -> Data:
    """Raises Unavailable when the recordings cannot be had, or nothing can decode them."""
    made = Path(__file__).read_bytes()
    clips = _clips(derived(PIN[1], f"announcer-{zlib.crc32(made):08x}.npz", _decoded))
    train, validation, test = (_labelled(name, clips) for name in ("train", "validation", "test"))
    return Data(
        train,
        validation,
        test,
        fingerprint(train, validation, test),
        tuple(LABELS.values()),
        notes=(
            "Data: recordings of object names from KTuberling (Debian ktuberling-data 4:22.12.3-1, GPL-2+).",
            "Confounded: speaker, microphone, room and language are one and the same label here.",
            "Split by word: no word of a test clip, in whatever language, was said in a training clip.",
        ),
    )


def split_of(word: str) -> str:
    """By the word's text only, so that a word said by ten people lies on one side."""
    at = zlib.crc32(f"{SEED} {word}".encode()) / 2**32
    for name, share in SHARES.items():
        if at < share:
            return name
        at -= share
    return "train"


def augment(rng: np.random.Generator, raw: Array) -> Array:
    """The same clip a little earlier or later, louder or quieter, with white noise."""
    rows = np.asarray(raw, np.float32)
    n = len(rows)
    by = rng.integers(-SHIFT, SHIFT + 1, n)
    at = np.arange(SAMPLES)[None, :] - by[:, None]
    moved = np.where((at >= 0) & (at < SAMPLES), np.take_along_axis(rows, np.clip(at, 0, SAMPLES - 1), axis=1), 0)
    gain = np.float32(10) ** (rng.uniform(-GAIN_DB, GAIN_DB, (n, 1)) / 20).astype(np.float32)
    noise = np.float32(32768) * 10 ** (rng.uniform(*NOISE_DB, (n, 1)) / 20).astype(np.float32)
    return _pcm(moved * gain + noise * rng.standard_normal(rows.shape, np.float32))


def loudest_second(sound: npt.NDArray[np.float64], rate: int) -> npt.NDArray[np.int16]:
    """[SAMPLES]: resampled by cutting the spectrum at 4 kHz, then cut (or padded with silence) around its energy."""
    step = rate // 50  # whole steps of 20 ms make lengths that the transform is quick with
    sound = np.pad(sound, (0, -len(sound) % step))
    length = len(sound) // step * (RATE // 50)
    spectrum = np.zeros(length // 2 + 1, np.complex128)
    found = np.fft.rfft(sound)[: len(spectrum)]
    spectrum[: len(found)] = found
    resampled = np.fft.irfft(spectrum, length) * (length / len(sound))
    if length <= SAMPLES:
        before = (SAMPLES - length) // 2
        return _pcm(32768 * np.pad(resampled, (before, SAMPLES - length - before)))
    energy = np.cumsum(np.pad(resampled**2, (1, 0)))
    starts = np.arange(0, length - SAMPLES + 1, FRAME)
    start = int(starts[np.argmax(energy[starts + SAMPLES] - energy[starts])])
    return _pcm(32768 * resampled[start : start + SAMPLES])


def _decoded() -> bytes:
    """All clips in a fixed order, as an npz file."""
    try:
        import soundfile  # here, because every other recipe works without it
    except (ImportError, OSError) as error:
        raise Unavailable(f"decoding sound needs soundfile ({error}): pip install 'edgewright[recipes]'") from error
    sounds = deb_tree(*PIN) / SOUNDS
    said: dict[bytes, tuple[str, str]] = {}  # some recordings are there twice, under two names
    for language in LABELS:
        theme = ElementTree.parse(sounds / f"{language}.soundtheme").getroot()  # noqa: S314, its hash is pinned
        named = {sound.attrib["file"]: sound.attrib["name"] for sound in theme.iter("sound")}
        for file, name in sorted(named.items()):
            sound, rate = soundfile.read(sounds / file, always_2d=True)
            said.setdefault(loudest_second(sound.mean(axis=1), rate).tobytes(), (file, name))
    buffer = io.BytesIO()
    files, names = zip(*said.values(), strict=True)
    seconds = np.frombuffer(b"".join(said), np.int16).reshape(-1, SAMPLES)
    np.savez(buffer, files=np.array(files), names=np.array(names), seconds=seconds)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True, eq=False)
class Clips:
    files: npt.NDArray[np.str_]  # "fr/patate_nez.wav"
    words: npt.NDArray[np.str_]
    seconds: npt.NDArray[np.int16]  # [n, SAMPLES]


def _clips(content: bytes) -> Clips:
    try:
        with np.load(io.BytesIO(content)) as arrays:
            files, names, seconds = (arrays[name] for name in ("files", "names", "seconds"))
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Unavailable(f"decoded clips in {cache() / PIN[1]}: {error}; remove that directory and repeat") from error
    return Clips(files, np.array([name.rpartition("_")[2] for name in names]), seconds)


def _labelled(name: str, clips: Clips) -> Labelled:
    codes = list(LABELS)
    own = np.flatnonzero([split_of(word) == name for word in clips.words])
    return Labelled(
        name,
        {"sound": clips.seconds[own]},
        np.array([codes.index(file.split("/")[0]) for file in clips.files[own]], np.int64),
        groups=clips.words[own],
        origins=tuple(f"ktuberling {file}" for file in clips.files[own]),
    )


def _pcm(sound: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    return np.asarray(np.clip(np.rint(sound), -32768, 32767), np.int16)
