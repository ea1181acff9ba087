"""What operators set of devices: which scope wins, what reaches the desired documents, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts.desired import Config, Desired, DesiredModel
from edgewright_contracts.errors import ContractError, Refused, RequestError
from edgewright_contracts.package import Package
from edgewright_hub.rollouts.configuration import KEYS, Asked, Value
from edgewright_hub.rollouts.desired_documents import configured
from edgewright_hub.storage import control
from sim.house import House
from sim.packages import make_package


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    return {"1.0.0": make_package(tmp_path_factory.mktemp("package"), version="1.0.0", seed=0)}


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    """Two devices in the lab and one in the field, which run what was promoted."""
    one = House(tmp_path, packages)
    one.publish_package("1.0.0")
    one.enrol("lab-0", "lab-1")
    one.enrol("field-0", fleet="field")
    one.start("1.0.0", stages=("100%",))
    assert one.live(["lab-0", "lab-1", "field-0"], 20, until="done")["outcome"] == "promoted"
    one.sent.clear()
    return one


def put(house: House, fleet: str = "", devices: tuple[str, ...] = (), reset: bool = False, **settings: Value) -> None:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    asked = Asked(fleet=fleet, devices=devices, settings=named, reset=reset, reason="a test")
    house.conductor.configure(asked, who="op", now_ms=house.now)
    house.tick()


def config(house: House, device: str) -> Config:
    document = house.wanted(device)
    assert document is not None
    return document.config


def test_what_is_set_for_all_reaches_every_device_once_and_keeps_its_models(house: House) -> None:
    before = {device: house.wanted(device) for device in ("lab-0", "lab-1", "field-0")}
    put(house, profile="metered", limits__rss_mb=80)
    for device, was in before.items():
        now = house.wanted(device)
        assert was is not None
        assert now is not None
        assert (now.config.profile, now.config.limits.rss_mb, now.config.version) == ("metered", 80.0, 1)
        assert (now.config.window_s, now.models, now.rev) == (was.config.window_s, was.models, was.rev + 1)
    house.tick()
    assert sorted(device for device, _ in house.sent) == ["field-0", "lab-0", "lab-1"]


def test_a_device_wins_over_its_fleet_and_the_fleet_over_all(house: House) -> None:
    put(house, log_level="warning", scene_s=5.0, window_rows=10)
    put(house, fleet="lab", log_level="debug", scene_s=6.0)
    put(house, devices=("lab-1",), log_level="info")
    wanted = {"lab-0": ("debug", 6.0, 10, 2), "lab-1": ("info", 6.0, 10, 3), "field-0": ("warning", 5.0, 10, 1)}
    found = {device: config(house, device) for device in wanted}
    assert {d: (c.log_level, c.scene_s, c.window_rows, c.version) for d, c in found.items()} == wanted


def test_a_reset_forgets_its_own_scope_only_and_nothing_of_the_history(house: House) -> None:
    put(house, profile="metered")
    put(house, fleet="lab", samples__per_day=10, bytes_per_day=50_000)
    put(house, fleet="lab", reset=True)
    assert (config(house, "lab-0").samples, config(house, "lab-0").bytes_per_day) == (None, None)
    assert (config(house, "lab-0").profile, config(house, "lab-0").version) == ("metered", 3)
    (shown,) = house.conductor.configuration("lab", ())
    assert [(row["version"], row["scope"], row["who"], row["settings"]) for row in shown["history"]] == [
        (3, "fleet", "op", {}),
        (2, "fleet", "op", {"samples.per_day": 10, "bytes_per_day": 50_000}),
        (1, "all", "op", {"profile": "metered"}),
    ]
    assert shown["settings"] == [{"key": "profile", "value": "metered", "scope": "all", "subject": "", "version": 1}]


def test_setting_what_is_set_already_makes_no_new_version_and_tells_nobody(house: House) -> None:
    put(house, profile="metered")
    house.sent.clear()
    put(house, profile="metered")
    assert house.sent == []
    assert len(house.conductor.configuration("", ())[0]["history"]) == 1


def test_a_whole_field_and_its_inner_keys_replace_one_another(house: House) -> None:
    put(house, samples__per_day=10, samples__ttl_s=600)
    put(house, fleet="lab", samples=None)
    assert (config(house, "lab-0").samples, config(house, "field-0").samples) != (None, None)
    assert config(house, "lab-0").samples is None
    put(house, fleet="lab", samples__per_day=3)
    sampled = config(house, "lab-0").samples
    assert sampled is not None
    assert (sampled.per_day, sampled.ttl_s) == (3, 600.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"porfile": "metered"}, r"porfile: there is no such setting\. There are window_s, "),
        ({"version": 7}, "version: there is no such setting"),
        ({"limits.ram": 7}, "limits.ram: there is no such setting"),
        ({"profile": "cheap"}, r"profile: expected normal \| metered, got 'cheap'"),
        ({"window_s": 0.01}, "window_s"),
        ({"window_s": "long"}, "window_s"),
        ({"limits.rss_mb": -1}, "rss_mb"),
        ({"samples.ttl_s": 60}, "per_day"),
        ({"compress": None}, "compress"),
        ({}, "nothing to change: name settings"),
    ],
)
def test_unknown_keys_and_absurd_values_are_refused_by_name_and_change_nothing(
    house: House, settings: dict[str, Value], said: str
) -> None:
    with pytest.raises(RequestError if "no such" in said or not settings else ContractError, match=said):
        house.conductor.configure(Asked(settings=settings), who="op", now_ms=house.now)
    house.tick()
    assert house.sent == []
    with house.control.connect() as connection:
        assert connection.execute(sa.select(control.configs)).all() == []


def test_what_would_not_hold_where_scopes_meet_is_refused(house: House) -> None:
    put(house, samples__per_day=10)
    put(house, devices=("lab-0",), samples__ttl_s=60)
    with pytest.raises(ContractError, match="per_day"):
        put(house, reset=True)
    assert config(house, "lab-1").samples is not None


@pytest.mark.parametrize(("fleet", "devices"), [("moon", ()), ("", ("pi-9",)), ("lab", ("lab-0",))])
def test_settings_for_nobody_are_refused(house: House, fleet: str, devices: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=r"moon|pi-9|got more than one"):
        put(house, fleet, devices, profile="metered")


def test_a_device_that_joins_later_is_told_with_its_first_models_or_without_any(house: House) -> None:
    put(house, fleet="field", profile="metered")
    house.enrol("field-1", fleet="field")
    house.tick()
    first = house.wanted("field-1")
    assert first is not None
    assert (first.rev, first.config.profile, house.version("field-1")) == (1, "metered", "1.0.0")
    with house.control.begin() as connection:
        connection.execute(control.rollouts.delete())
    house.enrol("field-2", fleet="field")
    house.enrol("lab-2")
    house.tick()
    bare = house.wanted("field-2")
    assert bare is not None
    assert (bare.rev, bare.config.profile, bare.models) == (1, "metered", ())
    assert house.wanted("lab-2") is None, "nobody has set or given it anything"


def test_the_windows_of_a_trial_stay_as_its_rollout_asked_for_them() -> None:
    on_trial = DesiredModel(name="digits", digest="0" * 64, rollout="r1-0000")
    document = Desired(rev=3, config=Config(rollout_window_s=5.0), models=(on_trial,))
    now = configured(document, Config(rollout_window_s=60.0, profile="metered"))
    assert (now.config.rollout_window_s, now.config.profile, now.models) == (5.0, "metered", (on_trial,))
    ended = configured(Desired(rev=3, config=Config(rollout_window_s=5.0)), Config(rollout_window_s=60.0))
    assert ended.config.rollout_window_s == 60.0


def test_a_hub_that_starts_again_sends_nothing_anew(house: House) -> None:
    put(house, fleet="lab", profile="metered")
    house.sent.clear()
    house.restart()
    house.tick()
    assert house.sent == []


def test_settings_of_another_release_leave_the_hubs_own_configuration_in_force(house: House) -> None:
    row = {"scope": "all", "subject": "", "settings": {"profile": "quantum"}, "at_ms": 0, "who": "op", "reason": ""}
    with house.control.begin() as connection:
        connection.execute(control.configs.insert().values(**row))
    house.tick()
    assert config(house, "lab-0").profile == "normal"


def test_every_field_of_the_configuration_can_be_set() -> None:
    assert {"profile", "window_s", "limits.rss_mb", "limits.written_per_day", "download.bytes_per_day", "samples"} <= {
        *KEYS
    }
    assert "samples.per_day" in KEYS
    assert not {"version", "limits", "download"} & {*KEYS}


def test_a_selectors_settings_lie_between_those_of_fleets_and_of_devices_and_follow_who_it_means(house: House) -> None:
    def ask(select: str = "", devices: tuple[str, ...] = (), fleet: str = "", **settings: Value) -> None:
        asked = Asked(select=select, devices=devices, fleet=fleet, settings=settings, reason="a test")
        house.conductor.configure(asked, who="op", now_ms=house.now)
        house.tick()

    def place(device: str, site: str) -> None:
        mine = control.devices.c.id == device
        with house.control.begin() as connection:
            connection.execute(control.devices.update().where(mine).values(attributes={"site": site}))
        house.tick()

    place("lab-0", "berlin")
    ask(fleet="lab", window_s=20.0)
    ask(select="site=berlin", window_s=40.0, monitor_every=2)
    ask(devices=("lab-0",), monitor_every=3)
    assert [config(house, d).window_s for d in ("lab-0", "lab-1", "field-0")] == [40.0, 20.0, 30.0]
    assert [config(house, d).monitor_every for d in ("lab-0", "lab-1")] == [3, 1]
    place("field-0", "berlin")
    assert (config(house, "field-0").window_s, config(house, "field-0").monitor_every) == (40.0, 2)
    ask(select="id=field-*", window_s=50.0)
    assert config(house, "field-0").window_s == 50.0, "of two selectors the one that was set last"
    (shown,) = house.conductor.configuration("", (), "site=berlin")
    assert (shown["scope"], shown["subject"]) == ("selector", "site=berlin")
    assert {one["key"]: one["value"] for one in shown["settings"]} == {"window_s": 40.0, "monitor_every": 2}
    assert [one["subject"] for one in shown["narrower"]] == ["lab-0"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"select": "colour=red"}, "got 'colour' at character 1"),
        ({"select": "cohort=east"}, "no cohort is called 'east'"),
        ({"select": "held", "fleet": "lab"}, "got more than one; name one of them"),
        ({"select": "id=" + "a" * 70}, "give it a name"),
    ],
)
def test_a_selector_that_cannot_be_followed_sets_nothing(house: House, asked: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        house.conductor.configure(Asked(**asked, settings={"window_s": 20.0}), who="op", now_ms=house.now)


def test_a_selector_that_means_nobody_sets_nothing_and_what_it_set_before_can_be_forgotten(house: House) -> None:
    def ask(**asked: Any) -> list[dict[str, Any]]:
        return house.conductor.configure(Asked(select="site=mars", **asked), who="op", now_ms=house.now)

    with pytest.raises(Refused, match="site=mars means no enrolled device"):
        ask(settings={"window_s": 20.0})
    d = control.devices
    for site in ("mars", ""):
        with house.control.begin() as connection:
            connection.execute(d.update().where(d.c.id == "lab-0").values(attributes={"site": site} if site else {}))
        if site:
            ask(settings={"window_s": 20.0})
    (shown,) = ask(reset=True)
    assert shown["settings"] == []
