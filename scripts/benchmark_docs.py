"""Writes docs/benchmarks.md from benchmarks/results/*.json, so that no figure there was typed by hand.

python scripts/benchmark_docs.py            write it
python scripts/benchmark_docs.py --check    exit 1 when it is not what the results say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made by `python scripts/benchmark_docs.py` from `benchmarks/results/`. Every file there names machine, commit and date.
Wall times on a shared machine move; ratios were measured interleaved, in one run.
"""


def page() -> str:
    parts = [HEAD]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(path.read_text())
        about = result.pop("about", {})
        parts.append(f"\n## {path.stem}\n")
        parts.append(" · ".join(f"{key}: {about[key]}" for key in ("machine", "commit", "date") if key in about) + "\n")
        parts.append("| figure | value |\n|---|---|")
        parts += [f"| {name} | {_shown(value)} |" for name, value in _flat(result)]
        parts.append("")
    return "\n".join(parts)


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    return [row for key, inner in value.items() for row in _flat(inner, f"{name} · {key}" if name else key)]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.exists() and PAGE.read_text() == page() else "docs/benchmarks.md: run scripts/benchmark_docs.py"
        )
    PAGE.write_text(page())
