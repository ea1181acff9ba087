"""Which form of a finished file is packaged: every scheme that may help is made, run and compared with the float file.

A smaller form is taken when it is really smaller, not slower by more than a twentieth, and answers as the float file
does (`export.parity`, and the metric where there are labels). What speaks against each other one is kept in the choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.manifest import Task, TensorIn, TensorOut
from edgewright_devices import DeviceProfile
from edgewright_runtime.runtime import Session, open_session

from ..export.parity import Parity, compare
from ..graph.reference import run
from ..measuring.bounds import loss_bound
from ..measuring.estimate import predict
from ..measuring.evidence import Estimate, Figure, Loss, Machine, Time
from ..measuring.evidence import Parity as ParityEvidence
from ..measuring.footprint import footprint
from ..measuring.latency import interleaved, time_of
from ..measuring.machine import describe
from ..measuring.metrics import Metric
from ..measuring.metrics import metric as metric_of
from ..measuring.slices import figure
from ..pipeline.choice import Arch, Candidate, Choice, Limits, choose
from ..quantization.apply import MIN_ROWS, quantize
from ..quantization.schemes import Kinds, Scheme, schemes
from ..rows import Array, Labelled, Rows, take
from ..rows import count as count_rows
from .forms import RUNTIME, Form
from .roles import by_metric_name, declared_inputs, declared_outputs
from .samples import Samples

SLOWER: Final = 1.05  # of the float file's p50; what is above is not taken
PARITY_ROWS: Final = 256
_CALLS: Final = (30, 500)
_SECONDS: Final = 3.0
_DEFAULT: Final = {"classification": "accuracy", "multilabel": "accuracy", "regression": "mae", "anomaly": "auroc"}
AGREEMENT: Final = "agreement"  # the metric when there are no labels: the share of elements that stay within tolerance


@dataclass(frozen=True, slots=True)
class Judged:
    """A scheme's file, or why there is none, and how it compares with the float file."""

    scheme: Scheme
    path: Path | None
    refused: str = ""
    parity: ParityEvidence | None = None


class Judge:
    """What all forms are compared by."""

    def __init__(
        self,
        form: Form,
        samples: Samples,
        task: Task,
        metric: str | None,
        seed: int,
        device: DeviceProfile,
        scratch: Path,
    ) -> None:
        self.form, self.samples, self.task, self.seed = form, samples, task, seed
        self.device, self.scratch = device, scratch
        self.metric: Metric | None = None
        if samples.test is not None:
            chosen = metric or _DEFAULT.get(task)
            self.metric = None if chosen is None else metric_of(chosen, task)
        self.rows = take(samples.reference, slice(0, PARITY_ROWS))
        precision: Literal["int8", "fp32"] = "int8" if form.quantized else "fp32"
        self.plain = Scheme(format=form.format, precision=precision, method="none").id

    @property
    def metric_name(self) -> str:
        return self.metric.name if self.metric is not None else AGREEMENT

    @cached_property
    def truth(self) -> dict[str, Array]:
        """What the file as it came answers to the rows that are compared."""
        session = self.session(self.form.path)
        try:
            return dict(run(session, self.rows, alone=True))
        except Exception as error:
            sizes = ", ".join(f"{b.name} {b.dtype} {list(b.shape)}" for b in self.form.inputs)
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RequestError(f"the file does not run on rows of {sizes}: {reason}") from error

    def answers(self, path: Path, rows: Rows) -> dict[str, Array]:
        return dict(run(self.session(path), rows, alone=True))

    def compared(self, scheme: Scheme, path: Path) -> Parity:
        classes = frozenset(t.name for t in self._declared if t.role == "probabilities")
        return compare(scheme.id, self.truth, self.answers(path, self.rows), scheme.precision, classes=classes)

    def drop(self, path: Path, rows: Labelled | None) -> Any:
        """The bound on the loss against the file as it came, on these rows; None without labels."""
        if rows is None or self.metric is None:
            return None
        ours, theirs = (by_metric_name(self._declared, self.answers(p, rows.inputs)) for p in (path, self.form.path))
        return loss_bound(self.metric, theirs, ours, rows.labels, seed=self.seed, groups=rows.groups)

    def loss(self, judged_: Judged, limits: Limits) -> Loss | None:
        """The bound on test rows, once, for what was chosen. Raises Refused when it misses --max-drop."""
        assert judged_.path is not None
        bound = self.drop(judged_.path, self.samples.test)
        if bound is None:
            if limits.max_drop is not None:
                raise RequestError("--max-drop needs labelled data to be held against: give --data with labels")
            return None
        needed = None if limits.max_drop is None else bound.needed(limits.max_drop)
        if limits.max_drop is not None and bound.bound > limits.max_drop:
            more = f"; {needed} rows would do at this rate" if needed else ""
            raise Refused(
                f"{judged_.scheme.id}: the loss is {bound.estimate:.2f} points, at most {bound.bound:.2f} "
                f"({bound.confidence:.0%}, n = {bound.n}), over --max-drop {limits.max_drop:g}{more}"
            )
        return Loss(
            estimate=bound.estimate,
            bound=bound.bound,
            n=bound.n,
            discordant=bound.discordant,
            confidence=bound.confidence,
            method=bound.method,
            needed=needed,
        )

    def figures(self, judged_: Judged) -> dict[str, Figure]:
        assert judged_.path is not None
        if self.metric is None or self.samples.test is None:
            within = 1.0 if judged_.parity is None else judged_.parity.within
            name = "rows" if self.samples.real else "synthetic"
            return {name: Figure(value=within, n=count_rows(self.rows), method="share of elements within tolerance")}
        test = self.samples.test
        outputs = by_metric_name(self._declared, self.answers(judged_.path, test.inputs))
        return {"test": figure(self.metric, outputs, test.labels, seed=self.seed, groups=test.groups)}

    def times(self, paths: Mapping[str, Path]) -> dict[str, Time]:
        return timed({name: self.session(path) for name, path in paths.items()}, self.rows)

    def growth_mb(self, path: Path) -> float:
        """What loading and running it adds to a process."""
        inputs, outputs = self._borders
        return footprint(path, RUNTIME[self.form.format], inputs, outputs, take(self.rows, slice(0, 8))).growth_mb

    def expected(self, scheme: Scheme, time_: Time) -> Estimate:
        """What the device may need for one sample."""
        return predict(self.device, self.machine, time_, int8=scheme.precision in ("int8", "mixed"))

    @cached_property
    def machine(self) -> Machine:
        return describe()

    @cached_property
    def _declared(self) -> Any:
        return declared_outputs(self.task, self.form.outputs, self.truth, ())

    @cached_property
    def _borders(self) -> tuple[tuple[TensorIn, ...], tuple[TensorOut, ...]]:
        unseen = {b.name: np.zeros(0) for b in self.form.outputs}
        return declared_inputs(self.form.inputs), declared_outputs("embedding", self.form.outputs, unseen, ())

    def session(self, path: Path) -> Session:
        inputs, outputs = self._borders
        return open_session(path, RUNTIME[self.form.format], inputs=inputs, outputs=outputs)


def timed(sessions: Mapping[str, Session], rows: Rows) -> dict[str, Time]:
    """Of single samples, all sessions in turns, for about _SECONDS."""
    one = {name: array[:1] for name, array in rows.items()}
    took = 0.0
    for session in sessions.values():
        session.run(one)
        began = time.perf_counter()
        session.run(one)
        took += time.perf_counter() - began
    calls = int(np.clip(_SECONDS / max(1e-6, took), *_CALLS))
    return {name: time_of(t) for name, t in interleaved(sessions, rows, calls=calls).items()}


def judged(
    judge: Judge, limits: Limits, recorded: Choice | None, progress: Callable[[str, float], None]
) -> tuple[Choice, dict[str, Judged]]:
    """The choice, and every form by the id of its scheme. Raises Refused when no form keeps the limits."""
    form = judge.form
    plain = Scheme(format=form.format, precision="int8" if form.quantized else "fp32", method="none")
    same = compare(plain.id, judge.truth, judge.truth, "fp32")
    tried = {plain.id: Judged(plain, form.path, parity=_told(same, len(next(iter(judge.rows.values())))))}
    worth = _worth(judge)
    if recorded is not None:
        worth = [s for s in worth if s.id == recorded.chosen.get(form.format)]
        if recorded.chosen.get(form.format) not in {plain.id, *(s.id for s in worth)}:
            raise RequestError(f"the recorded choice {dict(recorded.chosen)} is none of this file: leave it out")
    for done, scheme in enumerate(worth):
        progress("quantizing", done / len(worth))
        tried[scheme.id] = _made(judge, scheme)
    progress("quantizing", 1.0)
    if recorded is not None:
        return recorded, tried
    progress("judging forms", 0.0)
    times = judge.times({t.scheme.id: t.path for t in tried.values() if t.path is not None})
    found = [_candidate(judge, t, plain.id, tried, times, limits) for t in tried.values()]
    progress("judging forms", 1.0)
    made = choose(found, limits, (Arch(),))
    return _explained(made, plain.id), tried


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
    found = _told(parity, len(next(iter(judge.rows.values()))))
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
    size, took = one.path.stat().st_size, times[scheme.id]
    bound = judge.drop(one.path, judge.samples.validation) if scheme.id != plain else None
    reasons = [one.refused] if one.refused else []
    if scheme.id != plain and size >= base.stat().st_size:
        reasons.append(f"not smaller: {size} bytes, float has {base.stat().st_size}")
    if scheme.id != plain and took.p50 > SLOWER * times[plain].p50:
        reasons.append(f"slower: {took.p50:.0f} µs, float takes {times[plain].p50:.0f}")
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
        refused="; ".join(reasons),
    )


def _entry(scheme: Scheme, **facts: Any) -> Candidate:
    return Candidate(
        arch=Arch(), scheme=scheme.id, format=scheme.format, precision=scheme.precision, how=asdict(scheme), **facts
    )


def _explained(made: Choice, plain: str) -> Choice:
    from msgspec.structs import replace

    (chosen,) = made.chosen.values()
    if chosen != plain:
        return replace(made, why=f"{chosen} is smaller than the file as it came, not slower, and answers alike.")
    reasons: dict[str, list[str]] = {}
    for c in made.candidates:
        if c.scheme != plain:
            reasons.setdefault(c.refused or "costs more", []).append(c.scheme)
    against = "; ".join(f"{', '.join(schemes_)}: {reason}" for reason, schemes_ in reasons.items())
    return replace(
        made, why=f"Packaged as it came. {against or 'It has no float32 weights that could be made smaller'}."
    )


def _told(parity: Parity, n: int) -> ParityEvidence:
    return ParityEvidence(
        n=n,
        max_error=max(parity.max_error.values(), default=0.0),
        mean_error=max(parity.mean_error.values(), default=0.0),
        within=parity.within,
        agree=parity.agree,
    )
