"""`python -m edgewright_agent.updating.selftest_child FOLDER VARIANT RUNTIME`: the self-test in a process of its own.

A file that crashes, hangs or eats all memory takes this process with it and not the agent. Prints one JSON object; or
nothing, when it is the device that failed: a runtime that does not work, an import, a disk, no memory.
"""

from __future__ import annotations

import resource
import sys
import traceback
from pathlib import Path

import msgspec

from edgewright_contracts.errors import RequestError, Unavailable
from edgewright_contracts.package import read_package
from edgewright_runtime.runtime import open_session
from edgewright_runtime.selftest import run_selftest


class Verdict(msgspec.Struct, frozen=True):
    passed: bool
    reason: str
    rss_mb: float = 0.0  # peak of the child
    damaged: bool = False  # the files are not those of the manifest, so nothing was learnt about the model


def main(folder: Path, variant_id: str, runtime: str) -> Verdict:
    """Raises Unavailable, OSError, MemoryError: none of them says anything about the model."""
    try:
        package = read_package(folder)
        manifest = package.manifest
        variant = manifest.variant(variant_id)
        package.read(variant.model)  # verified again where it now lies
        rows = package.read(variant.selftest)
    except RequestError as error:
        return Verdict(False, str(error), damaged=True)
    try:
        session = open_session(folder / variant.model, runtime, inputs=manifest.inputs, outputs=manifest.outputs)
        result = run_selftest(session, rows, manifest, variant)
    except (Unavailable, OSError, MemoryError):
        raise
    except Exception as error:  # whole files, and still it throws
        traceback.print_exc()
        return Verdict(False, str(error) or type(error).__name__)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Verdict(result.passed, result.reason, round(peak, 1))


if __name__ == "__main__":
    verdict = main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    sys.stdout.write(msgspec.json.encode(verdict).decode() + "\n")
