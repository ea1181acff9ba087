"""Steps that make and judge candidates: every scheme that is worth trying, for one architecture.

What a file answers is kept with it (its outputs on validation, test and reference rows), so nothing runs twice; so are
the times, because a resumed run must come to the choice that the first one would have come to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.built import built
from edgewright_contracts.manifest import Format
from edgewright_devices import DeviceProfile

from ..export.parity import compare
from ..graph.reference import run
from ..measuring.bounds import Bound, loss_bound
from ..measuring.estimate import predict
from ..measuring.evidence import Machine, Memory, Time
from ..measuring.footprint import footprint
from ..measuring.latency import interleaved, time_of
from ..measuring.metrics import Outputs, value
from ..packaging import npz
from ..quantization.schemes import Scheme, schemes
from ..rows import Labelled, Rows
from .build import Built
from .choice import DEFAULT_DROP, Arch, Candidate, Limits, loss_only, misses
from .files import HOST_RUNTIME, NAMES, File, Made, made
from .learn import OUTPUTS, arrays
from .refinement import refined
from .steps import Step
from .workbench import ANSWERING, RUNTIMES, TIMING, Workbench, code_hash, versions

ROUNDS: Final = 200  # of calls when candidates are compared; the chosen are measured longer
RESAMPLES: Final = 200  # for the half-width of a set metric on validation rows: a guide, not the bound
_TIMES: Final = "times.json"


def answers(bench: Workbench, file: File, name: str, rows: Rows) -> Outputs:
    """All outputs of a file for rows called `name`, as its runtime gives them here."""
    step = Step("answers", bench.facts(ANSWERING, RUNTIMES, file=file.step, rows=name, alone=file.alone))

    def make(part: Path) -> None:
        (part / OUTPUTS).write_bytes(npz(run(file.open(), rows, alone=file.alone)))

    return arrays(bench.store.get(step, make) / OUTPUTS)


def candidates(
    bench: Workbench,
    device: DeviceProfile,
    machine: Machine,
    arch: Arch,
    built: Built,
    formats: Sequence[Format],
    truth: Outputs,
    limits: Limits,
) -> tuple[Candidate, ...]:
    """Every scheme for every format, judged; `truth` is what the reference answers on validation rows.

    Where static int8 misses the limits and float keeps them, mixed precision is tried as well.
    """
    tried = [one for form in formats for one in _made(bench, built, form, schemes(form, device, built.kinds))]
    found = _judged(bench, device, machine, arch, built, tried, truth, limits)
    more = [
        one for form in formats for one in _made(bench, built, form, _mixed(bench, built, form, tried, found, limits))
    ]
    if more:
        found += _judged(bench, device, machine, arch, built, more, truth, limits)
    bench.say("judging candidates", 1.0)
    return tuple(found)


def _made(bench: Workbench, built: Built, form: Format, wanted: Sequence[Scheme]) -> list[Made]:
    found = []
    for done, scheme in enumerate(wanted):
        source = built.source(form)
        bench.say(f"quantizing {NAMES[form]}", done / len(wanted))
        found.append(made(bench, source, scheme))
    if wanted:
        bench.say(f"quantizing {NAMES[form]}", 1.0)
    return found


def _judged(
    bench: Workbench,
    device: DeviceProfile,
    machine: Machine,
    arch: Arch,
    built: Built,
    tried: Sequence[Made],
    truth: Outputs,
    limits: Limits,
) -> list[Candidate]:
    files = {one.scheme.id: one.file for one in tried if one.file is not None}
    times = measured(bench, files, machine)
    plain = {form: built.file(form) for form in dict.fromkeys(one.scheme.format for one in tried if one.file)}
    found = []
    for done, one in enumerate(tried):
        bench.say("judging candidates", done / len(tried))
        scheme = one.scheme
        blank = Candidate(
            arch=arch, scheme=scheme.id, format=scheme.format, precision=scheme.precision, how=asdict(scheme)
        )
        if one.file is None:
            found.append(msgspec.structs.replace(blank, refused=one.refused))
            continue
        rows = bench.data.validation.inputs
        told, float_ = (answers(bench, file, "validation", rows) for file in (one.file, plain[scheme.format]))
        figure, bound = judged(bench, truth, told)
        time = times[scheme.id]
        expected = predict(device, machine, time, int8=scheme.precision in ("int8", "mixed"))
        found.append(
            msgspec.structs.replace(
                blank,
                value=figure,
                drop=bound.estimate,
                half_width=bound.bound - bound.estimate,
                rows=bound.n,
                rows_needed=None if limits.max_drop is None else bound.needed(limits.max_drop),
                bytes=one.file.path.stat().st_size,
                p50_us=time.p50,
                relative=time.per_reference,
                p95_ms=expected.p95_ms,
                rss_mb=None if limits.max_rss_mb is None else memory_of(one.file, bench).growth_mb,
                error=error(float_, told, scheme, truth),
            )
        )
    return found


def error(float_: Outputs, told: Outputs, scheme: Scheme, truth: Outputs) -> float:
    """How far answers are from those of the float file on average, of the outputs that a reference has as well."""
    compared = compare(scheme.id, {name: float_[name] for name in truth}, told, scheme.precision)
    return max(compared.mean_error.values(), default=0.0)


def _mixed(
    bench: Workbench, built: Built, form: Format, tried: Sequence[Made], found: Sequence[Candidate], limits: Limits
) -> tuple[Scheme, ...]:
    """The best static scheme of a format with the layers float that must be; none when it is not needed or no help."""
    whole = next(c for c in found if c.format == form and c.precision == "fp32")
    static = [
        (one.scheme, c)
        for one, c in zip(tried, found, strict=True)
        if one.scheme.format == form and one.scheme.method == "static" and not c.refused
    ]
    loss = loss_only(limits)  # what is too large or too slow in float is what int8 is wanted for
    if misses(whole, loss) or not static or any(not misses(c, loss) for _, c in static):
        return ()
    scheme, best = min(static, key=lambda pair: (pair[1].drop, pair[0].id))
    aim = DEFAULT_DROP if limits.max_drop is None else limits.max_drop - best.half_width
    found_layers = refined(bench, built.source(form), scheme, best.value, aim - whole.drop).float_layers
    return (scheme.keeping(found_layers),) if found_layers else ()


def judged(bench: Workbench, truth: Outputs, found: Outputs) -> tuple[float, Bound]:
    """The figure on validation rows, and the bound on the loss as it is expected at the size of the test set."""
    rows = bench.data.validation
    bound = loss_bound(
        bench.metric, truth, found, rows.labels, seed=bench.seed, groups=rows.groups, resamples=RESAMPLES
    )
    return value(bench.metric, found, rows.labels), bound.expected(rows, bench.data.test)


def measured(bench: Workbench, files: Mapping[str, File], machine: Machine) -> dict[str, Time]:
    """Times of files that are compared with one another, taken in turns in one go, and kept."""
    facts = {
        "files": {name: file.step for name, file in files.items()},
        "machine": msgspec.to_builtins(machine),
        "code": code_hash(TIMING),
        "tools": versions(RUNTIMES),
    }
    step = Step("times", facts)

    def make(part: Path) -> None:
        bench.say("measuring candidates", 0.0)
        (part / _TIMES).write_bytes(msgspec.json.encode(timed(files, bench.data.validation, ROUNDS)))
        bench.say("measuring candidates", 1.0)

    return msgspec.json.decode((bench.store.get(step, make) / _TIMES).read_bytes(), type=built(dict[str, Time]))


def timed(files: Mapping[str, File], rows: Labelled, calls: int) -> dict[str, Time]:
    """Times of single samples on one thread, all files in turns."""
    found = interleaved({name: file.open() for name, file in files.items()}, rows.inputs, calls=calls)
    return {name: time_of(latency) for name, latency in found.items()}


def memory_of(file: File, bench: Workbench) -> Memory:
    runtime = HOST_RUNTIME["onnx" if file.path.suffix == ".onnx" else "tflite"]
    return footprint(file.path, runtime, (file.input,), file.outputs, bench.data.validation.inputs)
