"""How times, rates and evidence read on a page, and the templates that say them. What devices say is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2

_TEMPLATES: Final = Path(__file__).parent.parent / "templates"


def render(template: str, view: Mapping[str, Any], now_ms: int) -> str:
    return _ENVIRONMENT.get_template(template).render(view, now_ms=now_ms)


def ago(then_ms: int | None, now_ms: int) -> str:
    if then_ms is None:
        return "never"
    seconds = max(0, (now_ms - then_ms) // 1000)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def utc(then_ms: int) -> str:
    return datetime.fromtimestamp(then_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def evidence(log_e: float) -> str:
    """An e-value for people: 0.31, 12, 4,100."""
    if log_e > math.log(1e6):
        return "over a million"
    value = math.exp(log_e)
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def interval(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "–"
    return f"{100 * one['value']:.1f} % ({100 * one['low']:.1f}–{100 * one['high']:.1f})"


def rate(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    ago=ago, utc=utc, evidence=evidence, rate=rate, interval=interval, thousands=lambda n: f"{n:,}"
)
