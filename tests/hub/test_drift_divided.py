"""Verdicts of devices counted by site, by cohort, by what a selector knows."""

from __future__ import annotations

from typing import Any

import pytest

from edgewright_contracts.errors import ContractError
from edgewright_hub.drift.divided import divided
from edgewright_hub.fleet.selectors import Device


def _told(subject: str, part: str, verdict: str, *kinds: str, scope: str = "device") -> dict[str, Any]:
    return {"scope": scope, "subject": subject, "part": part, "verdict": verdict, "kinds": list(kinds)}


def test_a_device_counts_once_by_its_worst_verdict_at_its_site() -> None:
    devices = {name: Device(name, site=site) for name, site in (("a", "berlin"), ("b", "berlin"), ("c", "oslo"))}
    verdicts = [
        _told("a", "input", "alarm", "missing values"), _told("a", "output", "ok"), _told("b", "input", "skewed"),
        _told("c", "input", "learning"), _told("d", "input", "ok"), _told("c", "output", "ended"),
        _told("berlin", "input", "alarm", scope="cohort"),
    ]  # fmt: skip
    berlin, nowhere, oslo = divided(verdicts, devices, "site")
    assert (berlin["site"], berlin["devices"], berlin["alarm"], berlin["skewed"]) == ("berlin", 2, 1, 1)
    assert (berlin["parts"], berlin["kinds"]) == (["input"], ["missing values"])
    assert (nowhere["site"], nowhere["devices"], nowhere["ok"]) == ("", 1, 1)
    assert (oslo["site"], oslo["learning"], oslo["alarm"]) == ("oslo", 1, 0)


def test_a_device_counts_in_each_of_its_cohorts_and_other_keys_are_refused() -> None:
    devices = {"a": Device("a", cohorts=("door", "night"))}
    rows = divided([_told("a", "input", "alarm")], devices, "cohort")
    assert [(row["cohort"], row["alarm"]) for row in rows] == [("door", 1), ("night", 1)]
    for key in ("colour", "site=berlin", "!site", "site,hw", ""):
        with pytest.raises(ContractError):
            divided([], devices, key)
