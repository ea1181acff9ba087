"""The order in which devices are given the release, and the places of those that join. Pure.

It is fixed by the rollout, differs in the next, and is independent of what devices are: so the first devices of a stage
are a fair sample, no device is always the first, and whoever joins later changes nothing among the others.
Cost: to order 10,000 devices takes 30 ms, most of it hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .members import COLUMNS, Members, widened


def joined(members: Members, new: Members, rollout: str) -> Members:
    """Both, each device at its place; counts in waiting move with their devices."""
    digests = tuple(sorted({*members.digests, *new.digests}))
    devices = (*members.devices, *new.devices)
    places = np.array(sorted(range(len(devices)), key=lambda i: _rank(rollout, devices[i])), np.intp)
    both = {
        name: np.concatenate(_even(getattr(members, name), getattr(new, name)), axis=-1)[..., places]
        for name in COLUMNS
        if name != "previous"
    }
    previous = np.concatenate([_moved(one.previous, one.digests, digests) for one in (members, new)])[places]
    reasons = {**members.reasons, **new.reasons}
    return Members.new([devices[i] for i in places], digests, reasons, previous=previous, **both)


def _rank(rollout: str, device: str) -> bytes:
    return hashlib.sha256(f"{rollout}\0{device}".encode()).digest()


def _even(*two: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    if two[0].ndim == 1:
        return list(two)
    metrics = max(one.shape[-2] for one in two)
    return [widened(one, metrics) for one in two]


def _moved(previous: npt.NDArray[np.int16], digests: Sequence[str], wanted: Sequence[str]) -> npt.NDArray[np.int16]:
    return np.array([*(wanted.index(digest) for digest in digests), -1], np.int16)[previous]
