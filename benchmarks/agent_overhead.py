"""What the agent adds to an inference: `model.predict` with all telemetry on, over the bare run of the same session.

    python benchmarks/agent_overhead.py [--quick] [--json]

Both are timed in one run, in alternating blocks, so that a busy machine slows both. p50 and p99 are of single calls;
CPU is the whole process's over all calls, with the telemetry thread's deferred work: a block ends when its last row was
counted. Models of about 10 µs, 100 µs and 5 ms (convolutions and dense layers in ONNX and TFLite, sized here), float32
inputs that are checked against a declared range, 22 monitored channels, windows of 10 s sealed to disk. `monitor_us` is
what the 20 columns of the `monitor` output cost the bare model itself: medians of single calls, alternating with the
same graph without them.

A machine that changes its speed within the run moves these figures, because one side may lie in its fast part and the
other in its slow one. So the same is told by pairs beside it: each block against the one after it, and the median.

`--quick` makes fewer calls and takes less than a minute.

`whylogs` compares what it takes to record one row of 22 values that are already computed: here, to leave the row and to
count it later, in processor time of both threads; there, `track(row)` and `log(frame)` by the best of several lengths,
without making the frame. Neither figure holds what `predict` does beside recording (to check the input, compare it with
the one before, take the times): `of_all` sets whylogs against all that the agent adds to a prediction of 10 µs.
whylogs lives in an environment of its own (see `WHYLOGS`); without it, the field is null.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
from provenance import provenance  # noqa: E402

from edgewright_agent.agent import Agent  # noqa: E402
from edgewright_agent.disk import RealDisk  # noqa: E402
from edgewright_agent.telemetry.meter import Meter  # noqa: E402
from edgewright_agent.telemetry.rows import BATCH, Subject  # noqa: E402
from edgewright_agent.updating.slots import Slot, Store, needed  # noqa: E402
from edgewright_contracts import baseline, binning, desired  # noqa: E402
from edgewright_contracts import manifest as m  # noqa: E402
from edgewright_contracts.channels import Binner, Channel, Source  # noqa: E402
from edgewright_runtime.runtime import available, open_session  # noqa: E402
from sim import tflite  # noqa: E402
from sim.broker import SimBroker, SimTransport  # noqa: E402

COLUMNS = 20  # of `monitor`; with class and confidence 22 channels
# As short as noise asks for: what slows the machine for a second shall slow both sides of a ratio.
BLOCKS = {"10us": 20, "100us": 40, "5ms": 100}
TARGETS = {"10us": 10e-6, "100us": 100e-6, "5ms": 5e-3}
CALLS = {"10us": 100_000, "100us": 100_000, "5ms": 4_000}
QUICK = {"10us": 20_000, "100us": 12_000, "5ms": 300}
SIDES = {"10us": (8, 8, 1), "100us": (16, 16, 8), "5ms": (32, 32, 32)}  # input: height, width, channels
MONITOR = {"10us": 4000, "100us": 2000, "5ms": 100}  # calls with and without it
ROWS = 10_000  # that are recorded by both, here and in whylogs
PEER_S = 40.0
WHYLOGS = "python -m venv .venv-whylogs && .venv-whylogs/bin/pip install whylogs==1.6.4 pandas==2.2.3 'numpy<2'"
VARIANTS = {"onnxruntime": ("onnx-fp32", "onnx"), "litert": ("tflite-fp32", "tflite")}


def build(kind: str, shape: tuple[int, int, int], layers: int, *, monitor: bool = True) -> bytes:
    """`layers` 3x3 convolutions of as many channels as the input has, then probabilities and, if asked, monitor."""
    rng = np.random.default_rng(1)
    h, w, c = shape
    kernels = [rng.normal(0, 0.3 / np.sqrt(c), (c, 3, 3, c)).astype(np.float32) for _ in range(layers)]
    head = rng.normal(0, 1 / np.sqrt(c), (c * h * w, 10)).astype(np.float32)
    columns = rng.normal(0, 1 / np.sqrt(c * h * w), (c * h * w, COLUMNS)).astype(np.float32)
    if kind == "tflite":
        g = tflite.Graph()
        x = y = g.input("x", (1, *shape))
        for k in kernels:
            y = g.conv(y, k, np.zeros(c, np.float32))
        flat = g.reshape(y, (1, h * w * c))
        g.output("probabilities", g.softmax(g.dense(flat, head, np.zeros(10, np.float32))))
        if monitor:
            raw = g.reshape(x, (1, h * w * c))
            g.output("monitor", g.dense(raw, columns, np.zeros(COLUMNS, np.float32)))
        return g.finish()
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Transpose", ["x"], ["y0"], perm=[0, 3, 1, 2])]
    const = {"flat": np.array([-1, h * w * c]), "head": head, "columns": columns}
    for i, k in enumerate(kernels):
        const[f"k{i}"] = np.ascontiguousarray(k.transpose(0, 3, 1, 2))
        nodes.append(helper.make_node("Conv", [f"y{i}", f"k{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"y{i + 1}"]))
    nodes += [
        helper.make_node("Reshape", [f"y{layers}", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    info = helper.make_tensor_value_info
    found = [info("probabilities", TensorProto.FLOAT, ["n", 10])]
    if monitor:
        nodes.append(helper.make_node("Reshape", ["x", "flat"], ["r"]))
        nodes.append(helper.make_node("MatMul", ["r", "columns"], ["monitor"]))
        found.append(info("monitor", TensorProto.FLOAT, ["n", COLUMNS]))
    graph = helper.make_graph(
        nodes,
        "bench",
        [info("x", TensorProto.FLOAT, ["n", *shape])],
        found,
        [numpy_helper.from_array(v, k) for k, v in const.items() if monitor or k != "columns"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def tensors(shape: tuple[int, int, int]) -> tuple[tuple[m.TensorIn, ...], tuple[m.TensorOut, ...]]:
    return (m.TensorIn(name="x", dtype="float32", shape=shape, valid=(0.0, 1.0)),), (
        m.TensorOut(name="probabilities", role="probabilities", shape=(10,)),
        m.TensorOut(name="monitor", role="monitor", shape=(COLUMNS,)),
    )


def session(folder: Path, runtime: str, shape: tuple[int, int, int], layers: int, *, monitor: bool = True) -> Any:
    _, suffix = VARIANTS[runtime]
    file = folder / f"{'model' if monitor else 'plain'}.{suffix}"
    file.write_bytes(build(suffix, shape, layers, monitor=monitor))
    inputs, outputs = tensors(shape)
    return open_session(file, runtime, inputs=inputs, outputs=outputs if monitor else outputs[:1])


def bare_s(s: Any, shape: tuple[int, int, int]) -> float:
    """Lower quartile of 400 runs: what else runs on the machine must not size the model."""
    x = {"x": np.random.default_rng(0).random((1, *shape), np.float32)}
    times = []
    for _ in range(400 if shape != SIDES["5ms"] else 40):
        began = time.perf_counter()
        s.run(x)
        times.append(time.perf_counter() - began)
    return float(np.quantile(times, 0.25))


def sized(folder: Path, runtime: str, size: str) -> int:
    """The number of layers that brings the bare run nearest to the target."""
    shape = SIDES[size]
    if size == "10us":
        return 1 if runtime == "litert" else 0
    one, five = (bare_s(session(folder, runtime, shape, k), shape) for k in (1, 5))
    return max(0, round(1 + (TARGETS[size] - one) / max(1e-7, (five - one) / 4)))


def install(home: Path, runtime: str, size: str, layers: int) -> None:
    """Put a package into slot a, as the installer leaves it."""
    shape = SIDES[size]
    identifier, suffix = VARIANTS[runtime]
    variant = m.Variant(id=identifier, format=suffix, precision="fp32", batch=1 if suffix == "tflite" else 0)
    inputs, outputs = tensors(shape)
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as folder:
        s = session(Path(folder), runtime, shape, layers)
        given = [rng.random((1, *shape), np.float32) for _ in range(64)]
        rows = [s.run({"x": x}) for x in given]
    found = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    tested = {f"{kind}:{k}": y[:32] for k, y in found.items() for kind in ("output", "fp32")}
    selftest = io.BytesIO()
    np.savez(selftest, **{"input:x": np.concatenate(given[:32])}, **tested)
    channels = [
        Channel(
            name=f"monitor.{i}", group="embedding", kind="numeric", source=Source("monitor", "column", i),
            edges=binning.quantile_edges(found["monitor"][:, i]),
        )
        for i in range(COLUMNS)
    ]  # fmt: skip
    classes = tuple(range(10))
    channels.append(
        Channel(
            name="class", group="output", kind="categorical", source=Source("probabilities", "argmax"), values=classes
        )
    )
    channels.append(Channel(name="confidence", group="output", kind="score", source=Source("probabilities", "max")))
    binner = Binner(channels)
    binner.add(found)
    files = {
        variant.model: build(suffix, shape, layers),
        variant.baseline: baseline.encode_baseline(baseline.make(tuple(channels), binner.take(), len(given))),
        variant.selftest: selftest.getvalue(),
    }
    manifest = m.encode_manifest(
        m.Manifest(
            requires_agent="0.1.0", name="bench", version="1", task="classification", inputs=inputs, outputs=outputs,
            variants=(variant,), ranking={f"*/{runtime}": (identifier,)},
            provenance=m.Provenance(recipe="bench", data="0" * 64, code="0" * 64, seed=0),
            files={k: m.FileRef(hashlib.sha256(v).hexdigest(), len(v)) for k, v in files.items()},
        )
    )  # fmt: skip
    store = Store(RealDisk(), home / "models", "bench")
    for file in needed(variant):
        store.part(hashlib.sha256(files[file]).hexdigest()).write_bytes(files[file])
    store.stage(manifest, Slot(m.digest(manifest), "1", identifier, runtime))
    store.save(msgspec.structs.replace(store.state, active="a"))
    identity = home / "identity"
    identity.mkdir()
    hub = {"device": "bench", "broker": {"host": "127.0.0.1", "port": 1}, "repo": "http://127.0.0.1:1/"}
    (identity / "hub.json").write_bytes(json.dumps(hub).encode())
    (identity / "root.json").write_bytes(b"{}")
    wish = desired.Desired(rev=1, config=desired.Config(window_s=10))
    (home / "desired.json").write_bytes(desired.encode(wish))


def measure(home: Path, shape: tuple[int, int, int], calls: int, blocks: int) -> dict[str, Any]:
    """Alternate blocks of bare runs and of predictions."""
    now = time.perf_counter_ns
    with Agent(home, transport=SimTransport(SimBroker(), "bench")) as agent:
        model = agent.model("bench")
        assert model.wait(10)
        s = model.active.session
        rng = np.random.default_rng(3)
        singles = [{"x": rng.random(shape, np.float32)} for _ in range(64)]
        batches = [{"x": one["x"][np.newaxis]} for one in singles]
        predict, run = model.predict, s.run
        block = calls // blocks
        took = {"bare": np.zeros(block * blocks, np.int64), "agent": np.zeros(block * blocks, np.int64)}
        cpu = {"bare": np.zeros(blocks), "agent": np.zeros(blocks)}  # ns
        for call, feed in ((run, batches), (predict, singles)):
            for i in range(min(block, 200)):
                call(feed[i % 64])
        agent.settle()
        for b in range(blocks):
            for name, call, feed in (("bare", run, batches), ("agent", predict, singles)):
                out, at = took[name], b * block
                began_cpu = time.process_time_ns()
                for i in range(block):
                    x = feed[i & 63]
                    began = now()
                    call(x)
                    out[at + i] = now() - began
                agent.settle()
                cpu[name][b] = time.process_time_ns() - began_cpu
    n = block * blocks
    p50 = {name: np.median(times.reshape(blocks, block), axis=1) for name, times in took.items()}
    us = {k: {"p50": float(np.median(v)) / 1e3, "p99": float(np.quantile(v, 0.99)) / 1e3} for k, v in took.items()}
    return {
        "calls": n,
        "bare_us": us["bare"],
        "agent_us": us["agent"],
        "ratio_p50": us["agent"]["p50"] / us["bare"]["p50"],
        "ratio_p99": us["agent"]["p99"] / us["bare"]["p99"],
        "bare_cpu_us": cpu["bare"].sum() / n / 1e3,
        "agent_cpu_us": cpu["agent"].sum() / n / 1e3,
        "ratio_cpu": cpu["agent"].sum() / cpu["bare"].sum(),
        "added_cpu_us": (cpu["agent"] - cpu["bare"]).sum() / n / 1e3,
        "paired": {
            "ratio_p50": float(np.median(p50["agent"] / p50["bare"])),
            "added_cpu_us": float(np.median(cpu["agent"] - cpu["bare"])) / block / 1e3,
        },
    }


def monitor_us(folder: Path, runtime: str, size: str, layers: int) -> float:
    """What the output `monitor` adds to a bare run: the difference of the medians of alternating calls."""
    shape = SIDES[size]
    feed = {"x": np.random.default_rng(4).random((1, *shape), np.float32)}
    sides = [session(folder, runtime, shape, layers, monitor=monitor).run for monitor in (True, False)]
    took: tuple[list[int], list[int]] = ([], [])
    for i in range(MONITOR[size] + 20):
        for run, out in zip(sides, took, strict=True):
            began = time.perf_counter_ns()
            run(feed)
            if i >= 20:
                out.append(time.perf_counter_ns() - began)
    return float(np.median(took[0]) - np.median(took[1])) / 1e3


def recorded_us(subject: Subject, outputs: dict[str, Any]) -> float:
    """Processor time to leave a row and to count it, least of five rounds over all rows of `outputs`."""
    meter = Meter(threading.Event())
    owner = threading.Event()
    rows = meter.rows(subject, owner)
    singles = [[outputs[name][i : i + 1] for name in subject.monitored] for i in range(ROWS)]
    ids, took = itertools.count(1), []
    for _ in range(5):
        spent = 0
        for at in range(0, ROWS, BATCH):
            began = time.process_time_ns()
            for one in singles[at : at + BATCH]:
                kept = b""
                for y in one:
                    kept += y.tobytes()
                rows.add(next(ids), 0, 1000, 11_000, 0, False, kept)
            meter.drain()
            spent += time.process_time_ns() - began
        took.append(spent)
    assert meter.most() == 5 * ROWS
    return min(took) / ROWS / 1e3


def against_whylogs(runtime: str, added_us: float) -> dict[str, Any] | None:
    """The same rows recorded by whylogs, in a process of its own environment; None where that is not there. `added_us`
    is what the agent adds to a whole prediction."""
    python = ROOT / ".venv-whylogs" / "bin" / "python"
    if not python.exists():
        print(f"whylogs: not compared, its environment is not there; make it with\n  {WHYLOGS}", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        install(home, runtime, "10us", 1)
        with Agent(home, transport=SimTransport(SimBroker(), "bench")) as agent:
            model = agent.model("bench")
            assert model.wait(10)
            assert model.active is not None
            rng, run, subject = np.random.default_rng(5), model.active.run, model.active.subject
            runs = [run({"x": rng.random((1, *SIDES["10us"]), np.float32)}) for _ in range(ROWS)]
        outputs = {name: np.concatenate([one[name] for one in runs]) for name in subject.monitored}
        ours = recorded_us(subject, outputs)
        p = outputs["probabilities"]
        numbers = np.column_stack((outputs["monitor"], p.max(axis=1))).astype(np.float64)
        file = Path(folder) / "rows.npz"
        np.savez(file, numbers=numbers, classes=np.array([f"class {i}" for i in p.argmax(axis=1)]))
        command = [python, ROOT / "benchmarks" / "peers" / "whylogs_rows.py", file]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PEER_S)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"whylogs: not compared: {error}\n{error.stderr or ''}", file=sys.stderr)
            return None
    theirs = json.loads(done.stdout.splitlines()[-1])
    best = min(theirs["batch_us"].values())
    print(
        f"whylogs {theirs['version']}: {theirs['row_us']:.0f} µs to record a row, {best:.1f} µs in its best batch\n"
        f"  here, to leave a row and count it (no input checked): {ours:.2f} µs, "
        f"x{theirs['row_us'] / ours:.0f} and x{best / ours:.1f}\n"
        f"  here, all that is added to a predict of 10 µs, checks too: {added_us:.2f} µs, "
        f"x{theirs['row_us'] / added_us:.0f} and x{best / added_us:.1f}",
        flush=True,
    )
    return {
        "per_row_ratio": round(theirs["row_us"] / ours, 1),
        "best_batch_ratio": round(best / ours, 2),
        "row_us": round(theirs["row_us"], 1),
        "best_batch_us": round(best, 2),
        "ours_us": round(ours, 3),
        "of_all": {
            "added_us": round(added_us, 2),
            "per_row_ratio": round(theirs["row_us"] / added_us, 1),
            "best_batch_ratio": round(best / added_us, 2),
        },
        "version": theirs["version"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls; under a minute; results are not written")
    parser.add_argument("--json", action="store_true", help="last line: one object")
    arguments = parser.parse_args()
    calls = QUICK if arguments.quick else CALLS
    found: dict[str, dict[str, Any]] = {}
    for runtime in VARIANTS:
        if runtime not in available():
            print(f"{runtime} is not installed; left out", file=sys.stderr)
            continue
        for size in TARGETS:
            with tempfile.TemporaryDirectory() as folder:
                home = Path(folder) / "home"
                home.mkdir()
                layers = sized(Path(folder), runtime, size)
                blocks = min(BLOCKS[size], calls[size] // 20)  # each ends with a wait until all is counted
                install(home, runtime, size, layers)
                one = found.setdefault(runtime, {})[size] = measure(home, SIDES[size], calls[size], blocks)
                one["monitor_us"] = monitor_us(Path(folder), runtime, size, layers)
            print(
                f"{runtime:12} {size:>5}: bare p50 {one['bare_us']['p50']:8.1f} p99 {one['bare_us']['p99']:8.1f} µs, "
                f"agent p50 {one['agent_us']['p50']:8.1f} p99 {one['agent_us']['p99']:8.1f} µs, "
                f"p50 x{one['ratio_p50']:.3f}, CPU x{one['ratio_cpu']:.3f} "
                f"(+{one['added_cpu_us']:.1f} µs a call, {one['calls']} calls), "
                f"by pairs p50 x{one['paired']['ratio_p50']:.3f} and +{one['paired']['added_cpu_us']:.1f} µs; "
                f"monitor itself {one['monitor_us']:.1f} µs",
                flush=True,
            )
    result = {
        "ratio_p50": {r: {s: round(v[s]["ratio_p50"], 4) for s in ("100us", "5ms")} for r, v in found.items()},
        "ratio_cpu": {r: {s: round(v[s]["ratio_cpu"], 4) for s in ("100us", "5ms")} for r, v in found.items()},
        "added_cpu_us": {r: {"10us": round(v["10us"]["added_cpu_us"], 2)} for r, v in found.items()},
        "paired": {
            r: {s: {k: round(x, 4) for k, x in v[s]["paired"].items()} for s in TARGETS} for r, v in found.items()
        },
        "monitor_us": {r: {s: round(v[s]["monitor_us"], 2) for s in TARGETS} for r, v in found.items()},
        "whylogs": against_whylogs(next(iter(found)), next(iter(found.values()))["10us"]["added_cpu_us"])
        if found
        else None,
    }
    if not arguments.quick:
        full = {**result, "runs": found, **provenance()}
        target = ROOT / "benchmarks" / "results" / "agent_overhead.json"
        target.write_text(json.dumps(full, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
