"""Static int8 for both formats: 8-bit weights per channel and 8-bit activations, calibrated on training rows.

Only what lies under one module path (`scope`, the network itself) is quantized. Preprocessing and the monitor stay
float: an int8 monitor would count its own rounding.

ONNX: QDQ with unsigned activations and signed weights, the one form that was faster than float on x86 (S8S8 ran at half
its speed). Without 8-bit dot products, x86 adds such products in 16 bits and saturates: then weights keep 7 bits.
TFLite: ai-edge-quantizer, restricted by operator and tensor name, which carries the module path.
"""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Samples = Mapping[str, npt.NDArray[np.generic]]  # input name → rows

_BATCH: Final = 32
_TFLITE_OPS: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "RESHAPE", "TRANSPOSE")


def quantize_onnx(source: Path, target: Path, samples: Samples, *, scope: str, reduce_range: bool) -> None:
    """Write the int8 form of `source`; what does not depend on weights of `scope` or follow from them stays float."""
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(), _no_announcements():
        warnings.simplefilter("ignore")
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_outside(onnx.load(str(prepared)), scope),
        )
        model = onnx.load(str(target))
    target.write_bytes(model.SerializeToString(deterministic=True))


def quantize_tflite(source: Path, target: Path, samples: Samples, *, scope: str) -> None:
    """Write the int8 form of `source`; its borders stay as they are (raw input, float outputs)."""
    with warnings.catch_warnings(), _no_announcements():
        warnings.simplefilter("ignore")
        from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
        from ai_edge_quantizer.utils import qsv_utils

        rules = recipe_manager.RecipeManager()
        for name in _TFLITE_OPS:
            rules.add_static_config(
                regex=rf".*_{scope}[/;].*",
                operation_name=qtyping.TFLOperationName[name],
                activation_num_bits=8,
                weight_num_bits=8,
            )
        rows: list[dict[str, Any]] = [
            {f"args_{i}": array[row : row + 1] for i, array in enumerate(samples.values())}
            for row in range(len(next(iter(samples.values()))))
        ]
        # The default averages the ranges of single samples, which cuts off the larger half of them: embeddings were
        # found to be biased by 0.4 standard deviations. The widest range that was seen is the range.
        ranges = calibrator.Calibrator(source.read_bytes(), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
        ranges.calibrate({"serving_default": rows}, rules)
        q = quantizer.Quantizer(str(source), rules.get_quantization_recipe())
        q.quantize(ranges.get_model_qsvs()).export_model(str(target), overwrite=True)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, samples: Samples) -> None:
        n = len(next(iter(samples.values())))
        self._batches: Iterator[dict[str, Any]] = iter(
            [{k: v[i : i + _BATCH] for k, v in samples.items()} for i in range(0, n, _BATCH)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def _outside(model: onnx.ModelProto, scope: str) -> list[str]:
    """Nodes that are not of the network: those before its first weight, those with weights of others, and those that
    only use what it computed (everything behind its last weight)."""
    weights = re.compile(rf"^{re.escape(scope)}\.")
    nodes = model.graph.node
    of_scope = [i for i, node in enumerate(nodes) if any(weights.match(name) for name in node.input)]
    inside: set[int] = set(of_scope)
    needed = {name for i in of_scope for name in nodes[i].input}
    reached = {name for i in of_scope for name in nodes[i].output}
    behind = set()  # computed from the network, in topological order
    for i, node in enumerate(nodes):
        if i in inside or any(name in reached for name in node.input):
            behind.add(i)
            reached |= set(node.output)
    for i in reversed(range(len(nodes))):  # between two of its weights: what a later one needs and an earlier one made
        if i in behind and any(name in needed for name in nodes[i].output):
            inside.add(i)
            needed |= set(nodes[i].input)
    return [node.name for i, node in enumerate(nodes) if i not in inside]


@contextmanager
def _no_announcements() -> Iterator[None]:
    """Both quantizers announce every step on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
