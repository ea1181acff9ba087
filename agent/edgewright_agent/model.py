"""What an application calls: `Model.predict`. Validates, runs, and leaves one row of facts for the meter.

Guarantee: a switch of packages drops no inference, because each one takes the active reference once and keeps it. An
input that is not what the manifest declares never reaches the model; it raises `Rejected` and is counted by reason.
An inference waits for nothing but the model itself: for a runtime that is not concurrent, for its turn.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from edgewright_contracts.errors import RequestError, Unavailable
from edgewright_contracts.manifest import TensorIn
from edgewright_runtime.runtime import Array, Session

from .clock import Clock
from .meter import Meter, Row, Subject, sample


class Rejected(RequestError):
    """`reason` is what the windows count: missing, dtype, shape, nan, range or context."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InferenceFailed(Unavailable):
    """The runtime threw; its own exception is the cause."""


class Prediction(msgspec.Struct, frozen=True):
    """`outputs` are those of one sample; `id` is what a later label or outcome names."""

    id: int
    outputs: dict[str, Array]
    digest: str
    variant: str


class Check(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    low: float | None  # None: no value of this dtype is below it
    high: float | None
    floating: bool


class Active:
    """One package that answers: everything that `predict` needs, worked out beforehand."""

    def __init__(self, subject: Subject, session: Session, turn: threading.Lock | None = None) -> None:
        """`turn` is that of another `Active` with the same session, under another subject."""
        self.subject, self.session = subject, session
        self.run = session.run
        self.turn = None if session.concurrent else turn or threading.Lock()
        self.checks = [check(t) for t in subject.manifest.inputs]
        self.monitored = subject.monitored
        self.first = subject.manifest.inputs[0].name
        self.contexts = subject.manifest.contexts
        self.digest, self.variant = subject.digest, subject.variant.id

    @property
    def row_bytes(self) -> int:
        """Of the monitored outputs of one inference."""
        shapes = [t.shape for t in self.subject.manifest.outputs if t.name in self.monitored]
        return sum(4 * int(np.prod(s)) for s in shapes)


class Model:
    """One named model of an agent. All methods may be called from any thread."""

    def __init__(self, name: str, meter: Meter, clock: Clock, ids: itertools.count[int]) -> None:
        self.name = name
        self._meter, self._ids = meter, ids
        self._now = clock.monotonic_ns
        self._active: Active | None = None
        self._ready = threading.Condition()

    @property
    def active(self) -> Active | None:
        return self._active

    def switch(self, active: Active | None) -> None:
        """From the next call on, `active` answers; calls under way finish with what they began with."""
        with self._ready:
            self._active = active
            self._ready.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Until a package answers; False when none does within `timeout` seconds."""
        with self._ready:
            return self._ready.wait_for(lambda: self._active is not None, timeout)

    def predict(self, inputs: Mapping[str, Array], *, context: str = "") -> Prediction:
        """One sample: `inputs[name]` has the manifest's dtype and shape, without a batch.

        Raises Unavailable while no package answers, Rejected for an input that the manifest does not allow,
        InferenceFailed when the runtime throws.
        """
        now = self._now
        began = now()
        active = self._active
        if active is None:
            raise Unavailable(f"model {self.name} has no package yet; wait() returns when it has")
        try:
            batch = {c.name: checked(c, inputs) for c in active.checks}
            if context:
                known(context, active.contexts)
        except Rejected as error:
            self._meter.reject(active.subject, context if error.reason != "context" else "", error.reason)
            raise
        identifier = next(self._ids)
        turn = active.turn
        if turn is not None:
            turn.acquire()
        run = now()
        try:
            found = active.run(batch)
        except Exception as error:
            kind = type(error).__name__[:64]
            self._meter.record(Row(active.subject, context, identifier, None, None, began, run, now(), kind))
            raise InferenceFailed(f"{self.name}: {active.session.runtime} failed: {error}") from error
        finally:
            if turn is not None:
                turn.release()
        ended = now()
        kept = None
        every = self._meter.monitor_every
        if every == 1 or identifier % every == 0:
            kept = tuple([found[name] for name in active.monitored])
        self._meter.record(
            Row(active.subject, context, identifier, sample(batch[active.first]), kept, began, run, ended, None)
        )
        return Prediction(identifier, {name: y[0] for name, y in found.items()}, active.digest, active.variant)


def known(context: str, contexts: tuple[str, ...]) -> None:
    if context not in contexts:
        raise Rejected("context", f"expected a context among {', '.join(contexts) or 'none'}, got {context!r}")


def check(tensor: TensorIn) -> Check:
    dtype = np.dtype(tensor.dtype)
    low, high = tensor.valid or (None, None)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        low = None if low is None or low <= info.min else low
        high = None if high is None or high >= info.max else high
    return Check(tensor.name, dtype, tensor.shape, low, high, dtype.kind == "f")


def checked(rule: Check, inputs: Mapping[str, Array]) -> Array:
    """The input with a batch of one in front. Raises Rejected."""
    x = inputs.get(rule.name)
    if x is None:
        raise Rejected("missing", f"expected an input {rule.name!r}, got {', '.join(sorted(inputs)) or 'none'}")
    if not isinstance(x, np.ndarray) or x.dtype != rule.dtype:
        got = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise Rejected("dtype", f"input {rule.name!r}: expected an array of {rule.dtype}, got {got}")
    if x.shape != rule.shape:
        raise Rejected("shape", f"input {rule.name!r}: expected one sample of shape {rule.shape}, got {x.shape}")
    if rule.high is not None or rule.floating:
        top = _MAX(x, axis=None)
        if rule.floating and top != top:  # NaN spreads to the maximum
            raise Rejected("nan", f"input {rule.name!r}: expected numbers, got NaN")
        if rule.high is not None and top > rule.high:
            raise Rejected("range", f"input {rule.name!r}: expected at most {rule.high:g}, got {top}")
    if rule.low is not None:
        bottom = _MIN(x, axis=None)
        if bottom < rule.low:
            raise Rejected("range", f"input {rule.name!r}: expected at least {rule.low:g}, got {bottom}")
    return x[np.newaxis]


_MAX: Final = np.maximum.reduce  # ndarray.max without a Python frame in between
_MIN: Final = np.minimum.reduce
