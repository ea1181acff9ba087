"""By how much in-control windows vary more than independent rows would, and how alike two in a row are. Pure arrays.

Frames of one scene, devices that differ a little, rhythms of the day: all make X² larger than for independent rows
(c_f about 9 for scenes of ten frames), and a test that does not know it alarms on every window. So both are measured on
windows that are in control, over all devices that count the same channels in the same context, at each time scale:

    c_f   mean of X² over its mean for independent rows, of each channel
    v_f   variance of X²: at least 2 (K - 1) c_f², more where it was measured so
    t_f   mean of the squared trend, and its variance: devices that differ a little inflate it more than the rest of X²
    rho   correlation of the z-scores of two blocks in a row; of a stream, its own share drawn towards the fleet's

Each is taken somewhat larger than measured, by what the number of blocks leaves open (1 / sqrt of it), p-values also
know how many independent blocks stand behind a mean (`certainty`), and all is used from `ENOUGH` blocks on. Before that
nothing is tested with them: the fleet is still learning what is normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .measures import Floats, Pearson, p_values

ENOUGH: Final = 12  # blocks
ENOUGH_PAIRS: Final = 6
OWN_WEIGHT: Final = 10.0  # pairs of blocks that the fleet's correlation counts for beside a stream's own
RUN: Final = 16  # blocks
RUN_WEIGHT: Final = 4.0  # runs that the fleet's count for beside a stream's own
SHARE_WEIGHT: Final = 5.0  # blocks that the fleet's c_f counts for beside a stream's own
LIMIT: Final = 2.5  # z-scores further out count as this in a correlation
RHO_MOST: Final = 0.95
RARE_BELOW: Final = 2.0  # the rare cells' counts are as they are while c_f is below this, else divided by it


@dataclass(slots=True)
class Dispersion:
    """Sums over in-control blocks of one (digest, variant, context, part): by baseline and time scale."""

    blocks: Floats  # [baselines, scales]
    free: Floats  # [baselines, scales, channels]: sums of K - 1
    x2: Floats
    ratio: Floats  # sums of X² / (K - 1)
    square: Floats  # of its square
    trend: Floats  # sums of the squared trend
    trend_square: Floats  # of its square
    runs: Floats  # [baselines, 3]: number, sums and squares of sums over RUN whitened z-scores in a row
    pairs: Floats  # [baselines, scales, 4]: number, sums of z, z² and z times the z before it

    @classmethod
    def empty(cls, baselines: int, scales: int, channels: int) -> Dispersion:
        free, x2, ratio, square, trend, trend_square = np.zeros((6, baselines, scales, channels))
        return cls(
            np.zeros((baselines, scales)),
            free,
            x2,
            ratio,
            square,
            trend,
            trend_square,
            np.zeros((baselines, 3)),
            np.zeros((baselines, scales, 4)),
        )

    def pack(self) -> bytes:
        return b"".join(one.astype("<f8").tobytes() for one in self._sums())

    def unpack(self, data: bytes) -> bool:
        """False, and nothing changed, when they are of other channels or another release: the fleet learns anew."""
        if len(data) != 8 * sum(one.size for one in self._sums()):
            return False
        at = 0
        for one in self._sums():
            one[:] = np.frombuffer(data, "<f8", one.size, at).reshape(one.shape)
            at += 8 * one.size
        return True

    def _sums(self) -> tuple[Floats, ...]:
        return (self.blocks, self.free, self.x2, self.ratio, self.square, self.trend, self.trend_square, self.runs,
                self.pairs)  # fmt: skip

    def add(self, baseline: int, scale: int, found: Pearson, chosen: npt.NDArray[np.bool_], share: Floats) -> None:
        """The blocks that are `chosen`; `found`: of all their channels, one block after another; `share`: by which
        factor each block's stream varies more than the fleet's (`shares`)."""
        keep = chosen[:, None] & found.tested.reshape(len(chosen), -1)
        x2, free = found.x2.reshape(keep.shape) / share[:, None], found.free.reshape(keep.shape)
        ratio = np.where(keep, x2 / free, 0.0)
        at = (baseline, scale)
        self.blocks[at] += chosen.sum()
        self.free[at] += np.where(keep, free, 0).sum(0)
        self.x2[at] += np.where(keep, x2, 0).sum(0)
        self.ratio[at] += ratio.sum(0)
        self.square[at] += (ratio**2).sum(0)
        trend = np.where(keep, found.trend.reshape(keep.shape) / share[:, None], 0.0)
        self.trend[at] += trend.sum(0)
        self.trend_square[at] += (trend**2).sum(0)

    def add_pairs(self, baseline: int, scale: int, z: Floats, before: Floats) -> Floats:
        """z-scores of blocks and of those before them. The sums of each, [..., 4]."""
        z, before = np.clip(z, -LIMIT, LIMIT), np.clip(before, -LIMIT, LIMIT)
        sums = np.stack((np.ones(z.size), z, z**2, z * before), axis=1)
        self.pairs[baseline, scale] += sums.sum(0)
        return sums

    def enough(self, baseline: int, scale: int) -> bool:
        """Whether blocks of that scale may be judged: their spread is known, and how alike two in a row are, at that
        scale or a shorter one."""
        pairs = self.pairs[baseline, : scale + 1, 0].max()
        return bool(self.blocks[baseline, scale] >= ENOUGH and pairs >= ENOUGH_PAIRS)

    def p_values(self, baseline: int, scale: int, found: Pearson, share: Floats) -> Floats:
        """float64[blocks, channels] of blocks tested against that baseline, one block after another in `found`."""
        blocks = share.size
        c_f = np.maximum(1.0, self.c_f(baseline, scale) * share[:, None]).ravel()
        v_share = np.tile(self._v_share(baseline, scale), blocks)
        thin = np.where(c_f < RARE_BELOW, 1.0, c_f)
        mean, spread = self._trend(baseline, scale)
        t_f = np.maximum(1.0, mean * share[:, None]).ravel()
        t_v = 2 * t_f**2 * np.tile(spread, blocks)
        variance, known = found.variance * c_f**2 * v_share, self.certainty(baseline, scale)
        return p_values(found, c_f, variance, thin, t_f, t_v, known).reshape(blocks, -1)

    def certainty(self, baseline: int, scale: int) -> float:
        """How many independent blocks the sums are worth: fewer than there are, when each is like the one before."""
        rho = float(self.rho(baseline, scale, np.zeros((1, 4)))[0])
        return float(max(self.blocks[baseline, scale] * (1 - rho) / (1 + rho), 1.0))

    def c_f(self, baseline: int, scale: int) -> Floats:
        """float64[channels], at least 1."""
        at = (baseline, scale)
        margin = 1 + 1 / np.sqrt(max(self.blocks[at], 1.0))
        return np.asarray(np.maximum(1.0, self.x2[at] / np.maximum(self.free[at], 1.0) * margin))

    def _trend(self, baseline: int, scale: int) -> tuple[Floats, Floats]:
        """Of the squared trend: mean, and variance beside that of a normal score of this mean; both at least 1."""
        at = (baseline, scale)
        n = max(self.blocks[at], 1.0)
        mean = np.maximum(self.trend[at] / n, 1e-9)
        variance = np.maximum(self.trend_square[at] / n - mean**2, 0)
        return np.maximum(1.0, mean * (1 + 1 / np.sqrt(n))), np.maximum(1.0, variance / (2 * mean**2))

    def _v_share(self, baseline: int, scale: int) -> Floats:
        """float64[channels]: variance of X² over its mean squared, beside that of independent rows; at least 1."""
        at = (baseline, scale)
        n = max(self.blocks[at], 1.0)
        mean = np.maximum(self.ratio[at] / n, 1e-9)
        free = np.maximum(self.free[at] / n, 1.0)
        measured = np.maximum(self.square[at] / n - mean**2, 0) / mean**2
        return np.asarray(np.maximum(1.0, measured * free / 2))

    def ratios(self, baseline: int, scale: int, found: Pearson, blocks: int) -> Floats:
        """float64[blocks]: X² over what the fleet's dispersion expects, mean over tested channels; else 1."""
        tested = found.tested.reshape(blocks, -1)
        ratio = found.x2 / found.free
        relative = np.where(tested, ratio.reshape(blocks, -1) / self.c_f(baseline, scale), 0.0)
        count = tested.sum(1)
        return np.where(count > 0, relative.sum(1) / np.maximum(count, 1), 1.0)

    def rho(self, baseline: int, scale: int, own: Floats) -> Floats:
        """float64[streams]: correlation of one block with the next, at least 0; at a long scale, until it is known,
        that of the next shorter one. `own`: the streams' [..., 4] sums at the shortest scale."""
        n, total, square, product = self.pairs[baseline, scale]
        if n < ENOUGH_PAIRS:
            return np.zeros(len(own)) if scale == 0 else self.rho(baseline, scale - 1, own)
        own = own if scale == 0 else own * 0
        mean, weight = total / n, OWN_WEIGHT / n
        variance = weight * (square - n * mean**2) + own[:, 2] - 2 * mean * own[:, 1] + own[:, 0] * mean**2
        shared = weight * (product - n * mean**2) + own[:, 3] - 2 * mean * own[:, 1] + own[:, 0] * mean**2
        return np.asarray(np.clip(shared / np.maximum(variance, 1e-9) + 1 / np.sqrt(n), 0.0, RHO_MOST))

    def add_runs(self, baseline: int, total: Floats) -> Floats:
        """Sums of RUN whitened z-scores in a row. What each adds, [..., 3]."""
        sums = np.stack((np.ones(total.size), total, total**2), axis=1)
        self.runs[baseline] += sums.sum(0)
        return sums

    def memory(self, baseline: int, own: Floats) -> Floats:
        """float64[streams]: variance of a sum of whitened z-scores over that of independent ones, at least 1: what is
        alike for longer than from one block to the next. `own`: the streams' [..., 3] sums."""
        n, total, square = self.runs[baseline]
        if n < ENOUGH:
            return np.ones(len(own))
        mean = total / n
        fleet = (square / n - mean**2) * (1 + 1 / np.sqrt(n))
        mine = own[:, 2] - 2 * mean * own[:, 1] + own[:, 0] * mean**2
        pairs, z, squares, _ = self.pairs[baseline, 0]
        alone = max(squares / pairs - (z / pairs) ** 2, 1e-9) * RUN
        return np.asarray(np.maximum(1.0, (RUN_WEIGHT * fleet + mine) / (RUN_WEIGHT + own[:, 0]) / alone))


def shares(own: Floats, scale: int) -> Floats:
    """float64[streams]: how much more than the fleet's a stream's blocks vary at a scale, drawn towards what it is at
    the next shorter one. `own`: [..., scales, 2], the number of its blocks and the sum of their `ratios`."""
    share = np.ones(len(own))
    for one in range(scale + 1):
        share = np.maximum(share, 1.0)  # calm at a short scale says nothing of how a long one wanders
        share = (SHARE_WEIGHT * share + own[:, one, 1]) / (SHARE_WEIGHT + own[:, one, 0])
    return share


def cautious(own: Floats, scale: int) -> Floats:
    """`shares` as blocks are judged by: larger by what a stream's own number of blocks leaves open."""
    return np.asarray(shares(own, scale) * (1 + 1 / np.sqrt(SHARE_WEIGHT + own[:, scale, 0])))
