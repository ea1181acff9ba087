"""Compiles the versions of the demonstration, one after another, in a process of its own.

    python -m edgewright.demo.builder --out DIR

`DIR/v1`, `v2`, `v3a` and `v3b` appear as each is whole, and `DIR/figures.json` grows with what was measured. The last
line of output says what it is doing. All four are signed by the same owner later; what differs is what went wrong:

    v1   hardly trained        v3a  the model files of v1 were packed beside v2's self-test
    v2   distilled, better     v3b  its labels were mixed up: valid in every way, and wrong on some classes
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from edgewright_compiler.compilation import CompileResult, compile_recipe
from edgewright_compiler.packaging import facts_of, write_package
from edgewright_compiler.pipeline.choice import Limits
from edgewright_contracts.errors import EdgewrightError
from edgewright_contracts.package import Package
from edgewright_devices import load
from edgewright_models.digits import recipe as digits

SETTINGS = {"v1": digits.FIRST, "v2": digits.BETTER, "v3b": digits.MISLABELLED}
WRONG_FILE_VERSION = "1.1.1"
MAX_DROP = 10.0  # points: v1 is hardly trained, and every version has the same variants


def main() -> int:
    signal.signal(signal.SIGTERM, _interrupt)  # so that half-made files are removed
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        build(options.out, options.seed)
    except KeyboardInterrupt:
        return 130
    except (EdgewrightError, OSError) as error:
        sys.stdout.write(f"compiling failed: {error}\n")
        return error.exit_code if isinstance(error, EdgewrightError) else 3
    return 0


def build(out: Path, seed: int) -> None:
    figures: dict[str, Any] = {}
    made: dict[str, Package] = {}
    for version, settings in SETTINGS.items():

        def say(stage: str, share: float, version: str = version) -> None:
            sys.stdout.write(f"{version}: {stage} {share:.0%}\n")

        result = compile_recipe(
            digits.recipe(settings),
            load("x86-gateway"),
            out / version,
            seed=seed,
            now=datetime.now(UTC),
            progress=say,
            work=out / "work",
            limits=Limits(max_drop=MAX_DROP),
            thorough=False,
        )
        figures[version] = measured(result)
        _write(out / "figures.json", figures)
        made[version] = result.package
        if version == "v2":
            wrong_file(made["v2"], made["v1"], out / "v3a")


def wrong_file(tested: Package, packed: Package, out: Path) -> Package:
    """A package whose self-test was made with `tested` and whose model files are those of `packed`."""
    models = {variant.model for variant in tested.manifest.variants}
    files = {name: (packed if name in models else tested).read(name) for name in tested.manifest.files}
    return write_package(out, {**facts_of(tested.manifest), "version": WRONG_FILE_VERSION}, files, None)


def measured(result: CompileResult) -> Mapping[str, Any]:
    """Accuracy on sensor draws of held-out rows, bytes and p50 of each variant; the seconds that all of it took."""
    variants = {
        variant.id: {
            "accuracy": variant.metric["sensor"].value,
            "bytes": variant.bytes,
            "p50_us": variant.time_us.p50,
        }
        for variant in result.evidence.variants
    }
    return {"package_version": result.package.manifest.version, "seconds": result.seconds, "variants": variants}


def _write(path: Path, figures: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(figures))
    part.replace(path)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
