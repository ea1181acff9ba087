"""The rule by which two files are compared, and what is counted by it. Pure.

A dominates B if it is at least as good in accuracy, bytes and p50, and better in one of them. Accuracies are equal when
0 lies inside the paired two-sided 95 % interval of their difference on the test rows (score interval: Tango, Statistics
in Medicine 17 (1998) 891-908). Of times, one is better when its median is in so many rounds that chance alone would
seldom do it (two-sided sign test, 5 %); else they are equal. Bytes are compared as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from edgewright_compiler.measuring.bounds import tango_upper
from edgewright_compiler.measuring.slices import wilson

RULE = """A dominates B: as good in accuracy, bytes and p50, and better in one. Accuracies are equal when 0 lies inside
the paired 95 % interval of their difference, times when a sign test over rounds does not tell them apart at 5 %."""

OURS, BARE = "ours", "ours without monitor"
ON_STUDENT, ON_BARE = " on student", " on student without monitor"  # behind a peer's name; else it had the teacher
LEVEL = 0.975  # one-sided on both sides: 95 % two-sided
PROMISED = 1.0  # points
BETTER, WORSE = "ours dominates", "dominates ours"


@dataclass(frozen=True, slots=True)
class Measured:
    """`right` [n] is 0 or 1 by test row, `p50_us` by round."""

    right: np.ndarray[Any, np.dtype[np.float64]]
    bytes: int
    p50_us: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """Ours over a peer: +1 better, 0 equal, -1 worse. In points of accuracy: `low` and `high` of ours minus the
    peer's, and `loss`, the one-sided 95 % bound of the peer's minus ours."""

    accuracy: int
    bytes: int
    p50: int
    low: float
    high: float
    loss: float

    @property
    def verdict(self) -> str:
        signs = (self.accuracy, self.bytes, self.p50)
        if min(signs) >= 0 and max(signs) > 0:
            return BETTER
        return WORSE if max(signs) <= 0 and min(signs) < 0 else "neither"


def compared(ours: Measured, peer: Measured) -> Compared:
    n = len(ours.right)
    gained = float(((ours.right == 1) & (peer.right == 0)).sum())
    lost = float(((ours.right == 0) & (peer.right == 1)).sum())
    low, high = -tango_upper(lost, gained, n, LEVEL), tango_upper(gained, lost, n, LEVEL)
    faster = sum(a < b for a, b in zip(ours.p50_us, peer.p50_us, strict=True))
    slower = sum(a > b for a, b in zip(ours.p50_us, peer.p50_us, strict=True))
    return Compared(
        accuracy=(low > 0) - (high < 0),
        bytes=(ours.bytes < peer.bytes) - (ours.bytes > peer.bytes),
        p50=(faster > slower) - (faster < slower) if by_chance(faster, slower) <= 2 * (1 - LEVEL) else 0,
        low=100 * low,
        high=100 * high,
        loss=100 * tango_upper(lost, gained, n),
    )


def by_chance(a: int, b: int) -> float:
    """Probability of a split of rounds at least as uneven as a to b when both are equally fast (sign test)."""
    n = a + b
    return min(1.0, 2 * sum(comb(n, k) for k in range(max(a, b), n + 1)) / 2**n)


def reported(found: Mapping[str, Measured], peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Raw figures of all; of a peer's file with ours against it, and where it has no monitor to carry but could have,
    with ours without it, too."""
    rows: dict[str, dict[str, Any]] = {}
    words = {1: "better", 0: "equal", -1: "worse"}
    for name, one in found.items():
        right, n = int(one.right.sum()), len(one.right)
        low, high = wilson(right, n)
        rows[name] = {
            "accuracy": round(right / n, 5),
            "low": round(low, 5),
            "high": round(high, 5),
            "bytes": one.bytes,
            "p50_us": round(float(np.median(one.p50_us)), 2),
            "p50_ratio": round(float(np.median(np.divide(one.p50_us, found[OURS].p50_us))), 3),
        }
        if not name.startswith(tuple(peers)):
            continue
        against = compared(found[OURS], one)
        rows[name] |= {
            "ours_accuracy": f"{words[against.accuracy]} ({against.low:+.2f} to {against.high:+.2f} points)",
            "ours_bytes": words[against.bytes],
            "ours_p50": words[against.p50],
            "verdict": against.verdict,
        }
        if name.endswith(ON_BARE):
            rows[name]["verdict_without_monitor"] = compared(found[BARE], one).verdict
        if name in peers:
            rows[name]["loss_bound_points"] = round(against.loss, 3)
    return rows


def counts(recipes: Mapping[str, Mapping[str, Mapping[str, Any]]], peers: Sequence[str]) -> dict[str, int]:
    """What they mean stands in compress_peers.py."""
    pairs = [(rows[peer], rows[peer + ON_STUDENT], rows[peer + ON_BARE]) for rows in recipes.values() for peer in peers]
    return {
        "dominated": sum(WORSE in (a["verdict"], b["verdict"], c["verdict_without_monitor"]) for a, b, c in pairs),
        "dominated_by_less": sum(c["verdict"] == WORSE for _, _, c in pairs),
        "dominates_on_teacher": sum(a["verdict"] == BETTER for a, _, _ in pairs),
        "within_a_point_on_teacher": sum(
            a["ours_bytes"] == a["ours_p50"] == "better" and a["loss_bound_points"] <= PROMISED for a, _, _ in pairs
        ),
        "peers": len(peers),
        "total": len(pairs),
    }
