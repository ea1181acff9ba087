"""Errands: the thread for what nobody waits for. It looks for packages that were brought by hand.

Guarantee: nothing here delays an inference, telemetry or an update; what goes wrong is told, and tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from ..unforeseen import Unforeseen

POLL_S: Final = 2.0


class Errands:
    """`rounds` are called one after another, every two seconds, on the thread that `run`s."""

    def __init__(self, unforeseen: Unforeseen, rounds: tuple[Callable[[], None], ...]) -> None:
        self._unforeseen, self._rounds = unforeseen, rounds
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopping.wait(POLL_S):
            self.turn()

    def turn(self) -> None:
        for one in self._rounds:
            try:
                one()
            except Exception as error:  # the next round may do better, and the others must not wait for this one
                self._unforeseen.tell("errands", error)

    def stop(self) -> None:
        self._stopping.set()
