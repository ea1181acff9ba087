"""The static TUF repository that devices download from, and the hub's part in signing it.

    repo/metadata/<N>.root.json <N>.targets.json <N>.snapshot.json timestamp.json
    repo/targets/packages/<name>/<version>/<sha256>.manifest.json
    repo/blobs/<sha256>

The owner signs root and targets; the hub holds the keys of snapshot and timestamp only. Targets, snapshot and timestamp
are written in that order, each durably and by rename: a reader sees the old list or the new one. Versions of snapshot
and timestamp are at least unix seconds, so a hub that was restored from a backup is not refused by devices that saw a
newer one. Devices download blobs by their hash, so a blob is only ever whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from edgewright_contracts import durable
from edgewright_contracts.errors import ContractError, Refused, RequestError

SNAPSHOT_LIFE: Final = timedelta(days=7)
TIMESTAMP_LIFE: Final = timedelta(days=3)
RESIGN_EVERY: Final = timedelta(days=1)
TARGETS_ALERT: Final = timedelta(days=60)
BLOB_BYTES: Final = 2 * 1024**3
SHA256: Final = re.compile(r"\A[0-9a-f]{64}\Z")
RENEWAL: Final = {
    "targets": "let the owner publish the next version of any package (`edgewright publish`): that signs the list "
    "for another year",
    "root": "no command renews it; make new keys (`edgewright keys init`), start a hub on an empty --data directory "
    "with them, and enrol the devices there",
}
_OWNED: Final = ("1.root.json", "1.targets.json", "snapshot.pem", "timestamp.pem")


class Repository:
    """`folder` is what is served; `keys` has the private halves of snapshot and timestamp."""

    def __init__(self, folder: Path, keys: Path) -> None:
        self.folder = folder
        self._keys = keys
        self.publishing = threading.Lock()  # held by whoever changes which files there are

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    @property
    def owned(self) -> bool:
        return (self.metadata / "1.root.json").exists()

    def check_owner(self, trust: Path | None) -> None:
        """Whether the registry can be opened with this folder of its owner's; nothing is written. Raises RequestError,
        saying what is missing."""
        if self.owned:
            if trust is not None and _read(trust / "1.root.json") != self.first_root:
                raise RequestError(
                    f"{trust} belongs to another owner than the registry in {self.folder}: a hub serves one owner. "
                    "Leave --trust away, or choose an empty --data directory"
                )
            return
        if trust is None:
            raise RequestError(
                "this data directory has no owner yet: name the owner's hub folder with --trust "
                "(`edgewright keys init DIR` makes it as DIR/hub)"
            )
        missing = [name for name in _OWNED if not (trust / name).is_file()]
        if missing:
            raise RequestError(
                f"{trust}: expected the owner's hub folder with {', '.join(_OWNED)}; {missing[0]} is absent"
            )
        try:
            root = Metadata[Root].from_bytes(_read(trust / "1.root.json"))
            root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
            verified(root, _read(trust / "1.targets.json"))
            for role in ("snapshot", "timestamp"):
                _read(trust / f"{role}.pem")
                _signer(trust, role, root)
        except (RepositoryError, SigningError, ContractError, ValueError) as error:
            raise RequestError(f"{trust}: expected files that belong together, made by one owner: {error}") from None

    def import_owner(self, trust: Path) -> None:
        """Take over the files that `check_owner` has found whole. root.json comes last: it marks completeness."""
        self._keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        for role in ("snapshot", "timestamp"):
            durable.replace(self._keys / f"{role}.pem", (trust / f"{role}.pem").read_bytes(), mode=0o600)
        for name in ("1.targets.json", "1.root.json"):
            durable.replace(self.metadata / name, (trust / name).read_bytes())

    @property
    def first_root(self) -> bytes:
        """What devices are given at enrolment; they walk from it to the newest root by themselves."""
        return (self.metadata / "1.root.json").read_bytes()

    @property
    def first_root_sha256(self) -> str:
        return hashlib.sha256(self.first_root).hexdigest()

    def root(self) -> Metadata[Root]:
        return Metadata[Root].from_bytes(self._newest("root").read_bytes())

    def targets(self) -> Metadata[Targets]:
        """The list in force: the one that the newest snapshot names, or the imported one before there is any."""
        snapshots = self.versions("snapshot")
        if not snapshots:
            return Metadata[Targets].from_bytes((self.metadata / "1.targets.json").read_bytes())
        newest = Metadata[Snapshot].from_bytes((self.metadata / f"{snapshots[-1]}.snapshot.json").read_bytes())
        version = newest.signed.meta["targets.json"].version
        return Metadata[Targets].from_bytes((self.metadata / f"{version}.targets.json").read_bytes())

    def verify(self) -> None:
        """See that what is served bears the signatures of the keys that root.json names. Raises ContractError, Refused,
        or what tuf raises."""
        root = self.root()
        root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        verified(root, self.targets().to_bytes())
        timestamp = Metadata[Timestamp].from_bytes((self.metadata / "timestamp.json").read_bytes())
        root.signed.verify_delegate("timestamp", timestamp.signed_bytes, timestamp.signatures)
        version = timestamp.signed.snapshot_meta.version
        snapshot = Metadata[Snapshot].from_bytes((self.metadata / f"{version}.snapshot.json").read_bytes())
        root.signed.verify_delegate("snapshot", snapshot.signed_bytes, snapshot.signatures)

    def warning(self, *, now: datetime) -> str | None:
        """A sentence for the operator once the owner's signature has less than 60 days to live."""
        left = min((self.targets().signed.expires, "targets"), (self.root().signed.expires, "root"))
        days = (left[0] - now).days
        if left[0] - now > TARGETS_ALERT:
            return None
        if days < 0:
            return f"the owner's {left[1]} signature expired, and devices update nothing: {RENEWAL[left[1]]}"
        return f"the owner's {left[1]} signature expires in {days} days: {RENEWAL[left[1]]}"

    async def put_blob(self, sha256: str, chunks: AsyncIterator[bytes]) -> bool:
        """Store a blob; True if it is new. Nothing remains of one that is too large or has another hash.

        Raises ContractError.
        """
        if not SHA256.match(sha256):
            raise ContractError("sha256", "64 hexadecimal digits", repr(sha256[:80]))
        place = self.blobs / sha256
        if place.exists():
            os.utime(place)  # it is about to be named: `garbage` leaves it alone for a day
            return False
        part = self.blobs / f"{sha256}.{secrets.token_hex(4)}.part"
        digest, size = hashlib.sha256(), 0
        try:
            with part.open("xb") as stream:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > BLOB_BYTES:
                        raise ContractError("blob", f"at most {BLOB_BYTES} bytes", "more")
                    digest.update(chunk)
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
            if digest.hexdigest() != sha256:
                raise ContractError(
                    "blob", f"bytes whose sha256 is {sha256}", f"{size} bytes with {digest.hexdigest()}"
                )
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
        durable.sync(self.blobs)
        return True

    def put_in_force(self, body: bytes, manifests: Mapping[str, str], version: int, now: datetime) -> None:
        """The owner's list, with its manifests (path → digest) where devices look for them, and signed over."""
        for path, digest in manifests.items():
            self._place_manifest(path, digest)
        durable.replace(self.metadata / f"{version}.targets.json", body)
        self._sign_snapshot(version, now)
        self._sign_timestamp(now)

    def manifest_place(self, path: str, digest: str) -> Path:
        return self.folder / "targets" / Path(path).parent / f"{digest}.manifest.json"

    def _place_manifest(self, path: str, digest: str) -> None:
        place = self.manifest_place(path, digest)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            durable.replace(place, (self.blobs / digest).read_bytes())

    def resign(self, *, now: datetime, beyond_s: int = 0) -> None:
        """Sign snapshot and timestamp anew, so that they do not run out: at every start and once a day. `beyond_s`: so
        far above `now` lie their versions at least, should the hub before have had a clock that was ahead."""
        with self.publishing:
            self._sign_snapshot(int(self.targets().signed.version), now, beyond_s)
            self._sign_timestamp(now, beyond_s)

    def _sign_snapshot(self, targets_version: int, now: datetime, beyond_s: int = 0) -> None:
        versions = self.versions("snapshot")
        version = max(versions[-1] + 1 if versions else 1, int(now.timestamp()) + beyond_s)
        content = Snapshot(
            version=version, expires=_whole_s(now + SNAPSHOT_LIFE), meta={"targets.json": MetaFile(targets_version)}
        )
        snapshot = Metadata(content)
        snapshot.sign(_signer(self._keys, "snapshot", self.root()))
        durable.replace(self.metadata / f"{version}.snapshot.json", snapshot.to_bytes())
        for old in versions[:-10]:
            (self.metadata / f"{old}.snapshot.json").unlink(missing_ok=True)

    def _sign_timestamp(self, now: datetime, beyond_s: int = 0) -> None:
        place = self.metadata / "timestamp.json"
        version = int(now.timestamp()) + beyond_s
        if place.exists():
            version = max(version, Metadata[Timestamp].from_bytes(place.read_bytes()).signed.version + 1)
        content = Timestamp(
            version=version,
            expires=_whole_s(now + TIMESTAMP_LIFE),
            snapshot_meta=MetaFile(self.versions("snapshot")[-1]),
        )
        timestamp = Metadata(content)
        timestamp.sign(_signer(self._keys, "timestamp", self.root()))
        durable.replace(place, timestamp.to_bytes())

    def versions(self, role: str) -> list[int]:
        names = (path.name.partition(".")[0] for path in self.metadata.glob(f"*.{role}.json"))
        return sorted(int(name) for name in names if name.isdigit())

    def _newest(self, role: str) -> Path:
        return self.metadata / f"{self.versions(role)[-1]}.{role}.json"


def verified(root: Metadata[Root], data: bytes) -> Metadata[Targets]:
    """A list of targets that the owner signed. Raises ContractError or Refused."""
    try:
        targets = Metadata[Targets].from_bytes(data)
    except (RepositoryError, ValueError) as error:
        raise ContractError("targets.json", "TUF metadata of the type targets", str(error)[:200]) from None
    if not isinstance(targets.signed, Targets):
        raise ContractError("targets.json", "TUF metadata of the type targets", targets.signed.type)
    try:
        root.signed.verify_delegate("targets", targets.signed_bytes, targets.signatures)
    except (RepositoryError, ValueError) as error:
        raise Refused(f"targets.json: expected the signature of the owner's targets key: {error}") from None
    return targets


def _read(path: Path) -> bytes:
    """Raises RequestError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: expected a file of the owner's that the hub may read: {error.strerror}") from None


def _signer(folder: Path, role: str, root: Metadata[Root]) -> CryptoSigner:
    for keyid in root.signed.roles[role].keyids:
        with contextlib.suppress(SigningError, ValueError):
            return CryptoSigner.from_priv_key_uri(
                f"file2:{(folder / f'{role}.pem').absolute()}", root.signed.keys[keyid]
            )
    raise RequestError(f"{folder / f'{role}.pem'}: expected a {role} key that root.json names; get it from the owner")


def _whole_s(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(microsecond=0)
