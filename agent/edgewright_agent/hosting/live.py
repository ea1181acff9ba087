"""What a running agent says of itself to whoever asks at `status.sock` in its home: one JSON object, then the end.

A socket and not a file: it is never out of date, and writes nothing to the flash beyond one name at the start. Mode
0600: who may read the device's keys may ask.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from edgewright_contracts.built import built
from edgewright_contracts.report import Clock

from ..delivery.mqtt import Condition

NAME: Final = "status.sock"
ANSWER_BYTES: Final = 64 << 10
WAIT_S: Final = 2.0


Before = Literal["stopped", "crash or kill", "power cut"]  # or there was none: "stopped"


class Live(msgspec.Struct, frozen=True):
    pid: int
    boot_id: str
    before: Before  # how the boot before this one ended
    uptime_s: float
    clock: Clock
    link: Condition
    dead: list[str]  # threads that ended although nobody told them to
    shed: list[str]  # what is held back now to stay within the limits
    used: dict[str, float]  # of what the limits speak of; what cannot be measured is not there
    window_s: float
    profile: str
    desired_rev: int
    config_version: int
    traffic: tuple[int, int]  # bytes of MQTT sent and received since the start
    overhead: tuple[int, int]  # and what the link carried on top
    disk: str  # why the spool is in memory only, and lost with the process; "": it is on the disk


@contextlib.contextmanager
def _within(home: Path) -> Iterator[str]:
    """A path of the socket that is short enough: one in a socket's address has 108 bytes."""
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{NAME}"
    finally:
        os.close(folder)


def listen(home: Path) -> socket.socket:
    """Of the process that holds the home's lock: an old socket is a dead one. Raises OSError."""
    (home / NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        with _within(home) as path:
            listener.bind(path)
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def answer(listener: socket.socket, live: Live) -> None:
    """Take one question. A client that does not read must not hold anybody up."""
    client, _ = listener.accept()
    with client, contextlib.suppress(OSError):
        client.settimeout(WAIT_S)
        client.sendall(msgspec.json.encode(live))


def ask(home: Path) -> Live | None:
    """None when no agent answers there."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(WAIT_S)
            with _within(home) as path:
                link.connect(path)
            data = b""
            while (piece := link.recv(65536)) and len(data) < ANSWER_BYTES:
                data += piece
        return msgspec.json.decode(data, type=built(Live))
    except (OSError, msgspec.MsgspecError):  # none there, not ours to ask, or of another release
        return None
