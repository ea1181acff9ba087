"""Old bytes stay readable, and today's code writes the bytes that it wrote when their fields were decided."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgewright_contracts import baseline, birth, desired, event, manifest, report
from edgewright_contracts.channels import edge_hash
from edgewright_contracts.codec import REPORT_BYTES
from edgewright_contracts.packing import plain as unpacked
from sim.reports import encode_report

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(path for path in GOLDEN.glob("v*/*") if path.is_file())
NEWEST = max(path.parent.name for path in FILES)
TASKS = ("classification", "multilabel", "detection", "regression", "anomaly", "embedding")

# the end of a file's name → how it is read and written
CODECS: dict[str, tuple[Callable[[bytes], msgspec.Struct], Callable[..., bytes]]] = {
    "manifest.json": (manifest.decode_manifest, manifest.encode_manifest),
    "baseline.msgpack": (baseline.decode_baseline, baseline.encode_baseline),
    "report.msgpack": (report.decode_report, encode_report),
    "report.zlib": (report.decode_report, lambda r: encode_report(r, compress=True)),  # of version 1.0
    "report.packed": (report.decode_report, lambda r: encode_report(r, compress=True)),
    "window.msgpack": (report.decode_window, report.encode_window),
    "birth.json": (birth.decode_birth, birth.encode),
    "status.json": (birth.decode_status, birth.encode),
    "desired.json": (desired.decode_desired, desired.encode),
    "command.json": (desired.decode_command, desired.encode),
    "ack.msgpack": (desired.decode_ack, desired.encode_ack),
    "ack-of-birth.msgpack": (desired.decode_ack, desired.encode_ack),
    "event.json": (event.decode_event, event.encode_event),
}


def plain(name: str, data: bytes) -> bytes:
    return unpacked(data, name=name, limit=REPORT_BYTES) if name.endswith((".zlib", ".packed")) else data


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_a_golden_message_is_read_and_the_newest_are_written_to_the_same_bytes(path: Path) -> None:
    decode, encode = CODECS[re.sub(rf"^({'|'.join(TASKS)})\.", "", path.name)]
    message = decode(path.read_bytes())
    assert decode(encode(message)) == message
    if path.parent.name == NEWEST:
        assert plain(path.name, encode(message)) == plain(path.name, path.read_bytes())


def test_making_the_golden_files_again_changes_nothing(golden: dict[str, bytes], made: dict[str, bytes]) -> None:
    assert {n: plain(n, d) for n, d in made.items()} == {n: plain(n, d) for n, d in golden.items()}


def test_making_them_elsewhere_gives_the_same_and_never_overwrites(tmp_path: Path, golden: dict[str, bytes]) -> None:
    main = runpy.run_path(str(GOLDEN / "make.py"))["main"]
    assert main(tmp_path) == 0
    assert {p.name for p in tmp_path.iterdir()} == set(golden)
    (tmp_path / "ack.msgpack").write_bytes(b"changed")
    assert main(tmp_path) == 1
    assert (tmp_path / "ack.msgpack").read_bytes() == b"changed"


def test_every_task_and_every_message_has_a_golden_file(golden: dict[str, bytes]) -> None:
    per_task = ("manifest.json", "baseline.msgpack", "report.msgpack", "report.packed", "window.msgpack")
    expected = {f"{task}.{kind}" for task in TASKS for kind in per_task} | (
        set(CODECS) - set(per_task) - {"report.zlib"}
    )
    assert set(golden) == expected


@pytest.mark.parametrize("task", TASKS)
def test_the_messages_of_a_package_fit_one_another(task: str, golden: dict[str, bytes]) -> None:
    package = manifest.decode_manifest(golden[f"{task}.manifest.json"])
    reference = baseline.decode_baseline(golden[f"{task}.baseline.msgpack"])
    window = report.decode_report(golden[f"{task}.report.packed"]).window
    assert package.task == task
    assert window.digest == manifest.digest(golden[f"{task}.manifest.json"])[:16]
    assert window.edge_hash == reference.edge_hash == edge_hash(reference.channels)
    outputs = {tensor.name for tensor in package.outputs}
    assert {c.source.tensor for c in reference.channels} <= outputs


def test_a_report_of_a_few_channels_takes_a_few_hundred_bytes(golden: dict[str, bytes]) -> None:
    sizes = [len(data) for name, data in golden.items() if name.endswith(".report.msgpack")]
    assert max(sizes) < 1200
