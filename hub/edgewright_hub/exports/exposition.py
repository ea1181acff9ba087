"""Prometheus' text format, version 0.0.4. Pure.

# HELP edgewright_windows_total Windows that were counted.
# TYPE edgewright_windows_total counter
edgewright_windows_total 42
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LABEL: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one name: (labels, value)."""

    name: str
    kind: Literal["counter", "gauge"]
    said: str
    samples: Sequence[tuple[Mapping[str, str], float]] = field(default_factory=tuple)


def one(name: str, kind: Literal["counter", "gauge"], said: str, value: float) -> Family:
    """A family of a single sample without labels."""
    return Family(name, kind, said, [({}, value)])


def text(families: Iterable[Family]) -> str:
    """Families without samples are left out."""
    return "".join(_family(family) for family in families if family.samples)


def _family(family: Family) -> str:
    head = f"# HELP {family.name} {family.said.translate(_HELP)}\n# TYPE {family.name} {family.kind}\n"
    return head + "".join(f"{family.name}{_labels(labels)} {_number(value)}\n" for labels, value in family.samples)


def _labels(labels: Mapping[str, str]) -> str:
    said = ",".join(f'{name}="{value.translate(_LABEL)}"' for name, value in labels.items())
    return f"{{{said}}}" if said else ""


def _number(value: float) -> str:
    if isinstance(value, int) or math.isfinite(value):
        return str(int(value) if value == int(value) and abs(value) < 2**53 else value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
