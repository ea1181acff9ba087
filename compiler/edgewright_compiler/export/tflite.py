"""Torch → TFLite through litert-torch: batch 1, because its converter takes no other, and no TensorFlow.

Importing the converter costs about 4 s, so it is imported when it is asked for. Tensors are named by the module that
they come from, which is how quantization knows what it may touch. int64 inputs become int32 in the file.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor, nn

from .unsupported import refusal


def export_tflite(graph: nn.Module, example: Tensor, path: Path) -> None:
    """Write `graph` to `path`; `example` is one sample with its batch axis of 1. Tensors are args_0.., output_0.. .

    Equal graphs give equal bytes. Raises Refused for an operator that TFLite has no form of, with its module.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jax and torchao deprecate their own internals
        import litert_torch

        try:
            litert_torch.convert(graph.eval(), (example,)).export(str(path))
        except Exception as error:  # the converter's passes raise whatever they like
            raise refusal(graph, example, "TFLite", error) from error
