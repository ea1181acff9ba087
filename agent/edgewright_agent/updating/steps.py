"""Steps: what each state of `update.py` stands for. Every one may be done again.

A step ends by moving its job on, or raises, and then `failures.classify` says whose failure that is.
"""

from __future__ import annotations

import io
import platform
import threading
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from edgewright_contracts import __version__
from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.channels import Binner
from edgewright_contracts.errors import Refused
from edgewright_contracts.manifest import decode_manifest
from edgewright_contracts.package import Package
from edgewright_runtime.golden import GOLDEN_FILE, check, read_golden
from edgewright_runtime.runtime import open_session

from ..disk import Disk
from ..limits.device import resident_kb
from . import update
from .choice import choose, untransformed
from .delta import Downloads, running
from .failures import DiskFull, Unsuited
from .fetch import Link
from .job import Host, Job, Loaded
from .proving import Proving, made, told
from .quality import PrePeriod, Seen
from .refusals import Spent
from .sideload import Sideloads
from .slots import Damaged, Side, Slot, Store, files
from .turns import Turns, put_off
from .update import Event, State

SPARE_BYTES: Final = 4 << 20  # of disk that a download leaves free
WARM_ROWS: Final = 3


class Steps:
    """`interrupt` raises Interrupted when a step of this job that takes long must give way."""

    def __init__(
        self,
        disk: Disk,
        trust: Sideloads,
        link: Link,
        repo: str,
        runtimes: tuple[str, ...],
        stopping: threading.Event,
        interrupt: Callable[[Job], None],
        uniform: Callable[[], float],
        host: Host,
        shadow: Callable[[Job], None],
    ) -> None:
        self._disk, self._trust, self._downloads = disk, trust, Downloads(disk, link, repo)
        self._turns = Turns(disk, link, uniform)
        self._runtimes, self._stopping, self._interrupt, self._host = runtimes, stopping, interrupt, host
        self.proving = Proving(disk, stopping)
        self._arch, self._agent = platform.machine().lower(), __version__
        self._table: dict[State, Callable[[Job], None]] = {
            State.FETCH: self._fetch,
            State.STAGE: self._stage,
            State.SELFTEST: self._selftest,
            State.SHADOW: shadow,
            State.WARMUP: self._warm_up,
            State.ACTIVATE: self._activate,
            State.COMMIT: self._commit,
        }

    def take(self, job: Job) -> None:
        """Do what the state of `job` stands for."""
        try:
            self._table[job.record.state](job)
        except Damaged:
            job.store.save(job.state.with_slot(job.state.spare, None))  # so that it is fetched again
            raise
        except Spent as spent:
            put_off(job, spent.after_s, str(spent), "link")

    def _fetch(self, job: Job) -> None:
        wanted = job.record.wanted
        assert wanted is not None
        assert wanted.digest is not None
        spare = job.state.slot(job.state.spare)
        if spare is not None and spare.digest == wanted.digest and wanted.variant in (None, spare.variant):
            self._trust.allow(wanted.name, wanted.digest, lambda: self._interrupt(job))
            job.go(Event.DONE, reason="the other slot holds it already")
            return
        self._turns.wait(job)
        data = self._trust.manifest(wanted.name, wanted.digest, lambda: self._interrupt(job))
        manifest = decode_manifest(data)
        variant, runtime = choose(
            manifest,
            wanted,
            agent=self._agent,
            arch=self._arch,
            runtimes=self._runtimes,
            transform=self._host.transform(wanted.name) is not None,
        )
        need, free = job.store.to_download(manifest, variant) + SPARE_BYTES, self._disk.free(job.store.root)
        if need > free:
            raise DiskFull(f"expected {need} bytes of free disk, got {free}")
        base, saved = running(job.store), 0
        for file in files(manifest, variant):
            saved += self._downloads.file(file, manifest.files[file], job.store, base, lambda: self._interrupt(job))
        job.fetched = (data, Slot(wanted.digest, manifest.version, variant.id, runtime))
        told = f"; {saved} bytes came from the running package" if saved else ""
        job.go(Event.DONE, reason=f"{manifest.version} {variant.id} for {runtime}{told}")

    def _stage(self, job: Job) -> None:
        spare = job.state.slot(job.state.spare)
        if spare is None or spare.digest != job.record.digest:
            assert job.fetched is not None  # a boot in this state goes back to fetch
            job.store.stage(*job.fetched)
        job.fetched = None
        job.go(Event.DONE)

    def _selftest(self, job: Job) -> None:
        side, _ = job.staged()
        self.check_transform(job.store.name, job.store.verified(side))
        verdict, tail = self.proving.prove(job.store, side, lambda: self._interrupt(job))
        if verdict.passed:
            asked = job.record.wanted is not None and job.record.wanted.shadow is not None
            job.go(Event.WATCH if asked else Event.DONE, reason=told(verdict))
        else:
            job.go(Event.BROKEN, reason=f"self-test: {verdict.reason}", failure="model", log_tail=tail)

    def check_transform(self, name: str, package: Package) -> None:
        """The application does to its samples what the package was made with. Raises Unsuited, ContractError."""
        manifest = package.manifest
        if manifest.preprocess != "host":
            return
        transform = self._host.transform(name)
        if transform is None:
            raise untransformed(manifest)
        golden = read_golden(package.read(GOLDEN_FILE), manifest)
        try:
            check(golden, transform)
        except Refused as error:
            raise Unsuited(f"the application's preprocessing: {error}") from None
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise Unsuited(f"the application's preprocessing fails on the package's own samples: {said}") from error

    def _warm_up(self, job: Job) -> None:
        side, _ = job.staged()
        self.proving.ensure(job.store, side, lambda: self._interrupt(job))
        began = job.now_s
        loaded = load(job.store, side)
        outputs = loaded.session.run(_first_rows(loaded))
        took = job.now_s - began
        Binner(loaded.baseline.channels).add(outputs)  # channels that do not fit the outputs could not be counted
        job.candidate = loaded
        job.go(Event.DONE, reason=f"loaded in {took:.2f} s")

    def _activate(self, job: Job) -> None:
        side, _ = job.staged()
        assert job.candidate is not None  # a boot in this state goes back to warm-up
        record = msgspec.structs.replace(
            update.advance(job.record, Event.DONE),
            before=job.history,
            seen=Seen(),
            healthy=0,
            breaches=0,
            crashes=0,
            cuts=0,
            tried_s=0.0,
        )
        job.emit(record, "")
        # One write moves the pointer and begins the probation: there is no moment between them. The package answers
        # only behind it, for nobody would judge what the disk does not know of.
        job.save(msgspec.structs.replace(job.state, active=side, record=record, history=PrePeriod()))
        job.loaded, job.candidate, job.phase = job.candidate, None, "probation"
        job.trial_since_s, job.load_at_s, job.history = job.now_s, None, PrePeriod()
        job.switch()

    def _commit(self, job: Job) -> None:
        job.store.commit()
        job.phase = "normal"
        if job.loaded is not None:
            job.switch()
        job.go(Event.DONE, reason="committed")


def load(store: Store, side: Side) -> Loaded:
    """The session of what a slot holds, of the files that passed its self-test.

    Raises Damaged, ContractError, LoadFailed, Unavailable, OSError.
    """
    package, slot = store.verified(side), store.state.slot(side)
    assert slot is not None
    manifest = package.manifest
    variant = manifest.variant(slot.variant)
    file, optimised = made(store.disk, package, variant, slot.runtime)
    before_mb = resident_kb() / 1024
    session = open_session(
        file,
        slot.runtime,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        options=variant.options,
        optimised=optimised,
    )
    return Loaded(package, variant, decode_baseline(package.read(variant.baseline)), session, before_mb)


def _first_rows(loaded: Loaded) -> dict[str, np.ndarray]:
    """Of the self-test's inputs."""
    with np.load(io.BytesIO(loaded.package.read(loaded.variant.selftest)), allow_pickle=False) as arrays:
        return {t.name: arrays[f"input:{t.name}"][:WARM_ROWS] for t in loaded.package.manifest.inputs}
