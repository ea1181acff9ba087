"""The page says what the databases say, escapes what devices say, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient

from edgewright_contracts.package import Package
from edgewright_hub.drift.verdicts import Verdict
from edgewright_hub.fleet import inventory
from edgewright_hub.ingest.writer import commit
from edgewright_hub.registry import stages
from edgewright_hub.registry.registry import Registry
from edgewright_hub.rollouts.configuration import Asked
from edgewright_hub.rollouts.progress import unpacked
from edgewright_hub.storage import control, telemetry
from edgewright_hub.web import pages
from edgewright_hub.web.api import Hub
from edgewright_hub.web.app import page_app
from edgewright_hub.web.views import alarms, wording
from sim import wire
from sim.house import House


class Quiet(Registry):
    """A registry whose signatures last."""

    def warning(self, *, now: datetime) -> str | None:
        return None


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> House:
    return House(tmp_path, packages)


def _hub(house: House) -> Hub:
    return Hub(
        control=house.control, telemetry=house.telemetry,
        registry=Quiet(house.place / "repo", house.place / "keys", house.control),
        authority=None, conductor=house.conductor, broker=("127.0.0.1", 1883), repo="", ails=list, open_to_read=True,
    )  # type: ignore[arg-type]  # fmt: skip


def _text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_an_empty_hub_says_what_to_do_first(house: House) -> None:
    text = _text(pages.render(_hub(house), house.now))
    assert "0 / 0 devices online" in text
    for command in ("edgewright rollout create", "edgewright publish", "edgewright agent enroll"):
        assert command in text


def test_what_was_refused_is_seen_with_the_device_and_the_reason(house: House) -> None:
    future = wire.report_bytes(1, wall_start_ms=house.now + 86_400_000)
    commit(house.telemetry, [wire.message("cam-7", "report", future, house.now)] * 2, lambda _: "lab")
    text = _text(pages.render(_hub(house), house.now))
    assert "Refused in 24 hours" in text
    assert re.search(r"cam-7 clock 1 .* set the clock of cam-7", text)
    assert "Refused" not in _text(pages.render(_hub(house), house.now + 2 * 86_400_000))


def test_the_figures_are_those_of_the_databases(house: House) -> None:
    devices = ["pi-0", "pi-1", "pi-2"]
    house.publish_package("1.0.0")
    house.publish_package("2.0.0")
    house.enrol(*devices)
    house.start("1.0.0", stages=("100%",))
    house.live(devices, 20, until="done")
    house.live(devices, 10)
    house.start("2.0.0", stages=(1, "100%"))
    house.live(devices, 6)
    with house.telemetry.begin() as connection:
        table = telemetry.devices
        connection.execute(table.update().where(table.c.device == "pi-2").values(online=False))
    with house.telemetry.connect() as connection:
        n = connection.execute(sa.select(sa.func.sum(telemetry.windows.c.n))).scalar_one()
    html = pages.render(_hub(house), house.now)
    text = _text(html)
    newest = house.conductor.rollouts()[0]
    assert "2 / 3 devices online" in text
    assert f"{n:,} inferences in the last hour" in text
    assert "1 rollouts under way" in text
    assert f"digits 2.0.0 running {newest['id']}" in text
    assert newest["reason"] in text
    assert f"1 of 3 devices was given it; 1 {next(s for s in newest['devices_by_status'] if s != 'waiting')}." in text
    figures = {f["metric"]: f for f in newest["figures"]}
    assert f"wrong labels {100 * figures['label']['treated']:.2f} %" in text
    assert "digits 1.0.0 promoted" in text


def test_a_release_that_was_taken_back_says_where_its_devices_are(house: House) -> None:
    devices = [f"pi-{i}" for i in range(4)]
    house.publish_package("1.0.0")
    house.publish_package("2.0.0")
    house.enrol(*devices)
    house.start("1.0.0", stages=("100%",))
    house.live(devices, 20, until="done")
    house.live(devices, 10)
    house.start("2.0.0", stages=(2, "100%"))
    house.live(devices, 60, wrong=lambda v: 0.5 if v == "2.0.0" else 0.05, until="rolling-back")
    text = _text(pages.render(_hub(house), house.now))
    assert "2 of 4 devices were given it; 2 were not seen back yet." in text
    first = next(d for d in devices if house.version(d) == "1.0.0" and _given(house, d))
    house.live([first], 1)
    text = _text(pages.render(_hub(house), house.now))
    assert "2 of 4 devices were given it; 1 is back on 1.0.0, 1 was not seen back yet." in text
    house.live(devices, 20, until="rolled-back")
    text = _text(pages.render(_hub(house), house.now))
    assert "2 of 4 devices were given it and are back on 1.0.0." in text


def _given(house: House, device: str) -> bool:
    with house.control.connect() as connection:
        rows = connection.execute(sa.select(control.rollouts.c.progress).order_by(control.rollouts.c.created_ms)).all()
    members = unpacked(rows[-1].progress).members
    return bool(members.given[members.columns()[device]])


def _alarm(subject: str, part: str, *, since_ms: int = 1, name: str = "mean") -> dict[str, Any]:
    channel = {"name": name, "psi": 1.0, "psi_chance": 0.1, "js": 0.4}
    return {
        "scope": "device", "subject": subject, "part": part, "variant": "onnx-int8", "context": "", "verdict": "alarm",
        "since_ms": since_ms, "n": 1200, "channels": [channel], "digest": "0" * 16, "blocks": 3,
    }  # fmt: skip


def test_drift_is_told_by_device_with_its_parts_from_the_input_on() -> None:
    raised = [_alarm("pi-1", "output"), _alarm("pi-0", "input"), _alarm("pi-1", "input", since_ms=9)]
    told = alarms.grouped([*raised, _alarm("pi-2", "output", since_ms=5)], "subject")
    assert [(d["subject"], [s["part"] for s in d["streams"]], d["since_ms"]) for d in told] == [
        ("pi-2", ["output"], 5),
        ("pi-0", ["input"], 1),
        ("pi-1", ["input", "output"], 1),
    ]


def test_drift_of_a_fleet_and_of_a_named_cohort_are_told_apart(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.enrol("pi-0")
    stream = {"part": "input", "kinds": [], "channels": []}
    common = {"streams": [stream], "digest": "", "variant": "", "context": "", "since_ms": 1, "devices": []}
    raised = [{"subject": name, **common} for name in ("lab", "line-3")]
    monkeypatch.setattr(alarms, "grouped", lambda _rows, *keys: raised if len(keys) > 1 else [])
    html = pages.render(_hub(house), house.now)
    assert ("<h3>Fleet lab</h3>" in html, "<h3>Cohort line-3</h3>" in html) == (True, True)


def test_devices_come_before_the_details_of_their_drift_and_the_page_claims_no_state_it_does_not_know(
    house: House,
) -> None:
    html = pages.render(_hub(house), house.now)
    assert html.index("<h2>Rollouts") < html.index("<h2>Devices") < html.index("<h2>Drift")
    assert 'id="live" class="quiet">as of 20' in html


def test_what_devices_say_is_escaped(house: House) -> None:
    house.publish_package("1.0.0")
    house.enrol("pi-0")
    house.event("pi-0", "1.0.0", "selftest", "blocked", failure="model", reason="<script>alert(1)</script>")
    html = pages.render(_hub(house), house.now)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_the_page_loads_nothing_from_elsewhere_and_stands_without_a_script(house: House) -> None:
    app = FastAPI()
    app.state.hub = _hub(house)
    app.include_router(pages.router)
    app.mount("/static", pages.static)
    client = TestClient(app)
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert not re.search(r"https?://", answer.text)
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', answer.text):
        assert client.get(path).status_code == 200
        assert not re.search(r"https?://|@import", client.get(path).text)


def test_the_mark_changes_with_every_report_and_every_decision(house: House) -> None:
    hub = _hub(house)
    marks = [pages._mark(hub)]
    house.publish_package("1.0.0")
    marks.append(pages._mark(hub))
    house.enrol("pi-0")
    marks.append(pages._mark(hub))
    house.start("1.0.0", stages=("100%",))
    marks.append(pages._mark(hub))
    house.now += 5000
    house.tick()
    marks.append(pages._mark(hub))
    house.window("pi-0", "1.0.0")
    marks.append(pages._mark(hub))
    assert len(set(marks)) == len(marks)
    assert pages._mark(hub) == marks[-1]


def test_what_waits_for_a_person_stands_first_and_leads_on(house: House) -> None:
    house.publish_package("1.0.0")
    house.publish_package("2.0.0")
    waiting = {"device": "oslo-9", "token": "0", "fleet": "lab", "state": "waiting", "key_sha256": "ab" * 32}
    with house.control.begin() as connection:
        mine = control.packages.update().where(control.packages.c.version == "2.0.0")
        connection.execute(mine.values(stage="candidate"))
        connection.execute(control.expected.insert().values(**waiting, since_ms=house.now))
    html = pages.render(_hub(house), house.now)
    assert html.index("1 device waits for a yes: oslo-9") < html.index("<h2>Rollouts")
    assert "1 candidate is not approved: digits 2.0.0" in html
    fleet = _text(pages.render_fleet(_hub(house), house.now))
    assert re.search(r"oslo-9 lab 0 s ago abababababababab edgewright fleet accept oslo-9", fleet)
    assert "edgewright registry approve digits 2.0.0" in _text(pages.render_registry(_hub(house), house.now))


def test_the_registry_says_where_each_version_stands_and_who_decided_so(house: House) -> None:
    house.publish_package("1.0.0")
    house.enrol("pi-0", "pi-1")
    house.start("1.0.0", stages=("100%",))
    house.tick()
    house.window("pi-0", "1.0.0")
    house.publish_package("2.0.0", state="withdrawn")
    with house.control.begin() as connection:
        why = {"reason": "<b>too</b> slow", "who": "ann", "now_ms": house.now}
        stages.decide(connection, "digits", "1.0.0", "deprecate", **why)
    html = pages.render_registry(_hub(house), house.now)
    text = _text(html)
    assert re.search(r"2\.0\.0 \w+ withdrawn 0 0 ", text)
    assert re.search(r"1\.0\.0 \w+ deprecated 1 2 0 s ago the first deprecate by ann, 0 s ago : &lt;b", text)
    assert "<b>too" not in html
    assert f"{house.conductor.rollouts()[0]['id']} running" in text


def test_holds_cohorts_settings_and_requests_stand_on_the_page_of_the_fleet(house: House) -> None:
    house.enrol("pi-0", "pi-1")
    empty = _text(pages.render_fleet(_hub(house), house.now))
    for said in ("Nobody waits", "No device is held", "None has a name", "All is as the hub has it"):
        assert said in empty
    with house.control.begin() as connection:
        who = {"who": "kari", "now_ms": house.now}
        inventory.hold(connection, ["pi-1"], held=True, reason="the belt is rebuilt", **who)
        inventory.name_cohort(connection, "line-3", "fleet=lab", **who)
    settings = {"window_s": 120}
    house.conductor.configure(Asked(fleet="lab", settings=settings, reason="slow link"), who="kari", now_ms=house.now)
    _away(house, "pi-0")
    house.conductor.orders.place("pi-0", "collect", who="kari", now_ms=house.now)
    text = _text(pages.render_fleet(_hub(house), house.now))
    assert "pi-1 the belt is rebuilt kari 0 s ago edgewright fleet release pi-1" in text
    assert re.search(r"line-3 fleet=lab 2 kari", text)
    assert re.search(r"lab fleet, version 1 window_s=120 kari, 0 s ago : slow link", text)
    assert "pi-0 its own report kari 0 s ago asked" in text
    assert re.search(r"pi-1 lab held", _text(pages.render(_hub(house), house.now)))


def _away(house: House, device: str) -> None:
    with house.telemetry.begin() as connection:
        mine = telemetry.devices.update().where(telemetry.devices.c.device == device)
        connection.execute(mine.values(online=False))


def test_the_page_of_a_device_sets_what_it_shall_run_against_what_it_runs(house: House) -> None:
    house.publish_package("1.0.0")
    house.enrol("pi-0")
    house.start("1.0.0", stages=("100%",))
    house.tick()
    text = _text(pages.render_device(_hub(house), "pi-0", house.now))
    assert "digits 1.0.0 nothing not yet r1-" in text
    house.conductor.command(house.conductor.rollouts()[0]["id"], "abort", who="kari", now_ms=house.now)
    assert "digits nothing nothing as told" in _text(pages.render_device(_hub(house), "pi-0", house.now))
    house.start("1.0.0", stages=("100%",), force=True)
    house.tick()
    house.event("pi-0", "1.0.0", "selftest", "blocked", failure="model", reason="<i>3 of 32 rows</i> differ")
    house.window("pi-0", "1.0.0")
    with house.control.begin() as connection:
        inventory.hold(connection, ["pi-0"], held=True, reason="look at it", who="kari", now_ms=house.now)
    html = pages.render_device(_hub(house), "pi-0", house.now)
    text = _text(html)
    assert "digits 1.0.0 1.0.0 as told" in text
    assert "Held by kari, 0 s ago : look at it" in text
    assert "<i>3 of" not in html
    assert "selftest to blocked" in text


def test_every_page_answers_and_one_of_a_device_that_there_is_not_says_so(house: House) -> None:
    app = FastAPI()
    app.state.hub = _hub(house)
    app.include_router(pages.router)
    client = TestClient(app)
    for path in ("/", "/fleet", "/registry"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert f'<a href="{path}" aria-current="page">' in answer.text
    for name in ("nobody", "a%2Fb%3F"):
        answer = client.get(f"/devices/{name}")
        assert answer.status_code == 404
        assert "no device is called" in answer.text


STATE = {"channels": [], "blocks": 3, "n": 1200, "kinds": []}
WORDS = {"alarm": "moved", "ok": "steady", "skewed": "not as in training", "learning": "learning"}


def test_every_verdict_on_a_device_has_its_word_on_the_page(house: House) -> None:
    assert {*WORDS, "ended"} == set(get_args(Verdict))
    house.enrol(*(f"pi-{verdict}" for verdict in WORDS), "pi-all")
    for verdict in (*WORDS, "ended"):
        _drifted(house, f"pi-{verdict}", verdict, "feed")
        _drifted(house, "pi-all", verdict, "output")
    html = pages.render(_hub(house), house.now)
    for verdict, word in WORDS.items():
        assert re.search(rf"pi-{verdict} lab .*? nothing – 0 0 – {word}", _text(html)), verdict
    assert re.search(r"pi-all lab .*? nothing – 0 0 moved –", _text(html))
    assert ("<th>feed</th>" in html, "<th>embedding</th>" in html) == (True, False)


def _drifted(house: House, device: str, verdict: str, part: str) -> None:
    row = {"subject": device, "digest": "0" * 16, "variant": "onnx-fp32", "context": verdict, "part": part}
    row |= {"scope": "device", "model": "digits", "state": STATE, "verdict": verdict}
    with house.control.begin() as connection:
        connection.execute(control.drift.insert().values(**row, since_ms=house.now, updated_ms=house.now))


def test_a_device_whose_reports_do_not_come_is_overdue_on_its_own_page_too(house: House) -> None:
    house.enrol("pi-0")
    assert "pi-0 online" in _text(pages.render_device(_hub(house), "pi-0", house.now))
    late = pages.render_device(_hub(house), "pi-0", house.now + 2000 * 3600_000)
    assert "pi-0 overdue" in _text(late)


def test_what_cannot_be_shown_is_a_page_for_a_browser_and_json_for_a_program(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = TestClient(page_app(_hub(house)), base_url="http://127.0.0.1", raise_server_exceptions=False)
    browser, program = {"Accept": "text/html,*/*;q=0.8"}, {"Accept": "*/*"}
    assert client.get("/nope", headers=program).json()["error"].startswith("nothing here answers GET /nope")
    answer = client.get("/nope", headers=browser)
    assert (answer.status_code, "nothing here answers GET /nope" in _text(answer.text)) == (404, True)
    monkeypatch.setattr(pages, "render_fleet", lambda *_: 1 / 0)
    answer = client.get("/fleet", headers=browser)
    assert (answer.status_code, "the hub failed (ZeroDivisionError)" in _text(answer.text)) == (503, True)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert client.get("/fleet", headers=program).json() == {
        "error": "the hub failed (ZeroDivisionError); its log says more"
    }


@pytest.mark.parametrize(
    ("then", "said"), [(None, "never"), (0, "1 d ago"), (86_395_000, "5 s ago"), (86_000_000, "6 min ago")]
)
def test_times_are_told_as_people_say_them(then: int | None, said: str) -> None:
    assert wording.ago(then, 86_400_000) == said
