"""The two trials of a candidate: beside the model that answers (the state `shadow`), and in its place (`probation`).

Guarantee: a shadow run ends. By as many windows that compared something as the hub asks for; as the model's failure
when the candidate does what no model may; after the time of a probation without them, and is tried again later. Where
there is nothing to compare with, or no room for two models, it is left out and that is told.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from edgewright_contracts.desired import Shadow
from edgewright_contracts.manifest import Manifest
from edgewright_contracts.report import Window
from edgewright_runtime.runtime import NoMemory

from . import health
from .health import Conclusion, Health
from .job import HISTORY_S, Host, Job
from .proving import previous
from .slots import Slot
from .steps import load
from .update import Event

MIB: Final = 1 << 20
CLOCKED: Final = 8  # times that a short trial is written down while it lasts

log = logging.getLogger(__name__)


def begin(job: Job, host: Host) -> None:
    """The step of `shadow`. Raises what `load` raises."""
    side, slot = job.staged()
    rule = asked(job)
    manifest = job.store.verified(side).manifest
    why = "the hub asks for none any more" if rule is None else _unlike(job, manifest) or _no_room(host, manifest, slot)
    if rule is not None and not why:
        try:
            candidate = load(job.store, side)
        except NoMemory as error:
            why = str(error)
        else:
            room = host.room_mb()
            if room is None or room >= 0:
                job.watch = host.watch(job.store.name, candidate, rule.share, job.rollout)
                job.trial_since_s = job.now_s
                return
            why = f"both models together are {-room:.0f} MB over this agent's memory limit"
    job.go(Event.DONE, reason=f"no shadow run: {why}")


def observe(job: Job, windows: list[Window]) -> None:
    """Windows of this model that were sealed together. Raises OSError."""
    digest = job.record.digest[:16]
    if any(w.n and w.shadow.n and w.phase == "shadow" and w.digest == digest for w in windows):
        job.keep_trial(msgspec.structs.replace(job.record, watched=job.record.watched + 1, crashes=0, cuts=0))


def conclude(job: Job) -> Conclusion | None:
    """How a shadow run ends; None: not yet."""
    rule, record = asked(job), job.record
    assert job.watch is not None
    assert record.wanted is not None
    if broken := job.watch.broken():
        return Conclusion(Event.BROKEN, f"shadow: {broken}", "model")
    if rule is None:
        return Conclusion(Event.DONE, "the hub asks for no shadow run any more", None)
    if record.watched >= rule.windows:
        return Conclusion(Event.DONE, f"{record.watched} shadow windows", None)
    if job.tried_s > record.wanted.probation.max_s:
        reason = f"no shadow run in {record.wanted.probation.max_s:g} s: {record.watched} of {rule.windows} windows"
        return Conclusion(Event.DELAYED, reason, "operator")
    return None


def judge(job: Job, windows: list[Window], rss_mb: float) -> None:
    """Windows of the probation that were sealed together. Raises OSError."""
    loaded, record = job.loaded, job.record
    if loaded is None or record.wanted is None:
        return
    added_mb = rss_mb - loaded.before_mb
    budgets, alone = loaded.package.manifest.budgets, previous(job) is None
    verdict = health.judge(windows, record, budgets, added_mb, loaded.baseline, alone=alone)
    if verdict.health is Health.BROKEN:
        job.go(Event.BROKEN, reason=verdict.reason, failure="model")
        return
    well = verdict.health is Health.HEALTHY
    after = msgspec.structs.replace(
        record,
        healthy=min(record.healthy + well, record.wanted.probation.windows),
        breaches=verdict.breaches,
        seen=verdict.seen,
        crashes=0 if well else record.crashes,
        cuts=0 if well else record.cuts,
        reason=verdict.reason or record.reason,
    )
    if after != record:  # a window in which nothing happened is not worth a write
        job.keep_trial(after)


def clock(job: Job) -> None:
    """Write down how long the trial lasts, now and then: with a reboot each day it would never end."""
    assert job.record.wanted is not None
    every_s = min(HISTORY_S, job.record.wanted.probation.max_s / CLOCKED)
    if job.now_s - max(job.trial_since_s, job.clocked_s) >= every_s:
        job.clocked_s = job.now_s
        try:
            job.keep_trial(job.record)
        except OSError as full:  # it counts here all the same
            log.warning("%s: how long the trial lasts is not written: %s", job.store.name, full)


def asked(job: Job) -> Shadow | None:
    wanted = job.wanted or job.record.wanted
    return wanted.shadow if wanted else None


def _unlike(job: Job, candidate: Manifest) -> str:
    """Why the inputs of what answers cannot be given to the candidate."""
    if job.loaded is None:
        return "no model answers that it could be compared with"
    now = {(t.name, t.dtype, t.shape) for t in job.loaded.package.manifest.inputs}
    if now != {(t.name, t.dtype, t.shape) for t in candidate.inputs}:
        return f"{candidate.version} takes other inputs than {job.loaded.package.manifest.version}"
    return ""


def _no_room(host: Host, candidate: Manifest, slot: Slot) -> str:
    room, need = host.room_mb(), candidate.files[candidate.variant(slot.variant).model].size / MIB
    return "" if room is None or room >= need else f"{room:.0f} MB of memory are left, it takes {need:.0f} or more"
