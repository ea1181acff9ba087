"""Which devices a selector means, and what is said about one that cannot be read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright_contracts.errors import ContractError
from edgewright_hub.fleet.selectors import Condition, Device, Selector, parse

CAMERA = Device(
    "cam-7", fleet="lab", site="berlin", hardware="pi5-8gb", tz="Europe/Berlin", tags={"line": "3"}, cohorts=("night",)
)
BARE = Device("cam-8", fleet="lab")


@pytest.mark.parametrize(
    ("text", "camera", "bare"),
    [
        ("site=berlin", True, False),
        ("site=berlin,hw=pi5*,tag.line=3,!held", True, False),
        ("site=berlin,hw=pi4*", False, False),
        ("id=cam-?", True, True),
        ("id=cam-*,!site", False, True),
        ("!site=berlin", False, True),
        ("site=munich;tag.line=3", True, False),
        ("tag.line", True, False),
        ("cohort=night", True, False),
        ("fleet=lab , !cohort=nig*", False, True),
        ("held", False, False),
        ("tz=Europe/*", True, False),
        ("site=BERLIN", False, False),
        ("site=*", True, False),
        ("hw=pi[5]*", False, False),
    ],
)
def test_a_selector_means_the_devices_of_which_all_conditions_of_one_alternative_hold(
    text: str, camera: bool, bare: bool
) -> None:
    selector = parse(text)
    assert (selector.means(CAMERA), selector.means(BARE)) == (camera, bare)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a condition as site=berlin or !held, got '' at character 1 of ''"),
        ("site=berlin,", "got '' at character 13"),
        ("site=berlin,;id=a", "got '' at character 13"),
        ("site=berlin, color=red", "cohort, held, tag.NAME, got 'color' at character 14"),
        ("site!=berlin", "!site=berlin for what it shall not be"),
        ("held=yes", "held or !held, without a value"),
        ("site=", "a pattern behind site=, as site=a*, got '' at character 6"),
        ("!!held", "one of"),
        ("tag.=3", "tag.NAME"),
        ("site=a=b", "got 'a=b' at character 6"),
        ("id=" + "a" * 300, "at most 256 characters, got 303"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ContractError, match=re.escape(said)):
        parse(text)


def test_a_pattern_with_many_stars_costs_no_more_than_its_length() -> None:
    selector = parse("site=" + "*a" * 60 + "b")
    assert not selector.means(Device("cam-1", site="a" * 64))


values = st.sampled_from(["", "a", "ab", "b", "ba"])
devices = st.builds(
    Device,
    id=st.sampled_from(["a", "ab", "b-1"]),
    held=st.booleans(),
    site=values,
    hardware=values,
    tags=st.dictionaries(st.sampled_from(["x", "y"]), values),
    cohorts=st.lists(st.sampled_from(["a", "b"]), unique=True).map(tuple),
)
patterns = st.one_of(st.none(), st.text(alphabet="ab*?", min_size=1, max_size=4))
conditions = st.one_of(
    st.builds(Condition, st.sampled_from(["id", "site", "hw", "cohort", "tag.x"]), patterns, st.booleans()),
    st.builds(Condition, st.just("held"), st.none(), st.booleans()),
)
selectors = st.builds(
    Selector, st.lists(st.lists(conditions, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)
)


@given(selectors)
def test_the_text_of_a_selector_parses_to_the_same_one(selector: Selector) -> None:
    assert parse(str(selector)) == selector


@given(selectors, devices)
def test_a_selector_agrees_with_its_meaning_written_out(selector: Selector, device: Device) -> None:
    def like(pattern: str, value: str) -> bool:
        if not pattern:
            return not value
        if pattern[0] == "*":
            return any(like(pattern[1:], value[skipped:]) for skipped in range(len(value) + 1))
        return bool(value) and pattern[0] in ("?", value[0]) and like(pattern[1:], value[1:])

    def holds(one: Condition) -> bool:
        has = {"id": [device.id], "site": [device.site], "hw": [device.hardware], "held": ["yes"] * device.held,
               "cohort": device.cohorts, "tag.x": [device.tags.get("x", "")]}[one.key]  # fmt: skip
        return any(value and like(one.pattern or "*", value) for value in has) != one.negated

    written_out = any(all(holds(one) for one in conditions) for conditions in selector.alternatives)
    assert selector.means(device) == written_out
