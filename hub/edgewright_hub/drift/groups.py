"""The streams of one part (input, embedding, output, feed) of one digest, variant and context: a row for each device.

What happens to a window, in this order:

  1  it is added to the device's open block. Blocks close when they hold `n_min` rows, and add up to blocks of an hour,
     six hours and a day: many small windows do not add up to a weak drift, merged counts do;
  2  a closed block is tested against the nearest baseline there is: the device's own in-control blocks (from
     `own_blocks` and `own_rows` on), else its cohort's, else the training reference; with the dispersion that
     in-control blocks showed against the same kind of baseline at the same scale. Until enough of them are there the
     fleet is learning, and no detector moves;
  3  its z-score, without what the blocks before explain, moves the detector of that scale;
  4  when all detectors of the stream are at rest, what came since they last were enters the device's baseline. So a
     block waits until what followed has cleared it; a device in alarm, or on its way to one, teaches nothing; and after
     `learn_ms` a baseline is fixed, so that a slow drift meets what was normal in the beginning.

Successive blocks against a baseline that grows by them are independent contrasts, so a baseline need not be 20 times as
large as a block before it is used; what it holds of a long block that is being tested is taken off first.
Arrays over devices; pure. Cost: about 20 µs a window in calls of a thousand, 1 ms alone. Figures: docs/drift.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from . import detectors, effects, measures
from .detectors import MONTH_MS, SCALES_MS
from .dispersion import ENOUGH, LIMIT, RUN, Dispersion, cautious, shares
from .measures import Floats, Pearson
from .moves import Channels, Moved, moved
from .streams import ALIKE, BASELINES, CLEARING, EVIDENCE, KNOWN, OWN, SCALES, SKEWED, Bools, Index, Ints, Streams

LEFT: Final = 0.01  # p-value from which a device without a baseline has moved, and has not just always differed
REST: Final = float(np.log(3))  # a detector whose log R is below this has seen nothing that stayed
FAR: Final = 4.0  # z-score from which a block by itself is no example of what is normal
SUSPECT: Final = 0.0  # log e above which a stream's blocks say nothing about what is normal


class DriftPolicy(msgspec.Struct, frozen=True, kw_only=True):
    n_min: int = 200  # rows of a block
    own_blocks: int = 6
    own_rows: int = 2000
    learn_ms: int = 14 * 24 * 3600_000
    q: float = 0.05  # share of false ones among the channels said to have moved
    js_floor: float = 0.05  # beyond chance; no channel moved further: not worth a person's time
    clear_ms: int = 24 * 3600_000
    clear_p: float = 0.1
    clear_times: int = 3


class Group:
    """`training`: reference counts, one row for each channel; None of a part that no package describes."""

    def __init__(
        self, policy: DriftPolicy, channels: Channels, training: Sequence[npt.ArrayLike] | None = None
    ) -> None:
        self.policy = policy
        self.channels = channels
        self.streams = Streams(len(channels.widths), max(channels.widths))
        shape = (self.streams.channels, self.streams.cells)
        self.training = np.zeros(shape) if training is None else measures.pad(training)
        self.dispersion = Dispersion.empty(len(BASELINES), SCALES, shape[0])
        self.cohorts: list[str] = []
        self._cohort_at: list[int] = []  # of each device, into `cohorts`
        self._pool = np.zeros((0, *shape))  # sums of the own baselines of each cohort
        self._pool_blocks = np.zeros(0, np.int64)

    def enter(self, device: str, cohort: str) -> int:
        """The row of a device that belongs to that cohort now."""
        if cohort not in self.cohorts:
            self.cohorts.append(cohort)
            self._pool = np.concatenate((self._pool, np.zeros((1, *self._pool.shape[1:]))))
            self._pool_blocks = np.append(self._pool_blocks, 0)
        at, cohort_at = self.streams.row(device), self.cohorts.index(cohort)
        if at == len(self._cohort_at):
            self._cohort_at.append(cohort_at)
        elif self._cohort_at[at] != cohort_at:
            self._cohort_at[at] = cohort_at
            self.pool()
        return at

    def cohort(self, at: int) -> str:
        return self.cohorts[self._cohort_at[at]]

    def cohort_at(self) -> Index:
        """Of each device, into `cohorts`."""
        return np.asarray(self._cohort_at, np.intp)

    def pool(self) -> None:
        """Sum the own baselines of each cohort anew: after a device moved, or a baseline was replaced."""
        self._pool[:], self._pool_blocks[:] = 0, 0
        used = len(self._cohort_at)
        np.add.at(self._pool, self.cohort_at(), self.streams.counts[:used, OWN])
        np.add.at(self._pool_blocks, self.cohort_at(), self.streams.own_blocks[:used])

    # A window.

    def take(self, at: Index, cells: npt.NDArray[Any], n: Ints, start_ms: Ints, length_ms: Ints) -> None:
        """One window of each device in `at` (all different): cells [m, channels, cells]."""
        s, now = self.streams, start_ms + length_ms
        s.span_ms[at] += length_ms
        s.heard_ms[at] = np.maximum(s.heard_ms[at], now)
        s.add(at, 0, cells, n, start_ms)
        due = s.n[at, 0] >= self.policy.n_min
        for scale in range(SCALES):
            if scale:
                due = due & (now - s.start_ms[at, scale] >= SCALES_MS[scale])
            who = at[due]
            if who.size == 0:
                break
            block = s.counts[who, scale].astype(np.float64)
            self._test(who, scale, block)
            if scale == 0:
                self._settle(who, block, now[due])
            if scale + 1 < SCALES:
                s.add(who, scale + 1, block, s.n[who, scale], s.start_ms[who, scale])
            s.empty(who, scale)

    # A block.

    def ready(self, at: Index) -> Bools:
        """Whether the own baselines of these are large enough to be tested against."""
        s, policy = self.streams, self.policy
        return np.asarray((s.own_blocks[at] >= policy.own_blocks) & (s.n[at, OWN] >= policy.own_rows))

    def baseline(self, at: Index) -> tuple[npt.NDArray[np.int8], Floats]:
        """What these devices are compared with: (into BASELINES, counts float64[m, channels, cells])."""
        s, policy = self.streams, self.policy
        own = self.ready(at) | s.accepted[at]
        mine = self.cohort_at()[at]
        cohort = (self._pool_blocks[mine] >= policy.own_blocks) & (self._pool[mine, 0].sum(1) >= policy.own_rows)
        which = np.where(own, 0, np.where(cohort, 1, 2)).astype(np.int8)
        wide = which[:, None, None]
        pooled = np.where(wide == 1, self._pool[mine], self.training)
        return which, np.where(wide == 0, s.counts[at, OWN].astype(np.float64), pooled)

    def _test(self, at: Index, scale: int, block: Floats) -> None:
        s = self.streams
        which, reference = self.baseline(at)
        if scale == 0:
            other = at[which != s.against[at]]  # how blocks follow each other is learned against each baseline anew
            for name in ("before", "pairs", "run", "runs"):
                getattr(s, name)[other] = 0
            s.against[at] = which
        else:
            held = self._admitted(at, scale, block)
            reference = np.where((which < 2)[:, None, None], np.maximum(reference - held, 0), reference)
        sound = ~(s.alarm[at] | (self.log_e(at) > SUSPECT))
        learning = sound & (which != 0) & (s.own_blocks[at] > 0)
        if learning.any():  # how blocks differ from their own device's is known before they may be judged by that
            own = s.counts[at[learning], OWN].astype(np.float64)
            if scale:
                own = np.maximum(own - held[learning], 0)
            found = _pearson(block[learning], own, self.channels)
            counted = own.sum((1, 2)) > 0
            if self.dispersion.blocks[0, scale] >= ENOUGH:
                judged = self.dispersion.p_values(0, scale, found, cautious(s.ratios[at[learning]], scale))
                counted &= detectors.score(measures.simes_rows(judged)) < FAR
            self.dispersion.add(0, scale, found, counted, shares(s.ratios[at[learning]], scale))
            self._share(at[learning][counted], scale, found, counted)
        ready = self.ready(at)
        for baseline in range(len(BASELINES)):
            these = (which == baseline) & ready if baseline == 0 else which == baseline
            found = _pearson(block[these], reference[these], self.channels)
            held_apart = (found.n > 0) & (found.N > 0)  # not so of a baseline that has nothing but this block
            counted = held_apart.reshape(-1, s.channels).any(1)
            if counted.any():
                keep = np.repeat(counted, s.channels)
                self._judge(at[these][counted], baseline, scale, found.of(keep), sound[these][counted])

    def _judge(self, at: Index, baseline: int, scale: int, found: Pearson, sound: Bools) -> None:
        s, spread = self.streams, self.dispersion
        known, share = spread.enough(baseline, scale), shares(s.ratios[at], scale)
        p = measures.simes_rows(spread.p_values(baseline, scale, found, cautious(s.ratios[at], scale)))
        z, before = detectors.score(p), s.before[at, scale]
        if known:
            sound = sound & (z < FAR)
            white = detectors.whitened(z, before, spread.rho(baseline, scale, s.pairs[at]))
            if scale == 0:
                memory = spread.memory(baseline, s.runs[at])
                self._run(at, baseline, white, sound)
                white = white / np.sqrt(memory)
            s.log_r[at, scale] = detectors.advanced(s.log_r[at, scale], white)
            s.tested[at] = True
        follows = sound & (before != 0)
        pairs = spread.add_pairs(baseline, scale, z[follows], before[follows])
        spread.add(baseline, scale, found, sound, share)
        if scale == 0:
            s.p[at] = p if known else np.nan
            s.pairs[at[follows]] += pairs
        if baseline == 0:
            self._share(at[sound], scale, found, sound)
        s.before[at, scale] = z

    def _run(self, at: Index, baseline: int, white: Floats, sound: Bools) -> None:
        s = self.streams
        s.run[at[~sound]] = 0
        at, white = at[sound], np.clip(white[sound], -LIMIT, LIMIT)
        s.run[at] += np.stack((np.ones(at.size), white), axis=1)
        whole = at[s.run[at, 0] >= RUN]
        s.runs[whole] += self.dispersion.add_runs(baseline, s.run[whole, 1])
        s.run[whole] = 0

    def _share(self, at: Index, scale: int, found: Pearson, chosen: Bools) -> None:
        ratio = self.dispersion.ratios(0, scale, found, chosen.size)[chosen]
        self.streams.ratios[at, scale] += np.stack((np.ones(at.size), ratio), axis=1)

    def _admitted(self, at: Index, scale: int, block: Floats) -> Floats:
        """What the own baselines have of these long blocks already: all but what still waits."""
        s = self.streams
        part = (s.start_ms[at, EVIDENCE] > s.start_ms[at, scale]) & s.young[at]
        return np.where(part[:, None, None], np.maximum(block - s.counts[at, EVIDENCE], 0), 0.0)

    def _settle(self, at: Index, block: Floats, now_ms: Ints) -> None:
        """After the test of the shortest scale: what waited enters the baseline, or waits on."""
        s = self.streams
        s.blocks[at] += 1
        s.young[at] &= (s.n[at, OWN] == 0) | (now_ms - s.start_ms[at, OWN] < self.policy.learn_ms)
        rest = (detectors.level(s.log_r[at]) < REST).all(1) & ~s.alarm[at]
        cleared = at[rest & (s.waiting[at] > 0)]
        into = cleared[s.young[cleared]]
        s.add(into, OWN, s.counts[into, EVIDENCE], s.n[into, EVIDENCE], s.start_ms[into, EVIDENCE])
        s.own_blocks[into] += s.waiting[into]
        pools = self.cohort_at()[into]
        np.add.at(self._pool, pools, s.counts[into, EVIDENCE])
        np.add.at(self._pool_blocks, pools, s.waiting[into])
        s.empty(cleared, EVIDENCE)
        s.waiting[cleared] = 0
        s.add(at, EVIDENCE, block, s.n[at, 0], s.start_ms[at, 0])
        s.waiting[at] += 1
        alarm = s.alarm[at]
        self._clear(at[alarm], block[alarm], now_ms[alarm])

    def _clear(self, at: Index, block: Floats, now_ms: Ints) -> None:
        """An alarm ends when `clear_times` merged days in a row are like the baseline again."""
        s = self.streams
        s.add(at, CLEARING, block, s.n[at, 0], s.start_ms[at, 0])
        done = at[now_ms - s.start_ms[at, CLEARING] >= self.policy.clear_ms]
        if done.size:
            p = measures.simes_rows(self._row_p(done, CLEARING))
            s.quiet[done] = np.where(p > self.policy.clear_p, s.quiet[done] + 1, 0)
            s.empty(done, CLEARING)
            s.rest(done[s.quiet[done] >= self.policy.clear_times])

    def _row_p(self, at: Index, row: int) -> Floats:
        """p-values of the channels of merged counts against the baseline, float64[m, channels]; with the dispersion of
        the longest scale that is known, which is the largest."""
        which, reference = self.baseline(at)
        out = np.ones((at.size, self.streams.channels))
        for baseline in range(len(BASELINES)):
            these = which == baseline
            if these.any():
                found = _pearson(self.streams.counts[at[these], row], reference[these], self.channels)
                scale = max((one for one in range(SCALES) if self.dispersion.enough(baseline, one)), default=0)
                share = cautious(self.streams.ratios[at[these]], scale)
                out[these] = self.dispersion.p_values(baseline, scale, found, share)
        return out

    # What is known of streams.

    def log_e(self, at: Index) -> Floats:
        """log e of streams: its mean is at most 1 at the end of a month without drift."""
        s = self.streams
        blocks = np.maximum(s.blocks[at], 1)
        every_ms = np.maximum(s.span_ms[at] / blocks, 1000.0)[:, None]
        per_month = MONTH_MS / np.maximum(np.asarray(SCALES_MS, np.float64), every_ms)
        return detectors.log_e(s.log_r[at], np.maximum(per_month, 1.0))

    def moved(self, at: int) -> tuple[Moved, ...]:
        """The channels that moved in the evidence of a stream against its baseline."""
        one = np.array([at])
        which, reference = self.baseline(one)
        p = self._row_p(one, EVIDENCE)[0]
        c_f = self.dispersion.c_f(int(which[0]), 0)
        counts = self.streams.counts[at, EVIDENCE].astype(np.float64)
        return moved(self.channels, counts, reference[0], p, c_f, self.policy.q)

    def check_skew(self, at: int, p_need: float) -> None:
        """Once, when the own baseline may be used: is it what the model was trained for?"""
        s, one = self.streams, np.array([at])
        if s.skew[at] or s.accepted[at] or not self.ready(one)[0] or not self.dispersion.blocks[0, 0] >= 6:
            return
        far = (effects.js_beyond_chance(self._own(at), self.training, self._own_c_f(at)) >= self.policy.js_floor).any()
        s.skew[at] = SKEWED if far and measures.simes(self._skew_p(at)) <= p_need else ALIKE

    def left_own(self, at: int) -> bool:
        """Whether the evidence differs from what the device itself showed before, be that little."""
        one = np.array([at])
        own, evidence = self.streams.counts[one, OWN], self.streams.counts[one, EVIDENCE]
        found = _pearson(evidence, own, self.channels)
        p = measures.simes_rows(self.dispersion.p_values(0, 0, found, cautious(self.streams.ratios[one], 0)))
        return bool(p[0] < LEFT)

    def differs(self, at: int) -> None:
        """It differs from its cohort or from training, and has no past of its own yet to say that it moved: what it
        showed so far is where its past begins."""
        s, one = self.streams, np.array([at])
        s.add(one, OWN, s.counts[one, EVIDENCE], s.n[one, EVIDENCE], s.start_ms[one, EVIDENCE])
        s.own_blocks[at] += s.waiting[at]
        s.rest(one)
        if s.skew[at] != KNOWN:
            s.skew[at] = SKEWED

    def skewed(self, at: int) -> tuple[Moved, ...]:
        """The channels in which a device differs from training in all that it calls normal."""
        return moved(self.channels, self._own(at), self.training, self._skew_p(at), self._own_c_f(at), self.policy.q)

    def _own(self, at: int) -> Floats:
        return np.asarray(self.streams.counts[at, OWN], np.float64)

    def _own_c_f(self, at: int) -> Floats:
        share = shares(self.streams.ratios[at : at + 1], 0)[0]
        return np.asarray(np.maximum(1.0, self.dispersion.c_f(0, 0) * share))

    def _skew_p(self, at: int) -> Floats:
        share = cautious(self.streams.ratios[at : at + 1], 0)
        found = measures.pearson(self._own(at), self.training, self.channels.ordered)
        return np.asarray(self.dispersion.p_values(0, 0, found, share)[0])

    def accept(self, at: int) -> None:
        """What it shows now is normal: its evidence becomes its baseline, which grows anew."""
        s, one = self.streams, np.array([at])
        blocks, counts = int(s.waiting[at]), s.counts[one, EVIDENCE].copy()
        n, start_ms, alarm = s.n[one, EVIDENCE].copy(), s.start_ms[one, EVIDENCE].copy(), bool(s.alarm[at])
        if alarm:
            s.empty(one, OWN)
            s.add(one, OWN, counts, n, start_ms)
            s.own_blocks[at] = blocks
            s.young[at] = True
        s.rest(one)
        s.accepted[at] = True
        s.skew[at] = KNOWN


def _pearson(block: npt.NDArray[Any], reference: npt.NDArray[Any], channels: Channels) -> Pearson:
    blocks, _, cells = block.shape
    return measures.pearson(block.reshape(-1, cells), reference.reshape(-1, cells), np.tile(channels.ordered, blocks))
