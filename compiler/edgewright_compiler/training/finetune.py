"""Starting from weights of someone else: what fits is taken, what does not is told, and the last layer learns first.

Freezing covers statistics too: batch normalisation in a frozen layer keeps the mean and variance that it came with.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from edgewright_contracts.errors import RequestError

from ..graph.tap import last_layer

_NESTED: Final = ("state_dict", "model_state_dict", "model", "net", "weights")  # where training scripts put weights
_DTYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_PREFIXES: Final = ("", "module.", "model.", "net.", "backbone.", "_orig_mod.")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Names of the net's tensors by what became of them, and of the file's that the net has no place for."""

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]  # "name: expected (shape), got (shape)"
    unexpected: tuple[str, ...]


def last_layer_only(net: nn.Module, example: Tensor) -> None:
    """Nothing but the last layer that `example` [1, ...] passes through learns; layers before it are in eval mode."""
    training = net.training
    name, last = last_layer(net, example)
    kept = {id(p) for p in last.parameters()}
    if not kept:
        raise RequestError(f"the last layer {name} ({type(last).__name__}) has no parameters to learn")
    net.eval()
    last.train(training)
    for parameter in net.parameters():
        parameter.requires_grad_(id(parameter) in kept and parameter.requires_grad)


def load_weights(net: nn.Module, path: Path) -> Loaded:
    """Copy into `net` every tensor of a state dict (.pt, .pth) or a safetensors file whose name and shape fit; prefixes
    that wrappers add (module., model., …) are seen through.

    Raises RequestError when the file cannot be read as tensors only (pickled objects run code), or nothing fits.
    """
    own = net.state_dict()
    prefix, theirs = _aligned(own, _tensors(path))
    fits = {name: value for name, value in theirs.items() if name in own and own[name].shape == value.shape}
    mismatched = tuple(
        f"{name}: expected {tuple(own[name].shape)}, got {tuple(theirs[name].shape)}"
        for name in own
        if name in theirs and name not in fits
    )
    if not fits:
        shown = mismatched[0] if mismatched else f"names such as {next(iter(theirs))}"
        raise RequestError(
            f"{path.name}: no tensor fits the net; expected names such as {next(iter(own))}, got {shown}"
        )
    net.load_state_dict(fits, strict=False)
    return Loaded(
        tuple(name for name in own if name in fits),
        tuple(name for name in own if name not in theirs),
        mismatched,
        tuple(prefix + name for name in theirs if name not in own),
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise RequestError(f"{path}: expected a file of weights, got nothing there") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError, TypeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if isinstance(error, pickle.UnpicklingError):  # torch's own text would tell how to run it
            said = "no such file, or one that pickles other objects too, which would run code"
        raise RequestError(
            f"{path}: expected a state dict of tensors, as torch.save(net.state_dict(), path) writes it, got: {said}"
        ) from error
    for name in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise RequestError(f"{path}: expected a state dict of tensors, got {type(found).__name__} without any")
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    """A length, a JSON header and bytes (huggingface.co/docs/safetensors): simple enough to read without its wheel."""
    try:
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8:end]), memoryview(content)[end:]
        tensors = {}
        for name, about in header.items():
            if name == "__metadata__":
                continue
            low, high = about["data_offsets"]
            flat = torch.frombuffer(bytearray(data[low:high]), dtype=_DTYPES[about["dtype"]])
            tensors[name] = flat.reshape(about["shape"])
    except FileNotFoundError:
        raise RequestError(f"{path}: expected a file of weights, got nothing there") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise RequestError(f"{path}: expected a safetensors file of plain tensors, got: {error!r}") from error
    return tensors


def _aligned(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The prefix off their names under which most names are ours; the shortest of equals."""

    def cut(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in theirs.items()}

    prefix = max(_PREFIXES, key=lambda p: (sum(name in own for name in cut(p)), -len(p)))
    return prefix, cut(prefix)
