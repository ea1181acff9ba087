"""What a rollout would do: who gets it when, what that costs, how long it takes and what its gates can see. Pure.

Guarantee: nothing moves. Which devices a count or a share means is drawn when the rollout is created, so only numbers
are told of those; of a selector, names. Times are of a good release (`outlook`), in windows of this rollout and at the
rates at which these devices counted in the 24 hours before, labels as late as they came of earlier versions, as far as
that is known (`label_delay`), or at the rate of the last month (`label_past`). Devices begin as the caps let them, as
if downloads took no time. A stage begins when it is open somewhere, the last when it has been open everywhere, and its
wait for that is in what it takes.

The longest is what the parts of which there is a bound take together: in every batch of `concurrency` devices each
attempt that a device has uses up its time-out, its probation and its download, and waits for the next maintenance
window; between them it rests for as long as any failures may make it rest. Evidence comes as expected. What is asked of
people is not in it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from ..fleet.selectors import Device
from . import schedule
from .admission import Proposal, exposed
from .downloads import Download
from .evidence import Heard
from .exposure import BURST_S
from .label_past import Came, unknown
from .members import Member, Members
from .outlook import Outlook, Spread, outlook, usual
from .processes import Counts, Metric, Process
from .specification import LONGEST_S, RETRIED, RolloutSpec, is_selector

NAMES: Final = 20  # of devices, of one stage or one reason


def excluded(
    proposal: Proposal, fleet: Mapping[str, Device], heard: Mapping[str, Heard], now_ms: int
) -> dict[str, list[str]]:
    """Devices that get it not at all or only later, by the reason."""
    spec, found = proposal.spec, defaultdict[str, list[str]](list)
    found["it has this version already"] = list(proposal.already)
    for name, why in proposal.unable.items():
        found[f"cannot run it: {why}"].append(name)
    for name in proposal.previous:
        device = fleet[name]
        if device.held:
            found["held by an operator; later, by the same gates"].append(name)
        elif name not in heard or not heard[name].present(now_ms):
            found["silent; later, by the same gates"].append(name)
        elif not schedule.opens(spec.windows, device.tz, now_ms):
            found["outside its maintenance windows; later, in them"].append(name)
    return {why: names for why, names in found.items() if names}


def told(left_out: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    return [{"why": why, "n": len(names), "devices": list(names[:NAMES])} for why, names in left_out.items()]


def plan(
    proposal: Proposal,
    fleet: Mapping[str, Device],
    joined: tuple[Member, ...],
    processes: Sequence[Process],
    *,
    seldom: Mapping[Metric, Came],  # labels and outcomes that came before the last 24 hours only
    reported_s: float,  # by each device in the period before, in the mean
    label_delay_s: float | None,  # in the mean; None: not known, and left out
    downloads: Mapping[str, Download],  # by device
    left_out: Mapping[str, list[str]],
    now_ms: int,
) -> dict[str, Any]:
    """As people read it: JSON values only."""
    spec, members = proposal.spec, Members.of(joined)
    groups = [member.group for member in joined]
    reached = exposed(spec, groups)
    windows = max(1.0, reported_s / spec.window_s)
    pre, delay = Counts(members.pre[0], members.pre[1]), (label_delay_s or 0.0) / spec.window_s
    known = usual(pre, processes, windows, spec.gate, label_delay=delay, seldom=seldom)
    least = sum(one.delta for one in downloads.values())
    size = least / max(1, len(joined))
    ahead = outlook(spec.gate, known, reached, len(joined), pre_windows=windows, spread=_spread(spec, size))
    full = sum(one.full for one in downloads.values())
    zones = Counter(fleet[member.device].tz for member in joined)
    waits = _longest_wait(spec, zones, now_ms)
    rates = {metric: one.rate for metric, one in known.items()}
    stages, total = _stages(spec, ahead, reached, joined, size, waits, rates)
    takes = _with_waits(spec, stages, zones, now_ms)
    return {
        "model": spec.model,
        "version": spec.version,
        "digest": spec.digest,
        "devices": len(joined),
        "stages": stages,
        "bytes": {"full": full, "delta": least},
        "expected_s": takes,
        "longest_s": total,
        "rates": rates,
        "label_delay_s": label_delay_s,
        "seldom": msgspec.to_builtins(dict(seldom)),
        "not_waited_for": unknown(spec.gate, members),
        "approvals": spec.approvals,
        "openings": _openings(spec, zones, now_ms),
        "excluded": told(left_out),
    }


def _openings(spec: RolloutSpec, zones: Mapping[str, int], now_ms: int) -> list[dict[str, Any]]:
    """When each zone is open next, the first of them first; none: always."""
    found = []
    for tz, devices in zones.items() if spec.windows else ():
        opening = schedule.next_opening(spec.windows, tz, now_ms)
        assert opening is not None
        found.append({"tz": tz or "UTC", "devices": devices, "begin_ms": opening.begin_ms, "end_ms": opening.end_ms})
    return sorted(found, key=lambda one: (one["begin_ms"], one["tz"]))


def _with_waits(
    spec: RolloutSpec, stages: Sequence[dict[str, Any]], zones: Mapping[str, int], now_ms: int
) -> float | None:
    """Add to what each stage takes its wait for an opening; seconds of them all."""
    at = now_ms
    for place, stage in enumerate(stages):
        begins = [one["begin_ms"] for one in _openings(spec, zones, at)] or [at]
        begin = max(at, max(begins) if place == len(stages) - 1 else min(begins))
        stage["begins_ms"] = begin
        if stage["expected_s"] is None:
            return None
        stage["expected_s"] += (begin - at) / 1000
        at += int(1000 * stage["expected_s"])
    return (at - now_ms) / 1000


def _spread(spec: RolloutSpec, size: float) -> Spread:
    """By the caps: a place of `concurrency` is free when its device has committed, and bytes come at the rate, or are
    left in the bucket (`exposure`), which fills up while nobody begins. Downloads themselves take no time."""
    rate = spec.bandwidth_bytes_s
    level = most = max(float(spec.release_bytes), (rate or 0.0) * BURST_S)

    def spread(new: int, waited: float) -> float:
        nonlocal level
        turns = math.ceil(new / (spec.concurrency or max(1, new))) - 1
        windows = max(0.0, turns * float(spec.probation.windows))
        if rate is not None:
            level = min(most, level + waited * spec.window_s * rate)
            windows = max(windows, (new * size - level) / rate / spec.window_s)
            level = max(0.0, level - new * size)
        return windows

    return spread


def _stages(
    spec: RolloutSpec, told: Outlook, reached: Sequence[int], joined: Sequence[Member], size: float, waits: float,
    rates: Mapping[Metric, float],
) -> tuple[list[dict[str, Any]], float | None]:  # fmt: skip
    found: list[dict[str, Any]] = []
    total: float | None = 0.0
    for place, stage in enumerate(spec.ladder):
        new = reached[place] - (reached[place - 1] if place else 0)
        outlook = told.stages[place] if place < len(told.stages) else None
        lasts = None if outlook is None or outlook.windows is None else outlook.windows * spec.window_s
        alone = None if outlook is None or lasts is None else lasts - outlook.spread * spec.window_s
        visible = dict(outlook.visible) if outlook else {}
        total = None if total is None or alone is None else total + alone + _longest_asked(spec, new, size, waits)
        named = [m.device for m in joined if m.group == place][:NAMES] if is_selector(stage) else []
        if place == len(spec.ladder) - 1 and new == len(joined):
            named = [m.device for m in joined][:NAMES]
        found.append(
            {
                "stage": stage,
                "new": new,
                "exposed": reached[place],
                "devices": named,
                "expected_s": lasts,
                "waits_for": outlook.waits_for if outlook else "",
                "visible": {m: seen / rates[m] for m, seen in visible.items() if rates[m]},
                "visible_rates": visible,
                "failing": outlook.failing if outlook else None,
            }
        )
    return found, total


def _longest_asked(spec: RolloutSpec, new: int, size: float, waits: float) -> float:
    """Seconds until each of `new` devices has the release or is given up, if all can be reached."""
    each = [spec.retry.of(cause) for cause in RETRIED]
    again = range(max(one.attempts for one in each))
    rests = sum(max(min(one.first_s * 2.0**k, LONGEST_S) for one in each if k < one.attempts) for k in again)
    batches = math.ceil(new / min(spec.concurrency or max(1, new), max(1, new)))
    attempt = batches * (spec.device_timeout_s + spec.probation.max_s)
    download = new * size / (spec.bandwidth_bytes_s or math.inf)
    return rests + (1 + len(again)) * (max(attempt, download) + waits)


def _longest_wait(spec: RolloutSpec, zones: Iterable[str], now_ms: int) -> float:
    """Seconds between the end of an opening and the next one, at most over a week."""
    longest = 0.0
    for tz in zones if spec.windows else ():
        at = now_ms
        while at < now_ms + 8 * 86_400_000:
            opening = schedule.next_opening(spec.windows, tz, at)
            assert opening is not None
            longest = max(longest, (opening.begin_ms - at) / 1000)
            at = opening.end_ms
    return longest
