"""Whether a file answers what the reference answered, on the same rows.

A float export is the same arithmetic in another order, so every element must agree; a quantized one is another model
by intention, so it is held to agreement, not to equality: a share of elements within a tolerance, and the same class
wherever the reference was sure. How much accuracy that costs is measured elsewhere, on labels.

The rule for quantized files is the one by which a device tests itself (edgewright_runtime.selftest), so that a file
that passes here is not refused there for the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from edgewright_contracts.errors import Refused

from ..rows import Array

Outputs = Mapping[str, Array]  # tensor name → [n, *shape]
Precision = Literal["fp32", "fp16", "int8", "mixed"]

FLOAT: Final = 1e-4  # of the reference's range, every element
HALF: Final = 1e-2
QUANTIZED: Final = 0.1
WITHIN: Final[Mapping[Precision, float]] = {"fp32": 1.0, "fp16": 0.999, "int8": 0.9, "mixed": 0.9}
SURE: Final = 0.2  # margin of probabilities from which on the class must be the same
AGREE: Final = 0.95  # share of sure rows whose class is the same, quantized


@dataclass(frozen=True, slots=True)
class Parity:
    """Errors by output, in units of the reference's range; `within` is the smallest share of elements inside the
    tolerance, `agree` the smallest share of sure rows with the same class (1 where no output has classes)."""

    name: str
    precision: Precision
    max_error: Mapping[str, float]
    mean_error: Mapping[str, float]
    within: float
    agree: float
    passed: bool
    reason: str  # "" when passed; else the output, the sample and what was expected of it

    def required(self) -> Parity:
        """This, when it passed. Raises Refused otherwise."""
        if not self.passed:
            raise Refused(
                f"{self.name} does not answer as the reference does: {self.reason}; the way out: an operator that "
                "exports differently (compare layer by layer), or another precision"
            )
        return self


def compare(
    name: str, expected: Outputs, found: Outputs, precision: Precision, *, classes: frozenset[str] = frozenset()
) -> Parity:
    """Compare all outputs; those in `classes` hold one probability per class and must also name the same class.

    Not finite in the reference must be the same in the file. Empty rows agree.
    """
    worst: dict[str, float] = {}
    mean: dict[str, float] = {}
    within, agree, reasons = 1.0, 1.0, []
    for output, reference in expected.items():
        if output not in found:
            reasons.append(f"expected an output {output!r}, got {', '.join(sorted(found)) or 'none'}")
            continue
        answer = np.asarray(found[output])
        if answer.size != reference.size:
            reasons.append(f"{output}: expected shape {reference.shape}, got {answer.shape}")
            continue
        error = _error(reference, answer)
        worst[output], mean[output] = float(error.max(initial=0)), float(error.mean()) if error.size else 0.0
        share = float((error <= tolerance(precision)).mean()) if error.size else 1.0
        within = min(within, share)
        if share < WITHIN[precision]:
            row = int(error.reshape(len(reference), -1).max(axis=1).argmax())
            reasons.append(
                f"{output}: expected {WITHIN[precision]:.1%} of elements within {tolerance(precision):g} of the "
                f"range, got {share:.1%}; worst in sample {row}, off by {worst[output]:.3g}"
            )
        if output in classes:
            same, row = _agreement(reference, answer)
            agree = min(agree, same)
            if same < (1.0 if precision == "fp32" else AGREE):
                reasons.append(f"{output}: the class of sample {row} and others changed, {same:.1%} of sure rows agree")
    return Parity(name, precision, worst, mean, within, agree, not reasons, "; ".join(reasons))


def tolerance(precision: Precision) -> float:
    """How far an element may be off, in units of the reference's range."""
    return {"fp32": FLOAT, "fp16": HALF}.get(precision, QUANTIZED)


def _error(reference: Array, answer: Array) -> npt.NDArray[np.float64]:
    """|answer - reference| by element, in units of the reference's range in its column: columns of one output may
    have very different scales (the monitor has counts beside distances). The range is at least 1e-3 of the output's
    own, so that a column that never changes is not compared with nothing."""
    a = reference.reshape(len(reference), -1).astype(np.float64)
    b = answer.reshape(len(reference), -1).astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.where(np.isfinite(a), a, 0.0)
    ranges = np.maximum(finite.max(axis=0, initial=0), 0) - np.minimum(finite.min(axis=0, initial=0), 0)
    ranges = np.maximum(ranges, 1e-3 * ranges.max(initial=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.abs(a - b) / ranges
    return np.where(same, 0.0, np.where(np.isfinite(distance), distance, np.inf))


def _agreement(reference: Array, answer: Array) -> tuple[float, int]:
    """Share of sure rows with the same class, and the first one without (-1)."""
    a, b = reference.reshape(len(reference), -1), answer.reshape(len(reference), -1)
    if a.shape[1] < 2:
        return 1.0, -1
    top = np.sort(a, axis=1)
    sure = np.asarray(top[:, -1] - top[:, -2] > SURE)  # type: ignore[operator]
    changed = np.flatnonzero(sure & (a.argmax(axis=1) != b.argmax(axis=1)))
    return (1 - len(changed) / max(1, int(sure.sum()))), int(changed[0]) if len(changed) else -1
