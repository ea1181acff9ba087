"""What evidence keeps of a comparison of answers: its errors, the tolerance they were held to, and against what."""

from __future__ import annotations

from ..export.parity import WITHIN, tolerance
from ..export.parity import Parity as Compared
from .evidence import Parity


def agreement(found: Compared, *, n: int, reference: str) -> Parity:
    """`n` rows were compared; `reference` is what had answered before."""
    return Parity(
        n=n,
        max_error=max(found.max_error.values(), default=0.0),
        mean_error=max(found.mean_error.values(), default=0.0),
        within=found.within,
        agree=found.agree,
        tolerance=tolerance(found.precision),
        asked=WITHIN[found.precision],
        reference=reference,
    )
