"""The package registry: the repository, and what its owner may publish in it.

A list of targets is taken when the owner's key signed it, it is newer than the one in force, every package in it is
here whole, and no version that was published has another digest than before. hub.db then says which packages there
are: `allowed`, those that the owner signs now, and `withdrawn`, those of earlier lists. Whether a package may be
rolled out is its operator's word besides (`stages`).
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]

from edgewright_contracts import durable
from edgewright_contracts.errors import ContractError, Refused
from edgewright_contracts.manifest import MANIFEST_BYTES, Manifest, decode_manifest, target_path

from ..storage import control
from ..storage.store import insert, outside, upsert
from .repository import SHA256, Repository, verified
from .stages import Stage

TARGETS_BYTES: Final = 16 * 1024**2
_TARGET: Final = re.compile(r"\Apackages/(?P<name>[^/]+)/(?P<version>[^/]+)/manifest\.json\Z")


class Conflict(Refused):
    """The list is not the next version of the one in force: read that one, and sign again."""


class Registry(Repository):
    """`folder` becomes the repository; `keys` is the hub's own folder of private keys."""

    def __init__(self, folder: Path, keys: Path, engine: sa.Engine, *, require_approval: bool = False) -> None:
        super().__init__(folder, keys)
        self._engine = engine
        self._stage: Stage = "candidate" if require_approval else "approved"  # of what is published

    def open(self, trust: Path | None, *, now: datetime) -> None:
        """Import the owner's files at the first start, then re-sign. Raises RequestError, saying what is missing."""
        self.check_owner(trust)
        for place in (self.metadata, self.blobs, self.folder / "targets"):
            place.mkdir(parents=True, exist_ok=True)
            durable.sweep(place)
        if trust is not None and not self.owned:
            self.import_owner(trust)
        self.resign(now=now)
        listed = self.targets().signed.targets
        self._record({path: self._whole(path, target) for path, target in listed.items()}, now)  # if a crash came first

    def post_targets(self, body: bytes, *, now: datetime, candidate: bool = False) -> int:
        """Put the owner's next list in force; returns its version. `candidate`: what is new in it waits for approval.
        Raises Conflict, Refused or ContractError."""
        with self.publishing:
            if len(body) > TARGETS_BYTES:
                raise ContractError("targets.json", f"at most {TARGETS_BYTES} bytes", str(len(body)))
            new = verified(self.root(), body)
            old = self.targets()
            if new.signed.version <= old.signed.version:
                raise Conflict(f"targets.json: expected a version above {old.signed.version}, got {new.signed.version}")
            if new.signed.is_expired(now):
                raise Refused(
                    f"targets.json: expected a list that is valid now, got one that expired {new.signed.expires}"
                )
            if new.signed.delegations is not None:
                raise Refused("targets.json: expected a list without delegations, which this hub does not serve")
            manifests = {path: self._whole(path, target) for path, target in new.signed.targets.items()}
            self._unchanged(manifests)
            digests = {path: digest for path, (digest, _) in manifests.items()}
            self._expect(manifests, now, "candidate" if candidate else self._stage)
            self.put_in_force(body, digests, int(new.signed.version), now)
            self._record(manifests, now)
            return int(new.signed.version)

    def _whole(self, path: str, target: TargetFile) -> tuple[str, Manifest]:
        """(digest, manifest) of a target that is here with all its files. Raises Refused or ContractError."""
        digest = str(target.hashes.get("sha256", ""))
        found = _TARGET.match(path)
        if not found or not SHA256.match(digest) or set(target.hashes) != {"sha256"}:
            raise ContractError(
                "targets.json", "packages/<name>/<version>/manifest.json with a sha256", repr(path[:200])
            )
        place = self.blobs / digest
        if not place.is_file() or place.stat().st_size != target.length or target.length > MANIFEST_BYTES:
            raise Refused(
                f"{path}: expected its manifest among the blobs ({digest}, {target.length} bytes); put it first"
            )
        manifest = decode_manifest(place.read_bytes())
        if target_path(manifest.name, manifest.version) != path:
            raise Refused(
                f"{path}: expected a manifest of this name and version, got {manifest.name} {manifest.version}"
            )
        for name, file in manifest.files.items():
            blob = self.blobs / file.sha256
            size = blob.stat().st_size if blob.is_file() else None
            if size != file.size:
                had = "none" if size is None else f"one of {size} bytes"
                raise Refused(f"{path}: expected the blob of {name} ({file.sha256}, {file.size} bytes), found {had}")
        return digest, manifest

    def _unchanged(self, manifests: dict[str, tuple[str, Manifest]]) -> None:
        """A published version keeps its digest for ever, also while it is withdrawn."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(control.packages.c.name, control.packages.c.version, control.packages.c.digest)
            ).all()
        for row in rows:
            path = target_path(row.name, row.version)
            if path in manifests and manifests[path][0] != row.digest:
                raise Refused(
                    f"{path}: this version was published with digest {row.digest[:16]} and never changes, "
                    f"got {manifests[path][0][:16]}; give the package a new version"
                )

    def _expect(self, manifests: dict[str, tuple[str, Manifest]], now: datetime, stage: Stage) -> None:
        """Keep the stage of what is new, before it is in force: a crash in between makes no candidate approved."""
        rows = [{**row, "state": "withdrawn", "stage": stage} for row in _rows(manifests, now)]
        if rows:
            with outside(self._engine), self._engine.begin() as connection:
                connection.execute(insert(connection, control.packages).on_conflict_do_nothing(), rows)

    def _record(self, manifests: dict[str, tuple[str, Manifest]], now: datetime) -> None:
        packages = control.packages
        rows = [{**row, "state": "allowed", "stage": self._stage} for row in _rows(manifests, now)]
        with outside(self._engine), self._engine.begin() as connection:
            connection.execute(packages.update().values(state="withdrawn"))
            upsert(connection, packages, rows, keys=["name", "version"], keep=["published_ms", "stage"])


def _rows(manifests: dict[str, tuple[str, Manifest]], now: datetime) -> list[dict[str, Any]]:
    return [
        {
            "name": manifest.name,
            "version": manifest.version,
            "digest": digest,
            "published_ms": int(now.timestamp() * 1000),
            "manifest": msgspec.to_builtins(manifest),
        }
        for digest, manifest in manifests.values()
    ]
