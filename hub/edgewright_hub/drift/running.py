"""What each device runs now of a model, from its windows, of which some come late. Pure.

A spool numbers windows in the order in which they were sealed, so of two in one spool the one with the higher number is
newer, whatever their clocks say and however they arrive. Only in the interval of a change windows of both packages hold
the same span: the device is taken to run what it ran until the next one. Of two spools the window that came last is
newer, and so it is after a restart of the hub, which does not know the number of the window before.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Ran(NamedTuple):
    """The newest window that a device reported with what it runs."""

    digest: str
    spool_id: str = ""
    seq: int = 0
    end_ms: int = 0


class Running:
    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], Ran] = {}  # of each device and model

    def digest(self, device: str, model: str) -> str:
        """ "" of a device that has not reported anything of the model."""
        return self._newest[device, model].digest if (device, model) in self._newest else ""

    def note(self, device: str, model: str, digest: str) -> None:
        """As it is known from before."""
        self._newest[device, model] = Ran(digest)

    def forget(self, device: str, model: str) -> None:
        self._newest.pop((device, model), None)

    def late(self, row: Any, model: str) -> bool:
        """Whether a row of telemetry.windows is of another package than the device runs by now. Else it is what the
        device runs."""
        now = Ran(row.digest, row.spool_id, row.seq, row.start_ms + row.mono_end_ms - row.mono_start_ms)
        newest = self._newest.get((row.device, model))
        if newest is not None and newest.spool_id == now.spool_id:
            if newest.digest != now.digest and (now.seq < newest.seq or now.end_ms == newest.end_ms):
                return True
            if now.seq < newest.seq:
                return False
        self._newest[row.device, model] = now
        return False
