"""A device in virtual time: a real agent on a real disk whose threads do not run, so that weeks pass in a moment."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import msgspec

from edgewright_agent.agent import Agent
from edgewright_agent.disk import RealDisk
from edgewright_agent.updating.inbox import Wish
from edgewright_agent.updating.slots import Slot, Store, files
from edgewright_agent.updating.verdict import Verdict
from edgewright_contracts.desired import DesiredModel

from .broker import SimBroker, SimTransport
from .clock import SimClock

HOUR = 3600.0
DIGEST = "d" * 64


class Counting(RealDisk):
    """Counts writes, and refuses those to names in `refused`."""

    def __init__(self) -> None:
        super().__init__()
        self.writes, self.refused, self.unreadable = 0, (), ()

    def _put(self, path, data, flags):
        if any(name in path.name for name in self.refused):
            raise OSError(errno.EROFS, "read-only file system")
        self.writes += 1
        super()._put(path, data, flags)

    def read(self, path):
        if path.name in self.unreadable:
            raise OSError(errno.EIO, "input/output error")
        return super().read(path)


class Host:
    """Of one device over several boots; `told` are its events."""

    def __init__(self) -> None:
        self.online, self.told, self.answers, self.room = True, [], None, True

    def emit(self, event) -> None:
        self.told.append(event)

    def switch(self, model, loaded, phase, rollout) -> None:
        self.answers = loaded.package.digest if loaded else None

    def watch(self, *_):
        raise AssertionError

    def room_mb(self):
        return None

    def may(self, step):
        return self.room

    def transform(self, model):
        return None


class Device:
    """An agent whose threads do not run; `failing` is what the repository does, `verdict` what a self-test says."""

    def __init__(self, home: Path) -> None:
        self.home, self.clock, self.disk, self.host = home, SimClock(), Counting(), Host()
        self.failing: Exception | None = None
        self.verdict, self.slow_s = Verdict(True, ""), 0.0
        self.models = home / "models"
        (home / "identity").mkdir()
        said = {"device": "dev-1", "broker": {"host": "127.0.0.1", "port": 1}, "repo": "http://127.0.0.1:1/"}
        (home / "identity" / "hub.json").write_bytes(msgspec.json.encode(said))
        (home / "identity" / "root.json").write_bytes(b"{}")
        self.agent = None
        self.boot()

    def boot(self, *, unclean: bool = False, cut: bool = False) -> None:
        if self.agent is not None:
            self.agent.close()
        link = SimTransport(SimBroker(), "dev-1")
        self.agent = Agent(self.home, runtimes=["onnxruntime"], transport=link, clock=self.clock, disk=self.disk)
        self.installer = self.agent._installer
        self.installer._host = self.installer._steps._host = self.host
        self.installer._unforeseen._emit = self.host.emit
        self.installer._uniform = lambda: 0.5
        self.installer._steps._trust = self
        self.installer._steps.proving.prove = self.prove
        self.installer.boot(unclean=unclean, cut=cut)

    def prove(self, store, side, interrupt=lambda: None):
        """`verdict` after `slow_s`, without the process that a self-test is; the disk may not take the proof."""
        if self.disk.refused:
            raise OSError(errno.EROFS, "read-only file system")
        for _ in range(round(2 * self.slow_s)):
            self.clock.advance(0.5)
            interrupt()
        return self.verdict, ""

    def manifest(self, name, digest, interrupt=None):
        raise self.failing

    def allow(self, name, digest, interrupt=None):
        if self.failing:
            raise self.failing

    def want(self, rev: int, digest: str | None = DIGEST, cleared=(), held=False, **more) -> None:
        self.installer._want(Wish(DesiredModel(name="digits", digest=digest, **more), cleared, rev, held))

    @property
    def job(self):
        return self.installer._job("digits")

    def live(self, seconds: float, tick_s: float = 600.0) -> None:
        """The install thread's turns, without the thread."""
        end = self.clock.mono_ns + seconds * 1e9
        while self.clock.mono_ns < end:
            for _ in range(20):
                if not self.installer._advance(self.job):
                    break
            self.clock.advance(tick_s)

    def states(self) -> list[str]:
        return [e.after for e in self.host.told]

    def put(self, package, side: str, **fields) -> None:
        """The package lies in a slot, as after an update."""
        variant = package.manifest.variants[0]
        store = Store(self.disk, self.models, "digits")
        for file in (*files(package.manifest, variant), "manifest.json"):
            target = store.side(side) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(package.root / file, target)
        slot = Slot(package.digest, package.manifest.version, variant.id, "onnxruntime")
        store.save(msgspec.structs.replace(store.state.with_slot(side, slot), **fields))
