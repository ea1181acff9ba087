"""Sums over a cohort in tiers of time: where a window belongs, and how it is added. Pure.

Windows of synced or free-running clocks are placed at their own start; those without a clock, or with one that is
ahead of ours, at arrival. A window belongs whole to the bucket of its start, in the tiers that are at least as wide as
it; the widest tier takes everything. A cohort is the fleet of the device. Sums are exact in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from edgewright_contracts import report
from edgewright_contracts.binning import Cells, pack, pack_grid, unpack, unpack_grid
from edgewright_contracts.codec import MAX_COUNT
from edgewright_contracts.errors import ContractError

TIERS_S: Final = (60, 300, 3600)
AHEAD_MS: Final = 5 * 60_000  # a device's clock may be this much ahead of ours before we stop believing it

Row = dict[str, Any]
# tier_s, t0_ms, cohort, digest, variant, context, edge_hash, phase
RollupKey = tuple[int, int, str, str, str, str, str, str]
ROLLUP_KEY: Final = ("tier_s", "t0_ms", "cohort", "digest", "variant", "context", "edge_hash", "phase")


def placed(window: report.Window, arrived_ms: int) -> tuple[int, Literal["wall", "arrival"]]:
    """(start in UTC milliseconds, whose clock says so)."""
    length = window.mono_end_ms - window.mono_start_ms
    wall = window.wall_start_ms
    if wall is not None and window.clock != "unknown" and wall + length <= arrived_ms + AHEAD_MS:
        return wall, "wall"
    return max(0, arrived_ms - length), "arrival"


def buckets(window: report.Window, cohort: str, arrived_ms: int) -> list[RollupKey]:
    """The rollups that a window is added to."""
    start_ms, _ = placed(window, arrived_ms)
    length_ms = window.mono_end_ms - window.mono_start_ms
    fits = [t for t in TIERS_S if length_ms <= t * 1000] or [TIERS_S[-1]]
    return [
        (
            tier_s,
            start_ms - start_ms % (tier_s * 1000),
            cohort,
            window.digest,
            window.variant,
            window.context,
            window.edge_hash,
            window.phase,
        )
        for tier_s in fits
    ]


SUMMED: Final = ("n", "n_monitored", "errors", "rejected", "labels_n", "labels_wrong")


@dataclass(slots=True)
class Rollup:
    """One row of rollups, unpacked while a batch adds to it."""

    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("windows", *SUMMED), 0))
    cells: Cells | None = None  # None: all zeros, of a width that nobody has named yet
    latency: Cells | None = None

    @classmethod
    def of(cls, row: Row) -> Rollup:
        sums = {name: row[name] for name in ("windows", *SUMMED)}
        return cls(sums, unpack(row["cells"]) if row["cells"] else None, unpack_grid(row["latency_total"]))

    def add(self, sums: Row, cells: Cells | None, latency: Cells) -> None:
        """All of it or, raising ContractError, nothing."""
        total = cells if self.cells is None else self.cells
        if cells is not None and self.cells is not None:
            if cells.size != self.cells.size:
                raise ContractError("cells", f"{self.cells.size} cells, as of this edge hash before", f"{cells.size}")
            total = self.cells + cells
        durations = latency if self.latency is None else self.latency + latency
        if (total is not None and int(total.max()) > MAX_COUNT) or int(durations.max()) > MAX_COUNT:
            raise ContractError("cells", f"sums of at most {MAX_COUNT}", "more")
        self.cells, self.latency = total, durations
        self.sums["windows"] += 1
        for name in SUMMED:
            self.sums[name] += sums[name]

    def row(self, key: RollupKey) -> Row:
        return {
            **dict(zip(ROLLUP_KEY, key, strict=True)),
            **self.sums,
            "cells": b"" if self.cells is None else pack(self.cells),
            "latency_total": b"" if self.latency is None else pack_grid(self.latency),
        }
