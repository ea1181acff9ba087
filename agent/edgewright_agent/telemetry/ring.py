"""The ring that a late label finds its inference in: the last `RING` of them, about 24 bytes each.

Order: inferences are added as they are counted; a label or outcome of one that came in the same round is joined after
that. Guarantee: a label joins the inference of its id or none, and no outcome of one inference counts twice, however
often it is told.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgewright_contracts.report import CORRECT
from edgewright_runtime.runtime import Array

from .outcomes import Outcome
from .rows import ROWS, Subject

RING: Final = ROWS  # inferences that a late label still finds: no fewer than one round may count
KEYS: Final = 512  # pairs of subject and context before some are forgotten; 32 models have 288
NAMES: Final = 16  # of outcomes, `correct` among them, that one such pair may have: a bit for each

Ids = npt.NDArray[np.int64]


class Found(NamedTuple):
    """The inference of an id; `predicted` is -1 when its class is not known."""

    subject: Subject
    context: str
    predicted: int
    confidence: float

    def hit(self, one: Outcome) -> bool | None:
        """Whether it came out true; None for a class that cannot be compared."""
        if one.name != CORRECT:
            return bool(one.truth)
        labels = self.subject.manifest.labels
        if self.predicted < 0 or (isinstance(one.truth, str) and one.truth not in labels):
            return None
        if isinstance(one.truth, str):  # there may be fewer labels than classes
            return self.predicted < len(labels) and labels[self.predicted] == one.truth
        return self.predicted == one.truth


class Key(NamedTuple):
    """What many inferences of the ring share; `names` are their outcomes, in the order of their bits."""

    subject: Subject
    context: str
    names: list[str]


class Ring:
    """Of one thread: the telemetry's."""

    def __init__(self) -> None:
        # Zeros take no memory until they are written to.
        self._ids = np.zeros(RING, np.int64)  # an inference's is 1 or more
        self._class = np.zeros(RING, np.int32)
        self._confidence = np.zeros(RING, np.float32)
        self._key = np.zeros(RING, np.int16)
        self._told = np.zeros(RING, np.uint16)  # bits of the names that were told
        self._keys: list[Key] = []

    def add(self, subject: Subject, context: str, ids: Ids, probabilities: Array | None) -> None:
        """`probabilities` are row by row those of `ids`; None when they have no class."""
        at = ids % RING
        self._ids[at], self._class[at], self._told[at] = ids, -1, 0
        self._key[at] = self._number(subject, context)
        if probabilities is not None and probabilities.size:
            p = probabilities.reshape(ids.size, -1)
            best = p.argmax(axis=1)
            self._class[at] = best
            self._confidence[at] = np.clip(np.nan_to_num(p[np.arange(best.size), best]), 0, 1)

    def find(self, identifier: int) -> Found | None:
        """None when the inference was too long ago, was shed, or never was."""
        at = identifier % RING
        if identifier < 1 or self._ids[at] != identifier:
            return None
        key = self._keys[self._key[at]]
        return Found(key.subject, key.context, int(self._class[at]), float(self._confidence[at]))

    def first(self, identifier: int, name: str) -> bool:
        """Whether this inference, which `find` found, was never told this outcome; from now on it was. Never for a name
        beyond `NAMES`."""
        at = identifier % RING
        names = self._keys[self._key[at]].names
        if name not in names:
            if len(names) == NAMES:
                return False
            names.append(name)
        bit = 1 << names.index(name)
        if self._told[at] & bit:
            return False
        self._told[at] |= bit
        return True

    def _number(self, subject: Subject, context: str) -> int:
        for i, key in enumerate(self._keys):
            if key.subject is subject and key.context == context:
                return i
        if len(self._keys) >= KEYS:
            self._forget()
        self._keys.append(Key(subject, context, [CORRECT]))
        return len(self._keys) - 1

    def _forget(self) -> None:
        """Pairs that no inference of the ring is of; while that makes too little room, the older half of those too."""
        used = np.unique(self._key[self._ids > 0])
        while used.size > KEYS * 3 // 4:
            self._ids[self._ids < np.median(self._ids[self._ids > 0])] = -1
            used = np.unique(self._key[self._ids > 0])
        self._key = np.searchsorted(used, self._key).astype(np.int16)
        self._keys = [self._keys[key] for key in used]
