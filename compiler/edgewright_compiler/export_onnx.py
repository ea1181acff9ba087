"""Torch → ONNX: dynamic batch, one self-contained file, cleaned of the exporter's stack traces.

The clean-up is not cosmetic: stack traces carry paths of the build host, so without it equal models would have
different digests.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import onnx
import onnxslim
import torch
from torch import Tensor, nn

MAX_BATCH: Final = 1024


def export_onnx(
    graph: nn.Module, example: Tensor, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Write `graph` to `path`; `example` is one sample with its batch axis. About 3 s."""
    two = torch.cat([example, example])  # an example of batch 1 would make the batch a constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates its own internals while it exports
        torch.onnx.export(
            graph.eval(),
            (two,),
            str(path),
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
            external_data=False,
            verbose=False,
        )
        model = onnxslim.slim(onnx.load(str(path)))
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.metadata_props[:], model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    path.write_bytes(model.SerializeToString(deterministic=True))
