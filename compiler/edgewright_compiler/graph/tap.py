"""A net with its embedding beside its answer, whatever the net is.

The embedding is the output of the submodule that the net's attribute `embedding` names, else what its last executed
linear or convolution layer reads. It is taken by hooks that live for one call, so nothing stays in the net: it can be
copied, pruned, saved and exported (torch.export runs the hooks too). Cost: a few microseconds a layer in torch, nothing
in an exported file beyond the mean over space where there is space.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final

import torch
from torch import Tensor, nn

from edgewright_contracts.errors import RequestError

LAYERS: Final = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_CHANNELS_FIRST: Final = (nn.Conv1d, nn.ConvTranspose1d)


class Tapped(nn.Module):
    """`net` maps [n, ...] to its answer; the tapped net maps it to (answer, embedding [n, d]).

    Of an embedding with space ([n, d, h, w], [n, d, t] of a convolution, [n, t, d] of anything else) the mean is taken.
    Raises RequestError for a net without linear or convolution layer, for an `embedding` that names no submodule or one
    that did not run, and for an answer that is no tensor.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        _named(net)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        answer, found = _watched(self.net, x)
        if found is None:
            raise RequestError(_missing(self.net))
        _, module, tensor = found
        return answer, _flat(module, tensor)


def last_layer(net: nn.Module, example: Tensor) -> tuple[str, nn.Module]:
    """Dotted name and module of the last linear or convolution layer that runs on `example`."""
    training = net.training
    net.eval()
    try:
        with torch.no_grad():
            found = _watched(net, example, named=False)[1]
    finally:
        net.train(training)
    if found is None:
        raise RequestError(_missing(net))
    return found[0], found[1]


Found = tuple[str, nn.Module, Tensor]


def _watched(net: nn.Module, x: Tensor, *, named: bool = True) -> tuple[Tensor, Found | None]:
    """The answer, and where the embedding came from: (name, module, tensor)."""
    seen: list[Found] = []
    with ExitStack() as hooks:
        chosen = _named(net) if named else None
        if chosen is not None:
            name, module = chosen

            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                seen.append((name, module, output[0] if isinstance(output, tuple) else output))

            hooks.callback(module.register_forward_hook(keep).remove)
        else:
            for path, layer in net.named_modules():
                if isinstance(layer, LAYERS):
                    hooks.callback(layer.register_forward_pre_hook(_reader(path, seen)).remove)
        answer = net(x)
    if not isinstance(answer, Tensor):
        raise RequestError(
            f"{type(net).__name__} answers a {type(answer).__name__}: expected one tensor; name the submodule that "
            "makes the embedding in an attribute `embedding` instead of returning it"
        )
    return answer, seen[-1] if seen else None


def _reader(path: str, seen: list[Found]) -> Any:
    def read(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append((path, module, inputs[0]))

    return read


def _named(net: nn.Module) -> tuple[str, nn.Module] | None:
    name = getattr(net, "embedding", None)
    if name is None or isinstance(name, nn.Module):  # a layer that happens to be called so names nothing
        return None
    modules = {path: module for path, module in net.named_modules() if path}
    if name not in modules:
        raise RequestError(
            f"{type(net).__name__}.embedding is {name!r}: expected the name of a submodule, "
            f"one of {', '.join(modules) or 'none'}"
        )
    return name, modules[name]


def _missing(net: nn.Module) -> str:
    chosen = _named(net)
    if chosen is not None:
        return f"{type(net).__name__}.embedding names {chosen[0]!r}, which did not run in forward()"
    return (
        f"{type(net).__name__} ran no linear or convolution layer (functional calls are not seen): expected at least "
        "one nn.Linear or nn.Conv, or an attribute `embedding` that names the submodule to read"
    )


def _flat(module: nn.Module, tensor: Tensor) -> Tensor:
    if tensor.dim() <= 2:
        return tensor if tensor.dim() == 2 else tensor.unsqueeze(1)
    last = isinstance(module, nn.Linear) or (
        tensor.dim() == 3 and not any(isinstance(m, _CHANNELS_FIRST) for m in module.modules())
    )
    return tensor.mean(tuple(range(1, tensor.dim() - 1)) if last else tuple(range(2, tensor.dim())))
