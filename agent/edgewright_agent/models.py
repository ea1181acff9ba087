"""The models of this process, and what the installer may do with them (`updating.job.Host`): let one answer or look on,
see what room there is, and say what happened."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable

from edgewright_contracts import event
from edgewright_contracts.report import Phase, Rollout
from edgewright_runtime.golden import Transform

from .clock import Clock
from .delivery.mqtt import Transport
from .delivery.reporter import Reporter
from .inference.model import Active, Model, Turned
from .inference.shadow import Allowance, Shadow
from .limits.device import resident_kb
from .limits.governor import Step
from .telemetry.meter import Meter
from .telemetry.notices import Notice
from .telemetry.rows import Subject
from .updating.job import Loaded


class Models:
    """All methods may be called from any thread. `emit` spools an event, and may raise OSError. The ids of the
    inferences, over all models, begin anew with each `boot_id` (16 hex digits)."""

    def __init__(
        self, *, meter: Meter, reporter: Reporter, transport: Transport, clock: Clock,
        emit: Callable[[event.Event], None], boot_id: str,
    ) -> None:  # fmt: skip
        self._meter, self._reporter, self._transport, self._clock = meter, reporter, transport, clock
        self.emit = emit
        # Anywhere below 2^52: a label of an earlier boot, told after a restart, must meet no inference of this one (of
        # 2^38 such labels one does). Float64, and so JSON in JavaScript, tells whole numbers apart up to 2^53.
        self._ids = itertools.count(1 + (int(boot_id, 16) >> 12))
        self._models: dict[str, Model] = {}
        self._making = threading.Lock()
        self.transforms: dict[str, Transform] = {}

    def model(self, name: str) -> Model:
        """The one of this name, made when it is named first."""
        with self._making:
            if name not in self._models:
                self._models[name] = Model(name, self._meter, self._clock, self._ids, self._turned)
            return self._models[name]

    def all(self) -> list[Model]:
        with self._making:
            return list(self._models.values())

    def subjects(self) -> list[Subject]:
        """The packages that answer now."""
        return [active.subject for m in self.all() if (active := m.active) is not None]

    @property
    def online(self) -> bool:
        return self._transport.online

    def switch(self, model: str, loaded: Loaded | None, phase: Phase, rollout: Rollout) -> None:
        target = self.model(model)
        if loaded is None:
            target.switch(None)
            return
        before = target.active
        same = before is not None and before.session is loaded.session
        target.switch(
            Active(_subject(model, loaded, phase, rollout), loaded.session, before.turn if before and same else None)
        )

    def watch(self, model: str, candidate: Loaded, share: float, rollout: Rollout) -> Shadow:
        target = self.model(model)
        assert target.active is not None  # a shadow run is left out where nothing answers
        shadow = Shadow(
            target.active,
            Active(_subject(model, candidate, "shadow", rollout), candidate.session),
            attach=target.watch,
            share=share,
            meter=self._meter,
            allowance=lambda: Allowance(self.may(Step.SHADOW), permille=self._reporter.config.limits.cpu_permille),
            now_ns=self._clock.monotonic_ns,
            uniform=random.random,
        )
        shadow.start()
        return shadow

    def may(self, step: Step) -> bool:
        """Whether the device has room for this just now; an inference needs none."""
        return self._reporter.watch.may(step)

    def room_mb(self) -> float | None:
        limit = self._reporter.config.limits.rss_mb
        return None if limit is None else limit - resident_kb() / 1024

    def transform(self, model: str) -> Transform | None:
        return self.transforms.get(model)

    def _turned(self, turned: Turned) -> None:
        before, after = ("closed", "open") if turned.open else ("open", "closed")
        self._reporter.notices.note(Notice(before, after, f"breaker: {turned.reason}"[:1024], turned.subject))


def _subject(model: str, loaded: Loaded, phase: Phase, rollout: Rollout) -> Subject:
    package = loaded.package
    return Subject(model, package.manifest, package.digest, loaded.variant, loaded.baseline, phase, rollout)
