"""Labels of devices and of tables are counted once, last, and give accuracy by version, fleet and context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.binning import pack
from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.package import Package
from edgewright_hub import retention
from edgewright_hub.accuracy import doubt, imports, labels, reader
from edgewright_hub.accuracy.packages import Packages
from edgewright_hub.alerts import alerts
from edgewright_hub.ingest import device_hours
from edgewright_hub.registry.registry import Registry
from edgewright_hub.storage import control, telemetry
from edgewright_hub.storage.histograms import cells_bytes
from edgewright_hub.web import pages
from edgewright_hub.web.api import Hub
from sim.house import HOUR, House, draw_cells


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> Iterator[House]:
    one = House(tmp_path, packages)
    for version in packages:
        one.publish_package(version)
    one.enrol("pi-0", "pi-1")
    one.enrol("cam-0", fleet="dock")
    yield one
    one.control.dispose()
    one.telemetry.dispose()


def known(house: House) -> Packages:
    return Packages(house.control, house.registry.blobs)


def tenths(**n_hits: tuple[int, int]) -> bytes:
    """`correct_by_confidence` from t9=(n, hits) and so on."""
    out = np.zeros((2, 10), np.int64)
    for name, pair in n_hits.items():
        out[:, int(name[1:])] = pair
    return pack(out.ravel())


def read(house: House, **more: Any) -> dict[str, Any]:
    while labels.tick(house.control, house.telemetry):
        pass
    return reader.read(house.control, house.telemetry, known(house), now_ms=house.now, **more)


def roll(house: House, version: str, cohort: str, n: int, context: str = "") -> np.ndarray:
    """An hour of a cohort, with confidences as in the package's reference."""
    package = house.packages[version]
    cells = draw_cells(package, n, house.rng)
    base = decode_baseline(package.read("variants/onnx-fp32/baseline.msgpack"))
    at = next(one.at for one in known(house).known.values() if one.version == version)
    assert at is not None
    cells[at + 21] = int(((np.arange(20) + 0.8) / 20 * 4096 * cells[at : at + 20]).sum())
    row = {
        "tier_s": 3600, "t0_ms": house.now - house.now % HOUR, "cohort": cohort, "digest": package.digest[:16],
        "variant": "onnx-fp32", "context": context, "edge_hash": base.edge_hash, "phase": "normal", "windows": 1,
        "n": n, "n_monitored": n, "errors": 0, "rejected": 0, "labels_n": 0, "labels_wrong": 0, "latency_total": b"",
        "cells": cells_bytes(cells),
    }  # fmt: skip
    with house.telemetry.begin() as connection:
        connection.execute(telemetry.rollups.insert().values(**row))
    return cells[at : at + 22]


def test_accuracy_is_told_of_models_and_of_each_version_fleet_and_context(house: House) -> None:
    mine = roll(house, "1.0.0", "lab", 4000)
    roll(house, "1.0.0", "lab", 1000, context="night")
    roll(house, "2.0.0", "dock", 2000)
    (model,) = read(house)["models"]
    assert model["model"] == "digits"
    assert model["expected"]["n"] == 7000
    assert [(s["version"], s["cohort"], s["context"], s["expected"]["n"]) for s in model["slices"]] == sorted(
        [("1.0.0", "lab", "", 4000), ("1.0.0", "lab", "night", 1000), ("2.0.0", "dock", "", 2000)],
        key=lambda s: (house.packages[s[0]].digest, s[1:]),
    )
    first = next(s for s in model["slices"] if (s["version"], s["context"]) == ("1.0.0", ""))["expected"]
    assert first["value"] == pytest.approx(mine[21] / 4096 / 4000)
    assert first["low"] < first["value"] < first["high"]
    assert first["holds"] == "no labels with confidence"
    (only,) = read(house, fleet="lab", context="night")["models"]
    assert only["expected"]["n"] == 1000
    assert read(house, model="words")["models"] == []
    json.dumps(read(house))


def test_accuracy_of_chosen_devices_is_that_of_their_reports_and_labels(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = house.packages["1.0.0"]
    at = next(one.at for one in known(house).known.values() if one.version == "1.0.0")
    assert at is not None
    for device, sure in (("pi-0", 0.95), ("pi-1", 0.65)):
        for age in (0, 30 * HOUR):
            cells = draw_cells(package, 200, house.rng)
            cells[at : at + 22] = 0
            cells[at + int(sure * 20)], cells[at + 21] = 200, round(200 * sure * 4096)
            labelled = {"labels_n": 10, "outcomes": {"correct": [10, 10]}, "confidence": tenths(t9=(10, 10))}
            more = labelled if device == "pi-0" and not age else {}
            house.window(device, "1.0.0", n=200, n_monitored=200, cells=cells, start_ms=house.now - age, **more)
    (one,) = read(house, devices={"pi-1"})["models"]
    assert (one["expected"]["n"], one["labelled"]) == (200, None)
    assert one["expected"]["confidence"] == pytest.approx(0.65, abs=1e-3)
    (both,) = read(house, devices={"pi-0", "pi-1", "nobody"})["models"]
    assert (both["expected"]["n"], both["labelled"]["n"], both["slices"][0]["cohort"]) == (400, 10, "lab")
    assert both["expected"]["confidence"] == pytest.approx(0.80, abs=1e-3)
    assert read(house, devices=set())["models"] == []
    with pytest.raises(RequestError, match="kept for 24 hours, got 25; or name a fleet"):
        read(house, devices={"pi-0"}, hours=25)
    monkeypatch.setattr(reader, "REPORTS", 1)
    with pytest.raises(RequestError, match="at most 1 reports"):
        read(house, devices={"pi-0", "pi-1"})


def test_drift_stands_beside_the_accuracy_that_it_makes_doubtful(house: House) -> None:
    roll(house, "1.0.0", "lab", 4000)
    roll(house, "2.0.0", "dock", 4000)
    row = {
        "scope": "device", "subject": "pi-0", "digest": house.packages["1.0.0"].digest[:16], "model": "digits",
        "variant": "onnx-fp32", "context": "", "part": "embedding", "verdict": "alarm", "since_ms": 1, "state": {},
        "updated_ms": 1,
    }  # fmt: skip
    with house.control.begin() as connection:
        connection.execute(control.drift.insert().values(**row))
    drift = {one["version"]: one["drift"] for one in read(house)["models"][0]["slices"]}
    assert drift == {"1.0.0": ["embedding"], "2.0.0": []}


def test_labels_of_devices_are_counted_once_and_stay_when_their_windows_go(house: House) -> None:
    roll(house, "1.0.0", "lab", 4000)
    for device in ("pi-0", "pi-1"):
        house.window(device, "1.0.0", labels_n=100, labels_wrong=40,
                     outcomes={"correct": [100, 60], "pick_ok": [50, 45]}, confidence=tenths(t9=(100, 60)))  # fmt: skip
    house.window("pi-0", "1.0.0", phase="shadow", labels_n=100, outcomes={"correct": [100, 0]})
    before = read(house)
    with house.telemetry.begin() as connection:
        connection.execute(telemetry.windows.delete())
    assert read(house) == before
    (model,) = before["models"]
    assert (model["labelled"]["n"], model["labelled"]["hits"], model["labelled"]["devices"]) == (200, 120, 2)
    assert model["outcomes"]["pick_ok"]["value"] == 0.9
    expected = model["slices"][0]["expected"]
    assert expected["holds"] == "disagrees", "it was sure, and wrong in two of five"
    assert expected["value"] < expected["confidence"] - 0.1
    doubt.tick(house.control, house.telemetry, house.registry.blobs, house.now)
    (alert,) = alerts.listed(house.control)
    assert alert["text"].startswith("labels of 30 days say that digits 1.0.0 in lab is right in 60% of 200")
    doubt.tick(house.control, house.telemetry, house.registry.blobs, house.now + 31 * 24 * HOUR)
    assert alerts.listed(house.control) == [], "labels of a month ago say nothing"
    house.window("pi-0", "1.0.0", labels_n=1, outcomes={"correct": [1, 1]})
    assert read(house)["models"][0]["labelled"]["n"] == 201


def test_a_table_is_counted_once_and_reaches_gates_and_accuracy_like_labels_of_devices(house: House) -> None:
    digest = house.packages["1.0.0"].digest
    table = (
        "device,digest,model,version,outcome,value,label,predicted,n,hits,confidence\n"
        f"pi-0,{digest},,,,true,,,,,0.95\n"
        "pi-0,,digits,1.0.0,,,3,8,,,0.95\n"
        "cam-0,,digits,2.0.0,pick_ok,,,,40,38,\n"
    ).encode()
    told = imports.take(house.control, house.telemetry, known(house), table, "qa.csv", who="ann", now_ms=house.now)
    assert told == (42, 0, [], False)
    again = imports.take(house.control, house.telemetry, known(house), table, "b.csv", who="ann", now_ms=house.now + 9)
    assert (again.counted, again.already) == (42, True)
    with house.telemetry.connect() as connection:
        rows = connection.execute(sa.select(telemetry.windows).order_by(telemetry.windows.c.id)).all()
    assert [(r.device, r.n, r.labels_n, r.labels_wrong, r.placed) for r in rows] == [
        ("cam-0", 0, 0, 0, "import"),
        ("pi-0", 0, 2, 1, "import"),
    ]
    assert rows[1].confidence == tenths(t9=(2, 1))
    house.tick()
    by_version = {s["version"]: s for s in read(house)["models"][0]["slices"]}
    assert by_version["1.0.0"]["labelled"]["hits"] == 1
    assert by_version["2.0.0"]["outcomes"]["pick_ok"]["n"] == 40
    assert (by_version["2.0.0"]["cohort"], by_version["2.0.0"]["expected"]) == ("dock", None)
    with house.control.connect() as connection:
        assert set(connection.execute(sa.select(control.label_counts.c.source)).scalars()) == {"import"}
    (imported,) = imports.listed(house.control)
    assert (imported["name"], imported["who"], imported["counted"]) == ("qa.csv", "ann", 42)
    house.now += 26 * HOUR
    device_hours.tick(house.telemetry)
    retention.shorten(house.control, house.telemetry, house.now)
    with house.telemetry.connect() as connection:
        assert connection.execute(sa.select(sa.func.count(telemetry.windows.c.id))).scalar() == 0
    by_version = {s["version"]: s for s in read(house)["models"][0]["slices"]}
    assert (by_version["1.0.0"]["labelled"]["n"], by_version["2.0.0"]["outcomes"]["pick_ok"]["n"]) == (2, 40)


def test_labels_without_confidence_are_a_rate_and_not_said_to_be_absent(house: House) -> None:
    roll(house, "1.0.0", "lab", 4000)
    for confidence, said in ((b"", "no labels with confidence"), (tenths(t9=(9, 9)), "too few labels with confidence")):
        house.window("pi-0", "1.0.0", labels_n=50, outcomes={"correct": [50, 45]}, confidence=confidence)
        (model,) = read(house)["models"]
        assert (model["labelled"]["value"], model["expected"]["holds"]) == (0.9, said)


def test_a_time_says_which_package_answered_and_a_doubtful_hour_is_refused(house: House) -> None:
    hour = house.now - house.now % HOUR
    rows = [("pi-0", hour - HOUR, "1.0.0"), ("pi-0", hour, "1.0.0"), ("pi-0", hour, "2.0.0")]
    zeros = ("windows", "n", "n_monitored", "errors", "rejected", "labels_n", "labels_wrong", "repeated", "shadow_n")
    with house.telemetry.begin() as connection:
        for device, t0_ms, version in rows:
            connection.execute(
                telemetry.device_hours.insert().values(
                    device=device, t0_ms=t0_ms, digest=house.packages[version].digest[:16], variant="onnx-fp32",
                    context="", phase="normal", **dict.fromkeys((*zeros, "shadow_agree"), 0), latency_total=b"",
                )
            )  # fmt: skip
    house.now -= 60_000
    house.event("pi-1", "2.0.0", "probation", "commit")
    lines = [
        {"device": "pi-0", "model": "digits", "time": (hour - 1000) / 1000, "value": 1},
        {"device": "pi-0", "model": "digits", "time": hour + 1000, "value": 1},
        {"device": "pi-1", "model": "digits", "time": house.now + 1000, "value": 0},
        {"device": "pi-1", "model": "digits", "time": "2001-01-01", "value": 0},
    ]
    table = "\n".join(json.dumps(line) for line in lines).encode()
    told = imports.take(house.control, house.telemetry, known(house), table, "q", who="ann", now_ms=house.now)
    assert (told.counted, told.refused) == (2, 2)
    assert told.reasons[0].startswith("1 lines, the first is 2: the device ran several packages")
    by_version = {s["version"]: s["labelled"]["n"] for s in read(house)["models"][0]["slices"]}
    assert by_version == {"1.0.0": 1, "2.0.0": 1}


UNCOUNTABLE = [
    ("device,model,version,value\nnobody,digits,1.0.0,1", "no device of this hub"),
    ("device,value\npi-0,1", "expected a digest, a model and version"),
    ("device,model,version,label\npi-0,digits,1.0.0,3", "a label alone: the hub never saw the answer"),
    ("device,model,version,value\npi-0,digits,1.0.0,maybe", "expected a value of true or false"),
    ("device,model,version,n,hits\npi-0,digits,1.0.0,3,4", "expected n and hits"),
    ("device,model,version,n,hits\npi-0,digits,1.0.0,x,4", "expected n and hits"),
    ("device,model,version,value\npi-0,digits,9,1", "digits 9 is not in the registry"),
    ("device,digest,value\npi-0,0123456789abcdef,1", "no package of this hub has this digest"),
    ("device,model,version,variant,value\npi-0,digits,1.0.0,int8,1", "no variant int8, but onnx-fp32"),
    ("device,model,version,value,confidence\npi-0,digits,1.0.0,1,7", "expected a confidence from 0 to 1"),
    ("device,model,time,value\npi-0,digits,noon,1", "expected a time as"),
    ("device,model,version,outcome,value\npi-0,digits,1.0.0,ä,1", "expected an outcome"),
    ("device,model,version,value\n", "it has none"),
]


def test_what_cannot_be_counted_is_refused_with_the_reason(house: House) -> None:
    for fields, why in UNCOUNTABLE:
        with pytest.raises(Refused, match=why):
            imports.take(
                house.control, house.telemetry, known(house), fields.encode(), "t", who="ann", now_ms=house.now
            )
    assert imports.listed(house.control) == []


def test_what_is_no_table_is_a_wrong_request(house: House) -> None:
    for data in (b"\xff\xfe\x00", b"who,what\n1,2"):
        with pytest.raises(RequestError, match="expected"):
            imports.take(house.control, house.telemetry, known(house), data, "t", who="ann", now_ms=house.now)


def test_a_table_that_cannot_be_read_is_a_wrong_request_that_names_the_line(house: House) -> None:
    good = "pi-0,digits,1.0.0,true\r\n"
    for bad, line in (('pi-0,digits,1.0.0,"true\n' + good * 9, 4), ('"pi-0"x,digits,1.0.0,1\n', 4), ("a" * 200_000, 4)):
        data = f'device,model,version,value\n"pi-0",digits,1.0.0,"tr\nue"\n{bad}'.encode()
        with pytest.raises(RequestError, match=rf"^line {line}: expected cells of CSV"):
            imports.take(house.control, house.telemetry, known(house), data, "t", who="ann", now_ms=house.now)
    with pytest.raises(RequestError, match=r"^line 1: expected cells"):
        imports.take(house.control, house.telemetry, known(house), b'"device,value\n', "t", who="ann", now_ms=house.now)
    assert imports.listed(house.control) == []


def test_a_line_of_json_that_cannot_be_read_keeps_no_other_from_being_counted(house: House) -> None:
    good = json.dumps({"device": "pi-0", "model": "digits", "version": "1.0.0", "value": True})
    lists = good[:-1] + ', "context": ' + "[" * 300 + "]" * 300 + "}"
    data = "\n".join([good, '{"device": ' + "[" * 100_000, good, '{"device": ', "[1]", lists]).encode()
    told = imports.take(house.control, house.telemetry, known(house), data, "t", who="ann", now_ms=house.now)
    assert (told.counted, told.refused) == (2, 4)
    assert told.reasons == [
        "3 lines, the first is 2: nothing in it can be read: expected cells, or an object of JSON",
        "1 lines, the first is 6: expected words and numbers, got a list or an object as context",
    ]


class Quiet(Registry):
    """A registry whose signatures last."""

    def warning(self, *, now: datetime) -> str | None:
        return None


def test_the_page_shows_alerts_and_accuracy_and_escapes_them(house: House) -> None:
    roll(house, "1.0.0", "lab", 4000)
    house.window("pi-0", "1.0.0", labels_n=1, outcomes={"correct": [1, 1], "<b>ok": [40, 38]})
    labels.tick(house.control, house.telemetry)
    with house.control.begin() as connection:
        said = {"severity": "page", "kind": "drift", "subject": "pi-0", "text": "<i>moved"}
        alerts.open_alert(connection, "k", **said, now_ms=house.now)  # type: ignore[arg-type]
    hub = Hub(
        control=house.control, telemetry=house.telemetry, authority=None, conductor=house.conductor,
        registry=Quiet(house.place / "repo", house.place / "keys", house.control),
        broker=("127.0.0.1", 1883), repo="", ails=list, open_to_read=True,
    )  # type: ignore[arg-type]  # fmt: skip
    html = pages.render(hub, house.now)
    assert "&lt;i&gt;moved" in html
    assert "&lt;b&gt;ok 95.0 % (83.5–98.6)" in html
    assert "expected, if what it has learnt still holds" in html
