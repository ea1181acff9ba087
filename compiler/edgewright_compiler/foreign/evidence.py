"""What is known of a package of a finished file: each variant as it is shipped, beside the file as it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewright_contracts.manifest import Variant

from ..measuring.evidence import Evidence, Reference, Time, VariantEvidence
from ..pipeline.choice import Choice
from ..quantization.schemes import Scheme
from .judge import BARE, CAME, Judge, Judged


@dataclass(frozen=True, slots=True)
class Part:
    """`plain` is the file without its monitor; the same file where there is none."""

    variant: Variant
    scheme: str
    path: Path
    plain: Path


def evidence_of(
    judge: Judge,
    decision: Choice,
    parts: tuple[Part, ...],
    tried: Mapping[str, Judged],
    times: Mapping[str, Time],
    loss: Any,
) -> Evidence:
    """Without what only the caller knows (clock, device, limits)."""
    by_precision = {t.scheme.precision: t for t in tried.values() if t.path is not None}
    variants = []
    for at, part in enumerate(parts):
        found = tried[part.scheme] if part.scheme in tried else by_precision[part.variant.precision]
        variants.append(
            VariantEvidence(
                id=part.variant.id,
                scheme=part.scheme,
                bytes=part.path.stat().st_size,
                metric=judge.figures(found),
                loss=loss if at == 0 else None,
                time_us=times[part.variant.id],
                monitor_us=_cost(part, times),
                monitor_bytes=None if part.path == part.plain else part.path.stat().st_size - part.plain.stat().st_size,
                parity=found.parity,
            )
        )
    plain = parts[-1]
    reference = Reference(
        name=CAME,
        bytes={judge.form.format: judge.form.path.stat().st_size},
        metric=judge.figures(tried[judge.plain]),
        time_us={judge.form.format: times[plain.variant.id + BARE]},
    )
    return Evidence(
        made="",
        seconds=0.0,
        device="",
        machine=judge.machine,
        metric=judge.metric_name,
        reference=reference,
        variants=tuple(variants),
        choice=decision,
        estimates={part.variant.id: judge.expected(_scheme(part, tried), times[part.variant.id]) for part in parts},
    )


def _cost(part: Part, times: Mapping[str, Time]) -> float | None:
    """Of the monitor, in µs of p50; within the noise of a busy machine it may be negative."""
    if part.path == part.plain:
        return None
    return round(times[part.variant.id].p50 - times[part.variant.id + BARE].p50, 3)


def _scheme(part: Part, tried: Mapping[str, Judged]) -> Scheme:
    found = tried.get(part.scheme)
    return Scheme(format=part.variant.format, precision="fp32", method="none") if found is None else found.scheme
