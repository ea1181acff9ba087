"""Hypothesis draws the same examples at every run, so that a failure in CI is one here; `make fuzz` draws new ones."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "edgewright", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("edgewright")
