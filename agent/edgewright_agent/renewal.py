"""When the device's certificate is renewed: once two thirds of its life are over, spread over the next fifteenth.

The work is done by a short-lived process, because the library of certificates would cost the agent 8 MB for ever. What
fails is tried again after an hour, then after twice as long, up to a day, and is told to the hub as an event at the
first failure and once a day from then on. An ended certificate cannot be renewed: whoever looks at the device is told
that `agent enroll --again` is the way back. Without a clock nothing is due.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from .clock import Clock
from .identity import Identity, Validity

LOOK_S: Final = 3600.0
RETRY_S: Final = (3600.0, 86400.0)
TELL_S: Final = 86400.0
CHILD_S: Final = 180.0

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    ends: float | None  # unix seconds of the new certificate; None: there is none
    reason: str = ""


def due_s(validity: Validity, share: float) -> float:
    """Unix seconds from which on the certificate is renewed. `share` in [0, 1) is this device's place in the crowd."""
    return validity.begins + (validity.ends - validity.begins) * (2 / 3 + share / 15)


class Renewal:
    """`tell` says to the hub what became of the certificate ("renewed", "due", "ended") and why; `ask` does it."""

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        tell: Callable[[str, str], None],
        share: float,
        ask: Callable[[Identity], Outcome] | None = None,
    ) -> None:
        self._identity, self._clock, self._tell, self._share = identity, clock, tell, share
        self._ask = ask or in_a_child
        self._wait_s = RETRY_S[0]
        self._again_s = self._told_s = -TELL_S
        self._stopping = threading.Event()

    def start(self) -> None:
        """Look now and every hour, on a thread of its own."""
        threading.Thread(target=self._run, name="edgewright-renewal", daemon=True).start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception:
                log.exception("renewing the certificate went wrong and goes on")
            self._stopping.wait(LOOK_S)

    def stop(self) -> None:
        self._stopping.set()

    def look(self) -> None:
        """Renew if it is time."""
        wall, validity = self._clock.wall_ms(), self._identity.validity()
        now = self._clock.monotonic_ns() / 1e9
        if wall is None or validity is None or now < self._again_s or wall / 1000 < due_s(validity, self._share):
            return
        left = validity.days_left(wall / 1000)
        if left <= 0:
            done = Outcome(None, "run `edgewright agent enroll --again` on it with a new token")
        else:
            done = self._ask(self._identity)
        if done.ends is not None:
            self._wait_s, self._again_s, self._told_s = RETRY_S[0], -TELL_S, -TELL_S
            self._tell("renewed", f"the certificate is renewed until {datetime.fromtimestamp(done.ends, UTC).date()}")
            return
        self._again_s = now + self._wait_s
        self._wait_s = min(RETRY_S[1], 2 * self._wait_s)
        if now - self._told_s >= TELL_S:
            self._told_s = now
            ended = f"ended {-left:.0f} days ago" if left <= 0 else f"ends in {left:.0f} days and could not be renewed"
            self._tell("ended" if left <= 0 else "due", f"the certificate {ended}: {done.reason}")


def in_a_child(identity: Identity) -> Outcome:
    import subprocess  # once a year

    command = [sys.executable, "-m", "edgewright_agent.enrolling.renew", str(identity.home)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CHILD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Outcome(None, str(error))
    try:
        said = json.loads(done.stdout)
        return Outcome(float(said["ends"])) if "ends" in said else Outcome(None, str(said["error"])[:500])
    except (ValueError, KeyError, TypeError):
        if b"No module named 'cryptography'" in done.stderr:
            return Outcome(None, "renewing needs cryptography: pip install 'edgewright[agent-enroll]'")
        return Outcome(None, done.stderr.decode(errors="replace")[-300:] or f"status {done.returncode}")
