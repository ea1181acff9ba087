"""Many devices at once: lists with tokens of their own, and devices that wait for a person's yes."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from edgewright.enrolments import read
from edgewright_contracts.errors import ContractError, Refused, RequestError
from edgewright_hub.fleet import enrolment, queue, tokens
from edgewright_hub.fleet.ca import Authority
from edgewright_hub.storage import control
from sim.wire import signing_request

NOW = 1_800_000_000_000
PINS = {"root_sha256": "0" * 64, "ca_sha256": "1" * 64}


def expect(engine: sa.Engine, *devices: str, one_token: bool = False, **set_: str) -> dict[str, str]:
    rows = tuple(queue.Expected(device=name, set=set_) for name in devices)
    asked = queue.List(devices=rows, fleet="lab", one_token=one_token)
    with engine.begin() as connection:
        return dict(queue.expect(connection, asked, PINS, who="op", now_ms=NOW))


def ask(
    engine: sa.Engine, authority: Authority, device: str, token: str, csr: str = "", now_ms: int = NOW
) -> str | None:
    request = enrolment.Request(token=token, device=device, csr=csr or signing_request(device)[0])
    return enrolment.enrol(engine, authority, request, now_ms=now_ms)


def row(engine: sa.Engine, device: str) -> sa.Row:
    with engine.connect() as connection:
        return connection.execute(sa.select(control.devices).where(control.devices.c.id == device)).one()


def decide(engine: sa.Engine, device: str, *, accept: bool) -> None:
    with engine.begin() as connection:
        queue.decide(connection, [device], accept=accept, who="op", now_ms=NOW)


@pytest.mark.parametrize("one_token", [True, False])
def test_devices_of_a_list_come_with_their_attributes_and_no_other_does(
    control_engine: sa.Engine, authority: Authority, one_token: bool
) -> None:
    made = expect(control_engine, "cam-1", "cam-2", one_token=one_token, site="berlin")
    assert len(set(made.values())) == (1 if one_token else 2)
    assert ask(control_engine, authority, "cam-1", made["cam-1"])
    found = row(control_engine, "cam-1")
    assert (found.fleet, found.attributes) == ("lab", {"site": "berlin"})
    with pytest.raises(Refused):
        ask(control_engine, authority, "cam-9", made["cam-2"])
    assert ask(control_engine, authority, "cam-2", made["cam-2"])
    with control_engine.connect() as connection:
        assert queue.waiting(connection) == []
    with pytest.raises(Refused, match=r"cam-1, cam-2 are enrolled already; leave them out"):
        expect(control_engine, "cam-1", "cam-2", "cam-3")


def test_a_list_is_taken_whole_or_not_at_all(control_engine: sa.Engine) -> None:
    with pytest.raises(RequestError, match="got cam-1 more than once"):
        expect(control_engine, "cam-1", "cam-1")
    with pytest.raises(ContractError, match="tz: expected a time zone"):
        expect(control_engine, "cam-1", tz="Mars")
    with control_engine.connect() as connection:
        assert connection.execute(sa.select(control.enrol_tokens)).all() == []


def test_a_device_waits_for_a_yes_and_comes_in_by_the_key_that_it_came_with(
    control_engine: sa.Engine, authority: Authority
) -> None:
    common = {"uses": 1, "expires_s": 60.0, "pattern": ".*", "fleet": "lab", "now_ms": NOW, "kind": "queue"}
    token = tokens.issue(control_engine, **common, **PINS)
    csr = signing_request("cam-1")[0]
    assert ask(control_engine, authority, "cam-1", token, csr) is None
    assert ask(control_engine, authority, "cam-1", token, csr) is None, "asking again costs no use"
    with pytest.raises(Refused, match="all its uses are spent"):
        ask(control_engine, authority, "cam-2", token)
    with pytest.raises(Refused, match="another device is expected as cam-1"):
        ask(control_engine, authority, "cam-1", token)
    decide(control_engine, "cam-1", accept=False)
    with pytest.raises(Refused, match="an operator of the hub refused it"):
        ask(control_engine, authority, "cam-1", token, csr)
    decide(control_engine, "cam-1", accept=True)
    with pytest.raises(Refused):
        ask(control_engine, authority, "cam-1", token, now_ms=NOW)  # of another key
    assert ask(control_engine, authority, "cam-1", token, csr, now_ms=NOW + 3600_000), (
        "the token's end is no matter now"
    )
    assert row(control_engine, "cam-1").state == "enrolled"
    with pytest.raises(RequestError, match="'cam-1' does not wait"):
        decide(control_engine, "cam-1", accept=True)


def test_a_table_of_serial_numbers_is_read_with_its_attributes(tmp_path: Path) -> None:
    place = tmp_path / "devices.csv"
    place.write_text("serial,site,tag.line,fleet\n1000AB,berlin,3,\n1000AC,,,night\n")
    assert read(place, "cam-") == [
        {"device": "cam-1000ab", "fleet": "", "set": {"site": "berlin", "tag.line": "3"}},
        {"device": "cam-1000ac", "fleet": "night", "set": {}},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,site\na,b\n", "expected a column id or serial, got name, site"),
        ("id,site\ncam-1,b,c\n", "line 2: expected as many values as there are columns"),
        ("id\ncam_1\n", "line 2: expected an id of a-z, 0-9 and -, got 'cam_1'"),
        ('id\n"cam-1\n', "expected a table as CSV"),
    ],
)
def test_a_table_that_cannot_be_read_names_its_line(tmp_path: Path, text: str, said: str) -> None:
    place = tmp_path / "devices.csv"
    place.write_text(text)
    with pytest.raises(RequestError, match=said):
        read(place, "")
