"""torchao's PT2E quantization with the x86 inductor quantizer's default configuration, exported to ONNX.

Its own target is torch.compile; onnxruntime runs the same QuantizeLinear and DequantizeLinear in the exported file.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import torch

from edgewright_compiler.graph.reference import batches

from .given import Given, tidied

MAX_BATCH = 1024


def static(given: Given, target: Path) -> dict[str, Any]:
    # Here, because it announces on standard error what of it does not load on this machine.
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    bench = given.bench
    name = bench.recipe.input.name
    rows = {key: np.ascontiguousarray(array) for key, array in bench.calibration.items()}
    example = (torch.from_numpy(rows[name][:32]),)
    shapes = ({0: torch.export.Dim("batch", min=2, max=MAX_BATCH)},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch deprecates its own internals
        program = torch.export.export(given.graph(given.built.net).eval(), example, dynamic_shapes=shapes).module()
        quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
        observed = prepare_pt2e(program, quantizer)
        for batch in batches(rows):
            observed(torch.from_numpy(batch[name]))
        exported = torch.onnx.export(
            convert_pt2e(observed),
            example,
            dynamo=True,
            input_names=[name],
            output_names=[output.name for output in given.file.outputs],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert exported is not None
    onnx.save(onnxslim.slim(exported.model_proto), str(target))
    tidied(target)
    return {"calibration_rows": bench.recipe.calibration}
