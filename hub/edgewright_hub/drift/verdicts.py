"""Verdicts as people read them: JSON values only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from .kinds import FEED, PARTS, evidence, kinds, severity
from .streams import BASELINES, EVIDENCE, OWN, SKEWED
from .watch import TOLD, Key, Watch

KEY: Final = Key._fields


def row(watch: Watch, key: Key, now_ms: int) -> dict[str, Any]:
    return {
        **key._asdict(),
        "model": watch.references.model(key.digest),
        "state": _shown(watch, key),
        "verdict": watch.verdict(key),
        "since_ms": watch.since(key),
        "updated_ms": now_ms,
    }


def describe(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of control.drift as people read it."""
    return {
        **{name: row[name] for name in KEY},
        "model": row["model"],
        "verdict": row["verdict"],
        "since_ms": row["since_ms"] or None,
        "updated_ms": row["updated_ms"],
        **row["state"],
    }


def _shown(watch: Watch, key: Key) -> dict[str, Any]:
    verdict = watch.verdict(key)
    shown: dict[str, Any] = {"channels": [], "kinds": [], "severity": 0, "devices": [], "pages": watch.pages(key)}
    if verdict in TOLD:
        same = [key._replace(part=part) for part in (*PARTS, FEED)]
        known = [k for k in same if watch.known(k)]
        moves = {k.part: watch.moves(k) for k in known}
        alarms = frozenset(k.part for k in known if watch.state(k)[0])
        skewed = frozenset(k.part for k in known if watch.state(k)[1])
        seen = evidence(moves, alarms=alarms, skewed=skewed)
        channels = [msgspec.to_builtins(one) for one in moves[key.part]]
        shown |= {"channels": channels, "kinds": list(kinds(seen)), "severity": severity(seen)}
    if key.scope == "cohort":
        now = watch.cohorts.get(key)
        n, blocks = watch.behind(key)
        return shown | {
            "n": n, "blocks": blocks, "p": None, "foreign_windows": 0, "baseline": "", "accepted": False,
            "log_e": now.log_e if now else None, "devices": list(now.devices) if now else [],
        }  # fmt: skip
    group, at = watch.stream(key)
    s = group.streams
    row = OWN if s.skew[at] == SKEWED and not s.alarm[at] else EVIDENCE if s.alarm[at] else 0
    return shown | {
        "n": int(s.n[at, row]),
        "blocks": int(s.blocks[at]),
        "p": None if np.isnan(s.p[at]) else float(s.p[at]),
        "log_e": float(watch.levels[key.group][at]) if s.tested[at] else None,
        "foreign_windows": int(s.foreign[at]),
        "baseline": BASELINES[s.against[at]],
        "accepted": bool(s.accepted[at]),
    }
