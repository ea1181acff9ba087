"""Hypothesis draws the same examples at every run, so that a failure in CI is one here; `make fuzz` draws new ones.

What takes long comes first, so that the end is short: files with tests that are `slow`, then files by their number of
tests. Fleets mostly wait, so they alternate with what computes. A worker takes a whole file, since its tests share
fixtures; of the files in APART each test is work of its own.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

APART: Final = (
    "tests/integration/test_interrupt.py",
    "tests/integration/test_kills.py",
    "tests/integration/test_loop.py",
    "tests/models/test_recipes_compile.py",
)
SLOW_S: Final = 900  # what a slow test may take where others want the machine, too

settings.register_profile(
    "edgewright", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("edgewright")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    tests = Counter(item.path for item in items)
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_S))
    items.sort(key=lambda item: (-slow[item.path], -tests[item.path]))
    work: dict[str, list[pytest.Item]] = {}
    for item in items:
        work.setdefault(unit(item.nodeid), []).append(item)
    fleets = [one for one in work.values() if waits(one[0].path)]
    others = [one for one in work.values() if not waits(one[0].path)]
    items[:] = chain.from_iterable(chain.from_iterable(pair) for pair in zip_longest(fleets, others, fillvalue=[]))


def waits(path: Path) -> bool:
    return path.parent.name == "integration"


def unit(nodeid: str) -> str:
    """What one worker takes at once."""
    file = nodeid.partition("::")[0]
    return nodeid if file in APART else file


class Units(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Units | None:
    return Units(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture
def signals_heard() -> Iterator[None]:
    """Below `nohup`, or behind a shell's `&`, a process and its children are deaf to these."""
    defaults = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
