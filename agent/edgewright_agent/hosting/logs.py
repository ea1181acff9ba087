"""Log lines that a program can read: key=value (logfmt) or JSON, one record a line, whatever a message contains.

Guarantee: no input breaks a line or forges a field: control characters are escaped, and a value with a space, a quote
or an equals sign stands in quotes. Of lines that repeat (same place in the program, same level) the first `BURST` in
`REPEAT_S` pass; the next one after that says how many were left out. Lines cost about 20 µs.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

Form = Literal["kv", "json"]
BURST: Final = 10
REPEAT_S: Final = 60.0
PLACES: Final = 512  # remembered; more of them than there are in the program
OURS: Final = "edgewright_agent"

_BARE: Final = re.compile(r"[^\s\"=\\\x00-\x20\x7f-\x9f\u2028\u2029]+")
_pinned = False  # by --verbose: the hub may not make it quieter


class Fields(logging.Formatter):
    """The fields of a record, in the order that a reader wants them."""

    def fields(self, record: logging.LogRecord) -> dict[str, str]:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        found = {
            "time": at,
            "level": record.levelname.lower(),
            "from": record.name.removeprefix(f"{OURS}."),
            "message": record.getMessage(),
        }
        if left := getattr(record, "left_out", 0):
            found["left_out"] = str(left)
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return found


class KeyValue(Fields):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_value(value)}" for key, value in self.fields(record).items())


class Json(Fields):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.fields(record))


def _value(text: str) -> str:
    if _BARE.fullmatch(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in quoted)


class Repeats(logging.Filter):
    """Lets `BURST` lines of one place pass in `REPEAT_S`."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._seen: dict[tuple[str, int, int], list[float]] = {}  # → began, passed, left out

    def filter(self, record: logging.LogRecord) -> bool:
        now, place = self._monotonic(), (record.pathname, record.lineno, record.levelno)
        seen = self._seen.get(place)
        if seen is None or now - seen[0] >= REPEAT_S:
            if len(self._seen) >= PLACES:
                self._seen.clear()
            if seen is not None and seen[2]:
                record.left_out = int(seen[2])
            self._seen[place] = [now, 1, 0]
            return True
        if seen[1] < BURST:
            seen[1] += 1
            return True
        seen[2] += 1
        return False


def begin(form: Form, *, verbose: bool, stream: TextIO | None = None) -> None:
    """Log to stderr in this form: the agent's own lines from info on, those of libraries from warning on."""
    global _pinned
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Json() if form == "json" else KeyValue())
    handler.addFilter(Repeats())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _pinned = verbose
    logging.getLogger(OURS).setLevel(logging.DEBUG if verbose else logging.INFO)


def follow(level: Literal["debug", "info", "warning"]) -> None:
    """The level that `desired` asks for; --verbose keeps its own."""
    if not _pinned:
        logging.getLogger(OURS).setLevel(level.upper())
