"""Drift of a fleet: the mean of the e-values of its devices' streams, which is an e-value whatever they share. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from . import detectors
from .streams import Block, Moved, Part


def cohort(members: Sequence[tuple[str, Part, bool]], need: float) -> Part:
    """The part of a fleet made of its devices': (device, part, whether it is reported). `need`: log e of an alarm."""
    parts = [part for _, part, _ in members]
    levels = np.array([part.detector.level for part in parts])
    level = float(np.logaddexp.reduce(levels) - np.log(len(levels)))
    reported = [(device, part) for device, part, high in members if high]
    alarm = level >= need and bool(reported)
    return Part(
        detector=detectors.Detector((level,) * len(detectors.DELTAS)),
        blocks=sum(part.blocks for part in parts),
        evidence=Block(n=sum(part.evidence.n for part in parts)),
        p=min(part.p for part in parts),
        alarm=alarm,
        since_ms=min(part.since_ms for _, part in reported) if alarm else 0,
        moved=_widest(part for _, part in reported) if alarm else (),
        devices=tuple(sorted(device for device, _ in reported)),
    )


def _widest(parts: Iterable[Part]) -> tuple[Moved, ...]:
    """Each channel that moved on any device, as it moved on the device where it moved most."""
    best: dict[str, Moved] = {}
    for moved in (m for part in parts for m in part.moved):
        if moved.name not in best or best[moved.name].js < moved.js:
            best[moved.name] = moved
    return tuple(sorted(best.values(), key=lambda m: -m.js))
