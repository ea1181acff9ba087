"""The pages of figures say what the results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_page_of_benchmarks_was_made_from_the_results():
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
