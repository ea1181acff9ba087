"""`python -m edgewright_agent.selftest_child FOLDER VARIANT RUNTIME`: the self-test in a process of its own.

A file that crashes, hangs or eats all memory takes this process with it and not the agent. Prints one JSON object.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import msgspec

from edgewright_contracts.errors import EdgewrightError
from edgewright_contracts.package import read_package
from edgewright_runtime.runtime import open_session
from edgewright_runtime.selftest import run_selftest


class Verdict(msgspec.Struct, frozen=True):
    passed: bool
    reason: str
    rss_mb: float = 0.0  # peak of the child


def main(folder: Path, variant_id: str, runtime: str) -> Verdict:
    package = read_package(folder)
    manifest = package.manifest
    variant = manifest.variant(variant_id)
    package.read(variant.model)  # verified again where it now lies
    session = open_session(folder / variant.model, runtime, inputs=manifest.inputs, outputs=manifest.outputs)
    result = run_selftest(session, package.read(variant.selftest), manifest, variant)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Verdict(result.passed, result.reason, round(peak, 1))


if __name__ == "__main__":
    try:
        verdict = main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    except EdgewrightError as error:
        verdict = Verdict(False, str(error))
    sys.stdout.write(msgspec.json.encode(verdict).decode() + "\n")
