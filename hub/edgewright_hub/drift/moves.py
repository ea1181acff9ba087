"""Which channels of a stream moved, how far and how: what a page shows, and what `kinds` are told from. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
import numpy as np

from . import effects, measures
from .measures import Floats

HowMissing = Literal["", "missing", "outside"]


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """One channel: its p-value, how far (Jensen-Shannon distance, and that of it which chance does not explain; PSI
    beside what chance explains of it), the direction, and which cells made it."""

    name: str
    p: float
    js: float
    js_beyond_chance: float = 0.0
    psi: float
    psi_chance: float
    up: bool = False  # towards higher cells
    cells: HowMissing = ""  # of missing values; or outside of all that the reference knew
    of: str = ""  # kind of channel


class Channels(msgspec.Struct, frozen=True):
    """Names and kinds (contracts.channels.Kind) of a part's channels, in order."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def ordered(self) -> tuple[int, ...]:
        """How many cells of each channel, the first ones, lie in an order: of numbers all but the missing ones'."""
        pairs = zip(self.kinds, self.widths, strict=True)
        return tuple(width - 1 if kind in ("numeric", "score", "count") else 0 for kind, width in pairs)


def moved(channels: Channels, C: Floats, R: Floats, p: Floats, c_f: Floats, q: float) -> tuple[Moved, ...]:
    """The channels that Benjamini-Hochberg names at `q`, furthest first. `C`, `R`: [channels, cells]."""
    js, beyond, psi = effects.js_distance(C, R), effects.js_beyond_chance(C, R, c_f), effects.psi(C, R)
    n, N = np.maximum(C.sum(1), 1.0), np.maximum(R.sum(1), 1.0)
    place = np.arange(C.shape[1])
    found = [
        Moved(
            name=channels.names[i],
            p=float(p[i]),
            js=float(js[i]),
            js_beyond_chance=float(beyond[i]),
            psi=float(psi[i]),
            psi_chance=effects.psi_crit(n[i], N[i], channels.widths[i], len(p), q),
            up=bool((C[i] * place).sum() / n[i] > (R[i] * place).sum() / N[i]),
            cells=_cells(channels.kinds[i], channels.widths[i], C[i], R[i], c_f[i]),
            of=channels.kinds[i],
        )
        for i in np.flatnonzero(measures.bh(p, q))
    ]
    return tuple(sorted(found, key=lambda m: -m.js_beyond_chance))


def widest(several: Iterable[Sequence[Moved]]) -> tuple[Moved, ...]:
    """Each channel that moved on any device, as it moved on the device where it moved most."""
    best: dict[str, Moved] = {}
    for one in (m for moves in several for m in moves):
        if one.name not in best or best[one.name].js_beyond_chance < one.js_beyond_chance:
            best[one.name] = one
    return tuple(sorted(best.values(), key=lambda m: -m.js_beyond_chance))


def _cells(kind: str, width: int, C: Floats, R: Floats, c_f: float) -> HowMissing:
    """Which of a channel's special cells holds clearly more than it used to, if any."""
    if kind == "feed":
        return ""
    if kind == "categorical":
        return "outside" if _more(C, R, [width - 1], c_f) else ""
    if _more(C, R, [width - 1], c_f):
        return "missing"
    return "outside" if kind == "numeric" and _more(C, R, [0, width - 2], c_f) else ""


def _more(C: Floats, R: Floats, cells: list[int], c_f: float) -> bool:
    """A share of these cells that is a point and more above what it was, and not by chance (p < .001)."""
    n, N, c, r = C.sum(), R.sum(), C[cells].sum(), R[cells].sum()
    if n == 0 or N == 0 or c / n < r / N + 0.01:
        return False
    pooled = np.array([[c, n - c]]), np.array([[r, N - r]])
    return bool(measures.window_p(*pooled, c_f, 2 * c_f**2, max(1.0, c_f))[0] < 1e-3)
