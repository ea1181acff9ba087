"""Which operators without weights follow the layers around them into int8.

One that lies between two int8 layers does: float there would cost two conversions. One before the first, behind the
last or next to a layer that is kept float does not: it would round what nobody computes with in int8, such as the boxes
behind a detector's last convolution. Pure; nodes in topological order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Part = Literal["layer", "between", "activation", "float"]


@dataclass(frozen=True, slots=True)
class Node:
    """`part`: a layer that becomes int8; an operator that may follow; one that also fuses with the layer before it (a
    rectifier); or what stays float whatever is around it."""

    inputs: Sequence[object]  # names or numbers of tensors
    outputs: Sequence[object]
    part: Part


def follow(nodes: Sequence[Node]) -> list[int]:
    """Indices of what becomes int8: all layers, and those that follow."""
    behind: set[object] = set()  # tensors that an int8 layer made, through followers only
    fresh: set[object] = set()  # made by a layer itself
    for node in nodes:
        touched = any(name in behind for name in node.inputs)
        if node.part == "layer":
            fresh.update(node.outputs)
        if node.part == "layer" or (node.part != "float" and touched):
            behind.update(node.outputs)
    before: set[object] = set()  # tensors that lead to an int8 layer, through followers only
    chosen = []
    for at in reversed(range(len(nodes))):
        node = nodes[at]
        leads = any(name in before for name in node.outputs)
        made = any(name in behind for name in node.outputs)
        fuses = node.part == "activation" and any(name in fresh for name in node.inputs)
        if node.part == "layer" or fuses or (node.part != "float" and made and leads):
            chosen.append(at)
        if node.part == "layer" or (node.part != "float" and leads):
            before.update(node.inputs)
    return chosen[::-1]
