"""Trains a model again when the hub asks for it: a webhook, consented samples, a data set, a package, a candidate.

    edgewright fleet retrain digits --on-drift --webhook http://127.0.0.1:9000/      prints the secret
    python examples/retrain/retrain.py --listen 127.0.0.1:9000 --secret-file secret --labels labels.csv \\
        --data hub-data --keys owner --work retrained

1. The hub posts an alert of kind `retrain`: which model, what drifted since when, in which channels. Whoever posts
   without the webhook's secret, or what was posted minutes ago, is not believed.
2. The samples that devices sent, where their owners consented, are exported. A sample has no label: people give them,
   in labels.csv (`file,label`, file as in the export's manifest.json). What nobody has labelled is left out.
3. Four of five join the training rows; every fifth is a test of its own, `field`, in the package's figures.
4. The recipe compiles as ever, with the next version number: accuracy may not drop, on the old test rows either.
5. The package is published as a candidate. Nothing reaches a device until a person says `edgewright registry approve`,
   and then a rollout with its gates begins.

This one trains digits; copy it, and put your own recipe in `recipe`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import hmac
import json
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from edgewright_compiler.compilation import compile_recipe
from edgewright_compiler.recipe import Recipe
from edgewright_compiler.rows import Data, Labelled
from edgewright_devices import load
from edgewright_models.digits import recipe as digits

BODY_BYTES = 1 << 20
OLD_S = 300.0
Field = tuple[np.ndarray, np.ndarray]  # images uint8[n, 8, 8], labels int64[n]


def trigger(body: bytes, signature: str, secret: str, now_s: float) -> dict[str, Any] | None:
    """What is to be trained and why; None of another alert. Raises ValueError for what did not come from the hub."""
    said = dict(part.partition("=")[::2] for part in signature.split(","))
    right = hmac.new(secret.encode(), f"{said.get('t', '')}.".encode() + body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(said.get("v1", ""), right) or abs(now_s - int(said["t"])) > OLD_S:
        raise ValueError("expected a signature with this webhook's secret, made a moment ago")
    told = json.loads(body)
    alert = told["alert"] or {}
    return alert["detail"] if told["what"] == "opened" and alert.get("kind") == "retrain" else None


def labelled(samples: Path, labels: Path) -> Field:
    """The exported samples that somebody has labelled."""
    with labels.open(newline="") as lines:
        known = {row["file"]: int(row["label"]) for row in csv.DictReader(lines)}
    names = [one["file"] for one in json.loads((samples / "manifest.json").read_text())["samples"]]
    chosen = [name for name in names if name in known]
    images = [np.load(samples / name, allow_pickle=False)["image"] for name in chosen]
    return np.array(images, np.uint8).reshape(-1, 8, 8), np.array([known[name] for name in chosen], np.int64)


def following(version: str) -> str:
    """The next version number: 1.1.0 → 1.1.1."""
    first, _, last = version.rpartition(".")
    return f"{first}.{int(last) + 1}"


def recipe(version: str, field: Field, settings: digits.Settings) -> Recipe:
    """The digits recipe, with what was seen in the field."""
    images, truths = field
    mark = hashlib.sha256(images.tobytes() + truths.tobytes()).hexdigest()
    told = np.arange(len(truths)) % 5 == 4

    def data() -> Data:
        rows = digits.rows(settings)
        train = Labelled(
            "train",
            {"image": np.concatenate((rows.train.inputs["image"], images[~told]))},
            np.concatenate((rows.train.labels, truths[~told])),
        )
        views = (*rows.views, Labelled("field", {"image": images[told]}, truths[told])) if told.any() else rows.views
        notes = (*rows.notes, f"Trained again with {int((~told).sum())} labelled samples of devices.")
        fingerprint = hashlib.sha256(f"{rows.fingerprint} {mark}".encode()).hexdigest()
        return replace(rows, train=train, views=views, notes=notes, fingerprint=fingerprint)

    base = digits.recipe(settings)
    sources = (*base.sources, Path(__file__))
    return replace(base, version=version, data=data, source=f"{base.source} {mark}", sources=sources)


def retrain(detail: dict[str, Any], options: argparse.Namespace, settings: digits.Settings) -> dict[str, Any]:
    """From what the hub said to a candidate that waits for approval; what was published."""
    samples = options.work / "samples"
    edgewright(
        "fleet", "samples", "export", "--model", detail["model"], "--out", str(samples), "--data", str(options.data)
    )
    field = labelled(samples, options.labels)
    if not len(field[1]):
        raise SystemExit(f"no sample of {detail['model']} in {samples} is labelled in {options.labels}")
    version = following(detail["version"])
    print(f"training {detail['model']} {version} with {len(field[1])} samples, because of {detail['reason']}")
    out = options.work / f"{detail['model']}-{version}"
    compile_recipe(
        recipe(version, field, settings), load(options.device), out, seed=options.seed, now=datetime.now(UTC),
        progress=lambda _stage, _share: None, work=options.work / "work", formats=options.formats,
    )  # fmt: skip
    hub = json.loads((options.data / "hub.json").read_text())["https"]
    where = ("--hub", hub, "--ca", str(options.data / "ca.pem"), "--token-file", str(options.data / "admin.token"))
    return edgewright("publish", str(out), *where, "--keys", str(options.keys), "--candidate")


def edgewright(*arguments: str) -> dict[str, Any]:
    """The answer of a command that takes --json. Ends with its status when it fails."""
    done = subprocess.run([sys.executable, "-m", "edgewright", *arguments, "--json"], stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def wait(listen: str, secret: str) -> dict[str, Any]:
    """Listen until the hub asks for a training. It is answered first: it waits for five seconds only."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), BODY_BYTES))
            try:
                detail = trigger(body, self.headers.get("X-Edgewright-Signature", ""), secret, time.time())
            except (ValueError, KeyError, TypeError):
                self.send_response(403)
            else:
                self.send_response(204)
                asked.extend([detail] if detail else [])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    host, _, port = listen.rpartition(":")
    with HTTPServer((host, int(port)), Handler) as server:
        while not asked:
            server.handle_request()
    return asked[0]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:9000", help="HOST:PORT for the hub's webhook")
    parser.add_argument("--secret-file", type=Path, required=True, help="what `fleet retrain --webhook` printed")
    parser.add_argument("--labels", type=Path, required=True, help="CSV with file,label of samples")
    parser.add_argument("--data", type=Path, default=Path("hub-data"), help="the hub's directory")
    parser.add_argument("--keys", type=Path, required=True, help="the owner's keys")
    parser.add_argument("--work", type=Path, default=Path("retrained"))
    parser.add_argument("--device", default="raspberry-pi-4")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments, argparse.Namespace(formats=("onnx", "tflite")))
    detail = wait(options.listen, options.secret_file.read_text().strip())
    print(json.dumps(retrain(detail, options, digits.Settings())))
    print("it waits for `edgewright registry approve`")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
