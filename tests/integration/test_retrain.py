"""examples/retrain: from the hub's webhook to a candidate that waits for approval."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import socket
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgewright_compiler.keys import init_keys
from edgewright_hub.accuracy import retraining
from edgewright_hub.alerts import webhooks
from edgewright_hub.storage import control
from edgewright_models.digits import data as digits
from sim.house import House
from sim.packages import make_package

SECRET = "told once"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    place = Path(__file__).parents[2] / "examples" / "retrain" / "retrain.py"
    spec = importlib.util.spec_from_file_location("retrain_example", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def posted(example: ModuleType, what: str = "opened", kind: str = "retrain", *, at_s: int = 1000) -> dict | None:
    body = json.dumps({"what": what, "alert": {"kind": kind, "detail": {"model": "digits"}}}).encode()
    return example.trigger(body, webhooks.signature(SECRET, body, at_s), SECRET, 1010.0)


def test_only_the_hub_s_own_and_fresh_word_starts_a_training(example: ModuleType) -> None:
    assert posted(example) == {"model": "digits"}
    assert posted(example, what="closed") is None
    assert posted(example, kind="drift") is None
    with pytest.raises(ValueError, match="a moment ago"):
        posted(example, at_s=500)
    for signature in ("", "t=1000,v1=00", webhooks.signature("guessed", b"{}", 1000)):
        with pytest.raises(ValueError, match="expected a signature"):
            example.trigger(b"{}", signature, SECRET, 1010.0)


def sample(image: np.ndarray) -> bytes:
    out, array = io.BytesIO(), io.BytesIO()
    np.save(array, image)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("about.json", json.dumps({"model": "digits", "digest": "0" * 64}))
        archive.writestr("image.npy", array.getvalue())
    return out.getvalue()


def test_labelled_samples_join_the_training_rows_and_every_fifth_tests(example: ModuleType, tmp_path: Path) -> None:
    images, truths = digits.feed(np.random.default_rng(1), 11)
    names = [f"pi-0/{number:016x}.npz" for number in range(11)]
    (tmp_path / "pi-0").mkdir()
    for name, image in zip(names, images, strict=True):
        (tmp_path / name).write_bytes(sample(image))
    (tmp_path / "manifest.json").write_text(json.dumps({"samples": [{"file": name} for name in names]}))
    lines = [f"{name},{truth}\n" for name, truth in zip(names[:10], truths, strict=False)]
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(lines))
    field = example.labelled(tmp_path, tmp_path / "labels.csv")
    assert (field[0] == images[:10]).all()
    assert field[1].tolist() == truths[:10].tolist()
    settings = replace(example.digits.QUICK, reference_rows=100)
    made = example.recipe("1.0.1", field, settings)
    rows, before = made.data(), example.digits.rows(settings)
    assert (made.version, len(rows.train), len(rows.views[-1])) == ("1.0.1", len(before.train) + 8, 2)
    assert rows.fingerprint != before.fingerprint
    assert example.following("1.2.9") == "1.2.10"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(600)
def test_drift_leads_to_a_candidate_that_waits_for_approval(example: ModuleType, tmp_path: Path) -> None:
    owner, place = tmp_path / "owner", tmp_path / "data"
    init_keys(owner, now=datetime.now(UTC))
    command = [sys.executable, "-c", "from edgewright.main import main; main()", "hub", "serve", "--data", str(place)]
    ports = ["--https", "127.0.0.1:0", "--page", "127.0.0.1:0", "--mqtt", "127.0.0.1:0"]
    hub = subprocess.Popen([*command, *ports, "--trust", str(owner / "hub")], stdout=subprocess.PIPE, text=True)
    try:
        assert hub.stdout is not None
        assert hub.stdout.readline()
        house = House(place, {"1.0.0": make_package(tmp_path / "p", version="1.0.0")}, now=int(time.time() * 1000))
        house.publish_package("1.0.0")
        house.enrol("pi-0")
        images, truths = digits.feed(np.random.default_rng(1), 20, "sensor-noise")
        (place / "samples" / "pi-0").mkdir(parents=True)
        lines = ["file,label\n"]
        for number, (image, truth) in enumerate(zip(images, truths, strict=True)):
            (place / "samples" / "pi-0" / f"{number:016x}.npz").write_bytes(sample(image))
            lines.append(f"pi-0/{number:016x}.npz,{truth}\n")
        (tmp_path / "labels.csv").write_text("".join(lines))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        secret = webhooks.add(house.control, f"http://{address}/", who="ann", now_ms=house.now, kind="retrain")[
            "secret"
        ]
        heard: list[dict] = []
        listener = threading.Thread(target=lambda: heard.append(example.wait(address, secret)), daemon=True)
        listener.start()
        retraining.put(house.control, "digits", on_drift=True, max_age_days=None, who="ann", now_ms=house.now)
        row = {
            "scope": "device", "subject": "pi-0", "digest": house.packages["1.0.0"].digest[:16], "model": "digits",
            "variant": "onnx-fp32", "context": "", "part": "input", "verdict": "alarm", "since_ms": house.now,
            "state": {"channels": [{"name": "std", "js": 0.3}], "pages": True}, "updated_ms": house.now,
        }  # fmt: skip
        with house.control.begin() as connection:
            connection.execute(control.drift.insert().values(**row))
        retraining.tick(house.control, house.now)
        listener.join(60)  # the hub's own thread sends it
        options = argparse.Namespace(
            data=place, keys=owner, work=tmp_path / "work", labels=tmp_path / "labels.csv", device="x86-gateway",
            seed=0, formats=("onnx",),
        )  # fmt: skip
        example.retrain(
            heard[0], options, replace(example.digits.QUICK, distil=False, student=(16, 16, 16, 24), reference_rows=500)
        )
        with house.control.connect() as connection:
            rows = connection.execute(control.packages.select().where(control.packages.c.version == "1.0.1")).all()
        assert [(one.name, one.stage, one.state) for one in rows] == [("digits", "candidate", "allowed")]
    finally:
        hub.terminate()
        hub.communicate(timeout=10)
