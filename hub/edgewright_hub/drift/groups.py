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
     `learn_ms` a baseline is fixed, so that a slow drift meets what was normal in the beginning;
  5  when a device's baseline knows the day, all that came so far is normal, alarms or not, and it begins anew: until
     then nobody can tell a shift from the evening. So for the fleet's first day, until half of its blocks come from
     devices that know theirs, all are measured apart (`first_day`), strange ones too: the dispersion from then on.

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

from . import detectors, hours, measures, sizes
from .baselines import Baselines
from .detectors import DAY_MS, MONTH_MS, SCALES_MS
from .dispersion import ENOUGH, LIMIT, RUN, Dispersion, cautious, shares
from .measures import Floats, Pearson, pearson_of_blocks
from .moves import Channels, Moved, moved
from .streams import BASELINES, CLEARING, EVIDENCE, KNOWN, OWN, SCALES, Bools, Index, Ints, Streams

REST: Final = float(np.log(3))  # a detector whose log R is below this has seen nothing that stayed
FAR: Final = 4.0  # z-score from which a block by itself is no example of what is normal
SUSPECT: Final = 0.0  # log e above which a stream's blocks say nothing about what is normal


class DriftPolicy(msgspec.Struct, frozen=True, kw_only=True):
    n_min: int = 200  # rows of a block
    own_blocks: int = 6
    own_rows: int = 2000
    learn_ms: int = 14 * DAY_MS  # counted in days in which a device was heard
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
        reference = np.zeros(shape) if training is None else measures.pad(training)
        self.baselines = Baselines(
            self.streams, reference, blocks=policy.own_blocks, rows=policy.own_rows, learn_ms=policy.learn_ms
        )
        self.dispersion = Dispersion.empty(len(BASELINES), SCALES, shape[0])
        self.first_day: Dispersion | None = Dispersion.empty(len(BASELINES), SCALES, shape[0])

    # A window.

    def take(self, at: Index, cells: npt.NDArray[Any], n: Ints, start_ms: Ints, length_ms: Ints) -> None:
        """One window of each device in `at` (all different): cells [m, channels, cells]."""
        s, now = self.streams, start_ms + length_ms
        s.span_ms[at] += length_ms
        self.baselines.hear(at, start_ms, now)
        s.add(at, 0, cells, n, start_ms, hours.touched(start_ms, now))
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
                self._settle(who, now[due])
            if scale + 1 < SCALES:
                s.pour(who, scale, scale + 1)
            s.empty(who, scale)

    # A block.

    def _test(self, at: Index, scale: int, block: Floats) -> None:
        s = self.streams
        s.sizes[at, scale] += np.stack((np.ones(at.size), s.n[at, scale]), axis=1)
        which, reference = self.baselines.nearest(at)
        if scale == 0:
            other = at[which != s.against[at]]  # how blocks follow each other is learned against each baseline anew
            for name in ("before", "pairs", "run", "runs"):
                getattr(s, name)[other] = 0
            s.against[at] = which
            thin = np.zeros(at.size, np.bool_)
        else:
            held = self._admitted(at, scale, block)
            reference = np.where((which < 2)[:, None, None], np.maximum(reference - held, 0), reference)
            # Little is left beside a block that most of the baseline came in: some hours, by which no day is judged.
            thin = (which == 0) & (2 * reference[:, 0].sum(1) < s.n[at, scale])
        part = sizes.parts(s.n[at, scale].astype(np.float64), s, scale, self.policy.n_min)
        block, usual = block * part[:, None, None], part == 1
        sound = ~(s.alarm[at] | (self.log_e(at) > SUSPECT))
        past = ((which != 0) | thin) & (s.own_blocks[at] > 0)
        learning = past & sound if self.first_day is None else past
        if learning.any():  # how blocks differ from their own device's is known before they may be judged by that
            own = s.counts[at[learning], OWN].astype(np.float64)
            if scale:
                own = np.maximum(own - held[learning], 0)
            found = pearson_of_blocks(block[learning], own, self.channels.ordered)
            self._learn(at[learning], scale, found, sound[learning], usual[learning])
        ready = self.baselines.ready(at)
        for baseline in range(len(BASELINES)):
            these = (which == baseline) & ready & ~thin if baseline == 0 else which == baseline
            found = pearson_of_blocks(block[these], reference[these], self.channels.ordered)
            counted = found.held_apart(s.channels)  # not so of a baseline that has nothing but this block
            if counted.any():
                keep = np.repeat(counted, s.channels)
                chosen = np.flatnonzero(these)[counted]
                self._judge(at[chosen], baseline, scale, found.of(keep), sound[chosen], usual[chosen])

    def _learn(self, at: Index, scale: int, found: Pearson, sound: Bools, usual: Bools) -> None:
        """From blocks beside own baselines that may not judge them yet; the fleet from those of a `usual` size."""
        s, counted = self.streams, found.held_apart(self.streams.channels)
        if self.first_day is not None:
            self.first_day.add(0, scale, found, counted & usual, np.ones(at.size))
        counted &= sound
        if self.dispersion.blocks[0, scale] >= ENOUGH:
            judged = self.dispersion.p_values(0, scale, found, cautious(s.ratios[at], scale))
            counted &= detectors.score(measures.simes_rows(judged)) < FAR
        self.dispersion.add(0, scale, found, counted & usual, shares(s.ratios[at], scale))
        self._share(at[counted], scale, found, counted, usual)

    def _judge(self, at: Index, baseline: int, scale: int, found: Pearson, sound: Bools, usual: Bools) -> None:
        s, spread = self.streams, self.dispersion
        known, share = spread.enough(baseline, scale), shares(s.ratios[at], scale)
        p = measures.simes_rows(spread.p_values(baseline, scale, found, cautious(s.ratios[at], scale)))
        z, before = detectors.score(p), s.before[at, scale]
        if known:
            sound = sound & (z < FAR)
            white = detectors.whitened(z, before, spread.rho(baseline, scale, s.pairs[at]))
            if scale == 0:
                memory = spread.memory(baseline, s.runs[at])
                self._run(at, baseline, white, sound & usual)
                white = white / np.sqrt(memory)
            s.log_r[at, scale] = detectors.advanced(s.log_r[at, scale], white)
            s.tested[at] = True
        follows = sound & usual & (before != 0)
        pairs = spread.add_pairs(baseline, scale, z[follows], before[follows])
        spread.add(baseline, scale, found, sound & usual, share)
        if scale == 0:
            s.p[at] = p if known else np.nan
            s.pairs[at[follows]] += pairs
        if baseline == 0:
            self._share(at[sound], scale, found, sound, usual)
        if self.first_day is not None:
            follows = usual & (before != 0)
            self.first_day.add(baseline, scale, found, usual, np.ones(at.size))
            self.first_day.add_pairs(baseline, scale, z[follows], before[follows])
        s.before[at, scale] = z

    def _run(self, at: Index, baseline: int, white: Floats, sound: Bools) -> None:
        s = self.streams
        s.run[at[~sound]] = 0
        at, white = at[sound], np.clip(white[sound], -LIMIT, LIMIT)
        s.run[at] += np.stack((np.ones(at.size), white), axis=1)
        whole = at[s.run[at, 0] >= RUN]
        s.runs[whole] += self.dispersion.add_runs(baseline, s.run[whole, 1])
        s.run[whole] = 0

    def _share(self, at: Index, scale: int, found: Pearson, chosen: Bools, usual: Bools) -> None:
        ratio = self.dispersion.ratios(0, scale, found, chosen.size)
        ratio = np.where(usual, ratio, np.maximum(ratio, 1))[chosen]  # fewer rows are calm by that alone
        self.streams.ratios[at, scale] += np.stack((np.ones(at.size), ratio), axis=1)

    def _admitted(self, at: Index, scale: int, block: Floats) -> Floats:
        """What the own baselines have of these long blocks already: all but what still waits."""
        s = self.streams
        part = (s.start_ms[at, EVIDENCE] > s.start_ms[at, scale]) & s.young[at]
        return np.where(part[:, None, None], np.maximum(block - s.counts[at, EVIDENCE], 0), 0.0)

    def _settle(self, at: Index, now_ms: Ints) -> None:
        """After the test of the shortest scale: what waited enters the baseline, or waits on."""
        s = self.streams
        s.blocks[at] += 1
        whole = self.baselines.complete(at) & ~s.day[at]
        ends = self.first_day is not None and bool(whole.any()) and self._known_by_half()
        whole &= self.first_day is None or ends
        rest = (detectors.level(s.log_r[at]) < REST).all(1) & ~s.alarm[at]
        cleared = at[(rest | whole) & (s.waiting[at] > 0)]
        self.baselines.grow(cleared[s.young[cleared]])
        s.empty(cleared, EVIDENCE)
        s.waiting[cleared] = 0
        s.young[at] &= ~self.baselines.old(at)
        s.day[at[whole]] = True
        s.forget_alarm(at[whole])  # it may have been the evening
        if ends:
            self._end_first_day()
        s.pour(at, 0, EVIDENCE)
        s.waiting[at] += 1
        alarm = s.alarm[at]
        self._clear(at[alarm], now_ms[alarm])

    def _known_by_half(self) -> bool:
        """Whether half of the blocks are of devices that know the day: else those of a few that ran before all others
        are lost in the mean. Of devices of which something came within a day."""
        s, every = self.streams, np.arange(len(self.streams.devices))
        here = every[~s.ended[every] & (s.arrived_ms[every] > s.arrived_ms.max() - DAY_MS)]
        return bool(2 * s.blocks[here] @ self.baselines.complete(here) >= s.blocks[here].sum())

    def _end_first_day(self) -> None:
        """What all blocks vary by, from here on."""
        assert self.first_day is not None
        self.first_day.runs[:] = self.dispersion.runs
        self.dispersion, self.first_day = self.first_day, None
        self.streams.ratios[:], self.streams.pairs[:] = 0, 0  # they were beside another dispersion

    def _clear(self, at: Index, now_ms: Ints) -> None:
        """An alarm ends when `clear_times` merged days in a row are like the baseline again."""
        s = self.streams
        s.pour(at, 0, CLEARING)
        done = at[now_ms - s.start_ms[at, CLEARING] >= self.policy.clear_ms]
        if done.size:
            p = measures.simes_rows(self._row_p(done, CLEARING))
            s.quiet[done] = np.where(p > self.policy.clear_p, s.quiet[done] + 1, 0)
            s.empty(done, CLEARING)
            s.rest(done[s.quiet[done] >= self.policy.clear_times])

    def _row_p(self, at: Index, row: int) -> Floats:
        """p-values of the channels of merged counts against the baseline, float64[m, channels]; with the dispersion of
        the longest scale that is known, which is the largest."""
        s = self.streams
        which, reference = self.baselines.nearest(at)
        out = np.ones((at.size, s.channels))
        for baseline in range(len(BASELINES)):
            these = which == baseline
            if these.any():
                scale = max((one for one in range(SCALES) if self.dispersion.enough(baseline, one)), default=0)
                part = sizes.of_devices(at[these], s, scale, self.policy.n_min)[:, None, None]
                found = pearson_of_blocks(s.counts[at[these], row] * part, reference[these], self.channels.ordered)
                out[these] = self.dispersion.p_values(baseline, scale, found, cautious(s.ratios[at[these]], scale))
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
        which, reference = self.baselines.nearest(one)
        p = self._row_p(one, EVIDENCE)[0]
        c_f = self.dispersion.c_f(int(which[0]), 0)
        counts = self.streams.counts[at, EVIDENCE].astype(np.float64)
        return moved(self.channels, counts, reference[0], p, c_f, self.policy.q)

    def accept(self, at: int) -> None:
        """What it shows now is normal: what it shows since it began to move becomes its baseline, which grows anew."""
        s, one = self.streams, np.array([at])
        moves = bool(s.alarm[at]) or self.log_e(one)[0] > SUSPECT
        if moves:
            s.empty(one, OWN)
            s.pour(one, EVIDENCE, OWN)
            s.own_blocks[at] = s.waiting[at]
            s.young[at], s.day[at] = True, False
            s.known_hours[at], s.days[at] = 0, 1
        s.rest(one)
        s.accepted[at] = True
        s.skew[at] = KNOWN
        self.baselines.pool()

    # As bytes.

    def pack_dispersion(self) -> bytes:
        return b"".join(one.pack() for one in (self.dispersion, self.first_day) if one is not None)

    def unpack_dispersion(self, data: bytes) -> None:
        """Of other channels or another release: the fleet learns anew."""
        if self.dispersion.unpack(data):
            self.first_day = None
        elif self.first_day is not None and self.dispersion.unpack(data[: len(data) // 2]):
            self.first_day.unpack(data[len(data) // 2 :])
