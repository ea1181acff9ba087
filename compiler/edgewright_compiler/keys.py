"""The owner's side of TUF: keys that never leave the owner, and the signed list of packages that devices may run.

`init_keys` makes root and targets keys (0600) and `hub/`, which is exactly what a hub is given: root, the empty list,
and the keys of snapshot and timestamp. So a stolen hub can delay a fleet, never make it run what was not signed here.

`targets.json` in the keys directory is the owner's own truth; each release is its next version. One target per package
version, immutable: a name and version that was signed once keeps its digest for ever. All keys are ed25519, because
devices without the cryptography package verify nothing else. Time is passed in.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets  # type: ignore[attr-defined]

from edgewright_contracts.errors import ContractError, Refused, RequestError
from edgewright_contracts.manifest import target_path
from edgewright_contracts.package import Package
from edgewright_contracts.signature import Signature, statement

ROOT_LIFE: Final = timedelta(days=365)
TARGETS_LIFE: Final = timedelta(days=365)
ROLES: Final = ("root", "targets", "snapshot", "timestamp")


@dataclass(frozen=True, slots=True)
class Owner:
    """The keys directory, loaded: what is trusted, what is signed, and the key that signs it."""

    directory: Path
    root: Metadata[Root]
    targets: Metadata[Targets]
    signer: CryptoSigner


def init_keys(directory: Path, *, now: datetime) -> None:
    """Make new keys in the new `directory`. Raises RequestError when it holds anything: keys are never overwritten."""
    if directory.exists() and any(directory.iterdir()):
        raise RequestError(f"{directory} is not empty, and keys are never overwritten: name a new directory")
    signers = {role: CryptoSigner.generate_ed25519() for role in ROLES}
    root = Metadata(Root(version=1, expires=_whole(now + ROOT_LIFE), consistent_snapshot=True))
    for role, signer in signers.items():
        root.signed.add_key(signer.public_key, role)
    root.sign(signers["root"])
    targets = Metadata(Targets(version=1, expires=_whole(now + TARGETS_LIFE)))
    targets.sign(signers["targets"])

    directory.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))  # mode 0700
    try:
        (stage / "hub").mkdir(mode=0o700)
        for role, signer in signers.items():
            place = stage if role in {"root", "targets"} else stage / "hub"
            _write_secret(place / f"{role}.pem", signer.private_bytes)
        (stage / "targets.json").write_bytes(targets.to_bytes())
        (stage / "hub" / "1.root.json").write_bytes(root.to_bytes())
        (stage / "hub" / "1.targets.json").write_bytes(targets.to_bytes())
        if directory.exists():
            directory.rmdir()
        stage.rename(directory)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def load_owner(directory: Path) -> Owner:
    """Raises RequestError when `directory` holds no keys, or keys and signatures that do not belong together."""
    needed = ("targets.pem", "targets.json", "hub/1.root.json")
    missing = [name for name in needed if not (directory / name).is_file()]
    if missing:
        raise RequestError(
            f"no keys in {directory} ({missing[0]} is absent): make them with `edgewright keys init DIR`"
        )
    try:
        root = Metadata[Root].from_bytes((directory / "hub" / "1.root.json").read_bytes())
        key = root.signed.get_key(root.signed.roles["targets"].keyids[0])
        signer = CryptoSigner.from_priv_key_uri(f"file2:{(directory / 'targets.pem').absolute()}", key)
        targets = verified_targets(root, (directory / "targets.json").read_bytes())
    except (RepositoryError, SigningError, ContractError, Refused, ValueError) as error:
        raise RequestError(
            f"the keys in {directory} do not fit together: {error}; restore them from a backup"
        ) from None
    return Owner(directory, root, targets, signer)


def verified_targets(root: Metadata[Root], data: bytes) -> Metadata[Targets]:
    """`data` as targets metadata. Raises ContractError when it is none, Refused when the key in `root` did not sign."""
    try:
        targets = Metadata[Targets].from_bytes(data)
        root.signed.verify_delegate("targets", targets.signed_bytes, targets.signatures)
    except UnsignedMetadataError:
        raise Refused(
            "the list of packages does not bear the signature of this owner's targets key: "
            "use the keys that the hub was given, and trust no hub that serves another's list"
        ) from None
    except (RepositoryError, ValueError) as error:
        raise ContractError("targets.json", "TUF targets metadata", str(error)) from None
    return targets


def signed_digest(targets: Metadata[Targets], name: str, version: str) -> str | None:
    """The digest that is signed for this version; None when there is none."""
    target = targets.signed.targets.get(target_path(name, version))
    return None if target is None else str(target.hashes["sha256"])


def next_targets(owner: Owner, package: Package, *, now: datetime) -> bytes:
    """The owner's list with `package` added, one version up, signed; nothing is written.

    Raises Refused when this name and version is signed already, with another digest.
    """
    manifest = package.manifest
    signed = signed_digest(owner.targets, manifest.name, manifest.version)
    if signed not in (None, package.digest):
        raise Refused(
            f"{manifest.name} {manifest.version} was published before with digest {signed[:12] if signed else ''}, "
            f"this package has {package.digest[:12]}: a version never changes; compile it under a new --version"
        )
    path = target_path(manifest.name, manifest.version)
    target = TargetFile.from_data(path, package.manifest_bytes, ["sha256"])
    content = Targets(
        version=owner.targets.signed.version + 1,
        expires=_whole(now + TARGETS_LIFE),
        targets={**owner.targets.signed.targets, path: target},
        delegations=owner.targets.signed.delegations,
    )
    signed_list = Metadata(content)
    signed_list.sign(owner.signer)
    return signed_list.to_bytes()


def sign_package(owner: Owner, package: Package) -> Signature:
    """The owner's word for one package, for devices that get it by hand. Raises Refused when this version is signed
    already, with another digest."""
    manifest = package.manifest
    signed = signed_digest(owner.targets, manifest.name, manifest.version)
    if signed not in (None, package.digest):
        raise Refused(
            f"{manifest.name} {manifest.version} was published before with another digest: a version never changes; "
            "compile it under a new --version"
        )
    made = owner.signer.sign(statement(package.digest))
    key = str(owner.signer.public_key.keyval["public"])
    return Signature(digest=package.digest, key=key, signature=made.signature)


def keep_targets(directory: Path, data: bytes) -> None:
    """Make `data` the owner's truth, durably: written beside, then renamed."""
    part = directory / f".targets.json.{os.getpid()}.part"
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(directory / "targets.json")
    finally:
        part.unlink(missing_ok=True)


def _write_secret(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)


def _whole(time: datetime) -> datetime:
    """TUF writes whole seconds."""
    return time.replace(microsecond=0)
