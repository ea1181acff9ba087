"""Exactly once: which numbers of a spool are counted. Pure.

A spool numbers its reports and events densely from 1; at most 16 are unacknowledged at a time, and they come late,
doubled and in any order. `Spool` knows everything up to `high_water` and `high_water + 1 + i` for each bit i of `mask`
as counted. A number above high_water + 64 cannot come in normal running: this hub was restored from a backup and
others were counted by the one that is gone. Then the window moves up to it, and the gap is recorded as lost.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from edgewright_contracts.desired import MASK_BITS, Ack, BirthMark

_ALL: Final = (1 << MASK_BITS) - 1


class Spool(NamedTuple):
    high_water: int = 0
    mask: int = 0
    lost: int = 0

    @property
    def highest(self) -> int:
        return self.high_water + self.mask.bit_length()


def counted(spool: Spool, seq: int) -> bool:
    ahead = seq - spool.high_water - 1
    return ahead < 0 or (ahead < MASK_BITS and bool(spool.mask >> ahead & 1))


def count(spool: Spool, seq: int) -> Spool:
    """The spool with `seq` counted; unchanged if it was."""
    if counted(spool, seq):
        return spool
    high_water, mask, lost = spool
    jump = seq - MASK_BITS - high_water
    if jump > 0:
        seen = mask & ((1 << min(jump, MASK_BITS)) - 1)
        lost += jump - seen.bit_count()
        high_water += jump
        mask = mask >> jump if jump < MASK_BITS else 0
    mask |= 1 << (seq - high_water - 1)
    done = (~mask & (mask + 1)).bit_length() - 1  # trailing ones
    return Spool(high_water + done, mask >> done & _ALL, lost)


def ack(spool_id: str, spool: Spool, birth: BirthMark = "") -> Ack:
    return Ack(spool_id, spool.high_water, spool.mask, birth)
