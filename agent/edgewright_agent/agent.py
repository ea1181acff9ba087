"""The agent in an application's process: `with Agent(home) as agent: agent.model("digits").predict({"image": x})`.

Four threads of its own: telemetry (`delivery.reporter`), installing (`updating.install`), errands (`console.errands`)
and the link's. An inference waits for none of them. Leaving the `with` block seals the open window; a kill loses it,
and the next birth says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from edgewright_runtime.golden import Transform

from . import clock as clocks
from .clock import Clock, SystemClock
from .delivery.mqtt import Transport
from .disk import Disk, RealDisk
from .hosting.live import Before, Live
from .inference.model import Fallback, Model
from .limits.governor import Step
from .parts import Parts
from .samples.sampling import Redact
from .telemetry import outcomes
from .updating.machine import restarted
from .updating.slots import ModelState

JOIN_S: Final = 10.0  # for a thread at the end; a download or self-test under way breaks off sooner

log = logging.getLogger(__name__)


class Agent(Parts):
    """`home` must be enrolled, or hold a package that was brought by hand (`edgewright agent sideload`): without a hub,
    what is counted stays on the device. `runtimes` are those to use, best first; None takes all that work here.

    The other arguments replace a seam of the outside world. All methods may be called from any thread; in a child that
    this process forks nothing is counted. Raises RequestError when `home` is neither or has its agent already,
    ContractError and Unavailable when it is damaged.
    """

    def __init__(
        self,
        home: Path | str,
        *,
        runtimes: Sequence[str] | None = None,
        transport: Transport | None = None,
        disk: Disk | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(Path(home), runtimes, transport, disk or RealDisk(), clock or SystemClock())
        self._before: Before = "stopped"

    def __enter__(self) -> Agent:
        logging.getLogger(__package__).addHandler(self._tail)
        self._spool.begin(self._reporter.windows.opened())
        try:
            unclean, cut = self._spool.after_crash, restarted(self._disk, self.home)
            self._before = ("power cut" if cut else "crash or kill") if unclean else "stopped"
            self._installer.boot(unclean=unclean, cut=cut)
            with contextlib.suppress(OSError):  # the errands' thread looks again, and tells what is wrong
                self._following.look()
            self._following.anew()
            for thread in self._threads:
                thread.start()
            self._transport.start(self._reporter)
            if self.identity.hub.api:
                self._renewal.start()
        except BaseException:
            if not self._threads[0].is_alive():  # so nothing was counted, and nothing is lost
                with contextlib.suppress(OSError):
                    self._reporter.finish()
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop all threads; the open window is sealed. Safe to repeat."""
        self._errands.stop()
        self._installer.stop()
        self._renewal.stop()
        self._reporter.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)
        self._transport.stop()
        logging.getLogger(__package__).removeHandler(self._tail)
        with contextlib.suppress(OSError):  # it is said already, by whoever needed the disk more
            self._tail.keep(last=True)
        if late := [thread.name for thread in self._threads if thread.is_alive()]:
            log.error("%s has not ended: %s stays locked until it has, or the process ends", ", ".join(late), self.home)
            return
        self._lock.release()

    def model(self, name: str, *, transform: Transform | None = None, fallback: Fallback | None = None) -> Model:
        """The model of this name; it may have no package yet, and then `predict` raises Unavailable.

        `transform` is what the application itself does to raw samples [n, ...] before it predicts, for packages of
        `preprocess: host`: such a package is only installed when it makes the package's own tensors of the package's
        own samples. It is called on a thread of the agent, with one sample at a time.

        `fallback` answers where `predict` would raise Unavailable (no package, a run that failed, a model that failed
        again and again): outputs by name, or a function of the inputs that gives them. Such a prediction says so.
        """
        if transform is not None:
            self._models.transforms[name] = transform
            self._installer.registered(name)
        found = self._models.model(name)
        if fallback is not None:
            found.fallback = fallback
        return found

    def models(self) -> list[Model]:
        """Those that the application or the hub has named."""
        return self._models.all()

    def label(self, identifier: int, truth: int | str) -> None:
        """The true class of an earlier prediction, as index or label: counted as outcome `correct`, once for each
        prediction, as it was told first. Raises RequestError for what is neither."""
        self._meter.outcome(outcomes.label(identifier, truth))

    def outcome(self, identifier: int, name: str, happened: bool) -> None:
        """Whether something named came out of an earlier prediction, as ("pick_ok", True): counted once for each
        prediction and name, as it was told first. Raises RequestError for a name that no window can carry."""
        self._meter.outcome(outcomes.named(identifier, name, happened))

    def redact(self, change: Redact) -> None:
        """`change(model, inputs)` sees every sampled input before it is kept, and gives what may leave this device, by
        name and of any shape, or None for nothing. It is called on a thread of the agent."""
        self._sampling.redact = change

    def live(self) -> Live:
        """How the agent is just now; from any thread."""
        watch, config, desired = self._reporter.watch, self._reporter.config, self._reporter.desired
        used = {name: round(float(value), 1) for name, value in watch.readings._asdict().items() if value is not None}
        return Live(
            pid=os.getpid(),
            boot_id=self.boot_id,
            before=self._before,
            uptime_s=(self._clock.monotonic_ns() - self._began_ns) / 1e9,
            clock=clocks.state(self._clock),
            link=self._transport.condition(),
            dead=self.dead(),
            shed=[step.value for step in Step if not watch.may(step)],
            used=used,
            window_s=self._reporter.windows.window_s,
            profile=config.profile,
            desired_rev=desired.rev if desired else 0,
            config_version=config.version,
            traffic=self._transport.traffic(),
            overhead=self._transport.overhead(),
            disk=self._spool.trouble,
        )

    def settle(self, timeout: float = 10.0) -> bool:
        """Wait until everything predicted so far was counted: for tests and benchmarks, an application need not."""
        return self._meter.settle(timeout)

    def states(self) -> dict[str, ModelState]:
        """What each model has in its slots, and where an update of it stands."""
        return self._installer.states()
