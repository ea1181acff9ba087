"""What `edgewright fleet alerts | webhook | accuracy | labels | retrain | samples | collect` print and exit with."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from edgewright import fetching, hub_client
from edgewright.main import run
from edgewright_contracts.package import Package
from edgewright_hub.alerts import alerts
from edgewright_hub.fleet import tokens
from edgewright_hub.rollouts.conductor import Conductor
from edgewright_hub.web.api import Hub, now_ms
from edgewright_hub.web.app import device_app
from edgewright_hub.web.samples import Samples
from sim.house import House
from sim.packages import make_package


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    return {"1.0.0": make_package(tmp_path_factory.mktemp("packages") / "1", version="1.0.0")}


@pytest.fixture
def house(tmp_path: Path, packages: dict[str, Package]) -> Iterator[House]:
    one = House(tmp_path, packages)
    one.publish_package("1.0.0")
    one.enrol("pi-0", "pi-1")
    yield one
    one.control.dispose()
    one.telemetry.dispose()


@pytest.fixture
def hub(house: House, tmp_path: Path) -> Hub:
    def publish(device: str, kind: str, body: bytes, _retain: bool) -> None:
        if kind == "command" and device == "pi-0":
            command = json.loads(body)["id"]
            answer = {"model": "", "digest": "", "reason": f"answer to command {command}", "log": '{"disk": "ok"}'}
            house.event(device, "1.0.0", "collect", "collect", **answer)

    return Hub(
        control=house.control, telemetry=house.telemetry, registry=house.registry, authority=None,
        conductor=Conductor(house.control, house.telemetry, house.registry, publish), broker=("127.0.0.1", 1883),
        repo="", ails=list, open_to_read=False, samples=Samples(tmp_path / "samples"),
    )  # type: ignore[arg-type]  # fmt: skip


class Answer:
    def __init__(self, status: int, data: bytes) -> None:
        self.status, self.data = status, data


@pytest.fixture
def edgewright(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """The command line against the application itself, without a socket."""
    token = tmp_path / "token"
    token.write_text(tokens.grant(hub.control, role="admin", name="admin"))
    monkeypatch.setenv("COLUMNS", "80")
    with TestClient(device_app(hub), base_url="https://hub") as client:

        class Pool:
            def __init__(self, **_: Any) -> None: ...

            def request(
                self, method: str, url: str, *, body: bytes | None, headers: dict[str, str], timeout: object
            ) -> Answer:
                answer = client.request(method, url, content=body, headers=headers)
                return Answer(answer.status_code, answer.content)

        monkeypatch.setattr(hub_client.urllib3, "PoolManager", Pool)

        def call(*arguments: str) -> tuple[int, str, str]:
            code = run(["fleet", *arguments, "--hub", "https://hub", "--token-file", str(token)])
            said = capsys.readouterr()
            if len(arguments) <= 3 and "--json" not in arguments and arguments[-1].isalpha():  # what shows tables
                assert max(map(len, said.out.splitlines()), default=0) <= 80
            return code, said.out, said.err

        yield call


def test_alerts_are_shown_looked_at_and_closed(edgewright: Callable[..., tuple[int, str, str]], house: House) -> None:
    assert edgewright("alerts") == (0, "0 open, 0 of them pages that nobody has acknowledged\n", "")
    with house.control.begin() as connection:
        said = {"severity": "page", "kind": "drift", "subject": "pi-0", "text": "the input of pi-0 moved " * 5}
        alerts.open_alert(connection, "k", **said, now_ms=house.now)  # type: ignore[arg-type]
    code, out, _ = edgewright("alerts")
    assert (code, "page" in out, "1 open, 1 of them pages" in out) == (1, True, True)
    assert edgewright("alerts", "acknowledge", "1")[1].startswith("1 is looked at by admin: the input of pi-0")
    code, out, _ = edgewright("alerts", "--json")
    assert (code, json.loads(out)["pages"], json.loads(out)["open"]) == (0, 0, 1)
    assert edgewright("alerts", "close", "1")[0] == 0
    assert edgewright("alerts", "close", "1")[0] == 2
    assert json.loads(edgewright("alerts", "--all", "--json")[1])["alerts"][0]["closed_by"] == "admin"


def test_webhooks_are_added_tested_and_removed(edgewright: Callable[..., tuple[int, str, str]]) -> None:
    made = json.loads(edgewright("webhook", "add", "https://x.example/hook", "--pages-only", "--json")[1])
    assert edgewright("webhook", "test", str(made["id"]))[1] == "delivery 1 is on its way\n"
    code, out, _ = edgewright("webhook")
    assert (code, "pages" in out, made["secret"] in out) == (0, True, False)
    assert edgewright("webhook", "remove", str(made["id"]))[0] == 0
    assert edgewright("webhook", "add", "ftp://x")[0] == 2


def test_labels_are_imported_and_accuracy_is_shown(
    edgewright: Callable[..., tuple[int, str, str]], house: House, tmp_path: Path
) -> None:
    assert edgewright("accuracy") == (0, "nothing was counted yet\n", "")
    table = tmp_path / "qa.csv"
    table.write_text("device,model,version,outcome,n,hits\npi-0,digits,1.0.0,pick_ok,40,38\npi-9,digits,1.0.0,,1,1\n")
    code, out, _ = edgewright("labels", "import", str(table))
    assert (code, out.splitlines()[0]) == (0, "40 labels counted, 1 lines refused")
    assert "counted before" in edgewright("labels", "import", str(table))[1]
    assert "qa.csv" in edgewright("labels")[1]
    house.tick()
    code, out, _ = edgewright("accuracy", "--model", "digits")
    assert code == 0
    assert "pick_ok" in out
    assert "95.0% (83.5%" in out
    assert "expected, if what it has learnt still holds" in out
    assert "pick_ok" in edgewright("accuracy", "--select", "id=pi-0")[1]
    assert edgewright("accuracy", "--select", "id=pi-1")[1] == "nothing was counted yet\n"
    assert edgewright("accuracy", "--select", "site=moon")[0] == 1
    told = json.loads(edgewright("accuracy", "--json")[1])
    assert told["models"][0]["outcomes"]["pick_ok"]["hits"] == 38
    table.write_text("device,value\npi-0,1\n")
    code, _, err = edgewright("labels", "import", str(table))
    assert (code, "expected a digest" in err) == (1, True)


def test_a_policy_says_when_to_train_again(edgewright: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = edgewright(
        "retrain", "digits", "--on-drift", "--max-age-days", "90", "--webhook", "https://x.example/"
    )
    assert (code, out.splitlines()[0]) == (0, "digits: drift or an age of 90 days asks for training")
    assert json.loads(edgewright("retrain", "--json")[1])["policies"][0]["max_age_days"] == 90
    assert json.loads(edgewright("webhook", "--json")[1])["webhooks"][0]["kind"] == "retrain"
    assert edgewright("retrain", "digits")[0] == 2
    assert edgewright("retrain", "digits", "--never")[0] == 0
    assert "0 models have a policy" in edgewright("retrain")[1]


def sample(model: str, value: Any = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.json", json.dumps({"model": model, "digest": "0" * 64, "prediction": 7}))
        array = io.BytesIO()
        np.save(array, np.zeros((8, 8), np.uint8) if value is None else value, allow_pickle=True)
        archive.writestr("image.npy", array.getvalue())
    return out.getvalue()


def test_samples_are_requested_listed_and_exported_with_what_they_are(
    edgewright: Callable[..., tuple[int, str, str]], hub: Hub, tmp_path: Path
) -> None:
    code, out, _ = edgewright("samples", "request", "id=pi-*", "--count", "3", "--reason", "odd inputs")
    assert (code, out.startswith("request 1: 2 devices, 3 of each model within 24 h")) == (0, True)
    assert edgewright("samples", "request", "pi-7", "--reason", "odd inputs")[0] == 2
    assert hub.samples is not None
    hub.samples.keep("pi-0", "0" * 16, sample("digits"))
    hub.samples.keep("pi-1", "1" * 16, sample("words"))
    code, out, _ = edgewright("samples", "list")
    assert (code, "odd inputs" in out, "2 samples" in out) == (0, True, True)
    place = tmp_path / "out"
    assert edgewright("samples", "export", "--out", str(place), "--model", "digits")[0] == 0
    (one,) = json.loads((place / "manifest.json").read_text())["samples"]
    assert (one["device"], one["model"], one["prediction"]) == ("pi-0", "digits", 7)
    assert np.load(place / one["file"])["image"].shape == (8, 8)
    hub.samples.keep("pi-1", "2" * 16, sample("digits", np.array([{}], object)))
    code, out, _ = edgewright("samples", "export", "--out", str(place))
    assert (code, "2 samples in" in out, "arrays without objects" in out) == (1, True, True)


@pytest.mark.parametrize("data", [b"PK\x03\x04 nothing", sample("digits")[:-30]])
def test_a_damaged_sample_is_not_kept(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        fetching.verified(data)


def test_a_sample_that_unpacks_to_too_much_is_not_kept() -> None:
    with pytest.raises(ValueError, match="at most 1048576 bytes"):
        fetching.verified(sample("digits", np.zeros(2 << 20, np.uint8)))


def test_a_device_is_asked_what_ails_it(
    edgewright: Callable[..., tuple[int, str, str]], hub: Hub, tmp_path: Path
) -> None:
    code, out, _ = edgewright("collect", "pi-0")
    assert (code, json.loads(out)) == (0, {"disk": "ok"})
    assert edgewright("collect", "pi-0", "--out", str(tmp_path / "said.json"))[0] == 0
    assert json.loads(edgewright("collect", "pi-0", "--newest")[1]) == {"disk": "ok"}
    code, _, err = edgewright("collect", "pi-1", "--wait", "0")
    assert (code, "has not answered within 0 s: it is under way, for 24.0 more hours" in err) == (3, True)
    code, _, err = edgewright("collect", "pi-1", "--newest")
    assert (code, "pi-1 has answered nothing yet" in err) == (2, True)
    hub.conductor.orders.tick(now_ms())
    code, out, _ = edgewright("collect")
    assert (code, "under way" in out, "arrived" in out, "1 of 3 are open" in out) == (0, True, True, True)
