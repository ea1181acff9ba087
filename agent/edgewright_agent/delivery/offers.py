"""What the hub is told, until it says that it has it: births, and what the spool holds.

Order: at every connection a birth, and behind it all that is unacknowledged. Without a reconnect that is offered again
after `REOFFER_S`, within which a hub acknowledges; or at an acknowledgement that names a later one, since a link keeps
the order: one that was offered `LATE_S` before and is not named is lost. (If it is not, the hub knows that it has it.)
A birth is said again until an acknowledgement names it: only then is the hub known to have heard of the boots that
ended unclean. Of the telemetry thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from edgewright_contracts.desired import REOFFER_S, Ack

from .. import clock as clocks
from ..clock import Clock
from ..draft import draft
from .mqtt import Transport
from .spool import Spool, Terms

BIRTH_S: Final = (5.0, 60.0)  # the first and the longest wait before a birth is said again
LATE_S: Final = 60.0  # that an acknowledgement may be old


class Said(NamedTuple):
    """A birth that the hub has not proved to have; `boots` are the unclean ones that it told of."""

    connection: int
    boots: tuple[str, ...]
    again_s: float  # when to say it again
    wait_s: float


class Offers:
    """`born` gives the bytes of a connection's birth; `reports` says whether windows may use the link now, and
    `compress` whether what gets a number now is compressed."""

    def __init__(
        self,
        *,
        clock: Clock,
        spool: Spool,
        transport: Transport,
        boot_id: str,
        born: Callable[[int], bytes],
        reports: Callable[[], bool],
        compress: Callable[[], bool],
    ) -> None:
        self._clock, self._spool, self._transport = clock, spool, transport
        self._boot_id, self._born, self._reports, self._compress = boot_id, born, reports, compress
        self._offered: dict[int, float] = {}
        self._said: Said | None = None
        self._trouble: tuple[str, float] | None = None  # why the disk takes nothing, and since when
        self.connection = 0

    def greet(self) -> None:
        """A birth at every connection; what is unacknowledged is offered anew behind it."""
        self._offered.clear()
        self._say_birth(BIRTH_S[0])

    def due_s(self) -> float:
        """When a birth is to be said again, by the monotonic clock."""
        return self._said.again_s if self._said is not None and self._transport.online else float("inf")

    def turn(self) -> None:
        """Say what is due, and offer what may be."""
        if self._said is not None and self._now_s() >= self.due_s():
            self._say_birth(min(2 * self._said.wait_s, BIRTH_S[1]))
        self._tell_trouble()
        self.offer()

    def offer(self) -> None:
        terms = self.terms()
        if terms is None:
            return
        now = self._now_s()
        offers = self._spool.offer(terms)
        for offer in offers:
            before = self._offered.get(offer.seq)
            if (before is None or now - before >= REOFFER_S) and self._transport.publish(offer.kind, offer.payload):
                self._offered[offer.seq] = now
        live = {o.seq for o in offers}
        self._offered = {seq: at for seq, at in self._offered.items() if seq in live}

    def acknowledged(self, ack: Ack) -> None:
        self._spool.ack(ack)
        if ack.spool_id == self._spool.state.spool_id:
            newest, before_s = ack.high_water + ack.mask.bit_length(), self._now_s() - LATE_S
            self._offered = {seq: at for seq, at in self._offered.items() if seq > newest or at > before_s}
        if self._said is not None and ack.birth:  # an ack that names no birth may be older than this connection
            boot_id, _, connection = ack.birth.partition(".")
            if boot_id == self._boot_id and int(connection) >= self._said.connection:
                self._spool.declared(self._said.boots)
                if self._said.wait_s > BIRTH_S[0]:  # the first was not heard, nor what was offered behind it
                    self._offered.clear()
                self._said = None

    def renumber(self, seen: str) -> None:
        """The hub knows more of the spool `seen` than it has said: it was restored or cloned."""
        self._spool.renumber(seen)
        self.greet()

    def terms(self) -> Terms | None:
        """Those of a number that is given now; None while nothing may go.

        When the day's bytes are used up, windows stay in the spool, where they merge. An event takes all along.
        """
        if not self._transport.online:
            return None
        state = self._spool.state
        if not self._reports() and not any(item.kind == "event" for item in (*state.numbered, *state.unnumbered)):
            return None
        wall = self._clock.wall_ms()
        offset_ms = None if wall is None else wall - self._clock.monotonic_ns() // 1_000_000
        return Terms(self._compress(), self._boot_id, offset_ms, clocks.state(self._clock))

    def _say_birth(self, wait_s: float) -> None:
        boots = tuple(u.boot_id for u in self._spool.state.unclean)
        self._said = Said(self.connection, boots, self._now_s() + wait_s, wait_s)
        self._transport.publish("birth", self._born(self.connection))

    def _tell_trouble(self) -> None:
        """A birth can say at once that the disk takes nothing; an event, which needs the disk, says it afterwards."""
        trouble = self._spool.trouble
        if trouble and self._trouble is None:
            self._trouble = (trouble, self._now_s())
            if self._transport.online:
                self._say_birth(BIRTH_S[0])
        elif self._trouble is not None and not trouble:
            why, since_s = self._trouble
            took = (
                f"for {self._now_s() - since_s:.0f} s the disk took nothing ({why}); what was counted waited in memory"
            )
            self._spool.event(
                draft(self._clock, self._boot_id, before="spool", after="spool", reason=took, failure="disk")
            )
            self._trouble = None

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9
