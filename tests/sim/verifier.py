"""A device that only verifies: what it lets in of a repository, over HTTP at `url` or over a link in virtual time.

`wire` is that link, `folder` the device's own. Nothing waits for real, and time passes by `clock`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewright_agent.disk import RealDisk
from edgewright_agent.updating.fetch import Link
from edgewright_agent.updating.trust import Trust
from edgewright_contracts.package import Package

from .clock import SimClock
from .link import SimLink
from .repository import Repository


class Verifier:
    def __init__(self, folder: Path, repository: Repository, url: str | None = None, **knobs: Any) -> None:
        """`knobs` are those of a `SimLink`."""
        self.folder, self.disk = folder, RealDisk()
        self.clock = SimClock(int(repository.now.timestamp() * 1000) + 60_000)
        self.wire = SimLink(repository.folder, self.clock, **{"bytes_per_s": 1e6, **knobs})
        self.link = Link() if url else Link(self.wire.pool, clock=self.clock, wait=self.clock.advance)
        self.url = url or "http://hub/"
        self.trust = Trust(self.disk, folder / "trust", repository.root, self.url, self.link, self.clock)

    def manifest(self, package: Package) -> bytes:
        return self.trust.manifest(package.manifest.name, package.digest)
