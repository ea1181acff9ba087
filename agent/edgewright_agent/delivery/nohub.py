"""The link of a device that is not enrolled: none. What is counted stays in the spool, which merges it."""

from __future__ import annotations

from edgewright_contracts.topics import Kind

from .mqtt import Condition, Listener


class NoHub:
    """A `Transport` that is never online."""

    online = False

    def start(self, listener: Listener) -> None:
        pass

    def publish(self, kind: Kind, payload: bytes) -> bool:
        return False

    def traffic(self) -> tuple[int, int]:
        return 0, 0

    def overhead(self) -> tuple[int, int]:
        return 0, 0

    def condition(self) -> Condition:
        return Condition(online=False)

    def stop(self) -> None:
        pass
