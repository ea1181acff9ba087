"""A device reaches its own topics and nobody else's."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgewright_contracts.errors import ContractError
from edgewright_contracts.topics import ALL_UP, RULES, Address, Kind, all_down, allowed, parse, topic

DEVICES = st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z")
KINDS: st.SearchStrategy[Kind] = st.sampled_from(list(RULES))
PARTS = st.sampled_from(
    ["ew", "1", "a", "b", "up", "down", "+", "#", "$share", "", "report", "desired", "ack", "\x00", " "]
)
TOPICS = st.one_of(st.lists(PARTS, max_size=8).map("/".join), st.text(max_size=40))


@given(DEVICES, KINDS)
def test_a_topic_comes_back_as_its_address(device: str, kind: Kind) -> None:
    assert parse(topic(device, kind)) == Address(device, kind)


@given(TOPICS)
def test_a_topic_is_refused_or_is_the_only_one_of_its_address(name: str) -> None:
    try:
        address = parse(name)
    except ContractError as error:
        refused = error.field
    else:
        assert topic(*address) == name
        return
    assert refused == "topic"


@given(DEVICES, KINDS, st.booleans())
def test_a_device_publishes_up_and_reads_down(device: str, kind: Kind, publish: bool) -> None:
    assert allowed(device, topic(device, kind), publish=publish) == (publish == (RULES[kind].direction == "up"))


@given(DEVICES, DEVICES, KINDS, st.booleans())
@example("a", "a-b", "ack", False)
@example("a-b", "a", "report", True)
def test_a_device_never_reaches_another(one: str, other: str, kind: Kind, publish: bool) -> None:
    if one != other:
        assert not allowed(one, topic(other, kind), publish=publish)
        assert not allowed(one, all_down(other), publish=publish)


@given(st.sampled_from(["a", "b", "+", "#", "", "A", "a/b", "a\n"]), TOPICS, st.booleans())
def test_whatever_is_allowed_lies_below_the_device(device: str, name: str, publish: bool) -> None:
    if allowed(device, name, publish=publish):
        assert name.startswith(f"ew/1/{device}/{'up' if publish else 'down'}/")
        assert name.count("/") == 4
        assert "#" not in name
        assert not publish or "+" not in name


@pytest.mark.parametrize(
    "name", ["#", "+/+/+/+/+", "ew/1/+/down/+", "ew/1/a/down/#", "ew/1/a/#", "$share/g/ew/1/a/down/+", ALL_UP, "$SYS/#"]
)
@pytest.mark.parametrize("publish", [True, False])
def test_no_wildcard_reaches_further_than_ones_own_down(name: str, publish: bool) -> None:
    assert not allowed("a", name, publish=publish)


def test_a_device_reads_all_of_its_own_down_with_one_wildcard() -> None:
    assert all_down("a") == "ew/1/a/down/+"
    assert allowed("a", "ew/1/a/down/+", publish=False)
    assert not allowed("a", "ew/1/a/down/+", publish=True)


@pytest.mark.parametrize("device", ["", "-a", "A", "a" * 64, "a/b", "+", "#", "a\n", "ä", "a_b", "a b", "../a"])
def test_an_id_that_could_reach_elsewhere_is_refused(device: str) -> None:
    with pytest.raises(ContractError) as caught:
        topic(device, "report")
    assert caught.value.field == "device"
    assert not allowed(device, "ew/1/a/down/+", publish=False)
    assert not allowed(device, f"ew/1/{device}/up/report", publish=True)
