"""Torch → TFLite through litert-torch: batch 1, because its converter takes no other, and no TensorFlow.

Importing the converter costs about 4 s, so it is imported when it is asked for.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor, nn


def export_tflite(graph: nn.Module, example: Tensor, path: Path) -> None:
    """Write `graph` to `path`; `example` is one sample with its batch axis of 1. Tensors are args_0.., output_0.. ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jax and torchao deprecate their own internals
        import litert_torch

        litert_torch.convert(graph.eval(), (example,)).export(str(path))
