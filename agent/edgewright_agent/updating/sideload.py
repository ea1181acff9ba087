"""Sideloading: a package that was carried to the device by hand goes through the same update machine as any other.

    sideload/key.json      the owner's public key, pinned with the first signed package
    sideload/<name>.ewp    the package, until it lies in a slot
    sideload/<name>.json   the wish for it
    sideload/<name>.clear  what is blocked or held and may be tried again, until the agent has read it

Order: `offer`, in the process of a person's command, verifies the package, asks why it may be trusted, and writes .ewp,
then .json, each atomically; the agent finds them (`Sideloads`), and its fetch takes the files from there.

Trust: an enrolled device runs only what its owner signs now, so the agent looks in the list that it verified last, or
can verify (`trust`). One that is not enrolled takes what the pinned key signed, or, without a key and only if the
person says so, this one file. A pinned key's word cannot be withdrawn: for that, enrol.

Of two wishes for one model the later counts: a revision of the hub that names it ends the sideloaded one.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from edgewright_contracts.codec import KIB, Count, Name, Sha256, Text, Version, decode
from edgewright_contracts.desired import Desired, DesiredModel
from edgewright_contracts.errors import ContractError, Refused, RequestError
from edgewright_contracts.package import SUFFIX, Package, read_package
from edgewright_contracts.signature import Key, Signature, decode_signature, statement

from ..clock import Clock
from ..disk import Disk, atomic_write
from ..identity import Identity
from . import orders, slots
from .failures import Unsuited
from .fetch import Link
from .slots import files

if TYPE_CHECKING:
    from .trust import Trust

FOLDER: Final = "sideload"
CLEAR: Final = ".clear"

log = logging.getLogger(__name__)


class Untrusted(Refused):
    """Nothing says that this package is the owner's."""


class Pin(msgspec.Struct, frozen=True):
    key: Key


class Clear(msgspec.Struct, frozen=True):
    digests: tuple[Sha256, ...]


class Sideload(msgspec.Struct, frozen=True):
    """`rev` is the hub's newest revision when it was offered: a later one that names the model overrules it."""

    name: Name
    version: Version
    digest: Sha256
    rev: Count
    trusted: Literal["owner's list", "key", "this file"]
    said: Text = ""  # of the key: its first digits


def offer(
    disk: Disk, home: Path, file: Path, *, enrolled: bool, rev: int, key: str | None = None, this_file: bool = False
) -> Sideload:
    """Verify `file` and lay it where the agent of `home` finds it. `key` is to be pinned; `this_file` trusts without.

    Raises RequestError, ContractError (no whole package), Untrusted, OSError.
    """
    if file.is_dir():
        raise RequestError(f"expected a file *{SUFFIX}, got the directory {file}; `edgewright sign` packs it")
    package = read_package(file)
    package.verify()
    folder = home / FOLDER
    trusted, said = _trusted(disk, folder, package, enrolled=enrolled, key=key, this_file=this_file)
    manifest = package.manifest
    _not_barred(disk, home, package)
    wish = Sideload(manifest.name, manifest.version, package.digest, rev, trusted, said[:16])
    disk.mkdir(folder)
    atomic_write(disk, folder / f"{wish.name}{SUFFIX}", file.read_bytes())
    if said:
        atomic_write(disk, folder / "key.json", msgspec.json.encode(Pin(said)))
    atomic_write(disk, folder / f"{wish.name}.json", msgspec.json.encode(wish))
    return wish


class Sideloads:
    """What was offered, as the agent sees it; and the trust of a device that takes packages by hand, too.

    The owner's part of it (`Trust`, python-tuf) is loaded when it is first asked: 3 MB that most days need not.
    """

    def __init__(self, disk: Disk, who: Identity, link: Link, clock: Clock, runtimes: tuple[str, ...]) -> None:
        self._disk, self._who, self._link, self._clock = disk, who, link, clock
        self._owner: Trust | None = None
        self._offered, self._models = who.home / FOLDER, who.home / "models"
        self._runtimes, self._enrolled = runtimes, not who.alone or bool(who.damage)

    def wishes(self) -> dict[str, Sideload]:
        """By model. A damaged one is left out, and said."""
        found = {}
        for name in self._disk.list(self._offered):
            if name.endswith(".json") and name != "key.json":
                try:
                    wish = decode(
                        Sideload, self._disk.read(self._offered / name), name=name, limit=4 * KIB, wire="json"
                    )
                    found[wish.name] = wish
                except (ContractError, OSError) as error:  # or one bad file would keep all else from being wanted
                    log.warning("ignored a sideloaded package: %s", error)
        return found

    def over(self, desired: Desired) -> Desired:
        """What is wanted in all: the hub's wishes, and the sideloaded packages that it has not overruled since."""
        named = {m.name for m in desired.models}
        mine = {name: wish for name, wish in self.wishes().items() if name not in named or wish.rev >= desired.rev}
        kept = tuple(m for m in desired.models if m.name not in mine)
        added = tuple(DesiredModel(name=wish.name, digest=wish.digest) for wish in mine.values())
        return msgspec.structs.replace(desired, models=kept + added)

    def clears(self) -> dict[str, tuple[str, ...]]:
        """Digests that may be tried again, by model."""
        found = {}
        for file in self._disk.list(self._offered):
            model = file.removesuffix(CLEAR)
            if model == file:
                continue
            try:
                data = self._disk.read(self._offered / file)
                found[model] = decode(Clear, data, name=file, limit=64 * KIB, wire="json").digests
            except (ContractError, FileNotFoundError) as error:
                log.warning("ignored what shall be cleared: %s", error)
                self.cleared(model)
        return found

    def cleared(self, name: str) -> None:
        self._disk.unlink(self._offered / f"{name}{CLEAR}")

    def settle(self, settled: Callable[[Sideload], bool]) -> None:
        """Remove the packages that are not needed any more: `settled` knows that they lie in a slot, or never will."""
        for name, wish in self.wishes().items():
            if settled(wish):
                self._disk.unlink(self._offered / f"{name}{SUFFIX}")

    def manifest(self, name: str, digest: str, interrupt: Callable[[], None] = lambda: None) -> bytes:
        """As `Trust.manifest`; of a sideloaded package, its files are laid where a download would lay them."""
        package = self._carried(name, digest)
        if package is None and not self._enrolled:
            raise Unsuited(f"the file of {name} {digest[:16]} is gone from {self._offered}; sideload it again")
        if package is None:
            return self._trust().manifest(name, digest, interrupt)
        self.allow(name, digest, interrupt)
        manifest = package.manifest
        for variant, _ in manifest.ranked(platform.machine().lower(), self._runtimes)[:1]:
            parts = self._models / name / "parts"
            self._disk.mkdir(parts)
            for file in files(manifest, variant):
                atomic_write(self._disk, parts / manifest.files[file].sha256, package.read(file))
                interrupt()
        return package.manifest_bytes

    def allow(self, name: str, digest: str, interrupt: Callable[[], None] = lambda: None) -> None:
        """As `Trust.allow`; on a device that is not enrolled, what was offered is allowed."""
        wish = self.wishes().get(name)
        if self._enrolled or wish is None or wish.digest != digest:
            self._trust().allow(name, digest, interrupt)

    def _trust(self) -> Trust:
        if self._owner is None:
            from .trust import Trust

            who = self._who
            self._owner = Trust(self._disk, who.home / "trust", who.root, who.hub.repo, self._link, self._clock)
        return self._owner

    def _carried(self, name: str, digest: str) -> Package | None:
        wish, file = self.wishes().get(name), self._offered / f"{name}{SUFFIX}"
        if wish is None or wish.digest != digest or self._disk.size(file) is None:
            return None
        try:
            package = read_package(file)
        except ContractError as error:  # it was whole when it was offered, so its owner is not to blame
            raise OSError(f"{file} has rotted: {error}; sideload it again") from error
        return package if package.digest == digest else None


def ask_to_clear(disk: Disk, home: Path, name: str, digests: list[str]) -> None:
    """Raises OSError."""
    disk.mkdir(home / FOLDER)
    atomic_write(disk, home / FOLDER / f"{name}{CLEAR}", msgspec.json.encode(Clear(tuple(digests))))


def waiting(home: Path) -> bool:
    """Whether anything was ever sideloaded here."""
    return (home / FOLDER).is_dir()


def pinned(disk: Disk, home: Path) -> str | None:
    """The key that this device trusts. Raises ContractError when the pin is damaged."""
    try:
        return decode(Pin, disk.read(home / FOLDER / "key.json"), name="key.json", limit=KIB, wire="json").key
    except FileNotFoundError:
        return None


def verify(signature: Signature, digest: str) -> None:
    """Whether this key signed this package. Pure Python where there is no cryptography: about 10 ms. Raises Refused."""
    from securesystemslib.exceptions import Error as SigningError
    from securesystemslib.signer import Signature as RawSignature  # type: ignore[attr-defined]
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

    if signature.digest != digest:
        raise Untrusted(f"expected a signature of package {digest[:16]}, got one of {signature.digest[:16]}")
    known = SSlibKey("owner", "ed25519", "ed25519", {"public": signature.key})
    try:
        known.verify_signature(RawSignature("owner", signature.signature), statement(digest))
    except (SigningError, ValueError) as error:
        raise Untrusted(
            f"the signature in the package does not verify ({str(error) or type(error).__name__}): it was changed "
            f"after it was signed; get it again from its owner"
        ) from None


def _not_barred(disk: Disk, home: Path, package: Package) -> None:
    """Raises Refused for a package that this device would not even try."""
    name, version = package.manifest.name, package.manifest.version
    try:
        state = slots.load(disk, home / "models" / name)
    except ContractError:
        return  # the agent will say so, and recover
    if package.digest in orders.barred(state):
        why, word = state.blocked.get(package.digest), "blocked"
        if why is None:
            why, word = state.record.reason, "held"
        raise Refused(
            f"{name} {version} is {word} on this device: {why}. When that is mended: "
            f"edgewright agent clear --home {home} {name}"
        )


def _trusted(
    disk: Disk, folder: Path, package: Package, *, enrolled: bool, key: str | None, this_file: bool
) -> tuple[Literal["owner's list", "key", "this file"], str]:
    """(why, the key to pin). Raises Untrusted, RequestError."""
    if enrolled:
        if key or this_file:
            raise RequestError("expected no --key and no --trust-this-file: an enrolled device trusts its owner's list")
        return "owner's list", ""  # the agent looks into it when it fetches
    pin = pinned(disk, folder.parent)
    if key is not None and pin not in (None, key):
        raise Untrusted(
            f"this device trusts key {str(pin)[:16]}, not {key[:16]}; to trust another from now on, remove "
            f"{folder / 'key.json'} first"
        )
    raw = package.signature()
    if pin is None and key is None and this_file:
        return "this file", ""
    wanted = key or pin
    if raw is None:
        way = "have its owner sign it: edgewright sign PACKAGE --keys DIR"
        more = "" if wanted else "; or, if you know where this very file comes from, say --trust-this-file"
        raise Untrusted(f"the package bears no signature; {way}{more}")
    signature = decode_signature(raw)
    verify(signature, package.digest)
    if wanted is None:
        raise Untrusted(
            f"the package is signed by key {signature.key}, which this device does not know; "
            f"if its owner told you this key, say --key {signature.key}"
        )
    if signature.key != wanted:
        raise Untrusted(f"expected a package signed by key {wanted[:16]}, got one signed by {signature.key[:16]}")
    return "key", wanted
