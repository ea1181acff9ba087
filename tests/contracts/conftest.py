"""Golden messages, and reference values that other code computed."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> dict[str, bytes]:
    """The golden messages of the current version, as they lie on disk."""
    return {path.name: path.read_bytes() for path in sorted((GOLDEN / "v1.1").iterdir())}


@pytest.fixture(scope="session")
def made() -> dict[str, bytes]:
    """What golden/make.py writes today."""
    files: dict[str, bytes] = runpy.run_path(str(GOLDEN / "make.py"))["files"]()
    return files


@pytest.fixture(scope="session")
def stats_counts() -> dict[str, list[list[float]]]:
    """Edges, values and the cells that they must give, computed by other code (golden/stats_counts.json)."""
    found: dict[str, list[list[float]]] = json.loads((GOLDEN / "stats_counts.json").read_text())
    return found
