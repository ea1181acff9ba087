"""Whom a rollout leaves out, what later devices get and when, what downloads cost, and alerts that end."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from edgewright_contracts.desired import Probation
from edgewright_contracts.manifest import Budgets, FileRef, Manifest
from edgewright_contracts.package import Package
from edgewright_hub.rollouts import rollout
from edgewright_hub.rollouts.abilities import Kit, why_not
from edgewright_hub.rollouts.admission import comparing
from edgewright_hub.rollouts.downloads import Download, download
from edgewright_hub.rollouts.gates import GatePolicy
from edgewright_hub.rollouts.latecomers import free
from edgewright_hub.rollouts.specification import Experiment, Retries, Retry, RolloutSpec
from edgewright_hub.storage import control, telemetry
from sim.house import QUICK, House
from sim.rollouts import NEW, Script, everyone, names, started, step

FOUR = [f"pi-{i}" for i in range(4)]
CAN = {"hardware": {"arch": "aarch64", "ram_mb": 512}, "runtimes": {"onnxruntime": "1.20"}, "agent": "0.2.0"}
CANNOT = CAN | {"runtimes": {"tvm": "0.1"}}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Package]) -> House:
    """Four devices that have run 1.0.0 for a while."""
    return House(tmp_path_factory.mktemp("grown"), packages).settle(FOUR)


def _says(house: House, birth: dict[str, Any], *devices: str) -> None:
    house.now += 1
    with house.telemetry.begin() as connection:
        mine = telemetry.devices.update().where(telemetry.devices.c.device.in_(devices))
        connection.execute(mine.values(birth=birth, birth_ms=house.now))


def _manifest(packages: dict[str, Package], **more: Any) -> Manifest:
    return msgspec.structs.replace(packages["1.0.0"].manifest, **more)


# What devices can run.


@pytest.mark.parametrize(
    ("kit", "more", "reason"),
    [
        (Kit("aarch64", ("onnxruntime",), "0.2.0", 512), {}, ""),
        (Kit("aarch64", ("onnxruntime",)), {"requires_agent": "9", "budgets": Budgets(rss_mb=1e6)}, ""),
        (Kit("aarch64", ("tvm",)), {}, r"it has aarch64/tvm, there are variants for \*/onnxruntime"),
        (Kit("aarch64", ()), {}, "it has no runtime"),
        (Kit("aarch64", ("onnxruntime",), "0.2.0"), {"requires_agent": "0.2"}, ""),
        (Kit("aarch64", ("onnxruntime",), "0.9.1"), {"requires_agent": "0.10"}, "its agent is 0.9.1, expected 0.10"),
        (Kit("aarch64", ("onnxruntime",), "", 512), {"budgets": Budgets(rss_mb=700)}, "512 MB of memory, .* takes 700"),
    ],
)
def test_a_device_is_ruled_out_by_its_own_words_only(
    packages: dict[str, Package], kit: Kit, more: Any, reason: str
) -> None:
    said = why_not(_manifest(packages, **more), kit)
    assert re.search(reason, said) if reason else said == ""


def test_devices_that_cannot_run_a_release_are_left_out_of_plan_and_rollout_with_the_reason(house: House) -> None:
    _says(house, CAN, "pi-0", "pi-1", "pi-2")
    _says(house, CANNOT, "pi-3")
    spec = RolloutSpec(model="digits", version="2.0.0", gate=QUICK, window_s=5.0)
    plan = house.conductor.plan(spec, now_ms=house.now)
    name = house.start("2.0.0")
    seen = house.conductor.rollout(name)
    assert (plan["devices"], seen["devices_total"]) == (3, 3)
    (left_out,) = [one for one in plan["excluded"] if one["why"].startswith("cannot run it: it has aarch64/tvm")]
    assert seen["excluded"] == [left_out] == [{"why": left_out["why"], "n": 1, "devices": ["pi-3"]}]
    assert house.live(FOUR, 120, until="done")["outcome"] == "promoted"
    assert [house.version(d) for d in FOUR] == ["2.0.0"] * 3 + ["1.0.0"]


def test_a_device_takes_part_as_soon_as_it_can_run_the_release_and_no_longer_than_it_can(house: House) -> None:
    _says(house, CANNOT, "pi-3")
    name = house.start("2.0.0", stages=("100%",))
    _says(house, CANNOT, "pi-2")
    house.tick()
    assert [house.version(d) for d in FOUR] == ["2.0.0", "2.0.0", "1.0.0", "1.0.0"]
    _says(house, CAN, "pi-3")
    house.tick()
    house.tick()
    assert [house.version(d) for d in FOUR] == ["2.0.0", "2.0.0", "1.0.0", "2.0.0"]
    assert house.live(["pi-0", "pi-1", "pi-3"], 40, until="done")["outcome"] == "promoted"
    assert house.version("pi-2") == "1.0.0", "it is not given in the end what it cannot run"
    assert house.conductor.rollout(name)["excluded"] == []


def test_a_device_that_was_asked_is_put_off_when_it_says_that_it_cannot() -> None:
    spec = RolloutSpec(model="m", digest=NEW, stages=("100%",))
    state, _ = step(started(spec, 3), spec, everyone(started(spec, 3)), Script([]), 0)
    first = state.members.devices[0]
    cannot = np.array([device == first for device in state.members.devices])
    state, wishes = step(state, spec, everyone(state, unable=cannot), Script([]), 1000)
    assert names(state, "waiting") == [first]
    assert [(w.device, w.digest != NEW) for w in wishes] == [(first, True)], "and told to run what it had"


# What later devices get.


def test_a_later_device_gets_the_newest_release_that_it_can_run(house: House) -> None:
    house.start("2.0.0", stages=("100%",))
    house.live(FOUR, 40, until="done")
    house.enrol("new", "odd")
    _says(house, CAN, "new")
    _says(house, CANNOT, "odd")
    house.tick()
    assert (house.version("new"), house.version("odd")) == ("2.0.0", "")


def test_later_devices_keep_to_the_hours_and_the_caps_of_the_rollout_that_brought_the_release(house: House) -> None:
    minute = 60_000
    house.start("2.0.0", stages=("100%",), concurrency=2, device_timeout_s=600.0)
    house.live(FOUR, 60, until="done")
    house.enrol("a", "b", "c")
    house.tick()
    house.restart()
    first = house.now
    house.now += minute
    house.enrol("d")
    house.tick()
    assert [house.version(device) for device in "abcd"] == ["2.0.0", "2.0.0", "", ""]
    house.now = first + 10 * minute
    house.tick()
    documents = [house.wanted(device) for device in "abcd"]
    hours = [(one.models[0].not_before, one.models[0].not_after) for one in documents if one]
    second = first + 10 * minute
    assert hours == [(first, second), (first, second), (second, second + 10 * minute), (second, second + 10 * minute)]


@pytest.mark.parametrize(
    ("more", "begun", "expected"),
    [
        ({}, [0, 0, 0], None),
        ({"concurrency": 2, "device_timeout_s": 60.0}, [], 2),
        ({"concurrency": 2, "device_timeout_s": 60.0}, [0], 1),
        ({"concurrency": 2, "device_timeout_s": 60.0}, [-90_000, -10_000], 1),
        ({"concurrency": 2, "device_timeout_s": 60.0}, [-20_000, -10_000, -30_000], 0),
        ({"concurrency": 2, "device_timeout_s": 60.0}, [3600_000, 3600_000], 0),  # the hub's clock was put back
        ({"bandwidth_bytes_s": 100.0, "release_bytes": 1000}, [-9_999], 0),
        ({"bandwidth_bytes_s": 100.0, "release_bytes": 1000, "concurrency": 5}, [-10_000], 1),
    ],
)
def test_how_many_later_devices_may_begin_now(more: Any, begun: list[int], expected: int | None) -> None:
    assert free(RolloutSpec(model="m", digest=NEW, **more), begun, 0) == expected


# Bytes.


def test_a_device_downloads_its_variant_and_patches_for_what_it_has(packages: dict[str, Package]) -> None:
    files = packages["1.0.0"].manifest.files
    big = {path.replace("onnx-fp32", "big"): FileRef("b" * 64, 10**6) for path in files if "model" in path}
    new = _manifest(packages, files={**files, **big})
    shared = sum(file.size for path, file in files.items() if not path.startswith("variants/"))
    mine = sum(file.size for path, file in files.items() if path.startswith("variants/"))
    assert download(None, new, lambda *_: None, "onnx-fp32") == Download(shared + mine, shared + mine)
    assert download(None, new, lambda *_: None).full == shared + 10**6, "of a device that is not known the largest"
    old = _manifest(packages, files={path: FileRef("a" * 64, 1) for path in files if path.startswith("variants/")})
    patched = len([path for path in files if path.startswith("variants/")])
    assert download(old, new, lambda *_: 7, "onnx-fp32").delta == shared + 7 * patched
    assert download(new, new, lambda *_: 7, "onnx-fp32").delta == 0


def test_a_cap_on_bytes_counts_what_devices_will_download() -> None:
    spec = RolloutSpec(model="m", digest=NEW, stages=("100%",), bandwidth_bytes_s=10.0, release_bytes=600)
    state = started(spec, 8)
    costs = np.array([100.0, 300.0, 150.0, 600.0, 100.0, 100.0, 0.0, 100.0])
    state, wishes = step(state, spec, everyone(state, bytes=costs), Script([]), 0)
    assert len(wishes) == 3, "of 600 bytes"
    assert state.bucket == 50
    state, wishes = step(state, spec, everyone(state, bytes=costs), Script([]), 54_000)
    assert (len(wishes), state.bucket) == (0, 50), "none of which a part is left over goes before it"
    state, wishes = step(state, spec, everyone(state, bytes=costs), Script([]), 55_000)
    assert (len(wishes), state.bucket) == (1, 0)


def test_a_rollout_with_a_cap_knows_what_each_device_lacks(house: House) -> None:
    spec = RolloutSpec(model="digits", version="2.0.0", gate=QUICK, window_s=5.0, bandwidth_bytes_s=1.0)
    plan = house.conductor.plan(spec, now_ms=house.now)
    assert 0 < plan["bytes"]["delta"] <= plan["bytes"]["full"]
    house.start("2.0.0", stages=("100%",), bandwidth_bytes_s=1.0)
    house.tick()
    with house.control.connect() as connection:
        row = connection.execute(sa.select(control.rollouts).order_by(control.rollouts.c.created_ms.desc())).first()
    assert row is not None
    spent = row.spec["release_bytes"] - row.progress["bucket"]
    given = sum(house.version(device) == "2.0.0" for device in FOUR)
    assert spent == pytest.approx(given * plan["bytes"]["delta"] / 4)


@pytest.mark.parametrize(
    "caps",
    [{"bandwidth_bytes_s": 200.0}, {"concurrency": 1, "probation": Probation(windows=1)}],
    ids=["bytes", "turns"],
)
def test_a_plan_knows_how_long_the_caps_hold_a_release_up(house: House, caps: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"stages": (1, "100%"), "gate": GatePolicy(slow=None, label=None, soak_windows=2), **caps}
    spec = RolloutSpec(model="digits", version="2.0.0", window_s=5.0, **asked)
    plan = house.conductor.plan(spec, now_ms=house.now)
    house.start("2.0.0", **asked)
    began_ms = house.now
    assert house.live(FOUR, 200, until="done")["outcome"] == "promoted"
    assert (house.now - began_ms) / 1000 == pytest.approx(plan["expected_s"], rel=0.15, abs=10)
    assert plan["longest_s"] >= plan["expected_s"]


def test_the_longest_time_of_a_plan_is_of_devices_that_use_up_every_attempt(house: House) -> None:
    never = Retries(link=Retry(attempts=0), power=Retry(attempts=0), disk=Retry(attempts=0), hub=Retry(attempts=0))
    spec = RolloutSpec(
        model="digits", version="2.0.0", stages=(1, "100%"), concurrency=2, gate=QUICK, window_s=5.0, retry=never,
        device_timeout_s=60.0, probation=Probation(windows=1, max_s=30.0),
    )  # fmt: skip
    once = house.conductor.plan(spec, now_ms=house.now)
    tries = Retries(**{**msgspec.structs.asdict(never), "disk": Retry(attempts=1, first_s=300.0),
                       "link": Retry(attempts=3, first_s=10_000.0)})  # fmt: skip
    longest = house.conductor.plan(msgspec.structs.replace(spec, retry=tries), now_ms=house.now)
    assert longest["expected_s"] == once["expected_s"]
    batches, rests = 1 + 2, 10_000 + 20_000 + 6 * 3600
    assert longest["longest_s"] - once["longest_s"] == pytest.approx(3 * batches * 90 + 2 * rests)


# Experiments.


def test_an_outcome_that_an_experiment_ends_by_is_judged_even_if_nobody_said_how() -> None:
    named = Experiment(share="50%", outcome="pick_ok")
    spec = RolloutSpec(model="m", digest=NEW, experiment=named)
    assert comparing(spec).outcomes == {"pick_ok": GatePolicy().label}
    assert comparing(msgspec.structs.replace(spec, experiment=Experiment(share="50%", outcome="error"))) == spec.gate
    assert comparing(RolloutSpec(model="m", digest=NEW)) == GatePolicy()


# Alerts.


def _alerts(house: House) -> list[tuple[str, str, bool]]:
    a = control.alerts.c
    with house.control.connect() as connection:
        rows = connection.execute(sa.select(control.alerts).where(a.kind == "rollout").order_by(a.id)).all()
    return [(row.key, row.severity, row.open_key is None) for row in rows]


def _noted(house: House) -> list[str]:
    a = control.audit.c
    with house.control.connect() as connection:
        return list(connection.execute(sa.select(a.detail).where(a.what == "alert close").order_by(a.id)).scalars())


def test_the_page_of_a_harmful_release_ends_when_a_later_one_is_promoted_instead(house: House) -> None:
    name = house.start("2.0.0", stages=(1, "100%"))
    house.live(FOUR, 60, wrong=lambda v: 0.9 if v == "2.0.0" else 0.05, until="rolled-back")
    house.live(FOUR, 3)
    assert _alerts(house) == [(f"rollout:{name}", "page", False)], "that all devices are back puts nothing right"
    mended = make_later(house, "3.0.0")
    house.live(FOUR, 60, until="done")
    assert _alerts(house) == [(f"rollout:{name}", "page", True)]
    assert _noted(house) == [f"rollout:{name}: 3.0.0 was promoted to all that were given 2.0.0 (rollout {mended})"]


@pytest.mark.parametrize("change", [{"state": "retired"}, {"fleet": "yard"}])
def test_the_page_does_not_wait_for_a_device_that_has_left_since(house: House, change: dict[str, str]) -> None:
    name = house.start("2.0.0", stages=(1, "100%"), fleet="lab")
    house.live(FOUR, 60, wrong=lambda v: 0.9 if v == "2.0.0" else 0.05, until="rolled-back")
    (had,) = [d["device"] for d in house.conductor.rollout(name)["devices"] if d["stage"] is not None]
    with house.control.begin() as connection:
        connection.execute(control.devices.update().where(control.devices.c.id == had).values(**change))
    house.live(FOUR, 3)
    make_later(house, "3.0.0", fleet="lab")
    house.live([device for device in FOUR if device != had], 60, until="done")
    assert _alerts(house) == [(f"rollout:{name}", "page", True)]


def make_later(house: House, version: str, **more: Any) -> str:
    """Publish the first version again under another number, and start it."""
    package = house.packages["1.0.0"]
    with house.control.begin() as connection:
        row = {"name": "digits", "version": version, "digest": "d" * 64, "state": "allowed", "published_ms": house.now}
        connection.execute(control.packages.insert().values(**row, manifest=msgspec.to_builtins(package.manifest)))
    house.packages = {**house.packages, version: _Renamed(package, "d" * 64)}  # type: ignore[dict-item]
    house.edges[version] = house.edges["1.0.0"]
    return house.start(version, stages=("100%",), **more)


class _Renamed:
    def __init__(self, package: Package, digest: str) -> None:
        self.manifest, self.digest = package.manifest, digest


def test_the_ticket_of_an_experiment_that_was_taken_back_ends_when_all_are_back(house: House) -> None:
    name = house.start("2.0.0", stages=("50%", "100%"), experiment=Experiment(share="50%"))
    house.live(FOUR, 3)
    house.conductor.conclude(name, "take back", who="ann", now_ms=house.now)
    assert _alerts(house) == [(f"rollout:{name}", "ticket", False)]
    house.live(FOUR, 3, until="rolled-back")
    assert _alerts(house) == [(f"rollout:{name}", "ticket", True)]
    assert _noted(house) == [f"rollout:{name}: all devices are back"]


def test_a_rollout_that_cannot_be_judged_is_a_ticket_until_it_can(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = house.start("2.0.0")

    def breaks(*_: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(rollout, "step", breaks)
        house.tick()
        house.tick()
    assert _alerts(house) == [(f"rollout:{name}:still", "ticket", False)]
    house.live(FOUR, 1)
    assert _alerts(house) == [(f"rollout:{name}:still", "ticket", True)]
    assert _noted(house) == [f"rollout:{name}:still: it gets on"]
