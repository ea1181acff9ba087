"""Writes the golden messages of the current contract version beside this file; same bytes at every run.

    python tests/contracts/golden/make.py [DIRECTORY]

Nothing here is random and no clock is read. A file that is there with other bytes is an error, not overwritten: a wire
format that changed needs a new version and a new folder.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from edgewright_contracts import baseline, birth, desired, event, manifest, report
from edgewright_contracts.binning import pack, pack_grid
from edgewright_contracts.channels import Channel, Group, Source, edge_hash, width
from edgewright_contracts.codec import REPORT_BYTES
from edgewright_contracts.manifest import Dtype, FileRef, Role, Task, TensorIn, TensorOut, Variant
from edgewright_contracts.packing import plain

CURRENT = "v1.1"
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from sim.reports import encode_report, grid_counts  # noqa: E402 - beside this file, when it is run by hand

VARIANTS = (
    Variant(id="onnx-fp32", format="onnx", precision="fp32"),
    Variant(id="onnx-int8", format="onnx", precision="int8"),
    Variant(id="tflite-int8", format="tflite", precision="int8", batch=1),
)
TENTHS = (-2.5, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 2.5)
MONITOR = TensorOut(name="monitor", role="monitor", shape=(8,))


def numeric(name: str, group: Group, column: int, *, tensor: str = "monitor") -> Channel:
    return Channel(name=name, group=group, kind="numeric", source=Source(tensor=tensor, column=column), edges=TENTHS)


COMMON = (
    numeric("mean", "input", 0),
    numeric("noise", "input", 1),
    numeric("pca.0", "embedding", 2),
    numeric("distance", "embedding", 3),
)

# task → (inputs, outputs, labels, channels beside the common ones)
Part = tuple[tuple[TensorIn, ...], tuple[TensorOut, ...], tuple[str, ...], tuple[Channel, ...]]


def tensor_in(name: str, dtype: Dtype, shape: tuple[int, ...], low: float, high: float, unit: str) -> TensorIn:
    return TensorIn(name=name, dtype=dtype, shape=shape, valid=(low, high), unit=unit)


def tensor_out(name: str, role: Role, *shape: int) -> TensorOut:
    return TensorOut(name=name, role=role, shape=shape)


TASKS: dict[Task, Part] = {
    "classification": (
        (tensor_in("image", "uint8", (8, 8), 0, 255, "grey level"),),
        (tensor_out("probabilities", "probabilities", 10), MONITOR),
        tuple("0123456789"),
        (
            Channel(
                name="class",
                group="output",
                kind="categorical",
                source=Source("probabilities", "argmax"),
                values=tuple(range(10)),
            ),
            Channel(name="confidence", group="output", kind="score", source=Source("probabilities", "max")),
        ),
    ),
    "multilabel": (
        (tensor_in("sound", "int16", (16000,), -32768, 32767, "PCM"),),
        (tensor_out("probabilities", "probabilities", 4), MONITOR),
        ("alarm", "glass", "speech", "engine"),
        (
            Channel(name="labels", group="output", kind="count", source=Source("probabilities", "above")),
            Channel(name="alarm", group="output", kind="score", source=Source("probabilities", "column", 0)),
        ),
    ),
    "detection": (
        (tensor_in("frame", "uint8", (240, 320, 3), 0, 255, "sRGB"),),
        (
            tensor_out("boxes", "boxes", 20, 4),
            tensor_out("scores", "score", 20),
            tensor_out("classes", "classes", 20),
            MONITOR,
        ),
        ("person", "forklift"),
        (
            Channel(name="count", group="output", kind="count", source=Source("scores", "above", threshold=0.25)),
            Channel(
                name="score",
                group="output",
                kind="score",
                source=Source("scores", "each", 0, mask="scores", threshold=0.25),
            ),
            Channel(
                name="class",
                group="output",
                kind="categorical",
                source=Source("classes", "each", 0, "scores", 0.25),
                values=(0, 1),
            ),
            Channel(
                name="size",
                group="output",
                kind="numeric",
                source=Source("boxes", "area", 0, "scores", 0.25),
                edges=(0.0, 0.03125, 0.125, 0.5, 1.0),
            ),
        ),
    ),
    "regression": (
        (tensor_in("vibration", "float32", (256, 3), -16.0, 16.0, "g"),),
        (tensor_out("hours", "values", 1), MONITOR),
        (),
        (
            Channel(
                name="hours",
                group="output",
                kind="numeric",
                source=Source("hours"),
                edges=(0.0, 12.5, 50.0, 200.0, 800.0, 3200.0),
            ),
        ),
    ),
    "anomaly": (
        (tensor_in("spectrum", "float32", (64,), 0.0, 1e6, "W/Hz"),),
        (tensor_out("score", "score", 1), MONITOR),
        (),
        (Channel(name="score", group="output", kind="score", source=Source("score")),),
    ),
    "embedding": (
        (tensor_in("face", "uint8", (112, 112, 3), 0, 255, "sRGB"),),
        (tensor_out("embedding", "embedding", 128), MONITOR),
        (),
        (numeric("first", "embedding", 0, tensor="embedding"),),
    ),
}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_baseline(task: Task) -> baseline.Baseline:
    channels = COMMON + TASKS[task][3]
    cells = 400 + np.arange(width(channels), dtype=np.int64) * 37 % 101
    at = 0
    for channel in channels:  # quantiles of the reference: nothing lies outside them, nothing is missing
        if channel.kind == "numeric":
            cells[[at, at + len(channel.edges), at + len(channel.edges) + 1]] = 0
        at += channel.width
    return baseline.make(channels, cells, n=4500)


def make_manifest(task: Task, baseline_bytes: bytes) -> manifest.Manifest:
    inputs, outputs, labels, _ = TASKS[task]
    files = {"card.md": FileRef(sha256=sha(f"{task} card"), size=2048)}
    for variant in VARIANTS:
        files[variant.model] = FileRef(sha256=sha(f"{task} {variant.id} model"), size=123_456)
        files[variant.selftest] = FileRef(sha256=sha(f"{task} {variant.id} selftest"), size=34_567)
        files[variant.baseline] = FileRef(sha256=hashlib.sha256(baseline_bytes).hexdigest(), size=len(baseline_bytes))
    return manifest.Manifest(
        requires_agent="0.1.0",
        name=f"golden-{task}",
        version="1.2.3",
        task=task,
        inputs=inputs,
        outputs=outputs,
        labels=labels,
        contexts=("", "night"),
        variants=VARIANTS,
        ranking={
            "*/onnxruntime": ("onnx-int8", "onnx-fp32"),
            "*/litert": ("tflite-int8",),
            "aarch64/tflite-runtime": ("tflite-int8",),
        },
        budgets=manifest.Budgets(p95_ms=20.0, rss_mb=128.5),
        provenance=manifest.Provenance(
            recipe=task,
            data=sha(f"{task} data"),
            code=sha("code"),
            seed=20260101,
            tools={"numpy": "2.4.6", "onnx": "1.19"},
        ),
        files=files,
    )


def make_window(task: Task, digest: str) -> report.Window:
    channels = COMMON + TASKS[task][3]
    n = 1500
    cells = np.arange(width(channels), dtype=np.int64) * 53 % 211  # some take two bytes
    durations = 200_000 + np.arange(n, dtype=np.int64) ** 2
    return report.Window(
        boot_id="00c0ffee00c0ffee",
        mono_start_ms=3_600_000,
        mono_end_ms=3_900_000,
        wall_start_ms=1_767_225_600_000,
        clock="synced",
        next_due_s=300,
        digest=digest[:16],
        variant="onnx-int8",
        context="night",
        edge_hash=edge_hash(channels),
        phase="probation",
        rollout="2026-01-golden",
        n=n,
        n_monitored=n - 7,
        latency_queue=pack_grid(grid_counts(durations[:100] // 100)),
        latency_run=pack_grid(grid_counts(durations)),
        latency_total=pack_grid(grid_counts(durations + 5_000)),
        errors={"timeout": 2, "runtime": 1},
        rejected={"range": 4, "shape": 3},
        repeated=11,
        input_age=pack_grid(grid_counts(durations * 10)),
        cells=pack(cells),
        outcomes={"correct": report.Hits(200, 187), "pick_ok": report.Hits(40, 39)},
        correct_by_confidence=pack(np.array([0, 0, 0, 1, 2, 3, 4, 10, 30, 150, 0, 0, 0, 0, 1, 2, 3, 8, 27, 146])),
        shadow=report.Hits(300, 297),
        usage=report.Usage(
            rss_kb=report.Gauge(5, 402_000, 81_000),
            cpu_permille=report.Gauge(5, 610, 190),
            temperature_dk=report.Gauge(5, 15_400, 3_101),
            discharge_permille=report.Gauge(5, 600, 121),
            cpu_ms=18_300,
            bytes_sent=1_234,
            bytes_received=321,
            bytes_written=8_192,
        ),
        shed={"input_age": 1},
    )


def files() -> dict[str, bytes]:
    """Name → bytes of every golden message of the current version."""
    out: dict[str, bytes] = {}
    digest = ""
    for number, task in enumerate(TASKS, 1):
        out[f"{task}.baseline.msgpack"] = baseline.encode_baseline(make_baseline(task))
        manifest_bytes = manifest.encode_manifest(make_manifest(task, out[f"{task}.baseline.msgpack"]))
        out[f"{task}.manifest.json"] = manifest_bytes
        digest = manifest.digest(manifest_bytes)
        window = make_window(task, digest)
        one = report.Report(spool_id="feedfacecafebeef", seq=number, window=window)
        out[f"{task}.report.msgpack"] = encode_report(one)
        out[f"{task}.report.packed"] = encode_report(one, compress=True)
        out[f"{task}.window.msgpack"] = report.encode_window(window)
    out["birth.json"] = birth.encode(
        birth.Birth(
            device="gate-7",
            boot_id="00c0ffee00c0ffee",
            connection=3,
            agent="0.1.0",
            hardware=birth.Hardware(arch="aarch64", model="Raspberry Pi 5 Model B", cores=4, ram_mb=8063),
            runtimes={"onnxruntime": "1.23.2", "litert": "2.3.0"},
            slots=(
                birth.Slot(
                    model="golden-embedding", digest=digest, version="1.2.3", variant="onnx-int8", state="active"
                ),
            ),
            clock="free",
            uptime_ms=3_600_000,
            window_s=300,
            unclean=(birth.Unclean(boot_id="deaddeaddeaddead", open_since_mono_ms=86_400_000),),
            spool=birth.Spool(id="feedfacecafebeef", next_seq=8, unacknowledged=2, sealed=1, dropped=0),
            desired_rev=41,
        )
    )
    out["status.json"] = birth.encode(birth.Status(online=False, boot_id="00c0ffee00c0ffee", connection=3))
    out["desired.json"] = desired.encode(
        desired.Desired(
            rev=42,
            config=desired.Config(
                version=5,
                window_s=600.0,
                monitor_every=4,
                compress=True,
                bytes_per_day=2**20,
                profile="metered",
                window_rows=200,
                scene_s=2.5,
                limits=desired.Limits(rss_mb=96.0, cpu_permille=50, temperature_c=70.0, written_per_day=2**24),
                download=desired.Download(bytes_per_s=20_000, bytes_per_day=2**22, spread_s=3600.0),
                samples=desired.Samples(per_day=20),
            ),
            models=(
                desired.DesiredModel(
                    name="golden-embedding",
                    digest=digest,
                    variant="onnx-int8",
                    rollout="2026-01-golden",
                    not_before=1_767_225_600_000,
                    not_after=1_767_312_000_000,
                    shadow=desired.Shadow(share=0.25),
                    probation=desired.Probation(windows=5, max_s=7200.0),
                ),
                desired.DesiredModel(name="golden-anomaly", digest=None),
            ),
            cleared_digests=(sha("once blocked"),),
        )
    )
    out["command.json"] = desired.encode(
        desired.Command(
            id="0123456789abcdef", verb="new_spool", expires_at=1_767_229_200_000, argument="feedfacecafebeef"
        )
    )
    out["ack.msgpack"] = desired.encode_ack(desired.Ack("feedfacecafebeef", 6, 1 << 63 | 0b101))
    out["ack-of-birth.msgpack"] = desired.encode_ack(
        desired.Ack("feedfacecafebeef", 6, 1 << 63 | 0b101, desired.birth_mark("00c0ffee00c0ffee", 3))
    )
    out["event.json"] = event.encode_event(
        event.Event(
            spool_id="feedfacecafebeef",
            seq=7,
            boot_id="00c0ffee00c0ffee",
            mono_ms=3_700_000,
            wall_ms=None,
            model="golden-embedding",
            digest=digest,
            variant="onnx-int8",
            rollout="2026-01-golden",
            before="selftest",
            after="rollback",
            reason="31 of 4096 elements beyond 0.05",
            failure="model",
            attempt=1,
            log="selftest: element 17 expected 0.9 got 0.1 – Größe 8\n\x1b[31mfailed\x1b[0m\n",
        )
    )
    return out


def unpacked(name: str, data: bytes) -> bytes:
    return plain(data, name=name, limit=REPORT_BYTES) if name.endswith(".packed") else data


def main(directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, data in files().items():
        path = directory / name
        if not path.exists():
            path.write_bytes(data)
        elif unpacked(name, path.read_bytes()) != unpacked(name, data):
            changed.append(name)
    for name in changed:
        print(f"{directory / name}: the code writes other bytes than version {CURRENT} did", file=sys.stderr)  # noqa: T201
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / CURRENT))
