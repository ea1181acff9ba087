"""Size of a net that no clock has a part in: multiply-accumulates of one sample, and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@dataclass(frozen=True, slots=True)
class Counted:
    """`macs` are those of products, convolutions and attention; elementwise work is not counted, as is the custom."""

    macs: int
    params: int


def counted(net: nn.Module, example: Tensor) -> Counted:
    """`example` is one sample, batch of 1. The net's mode is left as it was."""
    training = net.training
    net.eval()
    counter = FlopCounterMode(display=False, custom_mapping=_FUSED)
    try:
        with torch.enable_grad(), counter:  # without gradients an encoder layer is one kernel that nobody can count
            net(example)
    finally:
        net.train(training)
    return Counted(counter.get_total_flops() // 2, sum(p.numel() for p in net.parameters()))


def _recurrent(x: tuple[int, ...], first: tuple[int, ...], second: tuple[int, ...], *_: Any, **__: Any) -> int:
    """One layer of an LSTM: x [steps, n, d], both weight matrices at every step."""
    return 2 * x[0] * x[1] * (first[0] * first[1] + second[0] * second[1])


def _attention(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]


def _bilinear(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    """x [n, a] times each weight of [k, a, b], then y [n, b] times what comes out, as nn.Bilinear does it."""
    k, a, b = weight
    return 2 * x[0] * (k * a * b + k * b)


_ATEN: Final = torch.ops.aten
_FUSED: Final = {  # kernels that torch's counter does not know
    _ATEN.mkldnn_rnn_layer: _recurrent,
    _ATEN._trilinear: _bilinear,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
}
