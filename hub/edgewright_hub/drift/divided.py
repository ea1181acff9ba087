"""Which site drifts, or which hardware, or cohort: verdicts of devices counted by what a selector knows. Pure.

No verdict of its own, since a value that nobody named as a cohort has no share of the budget; `fleet cohort` gives it
one. A device with several streams counts once, by its worst; one with several cohorts in each of them. Cost: 2 µs for
each stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from edgewright_contracts.errors import ContractError

from ..fleet.selectors import Device, parse

WORST: Final = ("alarm", "skewed", "ok", "learning")  # of the verdicts on a device's streams


def divided(verdicts: Iterable[Mapping[str, Any]], devices: Mapping[str, Device], key: str) -> list[dict[str, Any]]:
    """By each value of `key`, "" of those that have none: how many devices, how many of each verdict, what drifts. Most
    alarms first. Raises ContractError for what is no key of selectors."""
    condition = parse(key).alternatives[0][0]
    if str(condition) != key or condition.key != key:
        raise ContractError("by", "one key of selectors, as site or tag.line", key)
    worst: dict[str, int] = {}
    alarms: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for one in verdicts:
        if one["scope"] == "device" and one["verdict"] in WORST:
            rank = WORST.index(one["verdict"])
            worst[one["subject"]] = min(rank, worst.get(one["subject"], rank))
            if rank == 0:
                alarms[one["subject"]].append(one)
    members: dict[str, list[str]] = defaultdict(list)
    for name in worst:
        for value in (devices[name].values(condition.key) if name in devices else ()) or ("",):
            members[value].append(name)
    found = [
        {
            key: value,
            "devices": len(names),
            **{verdict: sum(worst[name] == rank for name in names) for rank, verdict in enumerate(WORST)},
            "parts": sorted({one["part"] for name in names for one in alarms[name]}),
            "kinds": sorted({kind for name in names for one in alarms[name] for kind in one["kinds"]}),
        }
        for value, names in members.items()
    ]
    return sorted(found, key=lambda one: (-one["alarm"] / one["devices"], one[key]))
