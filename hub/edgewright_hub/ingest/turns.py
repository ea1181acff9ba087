"""When each device is acknowledged: at once after a birth; once half of what it may have in flight waits for it; when
it repeats itself; or after `ack_s`. But for births at least ACK_GAP_S apart. The newest answer wins. Pure.

Cost: what has come in and what is due, not what waits: a fleet of 10,000 always waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from edgewright_contracts.desired import ACK_AFTER, ACK_GAP_S, Ack


class Answer(NamedTuple):
    """Sent after the commit, when `Turns` says so: the acknowledgement, or, if `renew`, the command to begin a
    new spool."""

    device: str
    spool_id: str
    ack: Ack
    at_once: bool  # a birth
    again: bool  # something came that was counted before: the device has not heard of it
    renew: bool  # the spool was restored or cloned: an ack would free windows that reuse numbers counted before

    def behind(self, before: Answer | None) -> Answer:
        """This answer in the place of an older one that was not sent: as urgent as the more urgent of them."""
        if before is None:
            return self
        return self._replace(at_once=self.at_once or before.at_once, again=self.again or before.again)


class Turns:
    def __init__(self, ack_s: float) -> None:
        self._ack_s, self._gap_s = ack_s, min(ACK_GAP_S, ack_s)
        self._waiting: dict[str, _Waiting] = {}  # by device; the longest wait first
        self._ripe: set[str] = set()  # devices in `_waiting` that are to be answered as soon as the gap allows
        self._last: dict[str, _Sent] = {}

    def add(self, answers: Iterable[Answer], now_s: float) -> None:
        for answer in answers:
            device, spool_id = answer.device, answer.spool_id
            waiting = self._waiting.setdefault(device, _Waiting(now_s, {}))
            one = waiting.answers[spool_id] = answer.behind(waiting.answers.pop(spool_id, None))
            last = self._last.get(device)
            known = last.counted if last is not None and last.spool_id == spool_id else 0
            if one.at_once or one.again or _counted(one.ack) - known >= ACK_AFTER:
                self._ripe.add(device)

    def due(self, now_s: float) -> list[Answer]:
        for device, waiting in self._waiting.items():
            if now_s - waiting.since_s < self._ack_s:
                break
            self._ripe.add(device)
        out: list[Answer] = []
        for device in [d for d in self._ripe if self._may(d, now_s)]:
            answers = list(self._waiting.pop(device).answers.values())
            self._ripe.discard(device)
            self._last[device] = _Sent(now_s, answers[-1].spool_id, _counted(answers[-1].ack))
            out += answers
        return out

    def _may(self, device: str, now_s: float) -> bool:
        last = self._last.get(device)
        rested = last is None or now_s - last.at_s >= self._gap_s
        return rested or any(answer.at_once for answer in self._waiting[device].answers.values())


class _Waiting(NamedTuple):
    since_s: float
    answers: dict[str, Answer]  # by spool id; the one that came last is last


class _Sent(NamedTuple):
    at_s: float
    spool_id: str
    counted: int


def _counted(ack: Ack) -> int:
    return ack.high_water + ack.mask.bit_count()
