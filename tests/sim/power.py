"""A device's life, recorded at the disk seam, and then its power cut at every call of it, in every image that may be
left: what a start finds then, what it makes of it, and whether any sealed count is lost or doubled.

    life = live(folder); for cut in cuts(life): verdict = restart(life, cut, folder)

The life is a real agent's, with a real repository over HTTP; only the broker is simulated. It installs a first
version, then, after a reboot, a second over a link that breaks, refuses a third that fails its self-test, and rolls a
fourth, which comes as a patch, back in its probation. It counts and reports all the time, and in the end it seals while
the hub is away. What the agent writes beside the seam (as the TUF client does) is found and recorded as written and
never synced.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgewright_agent.agent import Agent
from edgewright_agent.delivery.spool import Spool
from edgewright_agent.disk import RealDisk
from edgewright_agent.inference.checks import Rejected
from edgewright_contracts import delta
from edgewright_contracts.desired import Config, Desired, DesiredModel, Probation, Shadow
from edgewright_contracts.errors import Unavailable
from edgewright_contracts.package import Package
from edgewright_contracts.report import Window
from edgewright_contracts.topics import Kind
from edgewright_hub.registry import deltas

from . import packages
from .broker import SimBroker, SimTransport
from .disk import KEEPS, Keep, PowerCut, SimDisk
from .hub import SimHub
from .repository import Repository

DEVICE = "dev-1"
WINDOW_S = 0.5  # as short as a window may be
HOME = Path("/home")  # of the simulated disk
ANSWER_S = 20.0
MODEL = "digits"


class Call(NamedTuple):
    """One call of the disk; `data` is what was written, `other` the target of a rename."""

    what: str
    path: Path  # below the home
    data: bytes = b""
    other: Path = Path()


class RecordingDisk(RealDisk):
    """The real disk under `home`, and a list of what was asked of it, in the order in which it was done."""

    def __init__(self, home: Path, calls: list[Call]) -> None:
        super().__init__()
        self._home, self.calls = home, calls
        self._lock = threading.RLock()
        self._known = self._files()

    def _put(self, path: Path, data: bytes, flags: int) -> None:
        with self._recorded():
            super()._put(path, data, flags)
            self._keep("append" if flags & 0o2000 else "write", path, bytes(data))  # O_APPEND

    def fsync(self, path: Path) -> None:
        with self._recorded():
            super().fsync(path)
            self._keep("fsync", path)

    def rename(self, source: Path, target: Path) -> None:
        with self._recorded():
            super().rename(source, target)
            self._keep("rename", source, other=target)

    def unlink(self, path: Path) -> None:
        with self._recorded():
            super().unlink(path)
            self._keep("unlink", path)

    def mkdir(self, path: Path) -> None:
        with self._recorded():
            if not path.is_dir():
                super().mkdir(path)

    def remove_tree(self, path: Path) -> None:
        with self._recorded():
            super().remove_tree(path)
            self._keep("remove_tree", path)

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        """What others have written meanwhile comes before the call, and is not synced."""
        with self._lock:
            now = self._files()
            for path in sorted(now.keys() - self._known.keys() | {p for p in now if self._known.get(p) != now[p]}):
                with contextlib.suppress(FileNotFoundError):  # a temporary file
                    self.calls.append(Call("write", path, (self._home / path).read_bytes()))
            yield
            self._known = self._files()

    def _keep(self, what: str, path: Path, data: bytes = b"", other: Path | None = None) -> None:
        target = other.relative_to(self._home) if other else Path()
        self.calls.append(Call(what, path.relative_to(self._home), data, target))

    def _files(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for path in self._home.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and path.name != "agent.lock":
                    stat = path.stat()
                    found[path.relative_to(self._home)] = (stat.st_mtime_ns, stat.st_size)
        return found


Mark = tuple[str, int, str, str]


def mark(window: Window) -> Mark:
    """When and of what a window is: those of one mark were sealed together."""
    return (window.boot_id, window.mono_start_ms, window.digest, window.phase)


@dataclass
class Life:
    base: dict[Path, bytes]  # what lies in a home that was enrolled
    repository: Repository
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    sealed: list[tuple[int, Mark, int]] = field(default_factory=list)  # calls made before `seal` returned, mark, n
    heard: list[tuple[int, Kind, bytes]] = field(default_factory=list)  # calls made before the hub heard it
    wishes: list[tuple[int, Desired]] = field(default_factory=list)
    runs: list[tuple[int, str]] = field(default_factory=list)  # calls made, digest that was committed by then
    bad: set[str] = field(default_factory=set)  # digests that must not run in the end


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Life]:
    """A life that has not begun; its repository is up as long as the block lasts."""
    repository = Repository(folder / "repo")
    with repository.served() as url:
        said = {"device": DEVICE, "broker": {"host": "127.0.0.1", "port": 1}, "repo": url}
        base = {
            Path("identity/hub.json"): msgspec.json.encode(said),
            Path("identity/root.json"): repository.root,
        }
        yield Life(base, repository, url)


def live(life: Life, folder: Path) -> None:
    """Fill `life`: about ten seconds."""
    home = folder / "home"
    lay(home, life.base)
    made = {
        version: packages.make_package(folder / version, version=version, seed=seed, **knobs)
        for seed, (version, knobs) in enumerate(
            {
                "1.0.0": {"slow": 1},
                "2.0.0": {"slow": 1},
                "3.0.0": {"broken_selftest": True},
                "4.0.0": {"slow": 1, "brightest": 4},
            }.items()
        )
    }
    for package in made.values():
        life.repository.publish(package)
    _patch(life.repository, made["2.0.0"], made["4.0.0"])
    life.bad = {made["3.0.0"].digest, made["4.0.0"].digest}
    broker, calls = SimBroker(), life.calls
    hub = SimHub(broker)
    broker.subscribe(lambda _, kind, payload: life.heard.append((len(calls), kind, payload)))
    revisions = itertools.count(1)

    def want(package: Package, windows: int = 1, *, shadow: bool = True) -> None:
        wish = desired(next(revisions), package, windows, shadow=shadow)
        life.wishes.append((len(calls), wish))
        hub.want(DEVICE, wish)

    def ended(state: str, times: int) -> None:
        assert hub.wait(lambda: [e.after for e in hub.events[DEVICE]].count(state) >= times, 60), hub.trace(DEVICE)

    with device(home, broker, RecordingDisk(home, calls), life):
        want(made["1.0.0"])
        ended("commit", 1)
        life.runs.append((len(calls), made["1.0.0"].digest))
    with device(home, broker, RecordingDisk(home, calls), life) as agent:
        life.repository.break_after = 200_000
        want(made["2.0.0"])
        ended("commit", 2)
        life.runs.append((len(calls), made["2.0.0"].digest))
        want(made["3.0.0"])
        ended("blocked", 1)
        want(made["4.0.0"], windows=10, shadow=False)  # it rejects nearly all inputs
        ended("blocked", 2)
        agent._transport.cut()
        offline = len(life.sealed)
        assert until(lambda: len(life.sealed) >= offline + 3, 20)


def _patch(repository: Repository, old: Package, new: Package) -> None:
    """Offer the new model as a delta."""
    file = "variants/onnx-fp32/model.onnx"
    patch = deltas.make(old.read(file), new.read(file))
    assert patch is not None
    place = repository.folder / delta.path(old.manifest.files[file].sha256, new.manifest.files[file].sha256)
    place.parent.mkdir(parents=True)
    place.write_bytes(patch)


def desired(rev: int, package: Package, windows: int = 1, *, shadow: bool = True) -> Desired:
    config = Config(window_s=WINDOW_S, rollout_window_s=WINDOW_S)
    trial = Probation(windows=windows, max_s=120.0)
    one = DesiredModel(
        name=MODEL, digest=package.digest, probation=trial, shadow=Shadow(share=1.0, windows=1) if shadow else None
    )
    return Desired(rev=rev, config=config, models=(one,))


@contextlib.contextmanager
def device(home: Path, broker: SimBroker, disk: RealDisk, life: Life) -> Iterator[Agent]:
    """An agent that is asked all the time; what it seals is kept in `life`."""
    agent = Agent(home, runtimes=["onnxruntime"], transport=SimTransport(broker, DEVICE), disk=disk)
    _overhear(agent._spool, life)
    stop = threading.Event()
    images = packages.draw(50, seed=3)[0]

    def ask() -> None:
        model = agent.model(MODEL)
        for i in itertools.count():
            if stop.wait(0.005):
                return
            with contextlib.suppress(Unavailable, Rejected):
                model.predict({"image": images[i % 50]})

    asking = threading.Thread(target=ask)
    with agent:
        asking.start()
        try:
            yield agent
        finally:
            stop.set()
            asking.join()


def _overhear(spool: Spool, life: Life) -> None:
    seal = spool.seal

    def told(windows, *more) -> None:
        seal(windows, *more)
        life.sealed += [(len(life.calls), mark(w), w.n) for w in windows]

    spool.seal = told


class Cut(NamedTuple):
    """The power goes during call `at`."""

    at: int
    keep: Keep
    image: dict[Path, bytes]  # below the home

    @property
    def state(self) -> int:
        """Equal images have equal ones. Python keeps the hash of bytes, and images share them."""
        return hash(frozenset(self.image.items()))


def cuts(life: Life, *, every: int = 1, keeps: tuple[Keep, ...] = KEEPS) -> Iterator[Cut]:
    """Every distinct image of every `every`-th call, in order."""
    disk = SimDisk()
    for path, data in life.base.items():
        disk.mkdir((HOME / path).parent)
        disk.write(HOME / path, data)
        disk.fsync(HOME / path)
        disk.fsync((HOME / path).parent)
    seen = set()
    for at, call in enumerate(life.calls):
        if at % every == 0:
            torn = disk.copy()
            torn.cut_at = torn.calls + 1
            with contextlib.suppress(PowerCut):
                _do(torn, call)
            for keep in keeps:
                left = torn.copy()
                left.crash(keep, seed=at)
                cut = Cut(at, keep, {path.relative_to(HOME): data for path, data in left.image().items()})
                if cut.state not in seen:
                    seen.add(cut.state)
                    yield cut
        _do(disk, call)


def _do(disk: SimDisk, call: Call) -> None:
    path, other = HOME / call.path, HOME / call.other
    if call.what in ("write", "append"):
        disk.mkdir(path.parent)
        (disk.write if call.what == "write" else disk.append)(path, call.data)
    elif call.what == "fsync":
        disk.mkdir(path.parent if path in disk.names else path)
        disk.fsync(path)
    elif call.what == "rename":
        disk.mkdir(other.parent)
        disk.rename(path, other)
    else:
        getattr(disk, call.what)(path)


class Verdict(NamedTuple):
    answered: bool  # or nothing was ever committed
    settled: bool  # the right package runs in the end; true when that was not waited for
    lost: int  # counts
    doubled: int
    why: str = ""


def restart(life: Life, cut: Cut, home: Path, *, to_the_end: bool) -> Verdict:
    """Start a device on what the cut left, beside a hub that knows what it knew then."""
    lay(home, life.base | cut.image)
    broker = SimBroker()
    hub = SimHub(broker)
    for at, kind, payload in life.heard:
        if at <= cut.at:
            broker.up(DEVICE, kind, payload)
    now = Life(life.base, life.repository)
    must, may = _counts(s for s in life.sealed if s[0] <= cut.at), _counts(life.sealed)
    before = [digest for at, digest in life.runs if at <= cut.at]
    wish = ([w for at, w in life.wishes if at <= cut.at] or [life.wishes[0][1]])[-1]
    wanted = wish.models[0].digest
    assert wanted is not None
    good = ({wanted} | set(before)) - life.bad
    with device(home, broker, RealDisk(), now) as agent:
        active = agent.model(MODEL).active
        answered = _answers(agent) if active is not None else not before
        hub.wait(lambda: must <= _heard(hub), ANSWER_S)
        settled = True
        if to_the_end:
            hub.want(DEVICE, msgspec.structs.replace(wish, rev=1000))
            settled = until(lambda: _runs(agent) in good and (wanted in life.bad or _runs(agent) == wanted), 60)
    lost = (must - _heard(hub)).total()
    doubled = (_heard(hub) - may - _counts(now.sealed)).total()
    shutil.rmtree(home)
    why = f"call {cut.at} {life.calls[cut.at][:2]}, image {cut.keep}"
    return Verdict(answered, settled, lost, doubled, "" if answered and settled and not lost + doubled else why)


def _counts(sealed: Iterable[tuple[int, Mark, int]]) -> Counter[Mark]:
    total: Counter[Mark] = Counter()
    for _, who, n in sealed:
        total[who] += n
    return total


def _heard(hub: SimHub) -> Counter[Mark]:
    return _counts((0, mark(w), w.n) for w in hub.windows[DEVICE])


def _answers(agent: Agent) -> bool:
    image = packages.draw(1, seed=1)[0][0] // 4  # dark enough for all of them
    return len(agent.model(MODEL).predict({"image": image}).outputs["probabilities"]) == 10


def _runs(agent: Agent) -> str:
    """The digest that answers as committed."""
    active = agent.model(MODEL).active
    return active.subject.digest if active is not None and active.subject.phase == "normal" else ""


def until(done: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def lay(home: Path, files: dict[Path, bytes]) -> None:
    for path, data in files.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(data)
