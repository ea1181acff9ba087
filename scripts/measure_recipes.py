"""Compile activity, intents, anomaly and announcer at full size, and write what was measured.

    python scripts/measure_recipes.py [NAME ...] [--work DIR] [--print]

Writes benchmarks/results/recipes.json and, into the README of each recipe, everything behind the line MARK; `--print`
leaves both alone. With NAMEs, the others keep what an earlier run measured. Some ten minutes on a quiet machine; steps
that were finished before are found in `--work`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from edgewright_compiler.compilation import CompileResult, compile_recipe
from edgewright_compiler.measuring.evidence import Evidence, Figure, Time, VariantEvidence
from edgewright_compiler.quiet import quiet
from edgewright_devices import load

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "recipes.json"
MARK = "<!-- measured by scripts/measure_recipes.py -->"
NAMES = ("activity", "intents", "anomaly", "announcer")
DEVICE = "x86-gateway"
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; all of them without one")
    parser.add_argument("--work", type=Path, help="where finished steps are kept; removed at the end without it")
    parser.add_argument("--print", action="store_true", help="print, leave the files alone")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"expected any of {', '.join(NAMES)}, got {', '.join(sorted(unknown))}")
    for name in options.names or NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            result = compiled(name, Path(scratch) / "package", options.work or Path(scratch) / "work")
        figures = measured(result)
        print(section(name, figures, result.evidence))
        if not options.print:
            record(name, figures, result.evidence)


def compiled(name: str, out: Path, work: Path) -> CompileResult:
    module = importlib.import_module(f"edgewright_models.{name}.recipe")
    with quiet():
        return compile_recipe(
            module.recipe(),
            load(DEVICE),
            out,
            seed=SEED,
            now=datetime.now(UTC),
            progress=lambda _stage, _share: None,
            work=work,
        )


def measured(result: CompileResult) -> dict[str, Any]:
    """What the results file holds of one recipe: plain figures, then one row for the reference and one a variant."""
    evidence = result.evidence
    teacher = evidence.reference
    about = {
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "load": round(os.getloadavg()[1], 1),
        "seconds": round(result.seconds),
        "metric": evidence.metric,
        "params": evidence.params,
        "macs": evidence.macs,
    }
    if evidence.worst is not None:
        worst = evidence.worst
        about["worst_slice"] = f"{worst.attribute} = {worst.value}"
        about["worst_slice_value"] = round(worst.figure.value, 4)
    if evidence.calibration is not None:
        about |= {"ece_before": evidence.calibration.ece_before, "ece_after": evidence.calibration.ece_after}
    rows: dict[str, Any] = {
        f"{teacher.name}, {format_}": {
            "value": test(teacher.metric).value,
            "bytes": teacher.bytes[format_],
            "p50_us": time.p50,
            "p95_us": time.p95,
            "params": teacher.params,
            "macs": teacher.macs,
        }
        for format_, time in teacher.time_us.items()
    }
    for variant in evidence.variants:
        rows[variant.id] = of_variant(variant, evidence)
    return {**about, **rows}


def of_variant(variant: VariantEvidence, evidence: Evidence) -> dict[str, Any]:
    """Ratios are to the reference in the same format, runtime and run."""
    figure = test(variant.metric)
    format_ = variant.id.partition("-")[0]
    bytes_, time = evidence.reference.bytes.get(format_), evidence.reference.time_us.get(format_)
    row: dict[str, Any] = {
        "value": figure.value,
        "low": figure.low,
        "high": figure.high,
        "n": figure.n,
        "bytes": variant.bytes,
        "p50_us": variant.time_us.p50,
        "p95_us": variant.time_us.p95,
        "monitor_us": variant.monitor_us,
        "size_ratio": None if bytes_ is None else round(bytes_ / variant.bytes, 2),
        "speed_ratio": None if time is None else round(ratio(time, variant.time_us), 2),
    }
    if variant.loss is not None:
        row |= {"drop_points": variant.loss.estimate, "bound_points": variant.loss.bound}
    return row


def ratio(slow: Time, fast: Time) -> float:
    """By the reference kernel of each run, which takes the machine's mood out."""
    return slow.per_reference / fast.per_reference


def test(figures: Any) -> Figure:
    figure: Figure = figures["test"]
    return figure


def record(name: str, figures: dict[str, Any], evidence: Evidence) -> None:
    readme = ROOT / "models" / "edgewright_models" / name / "README.md"
    readme.write_text(readme.read_text().split(MARK)[0] + MARK + "\n\n" + section(name, figures, evidence))
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    about = {"machine": msgspec.to_builtins(evidence.machine), "device": DEVICE, "seed": SEED}
    about |= {"commit": figures["commit"], "date": figures["date"]}
    kept = {other: results[other] for other in NAMES if other in results}
    whole = about | {other: (kept | {name: figures})[other] for other in NAMES if other in kept or other == name}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(whole, indent=1) + "\n")
    shutil.move(part, RESULTS)


def section(name: str, figures: dict[str, Any], evidence: Evidence) -> str:
    machine = evidence.machine
    made = f"Commit {figures['commit']}, {figures['date']}, seed {SEED}, {figures['seconds']} s"
    head = ["", evidence.metric, "bytes", "p50 µs", "p95 µs", "smaller", "faster", "loss, points", "95 % bound"]
    rows = evidence.variants[0].metric["test"].n
    lines = [
        f"{made} to compile `{name}` on {machine.cpu}, {machine.cores} cores, load {figures['load']}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *(line(key, row) for key, row in figures.items() if isinstance(row, dict)),
        "",
        f"{evidence.metric} on the {rows:,} test rows, with its 95 % interval. Ratios are to the",
        f"{evidence.reference.name} in the same format and runtime; latency is of one sample on one thread, monitor",
        "included. The bound is one-sided and paired, computed once, for the files that were chosen.",
    ]
    params, macs = evidence.reference.params, evidence.reference.macs
    if params and evidence.params and macs and evidence.macs:
        lines += ["", f"{params:,} → {evidence.params:,} weights, {macs:,} → {evidence.macs:,} products a sample."]
    if evidence.worst is not None:
        worst = evidence.worst
        lines += ["", f"Worst slice: {worst.attribute} = {worst.value}, {shown(worst.figure)}, n = {worst.figure.n}."]
    if evidence.calibration is not None:
        before, after = evidence.calibration.ece_before, evidence.calibration.ece_after
        lines += ["", f"Expected calibration error: {before:.3f}, after temperature scaling {after:.3f}."]
    return "\n".join(lines) + "\n"


def line(key: str, row: dict[str, Any]) -> str:
    interval = f" ({row['low']:.4f} to {row['high']:.4f})" if row.get("low") is not None else ""
    cells = [
        key,
        f"{row['value']:.4f}{interval}",
        f"{row['bytes']:,}",
        f"{row['p50_us']:.1f}",
        f"{row['p95_us']:.1f}",
        "" if row.get("size_ratio") is None else f"{row['size_ratio']:.1f}x",
        "" if row.get("speed_ratio") is None else f"{row['speed_ratio']:.1f}x",
        "" if "drop_points" not in row else f"{row['drop_points']:.2f}",
        "" if "bound_points" not in row else f"{row['bound_points']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def shown(figure: Figure) -> str:
    interval = f" ({figure.low:.3f} to {figure.high:.3f})" if figure.low is not None and figure.high is not None else ""
    return f"{figure.value:.3f}{interval}"


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
