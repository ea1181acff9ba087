"""Sampled inputs as devices send them: PUT /samples/DEVICE/ID, ID of 16 hexadecimal digits, by the device itself; and
as operators ask for them, list them and take them away (`/api/v1/samples`), each time with a note in the audit log.

    DATA/samples/<device>/<id>.npz    as the device packed it; nothing here opens it

Bounds: 256 KiB each; of one device 4 MiB, beyond which its oldest make room; and nothing is taken while the disk has
less than 1 GiB to spare, for counts go before pictures; after `KEPT_S` a sample is gone. One that is sent twice lies
there once.
"""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from edgewright_contracts import durable
from edgewright_contracts.errors import Unavailable

from .peers import Device

SAMPLE_BYTES: Final = 256 << 10
DEVICE_BYTES: Final = 4 << 20
SPARE_BYTES: Final = 1 << 30
KEPT_S: Final = 30 * 86400.0
_ID: Final = re.compile(r"[0-9a-f]{16}")
_MAGIC: Final = b"PK\x03\x04"

router = APIRouter()


class Samples:
    """`keep` may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = threading.Lock()

    def keep(self, device: str, identifier: str, data: bytes) -> None:
        """Raises OSError, and Unavailable while the disk is nearly full."""
        place = self._folder / device
        with self._turn:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            if shutil.disk_usage(place).free < SPARE_BYTES:
                raise Unavailable(f"the hub has less than {SPARE_BYTES >> 20} MiB of disk to spare for samples")
            file = place / f"{identifier}.npz"
            others = [one for one in place.glob("*.npz") if one != file]
            for one in _beyond(others, DEVICE_BYTES - len(data)):
                one.unlink()
            durable.replace(file, data, mode=0o600)

    def listed(self) -> list[dict[str, Any]]:
        """The newest first."""
        found = [(file, file.stat()) for file in self._folder.glob("*/*.npz")]
        found.sort(key=lambda one: -one[1].st_mtime_ns)
        return [
            {"device": file.parent.name, "id": file.stem, "bytes": stat.st_size, "at_ms": stat.st_mtime_ns // 10**6}
            for file, stat in found
        ]

    def arrived(self, device: str, since_ms: int, until_ms: int) -> int:
        """How many of them a device sent between the two."""
        times = (file.stat().st_mtime_ns // 10**6 for file in (self._folder / device).glob("*.npz"))
        return sum(since_ms <= at_ms <= until_ms for at_ms in times)

    def read(self, device: str, identifier: str) -> bytes | None:
        """None when it is not there any more."""
        try:
            return (self._folder / device / f"{identifier}.npz").read_bytes()
        except FileNotFoundError:
            return None

    def expire(self, now_s: float) -> None:
        """Remove what is too old."""
        with self._turn:
            for file in self._folder.glob("*/*.npz"):
                if now_s - file.stat().st_mtime >= KEPT_S:
                    file.unlink()


@router.put("/samples/{owner}/{identifier}", status_code=204)
async def put(request: Request, device: Device, owner: str, identifier: str) -> None:
    samples: Samples | None = request.app.state.hub.samples
    if samples is None:
        raise HTTPException(404, "this hub keeps no samples")
    if owner != device:
        raise HTTPException(403, f"expected samples of {device}, whose certificate this is, got one of {owner[:63]!r}")
    if not _ID.fullmatch(identifier):
        raise HTTPException(400, f"expected an id of 16 hexadecimal digits, got {identifier[:40]!r}")
    data = await request.body()  # bounded by app.Bounded, which knows no larger body on this path
    if len(data) > SAMPLE_BYTES or not data.startswith(_MAGIC):
        raise HTTPException(400, f"expected an .npz file of at most {SAMPLE_BYTES} bytes")
    await run_in_threadpool(samples.keep, device, identifier, data)


def _beyond(files: list[Path], room: int) -> list[Path]:
    """The oldest, so many that the others fit into `room` bytes."""
    known = sorted((one.stat().st_mtime_ns, one.stat().st_size, one) for one in files)
    total, out = sum(size for _, size, _ in known), []
    for _, size, one in known:
        if total <= room:
            break
        total -= size
        out.append(one)
    return out
