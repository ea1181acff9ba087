"""What people do to rollouts, and hours of maintenance, through the conductor and the hub's HTTPS API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from edgewright import hub_client
from edgewright.main import run
from edgewright_contracts.errors import Refused
from edgewright_contracts.package import Package
from edgewright_hub.fleet import tokens
from edgewright_hub.rollouts.conductor import Conductor
from edgewright_hub.rollouts.specification import Experiment, RolloutSpec
from edgewright_hub.storage import control, telemetry
from edgewright_hub.web import pages, rollouts
from edgewright_hub.web.api import Hub
from edgewright_hub.web.app import device_app
from sim.house import House

FOUR = [f"pi-{i}" for i in range(4)]


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    """Four devices, two of them in Berlin and two in Tokyo, that have nothing yet."""
    one = House(tmp_path, packages)
    one.publish_package("1.0.0")
    one.publish_package("2.0.0")
    one.enrol(*FOUR)
    devices = control.devices
    with one.control.begin() as connection:
        for at, device in enumerate(FOUR):
            zone = {"tz": "Europe/Berlin" if at < 2 else "Asia/Tokyo"}
            connection.execute(devices.update().where(devices.c.id == device).values(attributes=zone))
    return one


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def test_each_site_gets_the_release_in_its_own_hours_and_is_told_until_when(house: House) -> None:
    house.now = _ms("2025-10-10T23:59:50")  # 01:59:50 in Berlin, 08:59:50 in Tokyo
    house.start("1.0.0", stages=("100%",), windows=("02:00-04:00",))
    house.live(FOUR, 1)
    assert [house.version(d) for d in FOUR] == [""] * 4
    house.live(FOUR, 2)
    assert [house.version(d) for d in FOUR] == ["1.0.0", "1.0.0", "", ""]
    document = house.wanted("pi-0")
    assert document is not None
    hours = (document.models[0].not_before, document.models[0].not_after)
    assert hours == (_ms("2025-10-11T00:00"), _ms("2025-10-11T02:00"))
    assert house.live(FOUR, 10)["reason"] == "2 devices wait for their maintenance windows"
    house.now = _ms("2025-10-11T17:00:00")
    assert house.live(FOUR, 20, until="done")["standing"] == "promoted"
    assert {house.version(d) for d in FOUR} == {"1.0.0"}
    settled = house.wanted("pi-0")
    assert settled is not None
    assert (settled.models[0].not_before, settled.models[0].not_after) == (None, None)


def test_a_revert_waits_for_no_hours_and_says_who_asked_for_it_and_why(house: House) -> None:
    house.now = _ms("2025-10-11T00:30:00")
    name = house.start("1.0.0", stages=("100%",), devices=("pi-0", "pi-1"), windows=("02:00-04:00",))
    house.live(FOUR, 20, until="done")
    house.conductor.command(name, "revert", who="ann", now_ms=_ms("2025-10-11T12:00:00"), reason="too warm")
    assert house.version("pi-0") == "", "what goes back waits for no window"
    told = house.conductor.rollout(name)
    assert (told["standing"], told["reason"]) == ("reverting", "reverted by ann: too warm")
    with house.control.connect() as connection:
        noted = connection.execute(sa.select(control.audit.c.what, control.audit.c.detail)).all()
    assert noted[-1] == ("rollout revert", f"{name}: too warm")


def test_devices_that_rest_can_be_forced_and_that_is_noted(house: House) -> None:
    name = house.start("1.0.0", stages=("100%",), cooldown_s=3600.0)
    house.live(FOUR, 1)
    house.conductor.command(name, "abort", who="ann", now_ms=house.now)
    with pytest.raises(Refused, match=r"rest for another .* or --force it"):
        house.start("2.0.0")
    assert house.start("2.0.0", force=True)
    with house.control.connect() as connection:
        assert str(connection.execute(sa.select(control.audit.c.detail)).all()[-1][0]).endswith("rest from it")


class Answer:
    def __init__(self, status: int, data: bytes) -> None:
        self.status, self.data = status, data


Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub(house: House, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(house.registry, "warning", lambda **_: "")  # nothing is signed here
    return Hub(
        control=house.control, telemetry=house.telemetry, registry=house.registry, authority=None,
        conductor=house.conductor, broker=("127.0.0.1", 1883), repo="", ails=list, open_to_read=False,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture
def ask(
    house: House, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Ask]:
    """Commands of ann or ben, `rollout` where nothing else is said, against the application itself, without a socket,
    at the house's time."""
    for name in ("ann", "ben"):
        (tmp_path / name).write_text(tokens.grant(house.control, role="operator", name=name))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(rollouts, "now_ms", lambda: house.now)
    with TestClient(device_app(hub), base_url="https://hub") as client:

        class Pool:
            def __init__(self, **_: Any) -> None: ...

            def request(
                self, method: str, url: str, *, body: bytes | None, headers: dict[str, str], **_: Any
            ) -> Answer:
                answer = client.request(method, url, content=body, headers=headers)
                return Answer(answer.status_code, answer.content)

        monkeypatch.setattr(hub_client.urllib3, "PoolManager", Pool)

        def call(*arguments: str, who: str = "ann") -> tuple[int, str, str]:
            group = () if arguments[0] in ("registry", "fleet") else ("rollout",)
            code = run([*group, *arguments, "--hub", "https://hub", "--token-file", str(tmp_path / who)])
            said = capsys.readouterr()
            return code, said.out, said.err

        yield call


def test_another_person_consents_to_the_digest_before_anything_moves(
    ask: Ask, house: House, hub: Hub, packages: dict[str, Package]
) -> None:
    made = json.loads(ask("create", "digits", "--version", "1.0.0", "--approvals", "1", "--json")[1])
    name, digest = made["id"], packages["1.0.0"].digest
    house.tick()
    assert (made["standing"], house.version("pi-0")) == ("unapproved", "")
    assert f"rollout approve {name} --digest {digest}" in pages.render(hub, house.now)
    assert "unapproved" in ask("status")[1]
    own = ask("approve", name, "--digest", digest)
    assert (own[0], "somebody else must approve it" in own[2]) == (1, True)
    other = ask("approve", name, "--digest", packages["2.0.0"].digest, who="ben")
    assert (other[0], "looked at" in other[2]) == (1, True)
    code, out, _ = ask("approve", name, "--digest", digest, who="ben")
    assert (code, "approved by ben" in out) == (0, True)
    with house.control.connect() as connection:
        noted = connection.execute(sa.select(control.audit.c.who, control.audit.c.what)).all()
    assert noted[-1] == ("ben", "rollout approve")


def test_a_hub_that_asks_for_consent_asks_for_it_of_every_rollout(house: House) -> None:
    house.conductor = Conductor(house.control, house.telemetry, house.registry, house.publish, approvals=1)
    asked = RolloutSpec(model="digits", version="1.0.0", window_s=5.0)
    assert house.conductor.plan(asked, now_ms=house.now)["approvals"] == 1
    more = house.conductor.plan(msgspec.structs.replace(asked, approvals=2), now_ms=house.now)
    assert more["approvals"] == 2, "one may ask for more"
    told = house.conductor.rollout(house.start("1.0.0"))
    assert (told["state"], told["approvals"]["needed"]) == ("unapproved", 1)


def test_a_release_that_is_done_is_reverted_for_a_reason_and_shown_so(ask: Ask, house: House, hub: Hub) -> None:
    name = house.start("1.0.0", stages=("100%",))
    house.live(FOUR, 30, until="done")
    assert ask("revert", name)[0] == 2, "a reason is asked for"
    code, out, _ = ask("revert", name, "--reason", "too warm")
    assert (code, "reverting" in out, "reverted by ann: too warm" in out) == (0, True, True)
    assert "possible now: nothing, its devices are going back" in ask("abort", name)[2]
    assert "reverting" in pages.render(hub, house.now)
    house.now += 2 * 3600_000
    house.tick()
    assert "reverted" in ask("status", name)[1]


@pytest.mark.parametrize("whom", [{"select": " "}, {"fleet": ""}, {"devices": []}])
def test_settings_for_an_empty_name_are_refused_and_not_for_every_device(
    hub: Hub, house: House, whom: dict[str, Any]
) -> None:
    token = tokens.grant(house.control, role="operator", name="ann")
    with TestClient(device_app(hub), base_url="https://hub") as client:
        body = {"settings": {"window_s": 20.0}, **whom}
        answer = client.post("/api/v1/config", json=body, headers={"authorization": f"Bearer {token}"})
    assert (answer.status_code, "or no such field for all devices" in answer.text) == (400, True)


def test_a_package_that_did_harm_is_said_to_be_blocked_and_by_what(ask: Ask, house: House, hub: Hub) -> None:
    house.start("1.0.0", stages=("100%",))
    house.live(FOUR, 30, until="done")
    name = house.start("2.0.0", stages=("50%", "100%"))
    assert house.live(FOUR, 40, wrong=lambda v: 0.9 * (v == "2.0.0"), until="rolled-back")["outcome"] == "rolled back"
    said = f"approved, blocked by {name}"
    for command in (("list",), ("lineage", "digits")):
        assert ask("registry", *command)[1].count(said) == 1
    found = json.loads(ask("registry", "list", "--json")[1])["packages"]
    assert [one["blocked_by"] for one in found] == [None, name]
    assert f"blocked</span> by {name}" in pages.render_registry(hub, house.now)
    assert "blocked</span>" in pages.render(hub, house.now)


def test_a_revocation_says_where_devices_go_and_who_is_held(ask: Ask, house: House) -> None:
    house.start("1.0.0", stages=("100%",))
    house.live(FOUR, 30, until="done")
    house.start("2.0.0", stages=("100%",), devices=("pi-0", "pi-1"))
    house.live(FOUR, 60, until="done")
    with house.control.begin() as connection:
        connection.execute(control.devices.update().where(control.devices.c.id == "pi-1").values(held=True))
    out = ask("registry", "revoke", "digits", "2.0.0", "--reason", "it sees ghosts")[1].splitlines()
    assert out[1:4] == [
        "2 devices are sent back: pi-0, pi-1",
        "  2 to digits 1.0.0",
        "  1 of them held, and only once they are released",
    ]
    done = json.loads(ask("registry", "revoke", "digits", "1.0.0", "--reason", "so does it", "--json")[1])
    assert done["to"] == dict.fromkeys(FOUR)


def test_a_paused_rollout_says_who_paused_it_and_why_until_it_goes_on(ask: Ask, house: House) -> None:
    name = house.start("1.0.0", stages=(1, "100%"))
    house.live(FOUR, 2)
    ask("pause", name, "--reason", "look at the belt")
    told = house.live(FOUR, 2)["reason"]
    assert told.startswith("pause by ann: look at the belt; ")
    assert told.count("look at the belt") == 1
    assert "pause by ann: look at the belt; " in " ".join(ask("status", name)[1].split())
    ask("resume", name)
    assert "possible now: pause, abort\n" in ask("resume", name)[2], "there is no experiment to conclude"
    assert "the belt" not in house.live(FOUR, 2)["reason"]


def test_a_person_ends_an_experiment(ask: Ask, house: House) -> None:
    name = house.start("1.0.0", stages=("100%",), experiment=Experiment(share="50%"))
    house.live(FOUR, 2)
    for both in ((), ("--promote", "--back")):
        assert ask("conclude", name, *both)[0] == 2, "how it ends is asked for"
    code, out, _ = ask("conclude", name, "--back", "--json")
    assert (code, json.loads(out)["standing"], json.loads(out)["outcome"]) == (0, "rolling-back", "taken back")


def test_every_option_of_create_reaches_the_specification(ask: Ask, house: House) -> None:
    options = (
        "--select !held --stage id=pi-0 --stage 50% --stage 100% --concurrency 2 --bandwidth 500k --approvals 2 "
        "--experiment 75% --outcome pick_ok --at-most 3d --undecided promote --retry link=8:2min --cooldown 2h "
        "--outcome-gate pick_ok=1.1:1.5:0.02 --during 22:00-06:00"
    )
    code, out, err = ask("create", "digits", "--version", "1.0.0", *options.split(), "--json")
    assert code == 0, err
    with house.control.connect() as connection:
        stored = connection.execute(sa.select(control.rollouts.c.spec)).scalar_one()
    asked = RolloutSpec(
        model="digits", version="1.0.0", selector="!held", stages=("id=pi-0", "50%", "100%"), concurrency=2,
        bandwidth_bytes_s=500e3, approvals=2, windows=("22:00-06:00",), cooldown_s=7200.0,
        experiment=Experiment(share="75%", outcome="pick_ok", at_most_s=259200.0, undecided="promote"),
    )  # fmt: skip
    names = ("selector", "stages", "concurrency", "bandwidth_bytes_s", "approvals", "windows", "cooldown_s")
    assert [stored[name] for name in names] == json.loads(json.dumps([getattr(asked, name) for name in names]))
    assert stored["experiment"] == {"share": "75%", "outcome": "pick_ok", "at_most_s": 259200.0, "undecided": "promote"}
    assert stored["retry"]["link"] == {"attempts": 8, "first_s": 120.0}
    assert stored["gate"]["outcomes"]["pick_ok"]["delta"] == 0.02
    told = json.loads(out)
    assert told["stages"][0]["devices"] == 1
    assert (told["whom"], told["asked"]["windows"], told["asked"]["concurrency"]) == ("!held", ["22:00-06:00"], 2)
    assert told["asked"]["experiment"]["share"] == "75%"
    shown = ask("status", told["id"])[1]
    assert max(map(len, shown.splitlines()[:-1])) <= 80, "all but the command to copy"
    for said in (
        "for !held", "in 22:00-06:00; at most 2 at once; at most 500.0 kB/s; 2 h of rest",
        "an experiment at 75%: ends by pick_ok or after 3 d, else promote",
    ):  # fmt: skip
        assert said in " ".join(shown.split())
    assert "!held" in ask("status")[1]
    assert ask("create", "digits", "--version", "1.0.0", "--cooldown", "2 weeks")[0] == 2


def test_a_plan_says_who_gets_what_when_and_moves_nothing(ask: Ask, house: House) -> None:
    house.start("1.0.0", stages=("100%",))
    house.live(FOUR, 30, until="done")
    house.live(FOUR, 20)
    documents = [house.wanted(d) for d in FOUR]
    with house.control.begin() as connection:
        connection.execute(control.devices.update().where(control.devices.c.id == "pi-3").values(held=True))
    asked = ("plan", "digits", "--version", "2.0.0", "--stage", "id=pi-0", "--stage", "50%", "--stage", "100%")
    code, out, _ = ask(*asked, "--window-s", "5", "--during", "Mon-Fri 02:00-04:00")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    plan = json.loads(ask(*asked, "--window-s", "5", "--json")[1])
    assert [(s["new"], s["exposed"]) for s in plan["stages"]] == [(1, 1), (1, 2), (2, 4)]
    assert plan["stages"][0]["devices"] == ["pi-0"]
    assert plan["bytes"]["full"] >= plan["bytes"]["delta"] > 0
    assert plan["rates"]["label"] == pytest.approx(0.05, abs=0.03)
    sees = plan["stages"][-1]["visible_rates"]
    assert (plan["rates"]["error"], plan["stages"][-1]["visible"].get("error")) == (0.0, None)
    assert f"error {100 * sees['error']:.2g}%" in " ".join(out.split()), "a rate where there is nothing to compare with"
    assert [(one["why"].split(";")[0], one["devices"]) for one in plan["excluded"]] == [
        ("held by an operator", ["pi-3"])
    ]
    assert [house.wanted(d) for d in FOUR] == documents
    assert len(house.conductor.rollouts()) == 1


def test_a_plan_says_when_each_zone_is_open_next_and_counts_the_wait(ask: Ask, house: House) -> None:
    house.start("1.0.0", stages=("100%",))
    house.live(FOUR, 30, until="done")
    house.now = _ms("2025-10-12T10:00:00")  # a Sunday
    asked = ("plan", "digits", "--version", "2.0.0", "--stages", "1,100%", "--window-s", "5")
    at_once = json.loads(ask(*asked, "--json")[1])
    assert at_once["openings"] == []
    code, out, _ = ask(*asked, "--during", "Mon 02:30-02:45")
    assert code == 0
    assert "open: Mon 13 Oct 02:30 to 02:45 Asia/Tokyo, 2 devices\nopen: Mon 13 Oct 02:30 to 02:45 Eur" in out
    assert max(map(len, out.splitlines())) <= 80
    plan = json.loads(ask(*asked, "--during", "Mon 02:30-02:45", "--json")[1])
    first, last = plan["stages"]
    assert [one["begins_ms"] for one in (first, last)] == [_ms("2025-10-12T17:30:00"), _ms("2025-10-13T00:30:00")]
    assert first["expected_s"] == at_once["stages"][0]["expected_s"] + 7.5 * 3600
    assert plan["expected_s"] == pytest.approx(at_once["stages"][1]["expected_s"] + 14.5 * 3600, abs=1)


def _says(house: House, *devices: str, **birth: Any) -> None:
    """Devices say what they are; they could run any version unless `birth` says otherwise."""
    said = {"hardware": {"arch": "aarch64"}, "runtimes": {"onnxruntime": "1.20"}} | birth
    house.now += 1
    with house.telemetry.begin() as connection:
        mine = telemetry.devices.update().where(telemetry.devices.c.device.in_(devices))
        connection.execute(mine.values(birth=said, birth_ms=house.now))


def test_what_none_of_the_devices_can_run_is_refused_before_anything_moves(house: House) -> None:
    _says(house, *FOUR, hardware={"arch": "riscv64"}, runtimes={"tvm": "0.1"})
    with pytest.raises(
        Refused, match=r"none of the 4 devices can run digits 1\.0\.0: it has riscv64/tvm, there are var"
    ):
        house.start("1.0.0")
    _says(house, "pi-0")
    assert house.start("1.0.0"), "one can"


def test_status_says_which_devices_are_left_out_and_why(ask: Ask, house: House) -> None:
    _says(house, "pi-3", runtimes={"tvm": "0.1"})
    name = house.start("1.0.0")
    said = " ".join(ask("status", name)[1].split())
    assert "without 1 (pi-3): cannot run it: it has aarch64/tvm, there are variants for */onnxruntime" in said
