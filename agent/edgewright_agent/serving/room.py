"""Room for the bodies of requests: bytes of all connections together, so that many clients take no more memory than a
few. A request that is alone may have more."""

from __future__ import annotations

import threading


class Room:
    def __init__(self, most: int) -> None:
        self._most, self._taken = most, 0
        self._guard = threading.Lock()

    def takes(self, size: int, held: int) -> bool:
        """Whether there is room for `size` more beside the `held` of the same request."""
        with self._guard:
            if self._taken + size > self._most and self._taken > held:
                return False
            self._taken += size
            return True

    def give_back(self, size: int) -> None:
        with self._guard:
            self._taken -= size
