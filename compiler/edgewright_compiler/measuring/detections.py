"""Matching of detected to labelled boxes, and average precision from it.

A detection is right when it is the best scored one of its class to overlap an unclaimed labelled box of its image with
IoU >= 0.5 (Everingham et al. 2010, "The PASCAL VOC challenge"). Matching never crosses images, so it is done once, and
the average precision of any resample of images is a cumulative sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
IOU: Final = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """All detections of one class, best score first; `last` of a tie of scores is the only one that a threshold can
    stop at. `given` counts the labelled boxes of each image, [n]."""

    image: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    last: npt.NDArray[np.bool_]
    given: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """By class; classes without a labelled box are left out."""

    classes: tuple[Found, ...]

    def average_precision(self, counts: Floats) -> float:
        """Mean over classes with a labelled box of the area under the precision envelope; nan without any. `counts`
        [n] say how often each image counts."""
        found = [_area(one, counts, wanted) for one in self.classes if (wanted := float(counts @ one.given)) > 0]
        return float(np.mean(found)) if found else math.nan


def match(boxes: Floats, scores: Floats, kinds: npt.NDArray[np.generic], labels: Floats) -> Matched:
    """boxes [n, k, 4], scores and kinds [n, k], labels [n, m, 5] (class, box; class -1 fills up).

    A detection whose score is not above 0 fills up too.
    """
    n = len(labels)
    scores, kinds = scores.reshape(n, -1), np.rint(np.asarray(kinds, np.float64)).reshape(n, -1).astype(np.int64)
    present = np.unique(labels[..., 0][labels[..., 0] >= 0]).astype(np.int64)
    parts = []
    for i in range(n):
        truth = labels[i][labels[i, :, 0] >= 0]
        at = np.flatnonzero((scores[i] > 0) & np.isin(kinds[i], present))
        at = at[np.argsort(-scores[i, at], kind="stable")]
        parts.append((np.full(len(at), i), kinds[i, at], scores[i, at], _claims(boxes[i, at], kinds[i, at], truth)))
    image, kind, score, right = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(-score, kind="stable")
    image, kind, score, right = image[order], kind[order], score[order], right[order]
    classes = []
    for c in present:
        mine = kind == c
        given = np.asarray((labels[..., 0] == c).sum(axis=1), np.float64)
        classes.append(Found(image[mine], right[mine], np.append(np.diff(score[mine]) != 0, True)[: mine.sum()], given))
    return Matched(tuple(classes))


def _area(found: Found, counts: Floats, wanted: float) -> float:
    w = counts[found.image]
    hits, told = np.cumsum(w * found.right)[found.last], np.cumsum(w)[found.last]
    precision = np.divide(hits, told, out=np.zeros_like(hits), where=told > 0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(hits, prepend=0.0) / wanted * envelope).sum())


def _claims(boxes: Floats, kinds: npt.NDArray[np.int64], truth: Floats) -> npt.NDArray[np.bool_]:
    """For the detections of one image, best first: did it claim a labelled box that nobody had."""
    right = np.zeros(len(boxes), np.bool_)
    if not len(truth):
        return right
    overlap = _iou(boxes, truth[:, 1:])
    overlap[kinds[:, None] != truth[:, 0]] = 0.0
    free = np.ones(len(truth), np.bool_)
    for d in range(len(boxes)):
        best = int(np.argmax(np.where(free, overlap[d], 0.0)))
        if free[best] and overlap[d, best] >= IOU:
            free[best], right[d] = False, True
    return right


def _iou(a: Floats, b: Floats) -> Floats:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    area = [np.prod(np.clip(x[:, 2:] - x[:, :2], 0, None), axis=1) for x in (a, b)]
    union = area[0][:, None] + area[1][None] - both
    return np.asarray(np.divide(both, union, out=np.zeros_like(both), where=union > 0), np.float64)
