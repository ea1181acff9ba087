"""By how much in-control windows vary more than independent rows would, and how alike two in a row are. Pure arrays.

Frames of one scene, devices that differ a little, rhythms of the day: all make X² larger than for independent rows
(c_f about 9 for scenes of ten frames), and a test that does not know it alarms on every window. So both are measured on
windows that are in control, over all devices that count the same channels in the same context, at each time scale:

    c_f   mean of X² over its mean for independent rows, of each channel
    v_f   variance of X²: at least 2 (K - 1) c_f², more where it was measured so
    rho   correlation of the z-scores of two blocks in a row; of a stream, its own share drawn towards the fleet's

Each is taken somewhat larger than measured, by what the number of blocks leaves open (1 / sqrt of it), and used from
`ENOUGH` blocks on. Before that nothing is tested with them: the fleet is still learning what is normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .measures import Floats, Pearson

ENOUGH: Final = 20  # blocks
OWN_WEIGHT: Final = 30.0  # pairs of blocks that the fleet's correlation counts for beside a stream's own
RHO_MOST: Final = 0.95
RARE_BELOW: Final = 2.0  # the rare cells' counts are as they are while c_f is below this, else divided by it


@dataclass(frozen=True, slots=True)
class Dispersion:
    """Sums over in-control blocks of one (digest, variant, context, part, baseline, scale)."""

    blocks: float
    free: Floats  # [channels]: sums of K - 1
    x2: Floats
    ratio: Floats  # sums of X² / (K - 1)
    square: Floats  # of its square

    @classmethod
    def empty(cls, channels: int) -> Dispersion:
        return cls(0.0, *(np.zeros(channels) for _ in range(4)))

    def plus(self, found: Pearson, chosen: npt.NDArray[np.bool_]) -> Dispersion:
        """With the blocks that are `chosen`; `found`: float64[blocks * channels], one block after another."""
        keep = chosen[:, None] & found.tested.reshape(len(chosen), -1)
        x2, free = (one.reshape(keep.shape) for one in (found.x2, found.free))
        ratio = np.where(keep, x2 / free, 0.0)
        return Dispersion(
            self.blocks + float(chosen.sum()),
            self.free + np.where(keep, free, 0).sum(0),
            self.x2 + np.where(keep, x2, 0).sum(0),
            self.ratio + ratio.sum(0),
            self.square + (ratio**2).sum(0),
        )

    @property
    def enough(self) -> bool:
        return self.blocks >= ENOUGH

    def c_f(self) -> Floats:
        """float64[channels], at least 1."""
        margin = 1 + 1 / np.sqrt(max(self.blocks, 1.0))
        return np.maximum(1.0, self.x2 / np.maximum(self.free, 1.0) * margin)

    def v_share(self) -> Floats:
        """float64[channels]: the measured variance of X² over its square mean, beside that of independent rows."""
        n = max(self.blocks, 1.0)
        mean = np.maximum(self.ratio / n, 1e-9)
        free = np.maximum(self.free / n, 1.0)
        measured = np.maximum(self.square / n - mean**2, 0) / mean**2
        return np.maximum(1.0, measured / (2 / free))
