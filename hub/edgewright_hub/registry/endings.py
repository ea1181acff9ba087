"""When what the fleet's trust hangs on ends: the owner's signatures, the hub's own, its certificates. Reads files only.

What the hub renews by itself (snapshot, timestamp, its two certificates) is listed too: that it nears its end says that
the renewal fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from tuf.api.metadata import Metadata, Snapshot, Timestamp  # type: ignore[attr-defined]

from .repository import RENEWAL, Repository

NOTICE: Final = timedelta(days=60)
_SIGNED: Final = timedelta(days=1)  # the hub signs daily
_RESTART: Final = "the hub renews it when it starts: restart it, and look at its log"
_DAILY: Final = "the running hub signs it daily, so look at its log"
_AUTHORITY: Final = "make a new hub on an empty --data directory and enrol the devices there"


class Ending(NamedTuple):
    what: str
    at: datetime
    notice: timedelta  # so long before it somebody should know
    way: str

    def due(self, now: datetime) -> bool:
        return self.at - now <= self.notice


def endings(repository: Repository, certificates: Mapping[str, x509.Certificate]) -> list[Ending]:
    """All, the earliest first; `certificates` by name: ca, and those that it signed for the hub. Raises OSError, and
    what tuf raises."""
    snapshot = repository.metadata / f"{repository.versions('snapshot')[-1]}.snapshot.json"
    timestamp = repository.metadata / "timestamp.json"
    found = [
        Ending("root", repository.root().signed.expires, NOTICE, RENEWAL["root"]),
        Ending("targets", repository.targets().signed.expires, NOTICE, RENEWAL["targets"]),
        Ending("snapshot", Metadata[Snapshot].from_bytes(snapshot.read_bytes()).signed.expires, _SIGNED, _DAILY),
        Ending("timestamp", Metadata[Timestamp].from_bytes(timestamp.read_bytes()).signed.expires, _SIGNED, _DAILY),
    ]
    for name, one in certificates.items():
        way = _AUTHORITY if name == "ca" else _RESTART
        found.append(Ending(f"certificate {name}", one.not_valid_after_utc, NOTICE, way))
    return sorted(found, key=lambda one: one.at)
