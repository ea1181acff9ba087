"""Torch → ONNX: dynamic batch, one self-contained file, cleaned of the exporter's stack traces. About 3 s.

The clean-up is not cosmetic: stack traces carry paths of the build host, so without it equal models would have
different digests. Nodes are named by the module that they come from ("net.conv1/Conv"), because that is how
quantization knows what it may touch: weights alone do not tell, many are folded or transposed into nameless constants.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import onnx
import onnxslim
import torch
from torch import Tensor, nn

from .onnx_rewrites import scaled_products, square_sums
from .unsupported import refusal

MAX_BATCH: Final = 1024
_SCOPES: Final = "pkg.torch.onnx.name_scopes"


def export_onnx(
    graph: nn.Module, example: Tensor, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Write `graph` to `path`; `example` is one sample with its batch axis.

    Equal graphs give equal bytes. Raises Refused for an operator that ONNX has no form of, with its module.
    """
    two = torch.cat([example, example])  # an example of batch 1 would make the batch a constant
    with _silence():
        try:
            program = torch.onnx.export(
                graph.eval(),
                (two,),
                dynamo=True,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
                verbose=False,
            )
        except Exception as error:  # the exporter's own errors have no common base
            raise refusal(graph, two, "ONNX", error) from error
        assert program is not None
        raw = program.model_proto
        scopes = {node.name: _scope(node) for node in raw.graph.node}
        model = onnxslim.slim(raw)
    _name_nodes(model, scopes)
    square_sums(model)
    scaled_products(model)
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    path.write_bytes(model.SerializeToString(deterministic=True))


def _scope(node: onnx.NodeProto) -> str | None:
    """The module path that torch recorded, "" for the outermost, None when it recorded none."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 else None
    return None


def _name_nodes(model: onnx.ModelProto, scopes: Mapping[str, str | None]) -> None:
    """Name every node "module.path/Op", numbered where a module has several. In topological order.

    A weight names its module best: what batch normalisation was folded into says only its weight. Who has neither a
    weight nor a record (operators that a rewrite made) belongs to whoever made its input.
    """
    made_by: dict[str, str] = {}
    weights = {w.name for w in model.graph.initializer}
    taken: dict[str, int] = {}
    for node in model.graph.node:
        owners = [
            n.rpartition(".")[0] for n in node.input if n in weights and n.rpartition(".")[2].startswith("weight")
        ]
        scope = owners[0] if owners else scopes.get(node.name)
        if scope is None or scope.startswith("_empty_nn_module"):
            scope = next((made_by[n] for n in node.input if n in made_by), "")
        made_by.update(dict.fromkeys(node.output, scope))
        name = f"{scope}/{node.op_type}"
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}-{taken[name]}"


@contextmanager
def _silence() -> Iterator[None]:
    """torch deprecates its own internals while it exports, and logs what is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
