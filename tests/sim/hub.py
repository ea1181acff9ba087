"""A hub in memory: counts what devices report exactly once and acknowledges it, as the real one does."""

from __future__ import annotations

import threading
from collections import defaultdict

import msgspec

from edgewright_contracts import birth, desired, event, report
from edgewright_contracts.desired import MASK_BITS, Ack
from edgewright_contracts.topics import Kind

from .broker import SimBroker


class SimHub:
    """`changed` is notified after every message that was counted; `windows` and `events` are in order of arrival."""

    def __init__(self, broker: SimBroker) -> None:
        self._broker = broker
        self._marks: dict[tuple[str, str], Ack] = {}
        self.windows: dict[str, list[report.Window]] = defaultdict(list)
        self.events: dict[str, list[event.Event]] = defaultdict(list)
        self.births: dict[str, list[birth.Birth]] = defaultdict(list)
        self.duplicates = 0
        self.acking = True
        self.changed = threading.Condition()
        broker.subscribe(self._up)

    def want(self, device: str, wish: desired.Desired) -> None:
        self._broker.send(device, "desired", desired.encode(wish))

    def command(self, device: str, command: desired.Command) -> None:
        self._broker.send(device, "command", desired.encode(command))

    def n(self, device: str) -> int:
        return sum(w.n for w in self.windows[device])

    def trace(self, device: str) -> list[str]:
        """The states that a device went through, by its events about a model."""
        found = sorted((e for e in self.events[device] if e.model), key=lambda e: e.seq)
        return [found[0].before, *(e.after for e in found)] if found else []

    def wait(self, condition, timeout: float = 60.0) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, timeout)

    def _up(self, device: str, kind: Kind, payload: bytes) -> None:
        with self.changed:
            if kind == "birth":
                born = birth.decode_birth(payload)
                self.births[device].append(born)
                self._ack(device, born.spool.id)
            elif kind == "report":
                said = report.decode_report(payload)
                if self._first(device, said.spool_id, said.seq):
                    self.windows[device].append(said.window)
                self._ack(device, said.spool_id)
            elif kind == "event":
                told = event.decode_event(payload)
                if self._first(device, told.spool_id, told.seq):
                    self.events[device].append(told)
                self._ack(device, told.spool_id)
            self.changed.notify_all()

    def _first(self, device: str, spool_id: str, seq: int) -> bool:
        mark = self._marks.get((device, spool_id), Ack(spool_id, 0))
        if seq in mark:
            self.duplicates += 1
            return False
        assert seq - mark.high_water <= MASK_BITS, "more than 16 ahead"
        mask, high = mark.mask | 1 << (seq - mark.high_water - 1), mark.high_water
        while mask & 1:
            mask, high = mask >> 1, high + 1
        self._marks[device, spool_id] = Ack(spool_id, high, mask)
        return True

    def _ack(self, device: str, spool_id: str) -> None:
        if self.acking:
            mark = self._marks.get((device, spool_id), Ack(spool_id, 0))
            last = self.births[device][-1:]
            born = desired.birth_mark(last[0].boot_id, last[0].connection) if last and last[0] else ""
            self._broker.send(device, "ack", desired.encode_ack(msgspec.structs.replace(mark, birth=born)))
