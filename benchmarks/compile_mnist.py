"""`mnist` at full size: what the packaged int8 variants, monitor included, gain and lose against the teacher.

    python benchmarks/compile_mnist.py [--quick] [--json] [--work DIR]

The teacher is pinned: five convolutions, 241,642 weights. The loss is measured on 1,500 test rows. The quick form
trains teacher and student for a few epochs (Settings QUICK), so its accuracies say nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import against_teacher

from edgewright_models.mnist.recipe import QUICK, recipe

BARS = {"teacher_accuracy": 0.986, "bound_drop_points": 1.0, "size_ratio": 28.0, "speed_ratio": 11.0}
README = against_teacher.ROOT / "models" / "edgewright_models" / "mnist" / "README.md"


def main() -> None:
    told = against_teacher.arguments(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "package"
        if told.quick:
            result = against_teacher.compiled(recipe(QUICK), Path(scratch) / "work", package, quick=True)
        else:
            result = against_teacher.compiled(recipe(), told.work, package, quick=False)
            full = against_teacher.write("compile_mnist", {**result, "bars": BARS})
            against_teacher.tell("compile_mnist", full, README)
    against_teacher.show(result, as_json=told.json)


if __name__ == "__main__":
    main()
