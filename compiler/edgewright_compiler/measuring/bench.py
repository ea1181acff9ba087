"""The bench: what every variant of a package costs on this machine, by every runtime that works here.

Each file is first loaded and run in a process of its own, so that one which crashes is told and skipped; what survives
tests itself, and then all take turns for their latencies. Needs numpy, msgspec and a runtime; nothing of a compiler.
Takes about 1 s for each file and the time of the calls.

`python -m edgewright_compiler.measuring.bench DIRECTORY CALLS` prints one `Reply` as JSON: the same, for a device.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgewright_contracts.errors import EdgewrightError, RequestError, Unavailable
from edgewright_contracts.manifest import Variant
from edgewright_contracts.package import Package, read_package
from edgewright_runtime.runtime import SUFFIXES, Array, Session, open_session
from edgewright_runtime.selftest import run_selftest

from .evidence import Bench, Benched, Machine
from .footprint import footprint
from .latency import Latency, interleaved, time_of
from .machine import celsius, describe

CALLS: Final = 400


class Reply(msgspec.Struct, frozen=True):
    bench: Bench | None = None
    error: str = ""
    exit_code: int = 0


def bench(package: Package, *, calls: int = CALLS, host: str = "", made: str = "") -> Bench:
    """Measure the package directory `package`. `host` and `made` are noted as they come.

    Raises ContractError for a file that is not what the manifest says, Unavailable when no runtime here reads any.
    """
    package.verify()
    machine, before = describe(), celsius()
    tried = [_first(package, variant, runtime, machine) for variant, runtime in _pairs(package, machine)]
    sessions = {one.key: one.session for one in tried if one.session is not None}
    rows = next((one.rows for one in tried if one.rows), None)
    latencies = interleaved(sessions, rows, calls=calls) if rows else {}
    after = celsius()
    manifest = package.manifest
    return Bench(
        host=host,
        made=made,
        name=manifest.name,
        version=manifest.version,
        digest=package.digest,
        machine=machine,
        reference_us=next((one.reference_us for one in latencies.values()), 0.0),
        celsius=None if before is None or after is None else (before, after),
        variants=tuple(_with_time(one, latencies.get(one.key)) for one in tried),
    )


@dataclass(frozen=True, slots=True)
class Tried:
    result: Benched
    session: Session | None = None
    rows: Mapping[str, Array] | None = None

    @property
    def key(self) -> str:
        return f"{self.result.variant}/{self.result.runtime}"


def _pairs(package: Package, machine: Machine) -> list[tuple[Variant, str]]:
    found = [
        (variant, runtime)
        for variant in package.manifest.variants
        for runtime in machine.runtimes
        if SUFFIXES[runtime] == f".{variant.format}"
    ]
    if not found:
        formats = sorted({v.format for v in package.manifest.variants})
        raise Unavailable(
            f"no runtime that works here reads {' or '.join(formats)} files "
            f"(found: {', '.join(machine.runtimes) or 'none'}); pip install 'edgewright[agent-onnx,agent-tflite]'"
        )
    return found


def _first(package: Package, variant: Variant, runtime: str, machine: Machine) -> Tried:
    manifest, path = package.manifest, package.root / variant.model
    told = Benched(
        variant=variant.id,
        runtime=runtime,
        version=machine.runtimes[runtime],
        bytes=manifest.files[variant.model].size,
    )
    try:
        npz = package.read(variant.selftest)
        with np.load(io.BytesIO(npz), allow_pickle=False) as arrays:
            rows = {tensor.name: arrays[f"input:{tensor.name}"] for tensor in manifest.inputs}
        memory = footprint(path, runtime, manifest.inputs, manifest.outputs, rows)
        session = open_session(path, runtime, inputs=manifest.inputs, outputs=manifest.outputs, options=variant.options)
        tested = run_selftest(session, npz, manifest, variant)
    except EdgewrightError as error:
        return Tried(msgspec.structs.replace(told, failed=str(error)))
    told = msgspec.structs.replace(told, memory=memory, selftest=tested.passed, failed=tested.reason)
    return Tried(told, session, rows)


def _with_time(tried: Tried, latency: Latency | None) -> Benched:
    return tried.result if latency is None else msgspec.structs.replace(tried.result, time_us=time_of(latency))


def main(directory: Path, calls: int) -> Reply:
    try:
        package = read_package(directory)
        if not package.root.is_dir():
            raise RequestError(f"{directory}: expected an unpacked package")
        return Reply(bench(package, calls=calls))
    except EdgewrightError as error:
        return Reply(error=str(error), exit_code=error.exit_code)


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(main(Path(sys.argv[1]), int(sys.argv[2]))).decode() + "\n")
