"""When what the fleet's trust hangs on ends: the owner's signatures, the hub's own, its certificates. Reads files only.

What the hub renews by itself (snapshot, timestamp, its two certificates) is listed too: that it nears its end says that
the renewal fails.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from tuf.api.metadata import Metadata, Snapshot, Timestamp  # type: ignore[attr-defined]

from .repository import RENEWAL, Repository

NOTICE: Final = timedelta(days=60)
_SIGNED: Final = timedelta(days=1)  # the hub signs daily
_RESTART: Final = "the hub renews it when it starts: restart it, and look at its log"
_DAILY: Final = "the running hub signs it daily, so look at its log"
_AUTHORITY: Final = "make a new hub on an empty --data directory and enrol the devices there"
_CERTIFICATES: Final = {"ca": _AUTHORITY, "server": _RESTART, "hub": _RESTART}


class Ending(NamedTuple):
    what: str
    at: datetime
    notice: timedelta  # so long before it somebody should know
    way: str

    def due(self, now: datetime) -> bool:
        return self.at - now <= self.notice


def of_signatures(repository: Repository) -> list[Ending]:
    """The owner's and the hub's own. Raises OSError, and what tuf raises."""
    snapshot = repository.metadata / f"{repository.versions('snapshot')[-1]}.snapshot.json"
    timestamp = repository.metadata / "timestamp.json"
    return [
        Ending("root", repository.root().signed.expires, NOTICE, RENEWAL["root"]),
        Ending("targets", repository.targets().signed.expires, NOTICE, RENEWAL["targets"]),
        Ending("snapshot", Metadata[Snapshot].from_bytes(snapshot.read_bytes()).signed.expires, _SIGNED, _DAILY),
        Ending("timestamp", Metadata[Timestamp].from_bytes(timestamp.read_bytes()).signed.expires, _SIGNED, _DAILY),
    ]


def of_certificates(folder: Path) -> list[Ending]:
    """Of the authority in this folder, and of those that it signed for the hub. Raises OSError, ValueError."""
    found = []
    for name, way in _CERTIFICATES.items():
        one = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        found.append(Ending(f"certificate {name}", one.not_valid_after_utc, NOTICE, way))
    return found
