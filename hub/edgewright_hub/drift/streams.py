"""One part (input, embedding, output) of a stream (device, digest, variant, context): how its windows add up. Pure.

Windows merge, in the order of their arrival, into blocks of at least `n_min` monitored inferences, because many small
windows do not add up to a weak drift. Each finished block is tested against the reference of the variant, and its
p-value moves the detector. The counts since the detector last stood below 1 are the evidence: they say since when, and
which channels moved (Benjamini–Hochberg, with effect sizes).

An alarm ends when somebody acknowledges it, or when three clearing windows of `clear_ms` in a row show p > .1.
Cost: about 1 ms for a finished block.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from edgewright_contracts.binning import Cells

from . import detectors, effects, measures


class DriftPolicy(msgspec.Struct, frozen=True, kw_only=True):
    n_min: int = 200  # monitored inferences in a block
    horizon: int = 1000  # blocks
    alpha: float = 0.1  # probability of any false alarm within the horizon
    q: float = 0.05  # share of false ones among the channels said to have moved
    js_floor: float = 0.05  # no channel moved further than this: not worth a person's time
    clear_ms: int = 24 * 3600_000
    clear_p: float = 0.1
    clear_times: int = 3


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """One channel that moved: its p-value and how far (Jensen–Shannon distance; PSI beside what chance explains)."""

    name: str
    p: float
    js: float
    psi: float
    psi_chance: float


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one part that merge: cells of its channels, one after another."""

    n: int = 0
    start_ms: int = 0
    cells: tuple[int, ...] = ()

    def plus(self, n: int, start_ms: int, cells: Cells) -> Block:
        mine = np.asarray(self.cells, np.int64) if self.cells else np.zeros_like(cells)
        return Block(n=self.n + n, start_ms=self.start_ms or start_ms, cells=tuple((mine + cells).tolist()))


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of one part of a stream between two ticks."""

    detector: detectors.Detector = detectors.Detector()
    pending: Block = Block()
    evidence: Block = Block()
    clearing: Block = Block()
    quiet: int = 0  # clearing windows in a row without drift
    blocks: int = 0  # tested so far
    foreign: int = 0  # windows under other channels
    p: float = 1.0  # of the last block
    alarm: bool = False
    since_ms: int = 0
    moved: tuple[Moved, ...] = ()
    devices: tuple[str, ...] = ()  # cohorts only: those that are reported


def counted(policy: DriftPolicy, part: Part, R: list[Cells], row: Any, cells: Cells) -> Part:
    """The part with one more window; `R`: reference counts of its channels, `cells`: the window's of the same."""
    pending = part.pending.plus(row.n_monitored, row.start_ms, cells)
    if pending.n < policy.n_min:
        return msgspec.structs.replace(part, pending=pending)
    p = measures.simes(_test(pending, R))
    detector = detectors.advance(part.detector, p)
    counts = np.asarray(pending.cells, np.int64)
    evidence = Block() if part.detector.level < 0 and not part.alarm else part.evidence
    part = msgspec.structs.replace(
        part,
        pending=Block(),
        detector=detector,
        evidence=evidence.plus(pending.n, pending.start_ms, counts),
        blocks=part.blocks + 1,
        p=p,
    )
    return _clearing(policy, part, R, pending, row.start_ms) if part.alarm else part


def _clearing(policy: DriftPolicy, part: Part, R: list[Cells], block: Block, now_ms: int) -> Part:
    clearing = part.clearing.plus(block.n, block.start_ms, np.asarray(block.cells, np.int64))
    if now_ms - clearing.start_ms < policy.clear_ms:
        return msgspec.structs.replace(part, clearing=clearing)
    quiet = part.quiet + 1 if measures.simes(_test(clearing, R)) > policy.clear_p else 0
    if quiet >= policy.clear_times:
        return cleared(part)
    return msgspec.structs.replace(part, clearing=Block(), quiet=quiet)


def cleared(part: Part) -> Part:
    """Its detector begins anew."""
    return Part(blocks=part.blocks, foreign=part.foreign, p=part.p, pending=part.pending)


def _split(block: Block, R: list[Cells]) -> list[Cells]:
    return np.split(np.asarray(block.cells, np.int64), np.cumsum([row.size for row in R])[:-1])


def _test(block: Block, R: list[Cells]) -> measures.Floats:
    return measures.window_p(measures.pad(_split(block, R)), measures.pad(R))


def moved(policy: DriftPolicy, part: Part, R: list[Cells], names: list[str]) -> tuple[Moved, ...]:
    """The channels that moved in the evidence, furthest first; `R`, `names`: of all its channels."""
    C, padded = measures.pad(_split(part.evidence, R)), measures.pad(R)
    p, js, psi = measures.window_p(C, padded), effects.js_distance(C, padded), effects.psi(C, padded)
    found = [
        Moved(
            name=names[i],
            p=float(p[i]),
            js=float(js[i]),
            psi=float(psi[i]),
            psi_chance=effects.psi_crit(max(1.0, C[i].sum()), max(1.0, padded[i].sum()), R[i].size, len(R), policy.q),
        )
        for i in np.flatnonzero(measures.bh(p, policy.q))
    ]
    return tuple(sorted(found, key=lambda m: -m.js))
