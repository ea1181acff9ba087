"""Image and wav folders: one sample a file, in the order of sorted paths.

    DIR/CLASS/*.png                      a folder for each class, split by the compiler
    DIR/train|validation|test/CLASS/*    a split of one's own (validation may be missing)
    DIR/labels.csv + files beside it     a column `file`, and those of `targets`; for detection one line a box, with
                                         file, label, x0, y0, x1, y1 in pixels

For the task anomaly a class called normal, good or ok is normal, every other one an anomaly.

Images become uint8 [h, w] when all are grey, else [h, w, 3]; other sizes are resized to the most common one, and that
is noted. Recordings become int16 [samples] at one rate, mono; shorter ones get silence behind them, longer ones are
cut, to the length that half of them have.
"""

from __future__ import annotations

import csv
import io
import wave
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgewright_contracts.errors import RequestError, Unavailable
from edgewright_contracts.manifest import Task

from ..rows import Array, Labelled
from .collection import ALL, MAX_BYTES, Collection, split_name, text_of
from .targets import NORMAL, Said, collection, natural, reserved

IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
SOUNDS: Final = (".wav",)
LISTING: Final = "labels.csv"
_BOX: Final = ("label", "x0", "y0", "x1", "y1")
_SPLIT_FOLDERS: Final = {"train", "training", "val", "valid", "validation", "dev", "test"}

Read = Callable[[Sequence[Path]], tuple[dict[str, Array], tuple[str, ...]]]  # files → rows, notes


def image_folder(directory: Path, task: Task) -> Collection:
    """Raises RequestError naming the file that is broken, Unavailable without Pillow."""
    return _folder(directory, task, IMAGES, read_images)


def wav_folder(directory: Path, task: Task) -> Collection:
    """Raises RequestError naming the file that is broken, or whose rate differs."""
    return _folder(directory, task, SOUNDS, read_sounds)


def samples(directory: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of these kinds anywhere below, sorted; hidden ones left out."""
    found = (p for p in directory.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(directory).parts))


def _folder(directory: Path, task: Task, suffixes: tuple[str, ...], read: Read) -> Collection:
    if (directory / LISTING).is_file():
        return _listed(directory, task, read)
    if task in ("multilabel", "regression", "detection"):
        raise RequestError(f"{directory}: folders name classes, and the task {task} needs a {LISTING} there")
    files = samples(directory, suffixes)
    folders = {p.relative_to(directory).parts[0].lower() for p in files if p.parent != directory}
    own_split = bool(folders) and folders <= _SPLIT_FOLDERS
    depth = 1 if own_split else 0
    stray = [p for p in files if len(p.relative_to(directory).parts) != depth + 2]
    if stray:
        wanted = "DIR/SPLIT/CLASS/FILE" if own_split else "DIR/CLASS/FILE"
        raise RequestError(f"{stray[0]}: expected {wanted}; move it into a folder named like its class")
    if not files:
        raise RequestError(f"{directory}: no {' or '.join(suffixes)} file in any folder there")
    parts = [p.relative_to(directory).parts for p in files]
    named = [part[depth] for part in parts]
    if task == "anomaly":
        names: tuple[str, ...] = ("normal", "anomaly")
        labels = np.array([name.lower() not in NORMAL for name in named], np.int64)
        if labels.all():
            raise RequestError(f"{directory}: no folder of normal samples: expected one called normal, good or ok")
    else:
        names = natural(named)
        labels = np.array([names.index(name) for name in named], np.int64)
    inputs, notes = read(files)
    rows = Labelled(ALL, inputs, labels, origins=tuple(str(p) for p in files))
    if not own_split:
        return Collection({ALL: rows}, names, notes=notes)
    of = np.array([split_name(part[0], str(p)) for part, p in zip(parts, files, strict=True)])
    if "train" not in of:
        raise RequestError(f"{directory}: expected a folder train beside {', '.join(sorted(set(of.tolist())))}")
    return Collection(
        {s: rows.take(np.flatnonzero(of == s), s) for s in dict.fromkeys(of.tolist())}, names, notes=notes
    )


def _listed(directory: Path, task: Task, read: Read) -> Collection:
    listing = directory / LISTING
    lines = csv.DictReader(io.StringIO(text_of(listing), newline=""))
    header = list(lines.fieldnames or ())
    if "file" not in header:
        raise RequestError(f"{listing}: expected a column `file`, got {', '.join(header) or 'no header'}")
    table = [(f"{listing}:{lines.line_num}", line) for line in lines]
    by_file: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for where, line in table:
        by_file.setdefault(line["file"], []).append((where, line))
        if not (directory / line["file"]).is_file():
            raise RequestError(f"{where}: no file {line['file']!r} in {directory}")
    if not table:
        raise RequestError(f"{listing}: no line under the header: expected one for each file")
    if task != "detection" and len(by_file) < len(table):
        twice = next(lines_ for lines_ in by_file.values() if len(lines_) > 1)
        raise RequestError(f"{twice[1][0]}: {twice[0][1]['file']!r} is listed twice: expected one line a file")
    files = [directory / name for name in by_file]
    inputs, notes = read(files)
    first = [lines_[0][1] for lines_ in by_file.values()]
    columns = {c: [str(line[c] or "") for line in first] for c in header if reserved(c)}
    said = Said(columns, tuple(str(f) for f in files))
    if task != "detection":
        return collection(task, inputs, said, str(listing), notes)
    boxes, names = _boxes(list(by_file.values()), files, header, listing)
    shared = {c: v for c, v in columns.items() if c != "label"} | {"target": ["0"] * len(files)}
    found = collection("regression", inputs, Said(shared, said.origins), str(listing), notes)
    place = {name: i for i, name in enumerate(said.origins)}
    splits = {
        s: Labelled(s, r.inputs, boxes[[place[o] for o in r.origins]], r.groups, r.slices, r.origins)
        for s, r in found.splits.items()
    }
    return Collection(splits, names, notes=notes)


def _boxes(
    by_file: list[list[tuple[str, dict[str, Any]]]], files: list[Path], header: list[str], listing: Path
) -> tuple[Array, tuple[str, ...]]:
    """Shares of each image: float32 [n, m, 5]. A file whose line has an empty label has no box."""
    missing = [c for c in _BOX if c not in header]
    if missing:
        raise RequestError(f"{listing}: expected the columns file, {', '.join(_BOX)} for detection, no {missing[0]!r}")
    real = [[(where, line) for where, line in lines if line["label"]] for lines in by_file]
    names = natural([line["label"] for lines in real for _, line in lines])
    boxes = np.full((len(files), max(1, *(len(lines) for lines in real)), 5), -1, np.float32)
    for i, (lines, file) in enumerate(zip(real, files, strict=True)):
        with _opened(file) as image:
            size = image.size
        for j, (where, line) in enumerate(lines):
            try:
                corners = [float(line[c]) / size[k % 2] for k, c in enumerate(_BOX[1:])]
            except ValueError:
                raise RequestError(
                    f"{where}: expected pixels x0, y0, x1, y1, got {[line[c] for c in _BOX[1:]]}"
                ) from None
            boxes[i, j] = (names.index(line["label"]), *corners)
    return boxes, names


def read_images(files: Sequence[Path]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """uint8 [n, h, w] or [n, h, w, 3] under the name "image"."""
    sizes, colour = Counter[tuple[int, int]](), False
    for file in files:
        with _opened(file) as image:
            sizes[image.size] += 1
            colour = colour or not (_deep(image) or image.mode in ("1", "L", "F", "LA"))
    (width, height), most = sizes.most_common(1)[0]
    shape = (len(files), height, width, *((3,) if colour else ()))
    if int(np.prod(shape)) > MAX_BYTES:
        raise RequestError(
            f"{len(files)} images of {width}x{height} are over {MAX_BYTES >> 30} GiB: scale them down first"
        )
    pixels = np.empty(shape, np.uint8)
    deep: list[int] = []
    odd: Path | None = None
    for i, file in enumerate(files):
        with _opened(file) as image:
            if image.size != (width, height):
                odd = odd or file
            if _deep(image):
                deep.append(i)
            try:
                plain = _eight_bits(image).convert("RGB" if colour else "L")
                pixels[i] = np.asarray(plain if plain.size == (width, height) else plain.resize((width, height)))
            except (OSError, ValueError, SyntaxError) as error:
                raise RequestError(f"{file}: not a whole image ({error}): remove it, or save it again") from None
    if deep and not pixels[deep].any():
        raise RequestError(
            f"{files[deep[0]]}: in {len(deep)} images of 16 bits no pixel is above 255 of 65535, which is black: "
            "expected them to use their range; save them with 8 bits"
        )
    if most == len(files):
        return {"image": pixels}, ()
    resized = f"{len(files) - most} of {len(files)} images were resized to {width}x{height} ({odd} first)"
    return {"image": pixels}, (f"{resized}, the most common of {len(sizes)} sizes.",)


def _opened(file: Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError:
        raise Unavailable("reading images needs Pillow: pip install pillow") from None
    try:
        return Image.open(file)
    except (UnidentifiedImageError, OSError) as error:
        raise RequestError(f"{file}: not an image that Pillow reads ({error}): remove it, or save it again") from None


def _deep(image: Any) -> bool:
    """Whether it has 16-bit greys: mode I;16 and its kin, or I, in which Pillow holds those of a PGM."""
    return bool(image.mode.startswith("I"))


def _eight_bits(image: Any) -> Any:
    """16-bit greys keep their upper half, whatever is in them: a dark image stays as dark beside the others as it is.
    Pillow's own conversion would clip them."""
    if not _deep(image):
        return image
    from PIL import Image

    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def read_sounds(files: Sequence[Path]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """int16 [n, samples] under the name "audio"."""
    clips: list[npt.NDArray[np.int16]] = []
    rates: list[int] = []
    for file in files:
        rate, clip = _sound(file)
        rates.append(rate)
        clips.append(clip)
    rate, _ = Counter(rates).most_common(1)[0]
    for file, one in zip(files, rates, strict=True):
        if one != rate:
            raise RequestError(f"{file}: {one} samples a second, the other recordings have {rate}: resample it")
    lengths = [len(clip) for clip in clips]
    length = int(np.median(lengths))
    if length == 0:
        raise RequestError(f"{files[int(np.argmin(lengths))]}: no sound in it")
    audio = np.zeros((len(clips), length), np.int16)
    for row, clip in zip(audio, clips, strict=True):
        kept = clip[:length]
        row[: len(kept)] = kept
    note = f"Recordings of {rate} samples a second, {length / rate:.2f} s each"
    other = sum(n != length for n in lengths)
    return {"audio": audio}, (
        f"{note}; {other} of {len(files)} were cut or filled up with silence." if other else f"{note}.",
    )


def _sound(file: Path) -> tuple[int, npt.NDArray[np.int16]]:
    try:
        with wave.open(str(file), "rb") as stream:
            width, channels, rate = stream.getsampwidth(), stream.getnchannels(), stream.getframerate()
            data = stream.readframes(stream.getnframes())
    except (wave.Error, EOFError) as error:
        raise RequestError(f"{file}: not a PCM wav file ({error}): save it as 16-bit PCM") from None
    data = data[: len(data) // (width * channels) * width * channels]  # a cut file ends in the middle of a frame
    if width == 2:
        deep = np.frombuffer(data, "<i2").astype(np.int32)
    elif width == 1:
        deep = (np.frombuffer(data, np.uint8).astype(np.int32) - 128) << 8
    elif width in (3, 4):  # the upper two bytes of each sample
        deep = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(-1, width)[:, -2:]).view("<i2").reshape(-1)
        deep = deep.astype(np.int32)
    else:
        raise RequestError(f"{file}: {8 * width}-bit samples: expected 8 to 32 bits; save it as 16-bit PCM")
    return rate, np.rint(deep.reshape(-1, channels).mean(axis=1)).astype(np.int16)
