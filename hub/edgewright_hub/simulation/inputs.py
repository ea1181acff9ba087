"""What virtual devices count of their inputs: cells of channels, and the two packages that name them.

Three groups of channels, so that all three verdicts of drift can come. Each device sees a little different inputs, and
so does each window; drift tilts the input channels of a device, which its embedding follows by half. The packages hold
no model: a virtual device runs none.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from edgewright_contracts.baseline import encode_baseline, make
from edgewright_contracts.binning import Cells, offsets
from edgewright_contracts.channels import SCORE_BINS, SCORE_ONE, Channel, Group, Source, edge_hash
from edgewright_contracts.manifest import (
    FileRef,
    Manifest,
    Provenance,
    TensorIn,
    TensorOut,
    Variant,
    digest,
    encode_manifest,
)

from .fleet import Floats, Numbers

MODEL: Final = "virtual"
VARIANT: Final = "onnx-fp32"
CLASSES: Final = 10
REFERENCE: Final = 20_000  # rows
DEVICE_SD, WINDOW_SD = 0.04, 0.03  # of the tilt
_EDGES: Final = tuple(float(i) for i in range(11))
_FOLLOWS: Final = {"input": 1.0, "embedding": 0.5, "output": 0.0}


def _channels() -> tuple[Channel, ...]:
    numeric: list[tuple[Group, str]] = [("input", f"x{i}") for i in range(4)]
    numeric += [("embedding", f"e{i}") for i in range(3)]
    return (
        *(
            Channel(name=name, group=group, kind="numeric", source=Source(tensor="monitor", column=i), edges=_EDGES)
            for i, (group, name) in enumerate(numeric)
        ),
        Channel(name="confidence", group="output", kind="score", source=Source(tensor="y", reduce="max")),
        Channel(
            name="class", group="output", kind="categorical", source=Source(tensor="y", reduce="argmax"),
            values=tuple(range(CLASSES)),
        ),
    )  # fmt: skip


CHANNELS: Final = _channels()
EDGE_HASH: Final = edge_hash(CHANNELS)


class Published(NamedTuple):
    version: str
    digest: str
    manifest: Manifest


class Inputs:
    def __init__(self, devices: int, rng: np.random.Generator) -> None:
        self._tilt = rng.normal(0.0, DEVICE_SD, (devices, len(CHANNELS)))
        self._starts = offsets([c.width for c in CHANNELS])

    def draw(self, devices: Numbers, n: Numbers, drift: Floats, rng: np.random.Generator) -> Cells:
        """int64[devices, width] of one window each; `drift`: the tilt of each."""
        tilt = self._tilt[devices] + rng.normal(0.0, WINDOW_SD, (devices.size, len(CHANNELS)))
        out = np.zeros((devices.size, self._starts[-1]), np.int64)
        for i, channel in enumerate(CHANNELS):
            moves = _FOLLOWS[channel.group] * drift if i % 2 == 0 else 0.0
            counts = rng.multinomial(n, _shares(channel, tilt[:, i] + moves))
            start = self._starts[i]
            out[:, start : start + channel.cells] = counts
            if channel.kind == "score":
                middles = (np.arange(SCORE_BINS) + 0.5) / SCORE_BINS * SCORE_ONE
                out[:, start + channel.cells] = counts[:, :SCORE_BINS] @ middles.astype(np.int64)
        return out

    def publish(self, version: str, blobs: Path, rng: np.random.Generator) -> Published:
        """A package with the channels and their reference; its other files are empty."""
        every = np.arange(len(self._tilt))
        rows = rng.multinomial(REFERENCE, np.full(every.size, 1 / every.size))
        counts = self.draw(every, rows, np.zeros(every.size), rng).sum(0)
        reference = encode_baseline(make(CHANNELS, counts, REFERENCE))
        bodies = {"model.onnx": version.encode(), "baseline.msgpack": reference, "selftest.npz": b""}
        files = {}
        for name, body in bodies.items():
            sha256 = hashlib.sha256(body).hexdigest()
            (blobs / sha256).write_bytes(body)
            files[f"variants/{VARIANT}/{name}"] = FileRef(sha256=sha256, size=len(body))
        manifest = Manifest(
            requires_agent="0.1.0", name=MODEL, version=version, task="classification",
            inputs=(TensorIn(name="x", dtype="float32", shape=(4,)),),
            outputs=(TensorOut(name="y", role="probabilities", shape=(CLASSES,)),
                     TensorOut(name="monitor", role="monitor", shape=(7,))),
            variants=(Variant(id=VARIANT, format="onnx", precision="fp32"),), ranking={"*/onnxruntime": (VARIANT,)},
            provenance=Provenance(recipe="simulation", data="0" * 64, code="0" * 64, seed=0), files=files,
        )  # fmt: skip
        return Published(version, digest(encode_manifest(manifest)), manifest)


def _shares(channel: Channel, tilt: Floats) -> Floats:
    """float64[devices, cells] that add to 1."""
    cells = channel.cells
    if channel.kind == "numeric":  # under | quantiles | over | missing
        weights = _tilted(np.full(cells - 3, 1.0), tilt)
        rare = np.tile([1e-4, 1e-4, 1e-3], (tilt.size, 1))
        inner = weights * (1 - rare.sum(1, keepdims=True))
        return np.concatenate((rare[:, :1], inner, rare[:, 1:]), axis=1)
    if channel.kind == "score":  # most answers are sure
        weights = _tilted(np.linspace(0.05, 1.0, SCORE_BINS) ** 3, tilt)
        return np.concatenate((weights, np.zeros((tilt.size, cells - SCORE_BINS))), axis=1)
    return np.concatenate((_tilted(np.full(CLASSES, 1.0), tilt), np.zeros((tilt.size, 1))), axis=1)


def _tilted(weights: Floats, tilt: Floats) -> Floats:
    """Cells weighted by exp(tilt * place), places having mean 0 and standard deviation 1."""
    place = np.linspace(-1.0, 1.0, weights.size) * np.sqrt(3)
    out = weights * np.exp(tilt[:, None] * place)
    return np.asarray(out / out.sum(1, keepdims=True))


def row(package: Published, now_ms: int) -> dict[str, object]:
    """Of control.packages."""
    return {"name": MODEL, "version": package.version, "digest": package.digest, "state": "allowed",
            "published_ms": now_ms, "manifest": msgspec.to_builtins(package.manifest)}  # fmt: skip
