"""Drift as the overview shows it: alarms that belong together as one."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

PARTS: Final = ("input", "embedding", "output", "feed")


def grouped(alarms: list[dict[str, Any]], *by: str) -> list[dict[str, Any]]:
    """Alarms that are equal in `by` as one, those that came last first; the part nearest to the model's input first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for verdict in sorted(alarms, key=lambda v: (PARTS.index(v["part"]), v["variant"], v["context"])):
        groups[tuple(verdict[name] for name in by)].append(verdict)
    told = [
        {
            **{name: mine[0][name] for name in by},
            "since_ms": min(v["since_ms"] for v in mine),
            "devices": sorted({device for v in mine for device in v.get("devices", ())}),
            "streams": mine,
        }
        for mine in groups.values()
    ]
    return sorted(told, key=lambda d: (-d["since_ms"], *(d[name] for name in by)))
