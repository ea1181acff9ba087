"""How far the last hours of each cohort lie from training, from the rollups alone: for a page, and for who asks why.

One row for each cohort, digest, variant, context and part. Sums over devices cannot tell a device that moved from one
that always differed, so there is no verdict here, only effect sizes with what chance explains. Cost: the rollups of the
hours, 24 rows for each of those keys, whatever the number of devices.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from edgewright_contracts.binning import Cells

from ..storage import telemetry
from ..storage.histograms import cells_of
from . import effects, measures
from .detectors import HOUR_MS
from .references import References

TIER_S: Final = 3600
SHOWN: Final = 8  # channels of a part


def by_cohort(
    control_engine: sa.Engine, telemetry_engine: sa.Engine, blobs: Path, *, now_ms: int, hours: int = 24
) -> list[dict[str, Any]]:
    """The furthest channels of each part first; cohorts in the order of their names."""
    r = telemetry.rollups.c
    keys = (r.cohort, r.digest, r.variant, r.context, r.edge_hash)
    query = sa.select(*keys, r.n_monitored, r.cells).where(
        r.tier_s == TIER_S, r.t0_ms >= now_ms - now_ms % HOUR_MS - hours * HOUR_MS, r.phase == "normal"
    )
    sums: dict[tuple[Any, ...], Cells] = {}  # by keys, and the number of cells
    rows: dict[tuple[Any, ...], int] = defaultdict(int)
    with telemetry_engine.connect() as connection:
        for *key, n, packed in connection.execute(query):
            cells = cells_of(packed)
            if cells is not None:
                at = (*key, cells.size)
                sums[at] = cells if at not in sums else sums[at] + cells
                rows[at] += n
    references = References(blobs)
    with control_engine.connect() as connection:
        references.learn(connection, {key[1] for key in sums})
    found = []
    for at, cells in sorted(sums.items()):
        cohort, digest, variant, context, edge_hash, width = at
        reference = references.of(digest, variant)
        if reference is None or reference.edge_hash != edge_hash or reference.width != width:
            continue
        n = rows[at]
        for part, channels in reference.channels.items():
            C = measures.pad([cells[where] for where in reference.slices[part]])
            R = measures.pad(reference.cells[part])
            js, beyond, psi = effects.js_distance(C, R), effects.js_beyond_chance(C, R), effects.psi(C, R)
            N = np.maximum(R.sum(1), 1)
            found.append(
                {
                    "cohort": cohort,
                    "model": references.model(digest),
                    "digest": digest,
                    "variant": variant,
                    "context": context,
                    "part": part,
                    "n": n,
                    "channels": [
                        {
                            "name": channels.names[i],
                            "js": float(js[i]),
                            "js_beyond_chance": float(beyond[i]),
                            "psi": float(psi[i]),
                            "psi_chance": effects.psi_crit(max(1, n), N[i], channels.widths[i], len(N)),
                        }
                        for i in np.argsort(-beyond)[:SHOWN]
                    ],
                }
            )
    return found
