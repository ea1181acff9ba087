"""What to say when an exporter meets an operator that it has no form for: which one, in which module, and the way out.

Exporters name the operator somewhere in pages of text, and rarely the module. torch.export knows both, so the graph is
traced again, which costs a second and happens only after a failure.
"""

from __future__ import annotations

import re
import warnings
from typing import Final

import torch
from torch import Tensor, nn

from edgewright_contracts.errors import Refused

from ..graph.graph import Plain
from ..graph.tap import Tapped

WAYS_OUT: Final = "write it with other operators, move it to the host (`preprocess: host`), or leave this format out"
_OTHERS: Final = {"ONNX": "tflite", "TFLite": "onnx"}
_OPERATOR: Final = re.compile(r"(?:op='|target=torch\.ops\.)([\w.]+)")


def refusal(graph: nn.Module, example: Tensor, to: str, error: Exception) -> Refused:
    """The refusal for `error`, which the exporter to `to` raised about `graph`."""
    told, kind = _chain(error), _kind(graph)
    ways_out = f"{WAYS_OUT} (`--format {_OTHERS[to]}`)" if to in _OTHERS else WAYS_OUT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(graph.eval(), (example,))
    except Exception as cause:  # whatever stops the tracer is the reason, and its first line says it
        return Refused(
            f"{to}: torch cannot trace {kind}: {_first_line(cause)}; the way out: no branch or loop "
            "whose course depends on values of tensors (torch.where, torch.cond), no numpy and no .item() in forward"
        )
    for stage in (program, program.run_decompositions()):  # a composite operator is refused by one of its parts
        for node in stage.graph.nodes:
            if node.op == "call_function" and _mentioned(str(node.target), told):
                return Refused(f"{to} has no form of {node.target} in {_module(node, kind)}; the way out: {ways_out}")
    named = _OPERATOR.search(told)
    what = f"has no form of {named[1]}" if named else f"export failed: {_first_line(error)}"
    return Refused(f"{to} {what} in {kind}; the way out: {ways_out}")


def _mentioned(operator: str, told: str) -> bool:
    """aten.svd.default is also written as aten::svd, and the linear algebra ones with an underscore."""
    name = operator.rpartition(".")[0] or operator
    return any(form in told for form in (operator, f"'{name}'", name.replace(".", "::") + "'", f"{name} "))


def _kind(graph: nn.Module) -> str:
    """The class that its maker knows: of the net inside the graphs of this compiler."""
    while isinstance(graph, Plain | Tapped):
        graph = graph.net
    return type(graph).__name__


def _module(node: torch.fx.Node, whole: str) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "the graph")
    kind = kind if isinstance(kind, str) else kind.__name__
    return f"module {path!r} ({kind.rpartition('.')[2]})" if path else f"the outermost module ({whole})"


def _chain(error: BaseException | None) -> str:
    """Texts of the error and of all that it was raised from."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
