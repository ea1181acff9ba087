"""Build the small packages that tests use: the digits recipe at a tiny size, all four variants, three versions:
a hardly trained one, a better one, and one whose labels were mixed up.

    python scripts/build_test_package.py [OUT]      (default: tests/data)

Needs the compiler and recipes extras; takes about 20 s. Build again after a change of the package format.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from edgewright_compiler.compilation import compile_recipe
from edgewright_compiler.quiet import quiet
from edgewright_contracts.package import write_ewp
from edgewright_devices import load
from edgewright_models.digits.recipe import MISLABELLED, Settings, recipe

TINY = Settings(version="1.0.0", epochs=4, tune_epochs=4, distil=False, student=(16, 16, 16, 24), reference_rows=4000)
VERSIONS = (
    TINY,
    replace(TINY, version="1.1.0", epochs=12, tune_epochs=12),
    replace(TINY, version="1.2.0", epochs=12, tune_epochs=12, label_fault=MISLABELLED.label_fault),
)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "tests" / "data"
    for settings in VERSIONS:
        with tempfile.TemporaryDirectory() as scratch, quiet():
            result = compile_recipe(
                replace(recipe(settings), name="tiny"),
                load("x86-gateway"),
                Path(scratch) / "package",
                seed=1,
                now=datetime.now(UTC),
                progress=lambda _stage, _share: None,
                work=Path(scratch) / "work",
                thorough=False,
            )
            path = out / f"tiny-{settings.version}.ewp"
            write_ewp(result.package.root, path)
        shares = {v.id: round(v.metric["sensor"].value, 4) for v in result.evidence.variants}
        print(f"{path}: {path.stat().st_size} bytes, digest {result.package.digest[:12]}, accuracy {shares}")


if __name__ == "__main__":
    main()
