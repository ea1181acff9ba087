"""Reference and windows of the same channels: raw values for rules that need them, cells for those that do not.

Everything is cut and counted by the code that packages and devices run: `graph.reference` and `channels.Binner`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgewright_compiler.graph.features import Feature
from edgewright_compiler.graph.reference import count, cut
from edgewright_contracts.baseline import per_channel
from edgewright_contracts.binning import offsets
from edgewright_contracts.channels import Binner, Channel, extract
from edgewright_hub.drift.measures import pad
from edgewright_hub.drift.moves import Channels

Outputs = Mapping[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Windows:
    """`cells`: float64[windows, channels, cells]; `values`: [channels] of float32[windows, n]."""

    n: int
    cells: Floats
    values: list[npt.NDArray[np.float32]]


class Reference:
    """Channels with edges at the quantiles of some rows, their counts, and the rows themselves."""

    def __init__(self, features: tuple[Feature, ...], outputs: Outputs) -> None:
        self.channels: tuple[Channel, ...] = cut(features, dict(outputs))
        baseline = count(self.channels, dict(outputs))
        self.cells: Floats = pad(per_channel(self.channels, baseline.cells()))
        names, kinds, widths = zip(*((c.name, c.kind, c.cells) for c in self.channels), strict=True)
        self.ordered = np.array(Channels(names, kinds, widths).ordered)
        self.values = [_values(channel, outputs) for channel in self.channels]
        self.n = len(self.values[0])
        self._binner = Binner(self.channels)
        starts = offsets([channel.width for channel in self.channels])
        self._places = np.full(self.cells.shape, starts[-1])  # the last one stays 0
        for row, channel, start in zip(self._places, self.channels, starts, strict=False):
            row[: channel.cells] = np.arange(start, start + channel.cells)

    def windows(self, outputs: Outputs, n: int) -> Windows:
        """Rows in a row, n a window; what is left over is not used."""
        total = len(next(iter(outputs.values()))) // n
        wide = np.zeros((total, self._binner.cells.size + 1))
        for i in range(total):
            self._binner.add({name: x[i * n : (i + 1) * n] for name, x in outputs.items()})
            wide[i, :-1] = self._binner.take()
        values = [_values(channel, outputs)[: total * n].reshape(total, n) for channel in self.channels]
        return Windows(n, wide[:, self._places], values)


def _values(channel: Channel, outputs: Outputs) -> npt.NDArray[np.float32]:
    return np.asarray(extract(channel.source, outputs), np.float32)
