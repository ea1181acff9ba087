"""Collect: all that somebody who looks for a fault far away would ask for, in one JSON object within a byte budget.

Read from the disk, beside a running agent or without one. Guarantee: no key, token or password is in it, and no input
of a model. What does not fit is cut: `log` from its beginning, then `events` and `errors` (which repeat the models),
then what is blocked and long reasons, then models, those that are well first; `left_out` counts these.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from edgewright_contracts import __version__, event
from edgewright_contracts import desired as down
from edgewright_contracts.errors import ContractError

from ..delivery import journal
from ..disk import RealDisk
from . import status
from .logtail import FILE

BUDGET: Final = event.LOG_TAIL_BYTES
EVENTS: Final = 20
NEWEST: Final = 2  # blocked digests of a model, where not all have room
HIDDEN: Final = "[removed]"
_SECRETS: Final = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\bew1\.[A-Za-z0-9_\-=.]+"),  # enrolment tokens
    re.compile(r"(?i)(?<=bearer )[^\s\"']+"),
    re.compile(r"(?i)(?<=proxy-authorization: )[^\r\n\"']+"),
    re.compile(r"(?<=://)[^/\s:@\"']+:[^/\s@\"']+(?=@)"),  # user:password of a URL
    re.compile(r"(?i)\b(?:password|passwd|secret|token)\b\s*[=:]\s*[^\s\"',}]+"),
)


def redacted(text: str) -> str:
    for secret in _SECRETS:
        text = secret.sub(HIDDEN, text)
    return text


def collect(home: Path, *, log: str | None = None, more: dict[str, Any] | None = None, budget: int = BUDGET) -> str:
    """JSON of at most `budget` characters, all ASCII. `log` is the running agent's own; else what one has left on the
    disk. Raises RequestError for a home that is none."""
    found = _clean({**facts(home), **(more or {})})
    lines = redacted(log if log is not None else _left(home)).splitlines()
    found |= {"log": lines, "left_out": 0}
    models = found["status"]["models"]
    for some in (lines, found["events"], found["errors"]):
        while len(json.dumps(found)) > budget and some:
            del some[: max(1, len(some) // 8)]
    if len(json.dumps(found)) > budget:
        for model in models:
            model["blocked"] = {digest: why[:80] for digest, why in [*model["blocked"].items()][-NEWEST:]}
            model["reason"] = model["reason"][:80]
        models.sort(key=lambda model: model["state"] == "idle" and not model["failure"])
    while len(json.dumps(found)) > budget and models:
        models.pop()
        found["left_out"] += 1
    text = json.dumps(found)
    return text if len(text) <= budget else json.dumps({"error": f"expected at most {budget} bytes, got {len(text)}"})


def facts(home: Path) -> dict[str, Any]:
    disk = RealDisk()
    known = status.read(home)
    held = journal.read(disk, home / "spool").state
    items = (*held.numbered, *held.unnumbered) if held else ()
    bodies = [event.decode_event(item.body) for item in items if item.kind == "event"]
    return {
        "agent": __version__,
        "status": msgspec.to_builtins(known),
        "config": _config(home),
        "device": {
            "arch": platform.machine().lower(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "cores": os.cpu_count() or 0,
            "free_mb": disk.free(home) >> 20,
            "uptime_s": _uptime_s(),
        },
        "boot": _boot(known, held.open is not None if held else False),
        "boots": [msgspec.to_builtins(one) for one in held.unclean] if held else [],  # ended unclean, hub not told yet
        "errors": [
            {"model": m.name, "state": m.state, "class": m.failure, "reason": m.reason}
            for m in known.models
            if m.failure
        ],
        "events": [_said(one) for one in bodies[-EVENTS:]],  # that the hub has not acknowledged
    }


def _boot(known: status.Status, under_way: bool) -> dict[str, Any]:
    """This boot and how the one before it ended; without a running agent, how the last one did."""
    if known.live is not None:
        return {"id": known.live.boot_id, "up_s": round(known.live.uptime_s), "before": known.live.before}
    if known.alive:
        return {"before": "unknown: the agent answers no questions"}
    return {"ended": "crash, kill or power cut" if under_way else "stopped"}


def _clean(value: Any) -> Any:
    """Every text in it redacted."""
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return redacted(value) if isinstance(value, str) else value


def _said(one: event.Event) -> dict[str, Any]:
    return {
        "wall_ms": one.wall_ms,
        "model": one.model,
        "from": one.before,
        "to": one.after,
        "class": one.failure,
        "reason": one.reason[:300],
    }


def _config(home: Path) -> Any:
    try:
        return msgspec.to_builtins(down.decode_desired((home / "desired.json").read_bytes()).config)
    except (FileNotFoundError, ContractError):
        return None


def _left(home: Path) -> str:
    try:
        return (home / FILE).read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _uptime_s() -> float | None:
    try:
        return float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError):
        return None if sys.platform != "linux" else 0.0
