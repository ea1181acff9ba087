"""A rollout as the overview shows it: its stages, the evidence of each gate, and where its devices are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ...rollouts import records
from ...rollouts.latecomers import passed_over
from ...rollouts.progress import unpacked

_METRICS: Final = {"error": "errors", "slow": "slow runs", "label": "wrong labels"}
_BASES: Final = {
    "control": "devices without it",
    "pre-period": "the same devices before",
    "limit": "a fixed limit",
    "none": "nothing yet",
}


def told(row: Any, said: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    known = records.describe(row)
    gate = records.gate_of(row)
    figures = [
        {
            **figure,
            "name": _METRICS.get(figure["metric"], figure["metric"]),
            "against": _BASES[figure["basis"]],
            "harm": _share(figure["log_bad"], gate.need_bad),
            "ok": _share(figure["log_ok"], figure["need_ok"] or gate.need_ok),
        }
        for figure in known["figures"]
        if figure["n"]
    ]
    passed = len(known["stages"]) if known["state"] == "done" else known["stage"]
    here = {"draft": "now", "unapproved": "later", "running": "now", "paused": "now"}.get(known["state"], "stopped")
    stages = [
        {**stage, "state": "done" if i < passed else here if i == passed else "later"}
        for i, stage in enumerate(known["stages"])
    ]
    known |= {"figures": figures, "stages": stages, "returned": _returned(row, said, versions)}
    return {**known, "reason": known["reason"] + _later(row, said)}


def _later(row: Any, said: Mapping[str, Any]) -> str:
    """How many of the devices that the end of a rollout passed over run what they had before."""
    if row.state != "done":
        return ""
    members = unpacked(row.progress).members
    places, later = members.columns(), [device for device in passed_over(members) if device in said]
    had = [(said[device].digest, members.row(places[device]).previous) for device in later]
    still = sum(runs == (previous[:16] if previous else None) for runs, previous in had)
    return (
        f"; {still} {'waits' if still == 1 else 'wait'} for it, see `edgewright rollout status {row.id}`"
        if still
        else ""
    )


def _returned(row: Any, said: Mapping[str, Any], versions: Mapping[str, str]) -> str | None:
    """Where the devices of a release that was taken back are now, as the end of "n devices were given it"; None of one
    that was not taken back."""
    if row.state not in ("rolling-back", "rolled-back", "reverting", "reverted", "aborted"):
        return None
    members = unpacked(row.progress).members
    given = [members.row(i) for i in np.flatnonzero(members.given).tolist()]
    there: dict[str, int] = defaultdict(int)
    for member in given:
        running = said[member.device].digest if member.device in said else None
        if member.previous is None:
            there["without a package of this name, as before"] += 1
        elif member.back or running == member.previous[:16]:
            name = versions.get(member.previous[:16], member.previous[:12])
            there[f"back on {name.removeprefix(f'{row.name} ')}"] += 1
    away = len(given) - sum(there.values())
    if not given:
        return ""
    if len(there) == 1 and not away:
        return f" and {'is' if len(given) == 1 else 'are'} {next(iter(there))}"
    told = [f"{n} {'is' if n == 1 else 'are'} {where}" for where, n in there.items()]
    if away:
        told.append(f"{away} {'was' if away == 1 else 'were'} not seen back yet")
    return "; " + ", ".join(told)


def _share(log_e: float, need: float) -> int:
    """Per cent of the evidence that is needed, on the logarithmic scale, 0..100."""
    return round(100 * min(1.0, max(0.0, log_e / need)))
