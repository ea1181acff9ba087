"""Whatever InfluxDB answers, no point is lost, none is there twice, and a person hears of what lasts."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import RequestError
from edgewright_contracts.package import Package
from edgewright_hub import retention
from edgewright_hub.alerts import alerts
from edgewright_hub.exports import delivery, progress, sink
from edgewright_hub.exports.delivery import Delivery
from edgewright_hub.exports.destination import TOKEN, Destination, open_sink
from edgewright_hub.exports.influx import Away, Influx, Misled
from edgewright_hub.exports.sink import Sink
from edgewright_hub.fleet import attributes
from edgewright_hub.ingest import device_hours
from edgewright_hub.storage import control, telemetry
from sim import influx as sim
from sim.house import House
from sim.influx import Answer

MINUTE = 60_000


@pytest.fixture
def server() -> Iterator[sim.Influx]:
    one = sim.Influx()
    yield one
    one.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    house = House(tmp_path_factory.mktemp("house"), packages)
    house.publish_package("1.0.0")
    house.enrol("pi-0", "pi-1")
    return house


@pytest.fixture
def house(built: House, tmp_path: Path) -> House:
    return built.copy(tmp_path)


def exporting(house: House, url: str, **changes: Any) -> Sink:
    made = open_sink(
        Destination(url, "acme", "edge", **changes),
        house.control,
        house.telemetry,
        house.place,
        house.conductor.roster.read,
        lambda: house.now,
    )
    assert made is not None
    return made


def report(house: House, number: int) -> None:
    """Windows of a device that counts 1, 2, 3, ..."""
    with house.telemetry.connect() as connection:
        first = connection.execute(sa.select(sa.func.max(telemetry.windows.c.seq))).scalar() or 0
    rows = []
    for n in range(first + 1, first + number + 1):
        house.now += MINUTE
        row = house.row("pi-0", "1.0.0", n=n, start_ms=house.now - MINUTE, mono_end_ms=MINUTE)
        rows.append(row | {"seq": n})
    house.report(*rows)


def counted(server: sim.Influx) -> list[int]:
    return sorted(int(fields["inferences"]) for fields in server.points.values())


def position(house: House) -> int | None:
    with house.telemetry.connect() as connection:
        return progress.position_of(connection)


def open_alerts(house: House) -> list[tuple[str, str]]:
    return [(one["key"], one["severity"]) for one in alerts.listed(house.control)]


def test_windows_come_with_what_is_known_of_their_device_and_the_request_is_as_influxdb_wants_it(
    house: House, server: sim.Influx, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = attributes.changed(attributes.Attributes(), {"site": "Halle 3", "hw": "pi4"})
    with house.control.begin() as connection:
        values = {"attributes": {"site": said.site, "hardware": said.hardware}}
        connection.execute(control.devices.update().where(control.devices.c.id == "pi-0").values(**values))
    monkeypatch.setenv(TOKEN, "s3cret")
    report(house, 3)
    one = exporting(house, server.url)
    assert one.attempt() == sink.EVERY_S
    (asked,) = server.asked
    assert asked.path == "/api/v2/write"
    assert asked.query == {"org": "acme", "bucket": "edge", "precision": "ns"}
    assert asked.headers["Authorization"] == "Token s3cret"
    assert gzip.decompress(asked.body).count(b"\n") == 2
    assert counted(server) == [1, 2, 3]
    ((_, tags), at_ns), fields = next(iter(server.points.items()))
    known = {"site": "Halle 3", "hardware": "pi4", "model": "digits", "version": "1.0.0", "fleet": "lab"}
    assert known.items() <= dict(tags).items()
    assert (at_ns // 10**6, fields["seconds"]) == (house.now - 3 * MINUTE, 60.0)
    assert one.attempt() == sink.EVERY_S
    assert len(server.asked) == 1, "nothing new: nothing is asked"
    assert one.told == sink.Told(points=3)


def test_a_server_that_is_away_is_asked_again_more_and_more_rarely_for_ever(house: House, unused_port: int) -> None:
    report(house, 1)
    one = exporting(house, f"http://127.0.0.1:{unused_port}")
    pauses = [one.attempt() for _ in range(10)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert (position(house), one.told.failures) == (0, 10)
    assert "refused" in one.told.said
    assert open_alerts(house) == []
    house.now += progress.LATE_MS
    one.attempt()
    assert open_alerts(house) == [(progress.ALERT, "ticket")]
    house.now += progress.KEPT_MS // 2
    one.attempt()
    assert open_alerts(house) == [(progress.ALERT, "page")]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(503, "starting"),
        Answer(500, "internal error", stores=True),
        Answer(429, "slow down"),
        Answer(204, cut=True),
        Answer(204, cut=True, stores=True),  # stored, and nobody heard of it
        Answer(200, "please log in"),
        Answer(302, "elsewhere", (("Location", "http://127.0.0.1:1/"),)),
        Answer(502, "\ufffd\udcff".encode("utf-8", "surrogatepass").decode("latin-1")),
    ],
    ids=lambda answer: f"{answer.status}{'-cut' * answer.cut}{'-stores' * answer.stores}",
)
def test_what_was_not_taken_comes_again_and_is_there_once(house: House, server: sim.Influx, answer: Answer) -> None:
    report(house, 5)
    server.answers.append(answer)
    one = exporting(house, server.url)
    assert one.attempt() == sink.FIRST_PAUSE_S
    assert (position(house), one.told.points) == (0, 0)
    report(house, 2)
    assert one.attempt() == sink.EVERY_S
    assert counted(server) == [1, 2, 3, 4, 5, 6, 7]
    assert (position(house), one.told.said) == (7, "")
    report(house, 1)
    server.answers.append(answer)
    assert one.attempt() == sink.FIRST_PAUSE_S, "pauses begin anew"


def test_a_server_says_how_long_to_wait(house: House, server: sim.Influx) -> None:
    report(house, 1)
    one = exporting(house, server.url)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=500), usegmt=True)
    asked = ("40", date, "9" * 30, "soon", "-3")
    server.answers.extend(Answer(429, "wait", (("Retry-After", value),)) for value in asked)
    pauses = [one.attempt() for _ in asked]
    assert pauses[0] == 40
    assert 400 < pauses[1] <= 500
    assert pauses[2:] == [3600, 8, 16]


@pytest.mark.parametrize(("status", "way"), [(401, TOKEN), (403, "right"), (404, "--influx-bucket"), (405, "--influx")])
def test_what_only_a_person_can_mend_is_an_alert_at_once_and_nothing_is_lost(
    house: House, server: sim.Influx, status: int, way: str
) -> None:
    report(house, 2)
    server.answers.append(Answer(status, "unauthorized access"))
    one = exporting(house, server.url)
    assert one.attempt() == sink.FIRST_PAUSE_S
    (alert,) = alerts.listed(house.control)
    assert (alert["kind"], alert["severity"], alert["subject"]) == ("export", "ticket", "influx")
    assert "unauthorized access" in alert["text"]
    assert way in alert["text"]
    one.attempt()
    assert (open_alerts(house), counted(server)) == ([], [1, 2])


def test_a_token_that_was_replaced_is_used_without_a_restart(house: House, server: sim.Influx, tmp_path: Path) -> None:
    place = tmp_path / "token"
    place.write_text("old\n")
    server.answers.append(Answer(401, "unauthorized access"))
    report(house, 1)
    one = exporting(house, server.url, token_file=place)
    one.attempt()
    place.write_text("new\n")
    one.attempt()
    assert [asked.headers["Authorization"] for asked in server.asked] == ["Token old", "Token new"]
    place.unlink()
    report(house, 1)
    server.answers.append(Answer(500))
    one.attempt()
    one.attempt()
    assert "token" in one.told.said
    assert position(house) == 1


def test_a_point_that_the_server_never_takes_is_set_aside_with_the_reason_and_the_others_pass(
    house: House, server: sim.Influx
) -> None:
    server.unfit = lambda point: "field type conflict" if point[2]["inferences"] in (7, 30) else ""
    report(house, 40)
    one = exporting(house, server.url)
    assert one.attempt() == sink.EVERY_S
    assert counted(server) == [n for n in range(1, 41) if n not in (7, 30)]
    assert (position(house), one.told.points, one.told.refused) == (40, 38, 2)
    kept = (house.place / "influx-refused.lp").read_text().splitlines()
    assert [text.startswith("# it answered 400: partial write: field type conflict") for text in kept[::2]] == [
        True
    ] * 2
    assert [sim.parse(text)[2]["inferences"] for text in kept[1::2]] == [7, 30]
    assert open_alerts(house) == [(progress.ALERT_REFUSED, "ticket")]
    report(house, 1)
    one.attempt()
    assert open_alerts(house) == [(progress.ALERT_REFUSED, "ticket")], "until a person closes it"


@pytest.mark.parametrize("number", [3, 60])
def test_when_every_point_is_refused_nothing_is_set_aside_and_a_person_is_asked_for(
    house: House, server: sim.Influx, number: int
) -> None:
    server.unfit = lambda _: "field type conflict"
    report(house, number)
    one = exporting(house, server.url)
    assert one.attempt() == sink.FIRST_PAUSE_S
    assert len(server.asked) < 100
    assert (position(house), open_alerts(house)) == (0, [(progress.ALERT, "ticket")])
    assert not (house.place / "influx-refused.lp").exists()
    server.unfit = lambda _: ""
    one.attempt()
    assert (counted(server), open_alerts(house)) == (list(range(1, number + 1)), [])


def test_what_is_older_than_the_bucket_keeps_holds_nothing_up(house: House, server: sim.Influx) -> None:
    server.unfit = lambda _: "points beyond retention policy dropped=1"
    report(house, 3)
    one = exporting(house, server.url)
    assert one.attempt() == sink.EVERY_S
    assert (position(house), one.told.refused) == (3, 3)


def test_a_batch_that_is_too_large_is_given_in_parts_and_the_next_ones_at_once(
    house: House, server: sim.Influx
) -> None:
    server.most_bytes = 4000
    report(house, 40)
    one = exporting(house, server.url)
    one.attempt()
    assert counted(server) == list(range(1, 41))
    before = len(server.asked)
    report(house, 5)
    one.attempt()
    assert (len(server.asked) - before, len(server.points)) == (1, 45)


class Refusing:
    """Takes no line that says so."""

    def __init__(self, *bad: str) -> None:
        self.bad, self.stored = bad, set[str]()

    def write(self, lines: Any) -> None:
        if len(lines) > 1 and any(one in self.bad for one in lines):
            raise delivery.Unfit("partial write")
        if lines[0] in self.bad:
            raise delivery.TooLarge("one line is too large")
        self.stored.update(lines)


def test_a_full_file_of_refused_points_holds_the_export_rather_than_losing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "FILE_BYTES", 60)
    to = Delivery(Refusing("b", "c"), tmp_path / "aside")
    assert [one.line for one in to.give(["a", "b"])] == ["b"]
    assert (tmp_path / "aside").read_text() == "# one line is too large\nb\n"
    with pytest.raises(Misled, match="is full"):
        to.give(["a", "b", "c"])
    assert (tmp_path / "aside").read_text() == "# one line is too large\nb\n"


def test_refused_points_that_cannot_be_kept_hold_the_export(tmp_path: Path) -> None:
    (tmp_path / "aside").mkdir()
    with pytest.raises(Misled, match="cannot be kept"):
        Delivery(Refusing("b"), tmp_path / "aside").give(["a", "b"])


def test_a_fault_of_the_hub_itself_is_an_alert_too(
    house: House, server: sim.Influx, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(house, 1)
    one = exporting(house, server.url)
    with monkeypatch.context() as patch:
        patch.setattr(sink, "lines", lambda *_: 1 / 0)
        assert one.attempt() == sink.FIRST_PAUSE_S
    assert ("ZeroDivisionError" in one.told.said, open_alerts(house)) == (True, [(progress.ALERT, "ticket")])
    one.attempt()
    assert (counted(server), open_alerts(house)) == ([1], [])


def test_a_hub_that_was_killed_before_it_moved_its_cursor_writes_the_same_points_again(
    house: House, server: sim.Influx, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(house, 20)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "advance", lambda *_: 1 / 0)
        exporting(house, server.url).attempt()
    assert (counted(server), position(house)) == (list(range(1, 21)), 0)
    report(house, 5)
    exporting(house, server.url).attempt()
    assert (counted(server), position(house)) == (list(range(1, 26)), 25)


def test_a_long_backlog_goes_in_batches_one_after_another(
    house: House, server: sim.Influx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "BATCH", 10)
    report(house, 25)
    one = exporting(house, server.url)
    assert [one.attempt() for _ in range(3)] == [0, 0, sink.EVERY_S]
    assert counted(server) == list(range(1, 26))


def test_the_sink_ends_at_once_even_while_a_server_keeps_it_waiting_and_then_moves_no_cursor(
    house: House, server: sim.Influx, until: Callable[..., None]
) -> None:
    report(house, 1)
    server.held.clear()
    one = exporting(house, server.url)
    one.start()
    until(lambda: server.asked, "the request")
    one.stop()
    assert one.is_alive()
    server.held.set()
    one.join(5)
    assert (position(house), counted(server)) == (0, [1])
    idle = exporting(house, server.url)
    idle.start()
    until(lambda: position(house) == 1, "the point")
    idle.stop(5)
    assert not idle.is_alive()


def test_counting_goes_on_while_a_server_keeps_the_sink_waiting(
    house: House, server: sim.Influx, until: Callable[..., None]
) -> None:
    report(house, 1)
    server.held.clear()
    one = exporting(house, server.url)
    threading.Thread(target=one.attempt).start()
    until(lambda: server.asked, "the request")
    report(house, 3)  # a transaction of telemetry.db
    house.tick()
    server.held.set()
    until(lambda: position(house) == 1, "the first point")


def test_a_database_that_fails_stops_nothing_for_good(house: House, server: sim.Influx) -> None:
    report(house, 1)
    one = exporting(house, server.url)
    with house.telemetry.begin() as connection:
        connection.execute(sa.text("ALTER TABLE cursors RENAME TO elsewhere"))
    assert one.attempt() == sink.EVERY_S
    with house.telemetry.begin() as connection:
        connection.execute(sa.text("ALTER TABLE elsewhere RENAME TO cursors"))
    one.attempt()
    assert (counted(server), position(house)) == ([1], 1)


def test_without_a_destination_nothing_waits_to_be_exported(house: House, server: sim.Influx) -> None:
    report(house, 1)
    server.answers.append(Answer(401))
    exporting(house, server.url).attempt()
    assert (position(house), len(open_alerts(house))) == (0, 1)
    stores = (house.control, house.telemetry)
    assert open_sink(None, *stores, house.place, house.conductor.roster.read, lambda: 0) is None
    assert (position(house), open_alerts(house)) == (None, [])
    with house.telemetry.connect() as connection:
        assert progress.progress(connection) is None


def test_progress_says_how_many_windows_wait_and_since_when(house: House, server: sim.Influx) -> None:
    one = exporting(house, server.url)
    with house.telemetry.connect() as connection:
        assert progress.progress(connection) == progress.Progress(0, 0, None, 0)
    report(house, 4)
    with house.telemetry.connect() as connection:
        oldest = connection.execute(sa.select(sa.func.min(telemetry.windows.c.arrived_ms))).scalar()
        assert progress.progress(connection) == progress.Progress(0, 4, oldest, 0)
    one.attempt()
    with house.telemetry.connect() as connection:
        assert progress.progress(connection) == progress.Progress(4, 0, None, 0)


def shorten(house: House) -> int:
    """How many windows retention leaves."""
    while device_hours.tick(house.telemetry) | house.tick():
        pass
    while retention.shorten(house.control, house.telemetry, house.now):
        pass
    with house.telemetry.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count(telemetry.windows.c.id))).scalar_one())


def test_retention_keeps_what_is_not_exported_for_two_weeks_and_then_says_what_was_lost(
    house: House, server: sim.Influx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 4)
    one = exporting(house, server.url)
    report(house, 10)
    one.attempt()
    report(house, 10)
    house.now += 13 * retention.DAY_MS
    assert shorten(house) == 10, "what was exported goes after a day"
    server.answers.append(Answer(503))
    one.attempt()
    house.now += progress.LATE_MS
    report(house, 5)
    server.answers.append(Answer(503))
    one.attempt()
    (alert,) = alerts.listed(house.control)
    assert (alert["severity"], "kept for 14 days" in alert["text"]) == ("page", True)
    house.now += retention.DAY_MS
    assert shorten(house) == 5
    server.answers.append(Answer(503))
    one.attempt()
    (alert,) = alerts.listed(house.control)
    assert "10 windows were older than 14 days and are lost" in alert["text"]
    one.attempt()
    assert counted(server) == [*range(1, 11), *range(21, 26)]
    with house.telemetry.connect() as connection:
        assert progress.progress(connection) == progress.Progress(25, 0, None, 10)


def test_an_old_window_of_a_device_that_was_long_away_is_exported_before_it_goes(
    house: House, server: sim.Influx
) -> None:
    one = exporting(house, server.url)
    house.window("pi-0", "1.0.0", start_ms=house.now - 30 * retention.DAY_MS)
    assert shorten(house) == 1
    one.attempt()
    assert (len(server.points), shorten(house)) == (1, 0)


@pytest.mark.parametrize("url", ["influx.example:8086", "ftp://x", "https://", "https://x/?org=a", "https://u:p@x/"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="--influx"):
        Destination(url, "acme", "edge")


def test_a_token_file_that_cannot_be_read_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere"):
        Destination("https://x", "acme", "edge", tmp_path / "nowhere")
    with pytest.raises(RequestError, match="--influx-bucket"):
        Destination("https://x", "acme", "")


def test_a_server_without_tls_at_an_https_address_is_away(server: sim.Influx) -> None:
    with pytest.raises(Away, match=r"(?i)ssl"):
        Influx(Destination(server.url.replace("http:", "https:"), "acme", "edge")).write(["a b=1i 1"])
