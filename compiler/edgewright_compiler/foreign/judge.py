"""What the forms of a finished file are compared by: answers, figures, times and memory, always of what is shipped.

A form is shipped with a monitor where its format takes one, so its time, memory and size are those with it; the figures
without stand beside them, because the file as it came had none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from edgewright_contracts.errors import Refused, RequestError
from edgewright_contracts.manifest import Task, TensorIn, TensorOut
from edgewright_devices import DeviceProfile
from edgewright_runtime.runtime import Session, open_session

from ..export.parity import Parity as Compared
from ..export.parity import compare
from ..graph.features import Columns
from ..graph.reference import run
from ..measuring.bounds import loss_bound
from ..measuring.estimate import predict
from ..measuring.evidence import Estimate, Figure, Loss, Machine, Parity, Time
from ..measuring.footprint import footprint
from ..measuring.latency import interleaved, time_of
from ..measuring.machine import describe
from ..measuring.metrics import Metric
from ..measuring.metrics import metric as metric_of
from ..measuring.slices import figure
from ..pipeline.choice import Limits
from ..quantization.schemes import Scheme
from ..rows import Array, Labelled, Rows, take
from ..rows import count as count_rows
from . import surgery
from .forms import RUNTIME, Form
from .roles import by_metric_name, declared_inputs, declared_outputs
from .samples import Samples

PARITY_ROWS: Final = 256
BARE: Final = " without monitor"  # behind the name of a form
CAME: Final = "the file as it came"
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
    parity: Parity | None = None


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
        self.rows = take(samples.judging, slice(0, PARITY_ROWS))
        self._shipped: dict[Path, tuple[Path, Columns]] = {}
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

    def compared(self, scheme: Scheme, path: Path) -> Compared:
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

    def shipped(self, path: Path) -> tuple[Path, Columns]:
        """The file as a package holds it, with a monitor where its format takes one, and the monitor's columns."""
        if path not in self._shipped:
            target = self.scratch / f"watched-{len(self._shipped)}.onnx"
            onnx = self.form.format == "onnx"
            columns = surgery.watch(path, target, self.form.inputs, self.form.outputs) if onnx else ()
            self._shipped[path] = (target if columns else path, columns)
        return self._shipped[path]

    def packaged(self, path: Path) -> Session:
        """The file as a package holds it, asked for all that it answers."""
        whole, columns = self.shipped(path)
        return open_session(whole, RUNTIME[self.form.format], inputs=self._borders[0], outputs=self.outputs(columns))

    def outputs(self, columns: Columns) -> tuple[TensorOut, ...]:
        return declared_outputs(self.task, self.form.outputs, self.truth, columns)

    def times(self, paths: Mapping[str, Path], rows: Rows) -> dict[str, Time]:
        """As a package holds them, and by `name + BARE` without the monitor; where there is none it is the same."""
        bare = {name for name, path in paths.items() if self.shipped(path)[0] != path}
        sessions = {name: self.packaged(path) for name, path in paths.items()}
        found = timed({**sessions, **{name + BARE: self.session(paths[name]) for name in sorted(bare)}}, rows)
        return {**found, **{name + BARE: found[name] for name in paths if name not in bare}}

    def growth_mb(self, path: Path) -> float:
        """What loading and running it, as a package holds it, adds to a process."""
        whole, columns = self.shipped(path)
        inputs, outputs = self._borders[0], self.outputs(columns)
        return footprint(whole, RUNTIME[self.form.format], inputs, outputs, take(self.rows, slice(0, 8))).growth_mb

    def expected(self, scheme: Scheme, time_: Time) -> Estimate:
        """What the device may need for one sample."""
        return predict(self.device, self.machine, time_, int8=scheme.precision in ("int8", "mixed"))

    @cached_property
    def machine(self) -> Machine:
        return describe()

    @cached_property
    def _declared(self) -> Any:
        return self.outputs(())

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
