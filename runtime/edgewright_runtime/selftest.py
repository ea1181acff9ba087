"""The self-test: does this file, on this device's kernels, answer as it did on the build host?

Rule: in every output at least 99 % of the elements lie within the tolerance of the variant's own answers on the build
host (fp32 1e-4; quantized 0.05; both on the scale of probabilities, and times the largest magnitude of outputs that are
not bounded by 1), every element is finite where the build host's was, and the predicted class is the same wherever the
fp32 model was sure (margin above 0.2). The same rule decides when a package is built and when it is installed.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import Manifest, TensorOut, Variant

from . import npz as archives
from .runtime import Array, Session

WITHIN: Final = 0.99
ATOL_FP32: Final = 1e-4
ATOL_QUANTIZED: Final = 0.05
SURE: Final = 0.2


class SelfTestResult(msgspec.Struct, frozen=True, kw_only=True):
    passed: bool
    reason: str  # "" when passed
    worst: float  # largest distance in units of the tolerance; inf for a non-finite answer
    within: float  # smallest share of elements within the tolerance, over the outputs
    flipped: int  # rows whose class changed although fp32 was sure
    rows: int


def run_selftest(session: Session, npz: bytes, manifest: Manifest, variant: Variant) -> SelfTestResult:
    """Run the package's own inputs and compare. Raises ContractError for a self-test that lacks an array.

    What the runtime throws while running passes through: the caller decides whose fault that is.
    """
    arrays = archives.arrays(npz, "selftest")
    inputs = {t.name: _array(arrays, f"input:{t.name}") for t in manifest.inputs}
    rows = len(next(iter(inputs.values())))
    if rows == 0:
        raise ContractError("selftest", "at least one row", "none")
    got = _ran(session, inputs, rows if variant.batch == 0 else variant.batch)
    worst, within, flipped, reasons = 0.0, 1.0, 0, []
    for tensor in manifest.outputs:
        expected, fp32 = _array(arrays, f"output:{tensor.name}"), _array(arrays, f"fp32:{tensor.name}")
        found = np.asarray(got[tensor.name])
        if found.size != expected.size:
            reasons.append(f"{tensor.name}: expected shape {expected.shape}, got {found.shape}")
            worst, within = float("inf"), 0.0
            continue
        distance = _distance(found, expected, _tolerance(tensor, variant, expected))
        share = float(np.mean(distance <= 1))
        worst, within = max(worst, float(distance.max(initial=0))), min(within, share)
        if share < WITHIN:
            reasons.append(f"{tensor.name}: expected {WITHIN:.0%} of elements within tolerance, got {share:.1%}")
        if tensor.role == "probabilities":
            changed = _flipped(found, expected, fp32)
            flipped += changed
            if changed:
                reasons.append(f"{tensor.name}: the class changed in {changed} of {rows} rows that fp32 was sure of")
    return SelfTestResult(
        passed=not reasons, reason="; ".join(reasons), worst=worst, within=within, flipped=flipped, rows=rows
    )


def _ran(session: Session, inputs: dict[str, Array], at_once: int) -> dict[str, Array]:
    """As many rows at once as the variant takes: where ranges are found when it runs, a row's neighbours matter."""
    n = len(next(iter(inputs.values())))
    parts = [session.run({k: v[i : i + at_once] for k, v in inputs.items()}) for i in range(0, n, at_once)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _tolerance(tensor: TensorOut, variant: Variant, expected: Array) -> float:
    atol = ATOL_FP32 if variant.precision == "fp32" else ATOL_QUANTIZED
    if tensor.role in ("probabilities", "score"):
        return atol
    finite = np.abs(expected[np.isfinite(expected)])
    return atol * max(1.0, float(finite.max(initial=0)))


def _distance(found: Array, expected: Array, tolerance: float) -> npt.NDArray[np.float64]:
    """|found - expected| / tolerance for each element; 0 where both are the same non-finite value, else inf."""
    a = found.reshape(-1).astype(np.float64)
    b = expected.reshape(-1).astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        d = np.abs(a - b) / tolerance
    return np.where(same, 0.0, np.where(np.isfinite(d), d, np.inf))


def _flipped(found: Array, expected: Array, fp32: Array) -> int:
    f = fp32.reshape(len(fp32), -1)
    if f.shape[1] < 2:
        return 0
    top = np.sort(f, axis=1)
    sure = top[:, -1] - top[:, -2] > SURE  # type: ignore[operator]
    a = found.reshape(len(fp32), -1).argmax(axis=1)
    b = expected.reshape(len(fp32), -1).argmax(axis=1)
    return int(np.count_nonzero(sure & (a != b)))


def _array(arrays: dict[str, Array], name: str) -> Array:
    try:
        return arrays[name]
    except KeyError:
        raise ContractError("selftest", f"an array {name!r}", ", ".join(sorted(arrays)) or "none") from None
