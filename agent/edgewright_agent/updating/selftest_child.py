"""`python -m edgewright_agent.updating.selftest_child FOLDER VARIANT RUNTIME FORM`: the self-test in a process of its
own.

A file that crashes, hangs or eats all memory takes this process with it and not the agent. FORM `optimised` makes what
the runtime does to the graph on this CPU into files of the slot (`proof`) and tests those; where they cannot be made,
or do not pass, and with FORM `plain`, the package's own file is tested. What passed is what will be loaded.

Prints one JSON object; or nothing, when it is the device that failed: a runtime that does not work, an import, a disk,
no memory. Whatever native code prints goes to the log. The process gives way to all others (nice), is the first that
the kernel ends when memory runs out, leaves no core dump, and dies with the agent. No rlimit bounds its memory: the one
of address space counts what is only mapped, and with the one of data native code crashes, as if the model were broken.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgewright_contracts.errors import RequestError, Unavailable
from edgewright_contracts.manifest import FileRef, Manifest, Variant
from edgewright_contracts.package import Package, read_package
from edgewright_runtime.runtime import NoMemory, Session, open_session, optimise, probe, short_of_memory
from edgewright_runtime.selftest import SelfTestResult, run_selftest

from . import proof
from .measurement import Measured, measured, missed
from .verdict import NO_MEMORY, Verdict

NICE: Final = 10
_FIRST_TO_DIE: Final = b"1000"
_PR_SET_PDEATHSIG: Final = 1


def main(folder: Path, variant_id: str, runtime: str, form: str) -> Verdict:
    """Raises Unavailable, OSError, MemoryError: none of them says anything about the model."""
    try:
        package = read_package(folder)
        variant = package.manifest.variant(variant_id)
        package.read(variant.model)  # verified again where it now lies
        npz = package.read(variant.selftest)
    except RequestError as error:
        return Verdict(False, str(error), damaged=True)
    try:
        probe(runtime)  # what the library takes and how long it needs is not the file's
        files = made(package, variant, runtime) if form == "optimised" else {}
        if files:
            with contextlib.suppress(Exception):
                verdict = judged(package, variant, runtime, npz, files)
                if verdict.passed:
                    return verdict
        shutil.rmtree(folder / proof.FOLDER, ignore_errors=True)
        return judged(package, variant, runtime, npz, {})
    except (Unavailable, OSError, MemoryError):
        raise
    except Exception as error:  # whole files, and still it throws
        if short_of_memory(error):
            raise MemoryError(str(error)) from error
        traceback.print_exc()
        return Verdict(False, str(error) or type(error).__name__)


def made(package: Package, variant: Variant, runtime: str) -> dict[str, FileRef]:
    """The optimised files; none where there is no such form, or no room for it."""
    target = package.root / proof.FOLDER
    try:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        files = optimise(package.root / variant.model, runtime, target, variant.options)
        return {
            path.name: FileRef(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size) for path in files
        }
    except Exception as error:  # the package's own file is as good, and says what is wrong with it
        sys.stderr.write(f"no optimised form: {error}\n")
        shutil.rmtree(target, ignore_errors=True)
        return {}


def judged(package: Package, variant: Variant, runtime: str, npz: bytes, files: dict[str, FileRef]) -> Verdict:
    """Of the optimised files, or else of the package's own."""
    manifest, results = package.manifest, list[SelfTestResult]()
    path, optimised = proof.to_load(package, variant, proof.make(package, variant, runtime, files))

    def opened() -> Session:
        return open_session(
            path,
            runtime,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            options=variant.options,
            optimised=optimised,
        )

    found = measured(
        opened,
        lambda session: results.append(run_selftest(session, npz, manifest, variant)),
        _one_row(npz, manifest),
        manifest.budgets,
    )
    over = missed(manifest.budgets, found)
    failure = results[0].reason if not results[0].passed else over.failure
    return _verdict(failure, over.strain, found, files)


def _verdict(failure: str, strain: str, found: Measured, files: dict[str, FileRef]) -> Verdict:
    return Verdict(
        not failure,
        failure or strain,
        round(found.rss_mb, 1),
        round(found.load_s, 6),
        round(found.p95_ms, 4),
        files,
        ran=True,
    )


def _one_row(npz: bytes, manifest: Manifest) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(npz), allow_pickle=False) as arrays:
        return {t.name: arrays[f"input:{t.name}"][:1] for t in manifest.inputs}


def _confined() -> None:
    """What a device does not allow is left: none of it is needed to judge a model that does well."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        os.nice(NICE)
        Path("/proc/self/oom_score_adj").write_bytes(_FIRST_TO_DIE)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    told = os.dup(1)
    os.dup2(2, 1)  # so that native code cannot write into the verdict
    _confined()
    try:
        said = msgspec.json.encode(main(Path(sys.argv[1]), *sys.argv[2:5]))
    except (MemoryError, Unavailable) as error:
        traceback.print_exc()
        sys.exit(NO_MEMORY if isinstance(error, NoMemory) or short_of_memory(error) else 1)
    os.write(told, said + b"\n")
