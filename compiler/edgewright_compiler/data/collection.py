"""What a source holds before it is split and checked, and what kind of sample an array is.

The kind is read off dtype and shape, n rows:

    image   uint8 [n, h, w] or [n, h, w, 1 or 3]; or float of three or more axes behind the batch
    audio   int16 [n, samples]
    series  float32 [n, steps, channels]
    vector  float32 [n, columns]
    tokens  int32 or int64 [n, length]
    text    uint8 [n, length]: UTF-8, zeros behind it

It is also the name that the input gets in the package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from edgewright_contracts.errors import RequestError

from ..rows import Array, Labelled, Rows

RawKind = Literal["image", "audio", "series", "vector", "tokens", "text"]
SPLITS: Final = ("train", "validation", "test")
ALL: Final = "all"
MAX_BYTES: Final = 8 << 30  # of raw rows: all of them are held in memory

_SYNONYMS: Final = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train"}
_NARROWER: Final = {"float64": "float32", "float16": "float32", "bool": "uint8"}


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """`splits` has the key "all", or "train" and any of "validation" and "test"."""

    splits: Mapping[str, Labelled]
    labels: tuple[str, ...] = ()
    unlabelled: Rows | None = None
    notes: tuple[str, ...] = ()


def split_name(said: str, where: str) -> str:
    """`said` as one of SPLITS. Raises RequestError for a word that is none."""
    name = _SYNONYMS.get(said.strip().lower(), said.strip().lower())
    if name not in SPLITS:
        raise RequestError(f"{where}: expected a split among {', '.join(SPLITS)}, got {said!r}")
    return name


def kind_of(array: Array, where: str) -> RawKind:
    """Raises RequestError for an array that is no kind of sample."""
    dtype, axes = array.dtype.name, array.ndim - 1
    if (dtype == "uint8" and axes in (2, 3)) or (dtype == "float32" and axes == 3):
        if axes == 3 and array.shape[-1] not in (1, 3):
            raise RequestError(
                f"{where}: expected images of shape [n, height, width, 1 or 3] (channels last), got {array.shape}"
            )
        return "image"
    if dtype == "int16" and axes == 1:
        return "audio"
    if dtype == "float32" and axes in (1, 2):
        return "series" if axes == 2 else "vector"
    if dtype in ("int32", "int64") and axes == 1:
        return "tokens"
    if dtype == "uint8" and axes == 1:
        return "text"
    raise RequestError(
        f"{where}: {dtype} of shape {array.shape} is no kind of sample: expected images uint8 [n, h, w] or "
        "[n, h, w, 3], audio int16 [n, samples], series float32 [n, steps, channels], rows float32 [n, columns], "
        "tokens int32 [n, length], or text as UTF-8 bytes uint8 [n, length]"
    )


def raw(array: Array, where: str) -> Array:
    """The array as rows are kept: contiguous, doubles as float32. Raises RequestError for what is not numeric."""
    found = np.asarray(array)
    if found.dtype.kind not in "fiub":
        raise RequestError(f"{where}: expected an array of numbers, got dtype {found.dtype}")
    if found.ndim < 2:
        raise RequestError(f"{where}: expected the samples along the first axis, got shape {found.shape}")
    if found.nbytes > MAX_BYTES:
        raise RequestError(
            f"{where}: {found.nbytes >> 20} MiB of raw rows; at most {MAX_BYTES >> 20} MiB fit: use fewer"
        )
    with np.errstate(over="ignore"):
        kept = np.ascontiguousarray(found.astype(_NARROWER.get(found.dtype.name, found.dtype), copy=False))
    if kept.dtype != found.dtype and kept.dtype.kind == "f":
        lost = np.argwhere(np.isinf(kept) & np.isfinite(found))
        if lost.size:
            i, *at = (int(n) for n in lost[0])
            raise RequestError(
                f"{where}[{i}]: {found[(i, *at)]:g} at {tuple(at)} does not fit float32 (3.4e38 at most): scale it"
            )
    return kept


def origin(rows: Labelled, i: int) -> str:
    """How messages call one row: by its place in what the user brought, arrays as they are indexed, from 0.

    Where the maker of the rows said nothing, they are indexed as he gave them: `train[3]` is the fourth of his split.
    """
    return rows.origins[i] if rows.origins else f"{rows.name}[{i}]"


def text_of(file: Path) -> str:
    """Of a file in UTF-8, with its line ends as they are. Raises RequestError naming the first line that is not."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{file}: line {line} is not UTF-8; save it as UTF-8") from None


def fingerprint(parts: Mapping[str, Array | None]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order given; None is skipped."""
    digest = hashlib.sha256()
    for name, array in parts.items():
        if array is not None:
            whole = np.ascontiguousarray(array if array.dtype != object else array.astype(str))
            digest.update(f"{name} {whole.dtype.str} {whole.shape}\0".encode())
            digest.update(whole.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def row_digests(inputs: Rows) -> list[bytes]:
    """One digest a row over all its inputs: equal rows, and only those, have equal ones."""
    arrays = [np.ascontiguousarray(a) for a in inputs.values()]
    return [
        hashlib.blake2b(b"\0".join(a[i].tobytes() for a in arrays), digest_size=16).digest()
        for i in range(len(arrays[0]))
    ]
