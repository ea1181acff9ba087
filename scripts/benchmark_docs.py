"""Writes docs/benchmarks.md and docs/growth.svg from benchmarks/results/*.json, so that no figure was typed by hand.

    python scripts/benchmark_docs.py            write them
    python scripts/benchmark_docs.py --check    exit 1 when they are not what the results say

Of a result, `machine`, `commit` and `date` become the line under the heading. A map of maps becomes one table, with a
row for each inner map and a column for each of its keys; what is nested deeper becomes several such tables. Plain
figures are gathered in a table of their own. Nothing is left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from growth_plot import svg

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "growth.svg"
HEAD = """# Benchmarks

Made by `python scripts/benchmark_docs.py` from `benchmarks/results/`. Every file there names machine, commit and date.
Wall times on a shared machine move; ratios were measured interleaved, in one run.
"""
ABOUT = ("machine", "commit", "date")


def page() -> str:
    parts = [HEAD]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(path.read_text())
        about = {**result.pop("about", {}), **{key: result.pop(key) for key in ABOUT if key in result}}
        parts.append(f"## {path.stem}\n")
        if about:
            parts.append("; ".join(f"{key}: {shown(value)}" for key, value in about.items()) + "\n")
        parts += tables("", result)
        if path.stem == "ingest":
            parts.append(f"![What a report costs the hub as a fleet grows]({PLOT.name})\n")
    return "\n".join(parts)


def tables(title: str, value: dict[str, Any]) -> list[str]:
    """Markdown of one map, under `title`."""
    plain = {key: inner for key, inner in value.items() if not isinstance(inner, dict)}
    rows = {key: inner for key, inner in value.items() if isinstance(inner, dict) and flat(inner)}
    deep = {key: inner for key, inner in value.items() if isinstance(inner, dict) and not flat(inner)}
    parts = []
    if title and (plain or rows):
        parts.append(f"### {title}\n")
    if plain:
        parts.append(table(["figure", "value"], [[key, shown(inner)] for key, inner in plain.items()]))
    if rows:
        columns = list(dict.fromkeys(key for inner in rows.values() for key in inner))
        body = [[name, *(shown(inner.get(key, "")) for key in columns)] for name, inner in rows.items()]
        parts.append(table(["", *columns], body))
    for key, inner in deep.items():
        parts += tables(f"{title}, {key}" if title else key, inner)
    return parts


def flat(value: dict[str, Any]) -> bool:
    """Whether it fits one row: maps in it hold at most a few plain figures."""
    inner = [one for one in value.values() if isinstance(one, dict)]
    return all(len(one) <= 3 and not any(isinstance(x, dict) for x in one.values()) for one in inner) and len(
        inner
    ) < max(2, len(value))


def table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def shown(value: Any) -> str:
    """A figure with four digits, or all before the point; a small map as "key value, key value"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " ".join(shown(one) for one in value)
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def plot() -> str:
    return svg(json.loads((ROOT / "benchmarks" / "results" / "ingest.json").read_text())["growth"])


if __name__ == "__main__":
    files = {PAGE: page(), PLOT: plot()}
    if "--check" in sys.argv:
        wrong = [f"docs/{path.name}" for path, text in files.items() if not path.exists() or path.read_text() != text]
        sys.exit(f"{', '.join(wrong)}: not what the results say: run scripts/benchmark_docs.py" if wrong else 0)
    for path, text in files.items():
        path.write_text(text)
