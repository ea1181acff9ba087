"""What an installation takes on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .device import ROOT, SOURCES


def installed(python: Path) -> dict[str, Any]:
    """MB on disk, and the biggest parts."""
    site = next(python.parent.parent.glob("lib/python3*/site-packages"))
    sizes = {p.name: _size(p) for p in site.iterdir() if p.is_dir() and not p.name.startswith(("pip", "setuptools"))}
    for part in SOURCES:
        sizes["edgewright"] = sizes.get("edgewright", 0) + _size(ROOT / part)
    biggest = sorted(sizes, key=lambda name: -sizes[name])[:6]
    return {
        "total": round(sum(sizes.values()) / 1e6, 1),
        "biggest": {name: round(sizes[name] / 1e6, 1) for name in biggest},
    }


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
