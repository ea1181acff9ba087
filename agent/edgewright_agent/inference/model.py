"""What an application calls: `Model.predict`. Validates, runs, and leaves one row of facts for the meter.

Guarantee: a switch of packages drops no inference, because each one takes the active reference once and keeps it. An
input that is not what the manifest declares never reaches the model; it raises `Rejected` and is counted by reason, in
nothing else. An inference waits for nothing but the model itself: for a runtime that is not concurrent, for its turn.

A model that fails `breaker.FAILURES` times in a row is refused or replaced by the declared fallback until a probe
succeeds. What the breaker refuses is counted as shed (`refused`), what the fallback answers as `fallback`, neither as
an inference: a model is judged by what it ran.
"""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from edgewright_contracts.errors import Unavailable
from edgewright_runtime.runtime import Array, Session

from ..clock import Clock
from ..telemetry.meter import Meter
from ..telemetry.rows import COUNTED, LEFT_OUT, NO_AGE, SPARED, WRONG_AGE, Rows, Subject
from .breaker import FAILURES, Breaker
from .checks import Rejected, checker, sampler, unknown_context, unknown_input

OLDEST_NS: Final = 86_400 * 10**9  # an input older than a day has a wrong time, as one of the future has

__all__ = ["Active", "Fallback", "InferenceFailed", "Model", "Prediction", "Rejected", "Turned"]

Fallback = Callable[[Mapping[str, Array]], Mapping[str, Array]] | Mapping[str, Array]
Tap = Callable[[Mapping[str, Array], Mapping[str, Array], int], object]  # batch, outputs, number of the context
Sampler = Callable[["Active", int, Mapping[str, Array]], None]  # must return at once, and never raise


class InferenceFailed(Unavailable):
    """The runtime threw; its own exception is the cause."""


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """`outputs` are those of one sample; `id` is what a later label or outcome names, while this agent runs. Of a
    fallback's answer, which no package gave, the id is 0 and digest and variant are empty."""

    id: int
    outputs: dict[str, Array]
    digest: str
    variant: str
    fallback: bool = False


class Turned(NamedTuple):
    """A breaker opened or closed."""

    subject: Subject
    open: bool
    reason: str


class Active:
    """One package that answers: everything that `predict` needs, worked out beforehand."""

    def __init__(self, subject: Subject, session: Session, turn: threading.Lock | None = None) -> None:
        """`turn` is that of another `Active` with the same session, under another subject."""
        self.subject, self.session = subject, session
        self.run = session.run
        self.turn = None if session.concurrent else turn or threading.Lock()
        self.checks = [(t.name, checker(t)) for t in subject.manifest.inputs]
        self.inputs = [
            (name, check, sampler(t)) for (name, check), t in zip(self.checks, subject.manifest.inputs, strict=True)
        ]
        self.monitored = subject.monitored
        self.contexts = {name: number for number, name in enumerate(("", *subject.manifest.contexts))}
        self.digest, self.variant = subject.digest, subject.variant.id
        self.breaker = Breaker()
        self._nth = [itertools.count() for _ in self.contexts]  # inferences, while not every one is monitored
        self.rows: Rows  # given by the `Model` that it is switched to
        self.tap: Tap | None = None  # a shadow run looks on; it must neither raise nor wait

    def drawn(self, context: int, every: int, asked: int) -> int:
        """Whether the channels of one more inference are COUNTED, SPARED or LEFT_OUT. Each context counts its own: two
        that take turns, as two models do, must not leave the same one out for good."""
        nth = next(self._nth[context])
        if nth % every == 0:
            return COUNTED
        return SPARED if nth % asked == 0 else LEFT_OUT


class Model:
    """One named model of an agent. All methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        meter: Meter,
        clock: Clock,
        ids: itertools.count[int],
        turned: Callable[[Turned], None] = lambda _: None,
    ) -> None:
        """`turned` hears of the breaker, on the thread of an inference: it must return at once."""
        self.name = name
        self.fallback: Fallback | None = None
        self._meter, self._ids, self._turned = meter, ids, turned
        self._now = clock.monotonic_ns
        self._active: Active | None = None
        self._last: dict[str, bytes] = {}  # the input before, by context, to notice a sensor that repeats itself
        self._scenes: dict[str, int] = {}  # when channels were last counted, by context
        self.sampler: Sampler | None = None  # None unless this device's owner and the operator both ask for samples
        self._rare = threading.Lock()
        self._ready = threading.Condition()

    @property
    def active(self) -> Active | None:
        return self._active

    def switch(self, active: Active | None) -> None:
        """From the next call on, `active` answers; calls under way finish with what they began with."""
        before = self._active
        if active is not None:
            active.rows = self._meter.rows(active.subject, active)
            if before is not None and before.session is active.session:
                active.breaker, active.tap = before.breaker, before.tap  # the same package, in another phase
        with self._ready:
            self._active = active
            self._ready.notify_all()

    def watch(self, tap: Tap | None) -> None:
        """`tap` looks on at what answers now; None: nobody does."""
        with self._ready:
            if self._active is not None:
                self._active.tap = tap

    def wait(self, timeout: float | None = None) -> bool:
        """Until a package answers; False when none does within `timeout` seconds."""
        with self._ready:
            return self._ready.wait_for(lambda: self._active is not None, timeout)

    def refuse(self, reason: str) -> None:
        """Count an input that was refused before it could be given to `predict`: too large, or no tensor at all."""
        active = self._active
        if active is not None:
            self._meter.reject(active.subject, "", reason)

    def predict(self, inputs: Mapping[str, Array], *, context: str = "", captured_at: int | None = None) -> Prediction:
        """One sample: `inputs[name]` has the manifest's dtype and shape, without a batch.

        `captured_at` is when the input was taken, in nanoseconds of the monotonic clock, as `time.monotonic_ns()` and
        the buffers of V4L2 say it: the windows then tell how old inputs are. One of the future or older than a day is
        counted as shed (`input_age`), and the inference runs all the same.

        Raises Rejected for an input that the manifest does not allow; without a fallback, Unavailable while no package
        answers or the breaker is open, and InferenceFailed when the runtime throws.
        """
        now = self._now
        began = now()
        active = self._active
        if active is None:
            missing = Unavailable(
                f"no package of {self.name} answers, agent status says why; wait() returns when one does"
            )
            return self._otherwise(inputs, missing)
        batch: dict[str, Array] = {}
        number: int | None = None
        age, seen = NO_AGE, b""
        try:
            try:
                number = active.contexts[context]
            except (KeyError, TypeError):  # TypeError: what cannot be a key
                raise unknown_context(context, active.contexts) from None
            for name, check, sample in active.inputs:
                batch[name] = x = check(inputs)
                seen += sample(x)
            if len(inputs) != len(batch):
                raise unknown_input(inputs, batch)
            if captured_at is not None:
                age = _age(captured_at, began)
        except Rejected as error:
            self._meter.reject(active.subject, context if number else "", error.reason)
            raise
        breaker = active.breaker
        if breaker.failures and not breaker.admits(began):
            self._meter.shed("refused", 1, active.subject)
            wait_s = breaker.retry_s(began)
            return self._otherwise(
                inputs,
                Unavailable(
                    f"{self.name} failed {FAILURES} times in a row and is left alone for {wait_s:.1f} s more; another "
                    "package or a run that succeeds ends this"
                ),
                active.subject,
            )
        identifier = next(self._ids)
        turn = active.turn
        if turn is not None:
            turn.acquire()
        ran = now()
        thrown: Exception | None = None
        try:
            found = active.run(batch)
        except Exception as error:
            thrown = error
        finally:
            if turn is not None:
                turn.release()
        ended = now()
        if thrown is not None:
            active.rows.fail(identifier, began, ran, ended, number, kind(thrown), age)
            if breaker.failed(ended):
                self._turned(Turned(active.subject, True, f"{FAILURES} errors in a row, the last: {thrown}"))
            failed = InferenceFailed(f"{self.name}: {active.session.runtime} failed: {thrown}")
            failed.__cause__ = thrown
            return self._otherwise(inputs, failed, active.subject)
        if breaker.failures and breaker.succeeded():
            self._turned(Turned(active.subject, False, "a probe succeeded"))
        meter, rows, kept = self._meter, active.rows, b""
        every = meter.monitor_every
        monitored = COUNTED if every == 1 else active.drawn(number, every, meter.asked_every)
        if meter.scene_ns and not (monitored == COUNTED and self._is_new_scene(context, began, meter.scene_ns)):
            monitored = LEFT_OUT  # as asked: nobody knows whether what was spared was of a new scene
        if monitored == COUNTED or rows.keeps:
            # Copies: a runtime whose outputs are kept must find new memory for the next ones, which costs it more.
            for name in active.monitored:
                kept += found[name].tobytes()
        last = self._last
        repeated, last[context] = seen == last.get(context), seen
        rows.add(identifier, began, ran, ended, number, repeated, kept, age, monitored)
        if active.tap is not None:
            active.tap(batch, found, number)
        if self.sampler is not None:
            self.sampler(active, identifier, batch)
        outputs = {}
        for name, y in found.items():
            outputs[name] = y[0]
        return Prediction(identifier, outputs, active.digest, active.variant)

    def _is_new_scene(self, context: str, began: int, scene_ns: int) -> bool:
        """Frames of one scene are one sample: they say the same thing again."""
        with self._rare:
            last = self._scenes.get(context)
            if last is not None and began - last < scene_ns:
                return False
            self._scenes[context] = began
            return True

    def _otherwise(self, inputs: Mapping[str, Array], error: Unavailable, subject: Subject | None = None) -> Prediction:
        """The fallback's answer; without one, `error` is raised."""
        fallback = self.fallback
        if fallback is None:
            raise error
        try:
            outputs = dict(fallback(inputs) if callable(fallback) else fallback)
        except Exception as own:
            raise Unavailable(f"{error}; the fallback failed too: {own}") from own
        self._meter.shed("fallback", 1, subject)
        return Prediction(0, outputs, "", "", True)


def kind(error: Exception) -> str:
    """The name of an exception as a window may carry it: Python's may have any letters."""
    return type(error).__name__.encode("ascii", "replace").decode()[:64]


def _age(captured_at: int, now_ns: int) -> int:
    try:
        age = now_ns - operator.index(captured_at)
    except TypeError:
        raise Rejected(
            "captured_at", f"expected whole nanoseconds of the monotonic clock, got {repr(captured_at)[:80]}"
        ) from None
    return age if 0 <= age <= OLDEST_NS else WRONG_AGE
