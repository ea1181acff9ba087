"""Hypothesis draws the same examples at every run, so that a failure in CI is one here; `make fuzz` draws new ones.

Files come in the order of how long they take, the longest first: workers take one after another, and the last ones are
short. What is `slow` says that, and then the number of tests.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "edgewright", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("edgewright")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -tests[item.path]))
