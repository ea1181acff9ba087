"""What a person types reaches the hub as one name of a path, whatever characters it holds."""

from __future__ import annotations

import pytest
from urllib3.util import parse_url

from edgewright.hub_client import path
from edgewright_contracts.errors import RequestError


@pytest.mark.parametrize(
    ("name", "travels"),
    [
        ("pi-0", "pi-0"),
        ("a/b", "a%2Fb"),
        ("a?b#c", "a%3Fb%23c"),
        ("a b\n", "a%20b%0A"),
        ("a%2Fb", "a%252Fb"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("../x", "..%2Fx"),
        ("ü", "%C3%BC"),
        ("\udcff", "%3F"),  # a byte of the command line that is no UTF-8
    ],
)
def test_a_name_stays_one_step_of_the_path(name: str, travels: str) -> None:
    place = path("rollouts", name, "abort")
    assert place == f"/api/v1/rollouts/{travels}/abort"
    assert parse_url(f"https://hub{place}").request_uri == place


def test_values_of_a_query_are_quoted_and_a_list_stands_for_more_of_one() -> None:
    assert path("config", fleet="a&b", device=("x", "y")) == "/api/v1/config?fleet=a%26b&device=x&device=y"


def test_an_empty_name_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(RequestError, match="got an empty one"):
        path("devices", "", "retire")
