"""What systemd is told: sd_notify(3), a datagram to the socket that it names. Without systemd nothing is said."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(message: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send READY=1, WATCHDOG=1, STATUS=..., STOPPING=1; False when nobody listens."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
        try:
            link.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:  # it restarts, or is gone: it asks again through the watchdog
            return False
    return True


def watchdog_s(environment: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Seconds within which systemd wants to hear from this process; None when it does not."""
    usec, meant = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or meant not in ("", str(os.getpid() if pid is None else pid)):
        return None
    return int(usec) / 1e6
