"""`fashion` at full size: what the packaged int8 variants, monitor included, gain and lose against the teacher.

    python benchmarks/compile_fashion.py [--quick] [--json] [--work DIR]

The teacher is pinned: five convolutions 32-64-64-128-128, 278,890 weights. The loss is measured on the 10,000 published
test rows. The full form takes half an hour on one core and keeps the package beside its result. The quick form prints
that result, with accuracy and speed measured again: of the stored package on all 10,000 rows, and beside an untrained
teacher, whose file is hardly smaller than the trained one's, and which is as slow.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import against_teacher

from edgewright_compiler.graph.reference import run
from edgewright_compiler.pipeline.build import Built
from edgewright_compiler.pipeline.learn import NET, Learned
from edgewright_compiler.pipeline.steps import Store
from edgewright_compiler.pipeline.workbench import Workbench
from edgewright_compiler.quiet import quiet
from edgewright_compiler.training.prune import save_net
from edgewright_contracts.package import read_package, write_ewp
from edgewright_models.fashion.recipe import recipe

BARS = {"teacher_accuracy": 0.925, "bound_drop_points": 1.0, "size_ratio": 12.0, "speed_ratio": 4.0}
STORED = against_teacher.RESULTS / "fashion-1.0.0.ewp"
RESULT = against_teacher.RESULTS / "compile_fashion.json"
QUICK_CALLS = 1600
README = against_teacher.ROOT / "models" / "edgewright_models" / "fashion" / "README.md"


def main() -> None:
    told = against_teacher.arguments(__doc__)
    if told.quick:
        result = measured_again()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            package = Path(scratch) / "package"
            result = against_teacher.compiled(recipe(), told.work, package, quick=False)
            STORED.unlink(missing_ok=True)
            write_ewp(package, STORED)
        full = against_teacher.write(RESULT.stem, {**result, "bars": BARS})
        against_teacher.tell(RESULT.stem, full, README)
    against_teacher.show(result, as_json=told.json)


def measured_again() -> dict[str, Any]:
    """The stored result, with the package's accuracy and the ratios of bytes and time taken anew."""
    if not RESULT.is_file() or not STORED.is_file():
        sys.exit(f"expected {RESULT.name} and {STORED.name} in {RESULT.parent}, got none: run the full form once")
    began = time.perf_counter()
    result: dict[str, Any] = json.loads(RESULT.read_bytes())
    package, told = read_package(STORED), against_teacher.Told()
    with tempfile.TemporaryDirectory() as scratch, quiet() as streams:
        told.stream = streams.err
        folder = Path(scratch)
        bench = Workbench(recipe(), seed=against_teacher.SEED, store=Store(folder, time.perf_counter), say=told)
        whole = Built(bench, untrained(bench, folder))
        for variant in against_teacher.int8(package.manifest):
            told(f"measuring {variant.id}", 0.0)
            session = against_teacher.opened(package, variant, folder)
            test = bench.data.test
            right = run(session, test.inputs)["probabilities"].argmax(axis=1) == test.labels
            reference = whole.without_monitor(variant.format)
            rows = bench.data.validation.inputs
            result["formats"][variant.format] |= {
                "package_accuracy": float(right.mean()),
                **against_teacher.cost(package, variant, reference, rows, QUICK_CALLS),
            }
    result |= against_teacher.worst(result["teacher_accuracy"], result["formats"])
    return {**result, "quick_seconds": round(time.perf_counter() - began, 1)}


def untrained(bench: Workbench, folder: Path) -> Learned:
    teacher = bench.recipe.teacher
    assert teacher is not None
    assert teacher.build is not None
    save_net(folder / NET, teacher.build(), ())
    return Learned("untrained", teacher.build, folder)


if __name__ == "__main__":
    main()
