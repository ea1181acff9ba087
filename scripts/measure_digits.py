"""Compile the three versions of the digits recipe and write what was measured into the recipe's README.

    python scripts/measure_digits.py [--windows N] [--print]

Takes about three minutes. The table replaces everything behind the line MARK; `--print` leaves the file alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from edgewright_compiler.compilation import CompileResult, compile_recipe
from edgewright_compiler.quiet import quiet
from edgewright_contracts.baseline import decode_baseline, per_channel
from edgewright_contracts.channels import Binner
from edgewright_contracts.package import Package
from edgewright_devices import load
from edgewright_hub.drift.measures import pad, simes, window_p
from edgewright_models.digits import data
from edgewright_models.digits.recipe import BETTER, FIRST, MISLABELLED, recipe
from edgewright_runtime.runtime import open_session

README = Path(data.__file__).with_name("README.md")
MARK = "<!-- measured by scripts/measure_digits.py -->"
SEED = 1
SETTINGS = {"FIRST": FIRST, "BETTER": BETTER, "MISLABELLED": MISLABELLED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=400, help="windows per cell of the drift table")
    parser.add_argument("--print", action="store_true", help="print the table, leave the README alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        with quiet():
            results = {name: compiled(name, root) for name in SETTINGS}
        lines = [
            *header(),
            *variants(results),
            *of_teacher(results),
            *drift(results["BETTER"].package, options.windows),
        ]
    table = "\n".join(lines) + "\n"
    print(table)
    if not options.print:
        README.write_text(README.read_text().split(MARK)[0] + MARK + "\n\n" + table)


def compiled(name: str, root: Path) -> CompileResult:
    return compile_recipe(
        recipe(SETTINGS[name]),
        load("x86-gateway"),
        root / name,
        seed=SEED,
        now=datetime.now(UTC),
        progress=lambda _stage, _share: None,
        work=root / "work",
    )


def header() -> list[str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    cpu = next(
        (line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    when, load_average = datetime.now(UTC).date().isoformat(), os.getloadavg()[1]
    machine = f"{cpu.strip()} ({platform.machine()}, {os.cpu_count()} cores, load {load_average:.1f})"
    return [f"Commit {commit.strip()}, {when}, {machine}, seed {SEED}.", ""]


def variants(results: dict[str, CompileResult]) -> list[str]:
    lines = [
        "| settings | variant | accuracy, sensor | accuracy, clean | loss (bound) | bytes | p50 µs | monitor µs |",
        "|---" * 8 + "|",
    ]
    for name, result in results.items():
        for v in result.evidence.variants:
            sensor, clean = v.metric["sensor"].value, v.metric["clean"].value
            loss = "" if v.loss is None else f"{v.loss.estimate:+.2f} (≤ {v.loss.bound:.2f})"
            lines.append(
                f"| {name} | {v.scheme} | {100 * sensor:.2f} % | {100 * clean:.2f} % | {loss} | {v.bytes} "
                f"| {v.time_us.p50:.1f} | {v.monitor_us or 0:.1f} |"
            )
    clean = results["BETTER"].variant("onnx-fp32").metric["clean"]
    low, high = clean.low or 0, clean.high or 0
    seconds = ", ".join(f"{name} {result.seconds:.0f} s" for name, result in results.items())
    return [
        *lines,
        "",
        f"`sensor` is {data_rows(results)} draws, `clean` the held-out images as they are.",
        f"95 % interval of BETTER on `clean`: {100 * low:.1f} to {100 * high:.1f} %.",
        f"Time to compile: {seconds} (the second one trains the teacher).",
        "",
    ]


def of_teacher(results: dict[str, CompileResult]) -> list[str]:
    """What BETTER is compared with."""
    told = results["BETTER"].evidence.reference
    sizes = ", ".join(f"{form} {size} bytes {told.time_us[form].p50:.1f} µs" for form, size in told.bytes.items())
    return [f"Teacher, clean: {100 * told.metric['clean'].value:.2f} %, {told.params} parameters, {sizes}.", ""]


def data_rows(results: dict[str, CompileResult]) -> int:
    return results["BETTER"].variant("onnx-fp32").metric["sensor"].n


def drift(package: Package, windows: int) -> list[str]:
    """Share of windows whose combined p-value lies below .01, by variant, window size and shift."""
    shifts: list[str | None] = [None, *data.SHIFTS]
    names = [shift or "no shift" for shift in shifts]
    lines = [f"Share of {windows} windows with a combined p < .01 (hub's window test, 22 channels):", ""]
    lines += [f"| variant | n | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    manifest = package.manifest
    for variant in manifest.variants:
        runtime = {"onnx": "onnxruntime", "tflite": "litert"}[variant.format]
        session = open_session(package.root / variant.model, runtime, inputs=manifest.inputs, outputs=manifest.outputs)
        baseline = decode_baseline(package.read(variant.baseline))
        reference = pad(per_channel(baseline.channels, baseline.cells()))
        for n in (50, 200, 1000):
            shares = []
            for shift in shifts:
                rng = np.random.default_rng([n, len(shift or "")])
                alarms = 0
                for _ in range(windows):
                    binner = Binner(baseline.channels)
                    binner.add(session.run({"image": data.feed(rng, n, shift)[0]}))
                    p = window_p(pad(per_channel(baseline.channels, binner.take())), reference)
                    alarms += simes(p) < 0.01
                shares.append(f"{alarms / windows:.3f}")
            lines.append(f"| {variant.id} | {n} | {' | '.join(shares)} |")
    return lines


if __name__ == "__main__":
    main()
