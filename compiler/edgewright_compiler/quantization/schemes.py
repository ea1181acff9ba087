"""Which ways to quantize are worth trying for a graph on a device. Pure: nothing is made or measured here.

The list is short because each entry costs seconds to make and minutes to judge; what it leaves out was measured as
never better (research figures on one x86 core, onnxruntime 1.31 and LiteRT 2.3, one real net each):

- ONNX dynamic int8 of convolutions ran at 0.2 to 0.5 of float's speed; of matrix products at 1.2 to 1.9.
- ONNX S8S8 ran at half of float's speed on x86, but is what ARM kernels are written for: tried there, beside U8S8.
- U8S8 adds pairs of products in 16 bits on x86 without VNNI, and saturates: there weights keep 7 bits (reduce_range).
- A depthwise convolution in int8 ran at 0.8 of float's speed in onnxruntime: tried both ways.
- onnxruntime has an int8 LSTM (dynamic), and no GRU; TFLite unrolls both, and static int8 made such a file larger
  than float: kept float there.
- Static int8 of attention was slower and further off than dynamic in both runtimes.
- TFLite with 16-bit activations runs on reference kernels, 50 times slower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from torch import nn

from edgewright_contracts.manifest import Format
from edgewright_devices import DeviceProfile

Precision = Literal["fp32", "fp16", "int8", "mixed"]
Method = Literal["none", "static", "dynamic", "fp16", "mixed"]
Calibration = Literal["minmax", "percentile", "entropy", ""]
Activations = Literal["u8", "s8", ""]

CALIBRATED: Final = frozenset({"static", "mixed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way from a float file to another.

    `static` sets the ranges of activations by calibration, `dynamic` when it runs; `mixed` is static with the layers
    in `float_layers` left out because that was measured to be worth it. Whether the weights were trained for int8 is
    the architecture's (`pipeline.choice.Arch.qat`): the source is another, the way from it is the same. A layer is a
    module path ("net.conv1"), or in files of others a node's name.
    """

    format: Format
    precision: Precision
    method: Method
    calibration: Calibration = ""
    activations: Activations = ""
    reduce_range: bool = False
    float_layers: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Unique among schemes of all formats, at most 32 of [a-z0-9-]: a variant can be called so."""
        parts: list[str] = [self.format, self.precision]
        if self.method == "dynamic":
            parts.append(self.method)
        if self.calibration and not (self.format == "tflite" and self.calibration == "minmax"):
            parts.append(_SHORT[self.calibration])
        if self.activations == "s8" and self.format == "onnx":
            parts.append("s8")
        if self.reduce_range:
            parts.append("w7")
        if self.float_layers:
            parts.append(hashlib.sha256("\n".join(self.float_layers).encode()).hexdigest()[:6])
        return "-".join(parts)

    def keeping(self, layers: tuple[str, ...]) -> Scheme:
        """The same with these layers float too."""
        kept = tuple(sorted({*self.float_layers, *layers}))
        return replace(self, precision="mixed", method="mixed", float_layers=kept) if kept else self

    @property
    def without_floats(self) -> Scheme:
        return replace(self, float_layers=())

    @property
    def calibrated(self) -> bool:
        return self.method in CALIBRATED


_SHORT: Final[Mapping[str, str]] = {"minmax": "mm", "percentile": "pc", "entropy": "ent"}


@dataclass(frozen=True, slots=True)
class Kinds:
    """Names of the layers of a graph by what they are; all in the order in which they were built."""

    conv: tuple[str, ...] = ()  # without the depthwise ones
    depthwise: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    recurrent: tuple[str, ...] = ()  # GRU and plain ones
    lstm: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    norm: tuple[str, ...] = field(default=())  # over features of one sample; batch normalisation folds into others

    @property
    def dense(self) -> bool:
        """Whether matrix products are nearly all there is."""
        return not (self.conv or self.depthwise)

    @property
    def recurrences(self) -> tuple[str, ...]:
        return (*self.recurrent, *self.lstm)

    @property
    def weighted(self) -> bool:
        return bool(self.conv or self.depthwise or self.linear or self.recurrences or self.attention or self.embedding)


def layer_kinds(net: nn.Module, scope: str = "net") -> Kinds:
    """Kinds of the layers of `net`, the module at path `scope` of the graph that is exported."""
    found: dict[str, list[str]] = {}
    for name, module in net.named_modules():
        kind = _kind(module)
        if kind:
            found.setdefault(kind, []).append(f"{scope}.{name}" if name else scope)
    if not found.get("attention") and any(isinstance(m, nn.TransformerEncoderLayer) for m in net.modules()):
        found["attention"] = [scope]
    return Kinds(**{kind: tuple(names) for kind, names in found.items()})


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.conv._ConvNd):
        return "depthwise" if 1 < module.groups == module.in_channels else "conv"
    for types, kind in _TYPES:
        if isinstance(module, types):
            return kind
    return None


_TYPES: Final[tuple[tuple[Any, str], ...]] = (
    (nn.Linear, "linear"),
    (nn.LSTM, "lstm"),
    (nn.RNNBase, "recurrent"),
    (nn.MultiheadAttention, "attention"),
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    ((nn.LayerNorm, nn.RMSNorm, nn.GroupNorm), "norm"),
)


def schemes(fmt: Format, device: DeviceProfile, kinds: Kinds) -> tuple[Scheme, ...]:
    """What to try, plain float first. Ids are unique."""
    one_each = {s.id: s for s in (_onnx(device, kinds) if fmt == "onnx" else _tflite(kinds))}
    return tuple(one_each.values())


def _onnx(device: DeviceProfile, kinds: Kinds) -> Iterator[Scheme]:
    yield Scheme(format="onnx", precision="fp32", method="none")
    x86 = device.arch == "x86_64"
    saturates = x86 and not device.int8_dot
    if kinds.conv or kinds.depthwise or (kinds.linear and not kinds.attention):
        static = Scheme(
            format="onnx",
            precision="int8",
            method="static",
            calibration="minmax",
            activations="u8",
            reduce_range=saturates,
        )
        yield static
        yield replace(static, calibration="percentile")
        yield replace(static, calibration="entropy")
        if not x86:
            yield replace(static, activations="s8")
        if kinds.depthwise:
            yield static.keeping(kinds.depthwise)
    if (kinds.linear and kinds.dense) or kinds.attention or kinds.embedding or kinds.lstm:
        dynamic = Scheme(format="onnx", precision="int8", method="dynamic", activations="u8", reduce_range=saturates)
        yield dynamic


def _tflite(kinds: Kinds) -> Iterator[Scheme]:
    yield Scheme(format="tflite", precision="fp32", method="none")
    static = Scheme(format="tflite", precision="int8", method="static", calibration="minmax", activations="s8")
    if kinds.conv or kinds.depthwise or (kinds.linear and not kinds.attention and not kinds.recurrences):
        yield static.keeping((*kinds.recurrences, *kinds.attention, *kinds.norm))
    if kinds.weighted:
        yield Scheme(format="tflite", precision="int8", method="dynamic")
        yield Scheme(format="tflite", precision="fp16", method="fp16")
