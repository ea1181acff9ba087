"""Which packages the owner allows, by TUF: what the owner's targets metadata lists now is allowed, and nothing else.

Order: root (pinned at enrolment) → timestamp → snapshot → targets → manifest, each verified against the one before;
python-tuf does it. The hub signs only timestamp and snapshot, so a stolen hub can withhold and delay but cannot add.

Time for expiry is the later of the system's clock and the highest time ever trusted, so that a clock set back cannot
revive old metadata; a clock raises that mark only while it is synced, so that a wrong one cannot end all updates.
A repository that drips, or that sends without an end, is left after `REFRESH_S` or `CONFIG.targets_max_length`.

What was verified is durable before anything is built on it (`Kept`), so that a power cut cannot make the device believe
older metadata than it has seen. Cost: three small files for each new list, one where only the timestamp is new.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import msgspec
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, TargetFile, Targets  # type: ignore[attr-defined]
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from edgewright_contracts.codec import KIB, Millis, decode
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import MANIFEST_BYTES

from ..clock import Clock
from ..disk import Disk, atomic_write
from .fetch import WORTH, Link
from .refusals import Distrusted, LinkDown, NotAllowed

CONFIG: Final = UpdaterConfig(targets_max_length=2_000_000)
REFRESH_S: Final = 600.0  # 750 kB at 10 kbit/s; what the pace that was asked for takes is not counted


class Mark(msgspec.Struct, frozen=True):
    highest_ms: Millis
    # A bit that flips must not date the device years ahead, where all has expired. None: an earlier release wrote none.
    check: int | None = None


class Trust:
    """`repo` ends in a slash and holds metadata/, targets/ and blobs/."""

    def __init__(self, disk: Disk, folder: Path, root: bytes, repo: str, link: Link, clock: Clock) -> None:
        self._disk, self._folder, self._root, self._repo = disk, folder, root, repo
        self._link, self._clock = link, clock

    def manifest(self, name: str, digest: str, interrupt: Callable[[], None] = lambda: None) -> bytes:
        """Refresh all metadata, then fetch the allowed manifest with this digest.

        What `interrupt` raises breaks it off; it is called for every chunk. Raises LinkDown, Distrusted, NotAllowed,
        OSError.
        """
        with self._verifying():
            updater = self._refreshed(interrupt)
            path, target = self._find(name, digest)
            if target.length > MANIFEST_BYTES:
                raise Distrusted(f"{path}: expected a manifest of at most {MANIFEST_BYTES} bytes, got {target.length}")
            local = self._folder / "manifest.json"
            updater.download_target(target, str(local))
            data = self._disk.read(local)
            self._disk.unlink(local)
            return data

    def allow(self, name: str, digest: str, interrupt: Callable[[], None] = lambda: None) -> None:
        """Whether a package that is on this device already may run: by what the owner signs now, or, while the
        repository cannot be reached, by what was verified last, until that expires.

        Raises LinkDown, Distrusted, NotAllowed, OSError.
        """
        with self._verifying():
            try:
                self._refreshed(interrupt)
            except tuf_errors.DownloadLengthMismatchError:
                raise  # it can be reached very well
            except (LinkDown, tuf_errors.DownloadError):
                try:
                    last = self._targets()
                except (FileNotFoundError, tuf_errors.RepositoryError):
                    last = None  # nothing was ever verified, or flash has rotted
                if last is None or last.is_expired(self._now()):
                    raise  # or a hub could keep up for ever what its owner withdrew
            self._find(name, digest)

    @contextmanager
    def _verifying(self) -> Iterator[None]:
        try:
            yield
        except tuf_errors.DownloadLengthMismatchError as error:
            raise Distrusted(f"the repository {self._repo} sends more than it may: {error}") from error
        except tuf_errors.DownloadError as error:
            raise LinkDown(f"{self._repo}: {error or type(error).__name__}") from error
        except tuf_errors.RepositoryError as error:
            raise Distrusted(f"the repository {self._repo} does not verify: {error}") from error

    def _refreshed(self, interrupt: Callable[[], None]) -> Updater:
        """With all metadata as the repository has it now, verified."""
        updater = Kept(
            self._disk,
            str(self._folder),
            self._repo + "metadata/",
            str(self._folder),
            self._repo + "targets/",
            Fetcher(self._link, self._clock, interrupt),
            CONFIG,
            bootstrap=self._root,
        )
        # python-tuf takes the system's clock and has no public way to be told of a better one.
        updater._trusted_set.reference_time = self._now()
        updater.refresh()
        self._raise_mark()
        return updater

    def _find(self, name: str, digest: str) -> tuple[str, TargetFile]:
        """The target of `name` with this digest in the targets metadata that `refresh` has just verified."""
        targets = self._targets().targets
        for path, target in targets.items():
            if path.startswith(f"packages/{name}/") and target.hashes.get("sha256") == digest:
                return path, target
        raise NotAllowed(f"the owner signs no package {name} with digest {digest[:16]} ({len(targets)} are signed)")

    def _targets(self) -> Targets:
        """Raises OSError, RepositoryError."""
        return Metadata[Targets].from_bytes(self._disk.read(self._folder / "targets.json")).signed

    def _now(self) -> datetime:
        return datetime.fromtimestamp(max(self._clock.wall_ms() or 0, self._highest()) / 1000, UTC)

    def _raise_mark(self) -> None:
        wall = self._clock.wall_ms()
        if wall is not None and self._clock.synced() and wall > self._highest():
            atomic_write(self._disk, self._folder / "time.json", msgspec.json.encode(Mark(wall, _check(wall))))

    def _highest(self) -> int:
        try:
            data = self._disk.read(self._folder / "time.json")
            mark = decode(Mark, data, name="time.json", limit=KIB, wire="json")
        except FileNotFoundError:
            return 0
        except ContractError:
            return 0  # a damaged mark protects nothing; the next refresh writes a good one
        return mark.highest_ms if mark.check in (None, _check(mark.highest_ms)) else 0


def _check(highest_ms: int) -> int:
    return zlib.crc32(str(highest_ms).encode())


class Kept(Updater):
    """python-tuf's client, whose files go through the Disk: it has no public way to be told where they go."""

    def __init__(self, disk: Disk, folder: str, *given: Any, **named: Any) -> None:
        self._disk = disk
        disk.mkdir(Path(folder) / "root_history")
        super().__init__(folder, *given, **named)

    def _persist_file(self, filename: str, data: bytes) -> None:
        place = Path(filename)
        if self._disk.size(place) != len(data) or self._disk.read(place) != data:
            atomic_write(self._disk, place, data)

    def _update_root_symlink(self) -> None:
        """It would say which root is the newest to a client that is not given the first one at every start."""


class Fetcher(FetcherInterface):
    """What python-tuf reads metadata and one manifest through."""

    def __init__(self, link: Link, clock: Clock, interrupt: Callable[[], None]) -> None:
        self._link, self._clock, self._interrupt = link, clock, interrupt
        self._began_s = self._busy_s()
        self._limit = CONFIG.targets_max_length

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        self._limit = max_length  # or 2 MB of an endless timestamp would come in before anybody counts them
        with super().download_file(url, max_length) as file:
            yield file

    def _fetch(self, url: str) -> Iterator[bytes]:
        """A generator, so that python-tuf passes on unchanged what it raises: LinkDown, or what `interrupt` does."""
        while (data := self._whole(url)) is None:
            pass
        yield data

    def _whole(self, url: str) -> bytes | None:
        """None when the link broke after something had come in: worth another try."""
        response = self._link.open(url)
        if response.status != 200:
            self._link.discard(response)
            raise tuf_errors.DownloadHTTPError(f"{url}: HTTP {response.status}", response.status)
        data = bytearray()
        try:
            for chunk in self._link.chunks(response):
                data += chunk
                self._interrupt()
                if len(data) > self._limit:
                    raise tuf_errors.DownloadLengthMismatchError(f"{url}: expected at most {self._limit} bytes")
                if self._busy_s() - self._began_s > REFRESH_S:
                    raise tuf_errors.SlowRetrievalError(f"{url}: the metadata took longer than {REFRESH_S:.0f} s")
        except LinkDown:
            if self._link.stopping.is_set() or len(data) < WORTH:
                raise
            return None
        return bytes(data)

    def _busy_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9 - self._link.waited_s
