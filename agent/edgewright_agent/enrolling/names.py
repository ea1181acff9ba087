"""An id for a device that nobody named: the host's name and eight digits that only this machine has.

The digits are of sha256 over /etc/machine-id and the board's serial number, so that machines made from one image still
differ where the board has a number. The same machine gets the same id at every try. Where neither tells machines
apart, the hub refuses the second: an id is enrolled with one key.
"""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path
from typing import Final

from edgewright_contracts.errors import RequestError
from edgewright_contracts.topics import DEVICE

SOURCES: Final = (
    Path("/etc/machine-id"),
    Path("/proc/device-tree/serial-number"),
    Path("/sys/class/dmi/id/product_uuid"),
)


def fitting(pattern: str, *, host: str | None = None, sources: tuple[Path, ...] = SOURCES) -> str:
    """The first id of this machine that the whole `pattern` matches; "" matches all. Raises RequestError."""
    fitted = next((name for name in candidates(pattern, host, sources) if _matches(pattern, name)), None)
    if fitted is None:
        raise RequestError(f"this token is for device ids like {pattern!r}: name one of them with --device")
    return fitted


def candidates(pattern: str, host: str | None, sources: tuple[Path, ...]) -> list[str]:
    """From what says most to what says least."""
    plain = pattern.replace("\\-", "-")
    name = re.sub(r"[^a-z0-9]+", "-", (socket.gethostname() if host is None else host).split(".")[0].lower()).strip("-")
    machine = hashlib.sha256(b"edgewright" + b"\0".join(_read(source) for source in sources)).hexdigest()
    prefix = re.match(r"[a-z0-9-]*", plain)
    begin = prefix[0] if prefix else ""
    found = [plain, f"{name[:54]}-{machine[:8]}", f"{begin}{machine[:8]}", f"{begin}{int(machine[:12], 16) % 10**8}"]
    return [one for one in found if DEVICE.match(one)]


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern or ".*", name) is not None
    except re.error:
        return False


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError:  # absent, or for root only
        return b""
