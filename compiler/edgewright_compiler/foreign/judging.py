"""Which form of a finished file is packaged: every scheme that may help is made, run and compared with the float file.

A smaller form is taken when it is really smaller and not slower by more than a twentieth than the float one, both as
they would be shipped, with their monitor; and when it answers as the float file does (`export.parity`, and the metric
where there are labels). What speaks against each other one is kept in the choice, and what the chosen one costs beside
the file as it came, with its monitor and without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgewright_contracts.errors import Refused, RequestError

from ..export.parity import compare
from ..measuring.agreement import agreement
from ..measuring.bounds import several_groups
from ..measuring.dearer import SLOWER, microseconds
from ..measuring.evidence import Time
from ..pipeline.choice import Arch, Candidate, Choice, Limits
from ..pipeline.choosing import choose
from ..quantization.apply import MIN_ROWS, quantize
from ..quantization.schemes import Kinds, Scheme, schemes
from ..rows import count as count_rows
from .forms import Form
from .judge import BARE, CAME, Judge, Judged


def judged(
    judge: Judge,
    limits: Limits,
    recorded: Choice | None,
    progress: Callable[[str, float], None],
    kept: Callable[[Limits, Sequence[Candidate]], None],
) -> tuple[Choice, dict[str, Judged]]:
    """The choice, and every form by the id of its scheme. `kept` is given what was measured when nothing is chosen.

    Raises Refused when no form keeps the limits, the recorded one cannot be made here, or --max-drop would be held
    against test rows of one group.
    """
    if limits.max_drop is not None and judge.samples.test is not None:
        several_groups(judge.samples.test)
    form = judge.form
    plain = Scheme(format=form.format, precision="int8" if form.quantized else "fp32", method="none")
    same = compare(plain.id, judge.truth, judge.truth, "fp32")
    tried = {plain.id: Judged(plain, form.path, parity=agreement(same, n=count_rows(judge.rows), reference=CAME))}
    worth = _worth(judge)
    if recorded is not None:
        asked = recorded.chosen[form.format]
        known = [plain.id, *(s.id for s in worth)]
        if asked not in known:
            raise RequestError(
                f"the recorded choice is {asked}: expected one of {', '.join(known)}; leave it out (--choice)"
            )
        worth = [s for s in worth if s.id == asked]
    for done, scheme in enumerate(worth):
        progress("quantizing", done / len(worth))
        tried[scheme.id] = _made(judge, scheme)
    progress("quantizing", 1.0)
    if recorded is not None:
        if refused := tried[asked].refused:
            raise Refused(
                f"{asked}, which choice.json asks for, cannot be made here: {refused}; leave it out (--choice)"
            )
        return recorded, tried
    progress("judging forms", 0.0)
    times = judge.times({t.scheme.id: t.path for t in tried.values() if t.path is not None}, judge.rows)
    found = [_candidate(judge, t, plain.id, tried, times, limits) for t in tried.values()]
    progress("judging forms", 1.0)
    try:
        made = choose(found, limits, (Arch(),), smaller="compile a model that is smaller")
    except Refused:
        kept(limits, found)
        raise
    return _explained(judge, made, plain.id, tried, times), tried


def _worth(judge: Judge) -> list[Scheme]:
    """Of the schemes for the device those with plain ranges: histograms of a large net take minutes, and choose by an
    error of weights that nobody here trained."""
    if judge.form.quantized:
        return []
    known = schemes(judge.form.format, judge.device, _kinds(judge.form))
    return [s for s in known if s.method != "none" and s.calibration in ("", "minmax")]


def _kinds(form: Form) -> Kinds:
    if form.format == "onnx":
        from ..quantization import onnx as back_end
    else:
        from ..quantization import tflite as back_end  # type: ignore[no-redef]
    return back_end.kinds(form.path)


def _made(judge: Judge, scheme: Scheme) -> Judged:
    rows = judge.samples.calibration
    if scheme.calibrated and not judge.samples.real:
        return Judged(scheme, None, "needs rows to calibrate on, and no data were given")
    if scheme.calibrated and count_rows(rows) < MIN_ROWS:
        return Judged(scheme, None, f"needs {MIN_ROWS} rows to calibrate on, got {count_rows(rows)}")
    target = judge.scratch / f"{scheme.id}.{scheme.format}"
    try:
        quantize(scheme, judge.form.path, target, rows if judge.samples.real else judge.rows, scope=None)
        parity = judge.compared(scheme, target)
    except Refused as error:
        return Judged(scheme, None, str(error).removeprefix(f"{scheme.id}: "))
    except (RuntimeError, ValueError) as error:  # what runtimes throw on a file that they had loaded
        return Judged(scheme, None, f"does not answer: {next(iter(str(error).splitlines()), type(error).__name__)}")
    found = agreement(parity, n=count_rows(judge.rows), reference=CAME)
    return Judged(scheme, target, "" if parity.passed else f"answers differently: {parity.reason}", found)


def _candidate(
    judge: Judge,
    one: Judged,
    plain: str,
    tried: Mapping[str, Judged],
    times: Mapping[str, Time],
    limits: Limits,
) -> Candidate:
    scheme = one.scheme
    if one.path is None:
        return _entry(scheme, refused=one.refused)
    base = tried[plain].path
    assert base is not None
    size, whole = (judge.shipped(path)[0].stat().st_size for path in (one.path, base))
    took = times[scheme.id]
    bound = judge.drop(one.path, judge.samples.validation) if scheme.id != plain else None
    reasons = [one.refused] if one.refused else []
    if scheme.id != plain and size >= whole:
        reasons.append(f"not smaller: {size} bytes, float has {whole}")
    if scheme.id != plain and took.p50 > SLOWER * times[plain].p50:
        reasons.append(
            f"slower: {microseconds(took.p50)} µs, float takes {microseconds(times[plain].p50)}, each as it is shipped"
        )
    return _entry(
        scheme,
        drop=0.0 if bound is None else bound.estimate,
        half_width=0.0 if bound is None else bound.bound - bound.estimate,
        rows=0 if bound is None else bound.n,
        rows_needed=None if bound is None or limits.max_drop is None else bound.needed(limits.max_drop),
        bytes=size,
        p50_us=took.p50,
        relative=took.per_reference,
        p95_ms=judge.expected(scheme, took).p95_ms,
        rss_mb=None if limits.max_rss_mb is None else judge.growth_mb(one.path),
        error=None if one.parity is None else one.parity.mean_error,
        refused="; ".join(reasons),
    )


def _entry(scheme: Scheme, **facts: Any) -> Candidate:
    return Candidate(
        arch=Arch(), scheme=scheme.id, format=scheme.format, precision=scheme.precision, how=asdict(scheme), **facts
    )


def _explained(
    judge: Judge, made: Choice, plain: str, tried: Mapping[str, Judged], times: Mapping[str, Time]
) -> Choice:
    from msgspec.structs import replace

    (chosen,) = made.chosen.values()
    costs = _costs(judge, tried[chosen], times)
    if chosen != plain:
        why = f"{chosen} is smaller than the float form, not slower (each as it is shipped), and answers alike."
        return replace(made, why=f"{why} {costs}")
    reasons: dict[str, list[str]] = {}
    for c in made.candidates:
        if c.scheme != plain:
            reasons.setdefault(c.refused or "costs more", []).append(c.scheme)
    against = "; ".join(f"{', '.join(schemes_)}: {reason}" for reason, schemes_ in reasons.items())
    against = against or "It has no float32 weights that could be made smaller"
    return replace(made, why=f"Packaged as it came. {against}. {costs}".rstrip())


def _costs(judge: Judge, one: Judged, times: Mapping[str, Time]) -> str:
    """What is shipped beside the file as it came; "" where that is the same file."""
    assert one.path is not None
    whole, came = judge.shipped(one.path)[0], judge.form.path
    if whole == came:
        return ""
    name, plain = one.scheme.id, judge.plain
    told = f"Shipped it takes {microseconds(times[name].p50)} µs and {whole.stat().st_size:,} bytes"
    if whole != one.path:
        told += f" ({microseconds(times[name + BARE].p50)} and {one.path.stat().st_size:,} without its monitor)"
    brought = times[plain + BARE].p50
    told += f"; {CAME} takes {microseconds(brought)} and {came.stat().st_size:,}."
    worse = ["slower"] if times[name].p50 > SLOWER * brought else []
    worse += ["larger"] if whole.stat().st_size > came.stat().st_size else []
    return f"{told} It is {' and '.join(worse)} than {CAME}." if worse else told
