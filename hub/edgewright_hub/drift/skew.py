"""Devices that always differed from what their model was trained on, or from their fleet: no drift, but worth knowing.

A device that differs before it has a past of its own has not moved, unless it has left even that little past. What it
showed so far is where its past begins. When its own baseline may first be used, that is compared with training once.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from . import effects, measures, sizes
from .dispersion import cautious, shares
from .groups import Group
from .measures import Floats
from .moves import Moved, moved
from .streams import ALIKE, EVIDENCE, KNOWN, OWN, SKEWED

LEFT: Final = 0.01  # p-value from which a device without a baseline has moved, and has not just always differed
ENOUGH: Final = 6  # blocks whose dispersion beside their own devices' baselines is known


def check(group: Group, at: int, p_need: float) -> None:
    """Once, when the own baseline may be used: is it what the model was trained for?"""
    s = group.streams
    if s.skew[at] or s.accepted[at] or not group.baselines.ready(np.array([at]))[0]:
        return
    if group.dispersion.blocks[0, 0] < ENOUGH:
        return
    training = group.baselines.training
    beyond = effects.js_beyond_chance(_own(group, at), training, _c_f(group, at))
    far = (beyond >= group.policy.js_floor).any()
    s.skew[at] = SKEWED if far and measures.simes(_p(group, at)) <= p_need else ALIKE


def left_own(group: Group, at: int) -> bool:
    """Whether the evidence differs from what the device itself showed before, be that little."""
    one, s = np.array([at]), group.streams
    part = sizes.of_devices(one, s, 0, group.policy.n_min)[:, None, None]
    found = measures.pearson_of_blocks(s.counts[one, EVIDENCE] * part, s.counts[one, OWN], group.channels.ordered)
    p = measures.simes_rows(group.dispersion.p_values(0, 0, found, cautious(s.ratios[one], 0)))
    return bool(p[0] < LEFT)


def begin_past(group: Group, at: int) -> None:
    """It differs, and has no past that says that it moved: what it showed so far is where its past begins."""
    s, one = group.streams, np.array([at])
    group.baselines.grow(one)
    s.rest(one)
    if s.skew[at] != KNOWN:
        s.skew[at] = SKEWED


def channels(group: Group, at: int) -> tuple[Moved, ...]:
    """Those in which a device differs from training in all that it calls normal."""
    own, training = _own(group, at), group.baselines.training
    return moved(group.channels, own, training, _p(group, at), _c_f(group, at), group.policy.q)


def _own(group: Group, at: int) -> Floats:
    return np.asarray(group.streams.counts[at, OWN], np.float64)


def _c_f(group: Group, at: int) -> Floats:
    share = shares(group.streams.ratios[at : at + 1], 0)[0]
    return np.asarray(np.maximum(1.0, group.dispersion.c_f(0, 0) * share))


def _p(group: Group, at: int) -> Floats:
    share = cautious(group.streams.ratios[at : at + 1], 0)
    found = measures.pearson(_own(group, at), group.baselines.training, group.channels.ordered)
    return np.asarray(group.dispersion.p_values(0, 0, found, share)[0])
