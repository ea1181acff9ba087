"""What an application calls: `Model.predict`. Validates, runs, and leaves one row of facts for the meter.

Guarantee: a switch of packages drops no inference, because each one takes the active reference once and keeps it. An
input that is not what the manifest declares never reaches the model; it raises `Rejected` and is counted by reason.
An inference waits for nothing but the model itself: for a runtime that is not concurrent, for its turn.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec
import numpy as np

from edgewright_contracts.errors import RequestError, Unavailable
from edgewright_contracts.manifest import TensorIn
from edgewright_runtime.runtime import Array, Session

from ..clock import Clock
from ..telemetry.meter import Meter
from ..telemetry.rows import Rows, Subject

SAMPLE_BYTES: Final = 16 << 10
STEPPED_BYTES: Final = 512


class Rejected(RequestError):
    """`reason` is what the windows count: missing, dtype, shape, nan, range or context."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InferenceFailed(Unavailable):
    """The runtime threw; its own exception is the cause."""


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """`outputs` are those of one sample; `id` is what a later label or outcome names."""

    id: int
    outputs: dict[str, Array]
    digest: str
    variant: str


Checker = Callable[[Mapping[str, Array]], Array]
Tap = Callable[[Mapping[str, Array], Mapping[str, Array], int], object]  # batch, outputs, number of the context
Sampler = Callable[["Active", int, Mapping[str, Array]], None]  # must return at once, and never raise


class Active:
    """One package that answers: everything that `predict` needs, worked out beforehand."""

    def __init__(self, subject: Subject, session: Session, turn: threading.Lock | None = None) -> None:
        """`turn` is that of another `Active` with the same session, under another subject."""
        self.subject, self.session = subject, session
        self.run = session.run
        self.turn = None if session.concurrent else turn or threading.Lock()
        self.checks = [(t.name, checker(t)) for t in subject.manifest.inputs]
        self.monitored = subject.monitored
        self.first = subject.manifest.inputs[0].name
        self.contexts = {name: number for number, name in enumerate(("", *subject.manifest.contexts))}
        self.digest, self.variant = subject.digest, subject.variant.id
        self.rows: Rows  # given by the `Model` that it is switched to
        self.tap: Tap | None = None  # a shadow run looks on; it must neither raise nor wait


class Model:
    """One named model of an agent. All methods may be called from any thread."""

    def __init__(self, name: str, meter: Meter, clock: Clock, ids: itertools.count[int]) -> None:
        self.name = name
        self._meter, self._ids = meter, ids
        self._now = clock.monotonic_ns
        self._active: Active | None = None
        self._last = b""  # the input before, to notice a sensor that repeats itself
        self.sampler: Sampler | None = None  # None unless this device's owner and the operator both ask for samples
        self._ready = threading.Condition()

    @property
    def active(self) -> Active | None:
        return self._active

    def switch(self, active: Active | None) -> None:
        """From the next call on, `active` answers; calls under way finish with what they began with."""
        if active is not None:
            active.rows = self._meter.rows(active.subject, active)
        with self._ready:
            self._active = active
            self._ready.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Until a package answers; False when none does within `timeout` seconds."""
        with self._ready:
            return self._ready.wait_for(lambda: self._active is not None, timeout)

    def refuse(self, reason: str) -> None:
        """Count an input that was refused before it could be given to `predict`: too large, or no tensor at all."""
        active = self._active
        if active is not None:
            self._meter.reject(active.subject, "", reason)

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
        batch = {}
        try:
            for name, check in active.checks:
                batch[name] = check(inputs)
            number = active.contexts.get(context)
            if number is None:
                raise _unknown(context, active.contexts)
        except Rejected as error:
            self._meter.reject(active.subject, context if context in active.contexts else "", error.reason)
            raise
        identifier = next(self._ids)
        turn = active.turn
        if turn is not None:
            turn.acquire()
        ran = now()
        try:
            found = active.run(batch)
        except Exception as error:
            active.rows.fail(identifier, began, ran, now(), number, kind(error))
            raise InferenceFailed(f"{self.name}: {active.session.runtime} failed: {error}") from error
        finally:
            if turn is not None:
                turn.release()
        ended = now()
        kept = b""
        every = self._meter.monitor_every
        if every == 1 or identifier % every == 0:
            # Copies: a runtime whose outputs are kept must find new memory for the next ones, which costs it more.
            for name in active.monitored:
                kept += found[name].tobytes()
        seen = sample(batch[active.first])
        repeated, self._last = seen == self._last, seen
        active.rows.add(identifier, began, ran, ended, number, repeated, kept)
        if active.tap is not None:
            active.tap(batch, found, number)
        if self.sampler is not None:
            self.sampler(active, identifier, batch)
        outputs = {}
        for name, y in found.items():
            outputs[name] = y[0]
        return Prediction(identifier, outputs, active.digest, active.variant)


def kind(error: Exception) -> str:
    """The name of an exception as a window may carry it: Python's may have any letters."""
    return type(error).__name__.encode("ascii", "replace").decode()[:64]


def sample(x: Array) -> bytes:
    """Enough of an input to notice that it is the one before: all of it up to `SAMPLE_BYTES`, every n-th number of a
    larger one. To copy 8 kB costs a tenth of reading them in steps."""
    if x.nbytes <= SAMPLE_BYTES:
        return x.tobytes()
    return x.reshape(-1)[:: -(-x.nbytes // STEPPED_BYTES)].tobytes()


def _unknown(context: str, contexts: Iterable[str]) -> Rejected:
    known = ", ".join(c for c in contexts if c) or "none"
    return Rejected("context", f"expected a context among {known}, got {context!r}")


def checker(tensor: TensorIn) -> Checker:
    """A function that takes one declared input out of a request, checks it, and puts a batch of one in front.

    It runs before every inference: about 1 µs for a small float input with a range. `argmax` finds the extremes because
    it costs a third of `max`; like it, it stops at a NaN.
    """
    name, dtype, shape = tensor.name, np.dtype(tensor.dtype), tensor.shape
    floating = dtype.kind == "f"
    low, high = tensor.valid or (None, None)
    if dtype.kind in "iu":  # what the dtype cannot hold needs no check
        info = np.iinfo(dtype)
        low = None if low is None or low <= info.min else low
        high = None if high is None or high >= info.max else high
    empty, ndarray = 0 in shape, np.ndarray

    def check(inputs: Mapping[str, Array]) -> Array:
        x = inputs.get(name)
        if not isinstance(x, ndarray) or x.dtype != dtype or x.shape != shape:
            raise _unlike(tensor, inputs, x)
        if empty:
            return x[None]
        if high is not None or floating:
            top = x.item(x.argmax())
            if top != top:
                raise Rejected("nan", f"input {name!r}: expected numbers, got NaN")
            if high is not None and top > high:
                raise Rejected("range", f"input {name!r}: expected at most {high:g}, got {top}")
        if low is not None:
            bottom = x.item(x.argmin())
            if bottom < low:
                raise Rejected("range", f"input {name!r}: expected at least {low:g}, got {bottom}")
        return x[None]

    return check


def _unlike(tensor: TensorIn, inputs: Mapping[str, Array], x: object) -> Rejected:
    if x is None:
        return Rejected("missing", f"expected an input {tensor.name!r}, got {', '.join(sorted(inputs)) or 'none'}")
    if not isinstance(x, np.ndarray) or x.dtype != np.dtype(tensor.dtype):
        got = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        return Rejected("dtype", f"input {tensor.name!r}: expected an array of {tensor.dtype}, got {got}")
    return Rejected("shape", f"input {tensor.name!r}: expected one sample of shape {tensor.shape}, got {x.shape}")
