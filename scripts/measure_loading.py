"""What the device's own optimised form of a package's graph saves when it is loaded.

    python scripts/measure_loading.py PACKAGE_DIRECTORY [--loads N]

For each ONNX variant: milliseconds of one load in a running process, best of N, from the package's file and from the
form that the self-test writes into a slot, taken in turns. Seconds in all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from edgewright_contracts.package import read_package
from edgewright_runtime.runtime import open_session, optimise, probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--loads", type=int, default=30)
    options = parser.parse_args()
    package = read_package(options.package)
    manifest = package.manifest
    print(f"{manifest.name} {manifest.version}, onnxruntime {probe('onnxruntime')}")
    for variant in manifest.variants:
        if variant.format != "onnx":
            continue
        with tempfile.TemporaryDirectory() as scratch:
            plain = package.root / variant.model
            made = optimise(plain, "onnxruntime", Path(scratch), variant.options)
            best = {plain: float("inf"), made[0]: float("inf")}
            for _ in range(options.loads):
                for file in best:
                    start = time.perf_counter()
                    open_session(
                        file,
                        "onnxruntime",
                        inputs=manifest.inputs,
                        outputs=manifest.outputs,
                        options=variant.options,
                        optimised=file is made[0],
                    )
                    best[file] = min(best[file], (time.perf_counter() - start) * 1000)
            sizes = plain.stat().st_size, sum(file.stat().st_size for file in made)
            print(f"{variant.id}: {best[plain]:.2f} → {best[made[0]]:.2f} ms, {sizes[0]} → {sizes[1]} bytes")


if __name__ == "__main__":
    main()
