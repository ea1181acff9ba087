"""Runs `edgewright demo` and writes what it printed into README.md, with machine, commit and date.

python scripts/record_demo.py
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- demo: [^>]*-->\n).*?(<!-- /demo -->)", re.DOTALL)


def main() -> int:
    environment = {**os.environ, "COLUMNS": "116", "NO_COLOR": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "edgewright", "demo"], env=environment, capture_output=True, text=True, check=False
    )
    if run.returncode:
        print(run.stdout + run.stderr)
        return run.returncode
    text = "\n".join(line.rstrip() for line in run.stdout.strip().splitlines())
    recorded = f"```\n$ edgewright demo\n{text}\n```\n\nRecorded on {machine()}, commit {commit()}, {today()}.\n"
    page = README.read_text()
    if not BLOCK.search(page):
        sys.exit("README.md: expected the markers <!-- demo: … --> and <!-- /demo -->")
    README.write_text(BLOCK.sub(lambda found: f"{found[1]}{recorded}{found[2]}", page))
    return 0


def machine() -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"{os.cpu_count()} shared cores of {cpu[1] if cpu else platform.machine()}, Python {platform.python_version()}"
    )


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def today() -> str:
    return datetime.now(UTC).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
