"""`edgewright fleet set | hold | show | cohort` and `edgewright registry` against a hub process."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.process


def test_devices_are_described_held_and_shown_with_who_did_what(
    edgewright: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, _ = edgewright("fleet", "set", "pi-0", "pi-1", "site=berlin", "tz=Europe/Berlin", "tag.line=3", "--json")
    assert (code, json.loads(out)) == (0, {"devices": ["pi-0", "pi-1"], "changed": 2})
    edgewright("fleet", "set", "pi-0", "hw=pi5")
    said = edgewright("fleet", "set", "-s", "site=berlin", "hw=pi5")[1]
    assert said == "1 changed: pi-0, pi-1; 1 were so before\n"
    code, out, _ = edgewright("fleet", "devices", "--select", "site=berlin,!id=pi-0", "--json")
    (one,) = json.loads(out)["devices"]
    assert (code, one["device"], one["attributes"]["tag.line"]) == (0, "pi-1", "3")
    code, out, _ = edgewright("fleet", "cohort", "west", "--select", "site=berlin")
    assert (code, out) == (0, "west: pi-0, pi-1\n")
    code, out, _ = edgewright("fleet", "hold", "-s", "cohort=west,id=pi-0", "--reason", "its camera is loose")
    assert (code, out) == (0, "1 held: pi-0\n")
    code, out, _ = edgewright("fleet", "show", "pi-0")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    for said in ("pi-0  held", "site=berlin", "cohort=west", "its camera is loose", "tz=Europe/Berlin"):
        assert said in out
    found = json.loads(edgewright("fleet", "show", "pi-0", "--json")[1])
    assert [(one["who"], one["what"]) for one in found["history"][-3:]] == [
        ("admin", "hold"),
        ("admin", "set"),
        ("admin", "set"),
    ]
    assert edgewright("fleet", "release", "pi-0", "--json")[1] == '{"devices": ["pi-0"], "changed": 1}\n'
    assert "west" in edgewright("fleet", "cohort")[1]
    said = edgewright("fleet", "config", "-s", "cohort=west", "--set", "window_s=120")[1]
    assert "window_s  120  cohort=west" in said
    assert edgewright("fleet", "config", "-s", "cohort=west", "--reset")[0] == 0
    assert edgewright("fleet", "cohort", "west", "--remove")[:2] == (0, "there is no cohort west any more\n")


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (("set", "pi-0"), 2, "nothing to set: expected KEY=VALUE"),
        (("set", "pi-0", "tz=Europe/Bonn"), 2, "tz: expected a time zone of the IANA database"),
        (("set", "pi-77", "site=a"), 2, "no enrolled device is called pi-77"),
        (("set", "site=a"), 2, "expected devices or a selector (--select), one of them"),
        (("devices", "-s", "colour=red"), 2, "got 'colour' at character 1"),
        (("hold", "-s", "site=moon", "--reason", "x"), 1, "the selector site=moon means no enrolled device"),
        (("hold", "pi-0", "--reason", " "), 2, "expected a reason"),
        (("cohort", "a", "-s", "cohort=b"), 2, "no other cohort in a cohort"),
        (("cohort", "A", "-s", "held"), 2, "cohort: expected a name of a-z"),
        (("cohort", "a", "--remove"), 2, "no cohort is called 'a'"),
        (("show", "pi-77"), 2, "no device is called 'pi-77'"),
        (("hold", "-s", "", "--reason", "x"), 2, "--select is empty, and would mean every device"),
        (("config", "-s", " ", "--set", "window_s=3"), 2, "--select is empty"),
        (("config", "--fleet", "", "--set", "window_s=3"), 2, "--fleet is empty"),
    ],
)
def test_what_cannot_be_done_to_devices_is_refused_with_the_way_out(
    edgewright: Callable[..., tuple[int, str, str]], asked: tuple[str, ...], code: int, said: str
) -> None:
    got, out, err = edgewright("fleet", *asked)
    assert (got, out, said in err) == (code, "", True), err


def test_packages_are_listed_compared_and_moved_between_stages(edgewright: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = edgewright("registry", "deprecate", "digits", "1.0.0", "--reason", "slow")
    assert (code, out) == (0, "digits 1.0.0 is deprecated\n")
    code, _, err = edgewright("rollout", "create", "digits", "--version", "1.0.0")
    assert (code, "digits 1.0.0 is deprecated: what runs it may keep it" in err) == (1, True)
    assert edgewright("registry", "list")[1].count("digits") == 2
    code, out, _ = edgewright("registry", "lineage", "digits")
    assert (code, "package deprecate by admin" in out, "2 versions" in out) == (0, True, True)
    code, out, _ = edgewright("registry", "diff", "digits", "1.0.0", "2.0.0")
    assert (code, "1.0.0 → 2.0.0" in out) == (0, True)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert json.loads(edgewright("registry", "diff", "digits", "1.0.0", "2.0.0", "--json")[1])["old"] == "1.0.0"
    edgewright("registry", "approve", "digits", "1.0.0", "--reason", "it does not")
    under_way = json.loads(edgewright("rollout", "create", "digits", "--version", "1.0.0", "--json")[1])["id"]
    code, out, _ = edgewright("registry", "revoke", "digits", "1.0.0", "--reason", "it sees ghosts")
    assert (code, out.splitlines()[:3]) == (0, [
        "digits 1.0.0 is revoked",
        "0 devices are sent back",
        f"rollout {under_way} takes it back from its own devices now",
    ])  # fmt: skip
    code, _, err = edgewright("registry", "approve", "digits", "1.0.0", "--reason", "no")
    assert (code, "is revoked and cannot approve; possible now: nothing" in err) == (2, True)
    code, out, _ = edgewright("hub", "gc", "--dry-run", "--json")
    assert (code, json.loads(out)["removed"]) == (0, [])
    assert "would remove 0 files, 0 bytes" in edgewright("registry", "gc", "--dry-run")[1]
