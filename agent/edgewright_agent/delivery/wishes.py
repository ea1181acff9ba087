"""What the hub wishes of this device: the newest revision, kept on the disk before it is followed.

Guarantee: an older revision is ignored, and so is one so far ahead that no true one could ever follow it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgewright_contracts import desired as down
from edgewright_contracts.desired import Desired
from edgewright_contracts.errors import ContractError
from edgewright_contracts.event import Event

from ..clock import Clock
from ..disk import Disk, atomic_write
from ..draft import draft

AHEAD: Final = 1_000_000  # revisions; a hub makes a few a day

log = logging.getLogger(__name__)


class Wishes:
    """`desire` hears each new revision; `emit` spools an event, and may raise OSError."""

    def __init__(
        self,
        path: Path,
        disk: Disk,
        clock: Clock,
        boot_id: str,
        *,
        desire: Callable[[Desired], None],
        emit: Callable[[Event], None],
    ) -> None:
        self._path, self._disk, self._clock, self._boot_id = path, disk, clock, boot_id
        self._desire, self._emit = desire, emit
        self._refused_rev = 0
        self.desired = self._stored()

    def hear(self, payload: bytes) -> None:
        """Raises ContractError, and OSError when the disk does not take it: it is to be heard again then."""
        wish = down.decode_desired(payload)
        known = self.desired.rev if self.desired is not None else 0
        if wish.rev <= known and self.desired is not None:
            return
        if wish.rev > known + AHEAD:
            self._refuse_rev(wish.rev, known)
            return
        atomic_write(self._disk, self._path, payload)
        self.desired = wish
        self._desire(wish)

    def _refuse_rev(self, rev: int, known: int) -> None:
        if rev == self._refused_rev:
            return
        said = f"revision {rev} is ignored: it is more than {AHEAD} above {known}, and no later one could follow"
        log.error("%s", said)
        self._emit(draft(self._clock, self._boot_id, before="desired", after="desired", reason=said, failure="hub"))
        self._refused_rev = rev

    def _stored(self) -> Desired | None:
        try:
            return down.decode_desired(self._disk.read(self._path))
        except FileNotFoundError:
            return None
        except (ContractError, OSError) as error:
            log.warning("the stored wishes are damaged; waiting for the hub's: %s", error)
            return None
