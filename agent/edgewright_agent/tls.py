"""TLS of a device: the hub's CA and no other, the device's certificate, and what "valid now" means without a clock.

A device whose clock is absent or behind cannot tell whether a certificate is valid *now*. It can tell more than
nothing: its own certificate was issued at a time that the hub's clock vouched for, so it is later than that. While the
wall clock is absent, or unsynced and earlier than that floor, the end of the peer's certificate is compared with the
floor, and its beginning is not looked at; everything else (the CA, the name, the signature) is verified as ever. What
this gives away: a server certificate of this hub that ended after the floor is believed by a device without a clock.
As soon as there is a clock, the next connection is verified by it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from edgewright_contracts.errors import Unavailable

from . import tcp
from .clock import Clock
from .delivery import tunnel
from .identity import Identity

if TYPE_CHECKING:
    from urllib3 import PoolManager  # loaded with the first connection: most days, a device makes none

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python gives no name


class Socket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        context = self.context
        if isinstance(context, Context):
            context.look_at_the_end(self)


class Context(ssl.SSLContext):
    """`clock` and `floor_s` (unix seconds) are set by `context`; verified per connection."""

    clock: Clock
    floor_s: float

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        flags = int(self.verify_flags)
        timeless = flags | _NO_CHECK_TIME if self.lost else flags & ~_NO_CHECK_TIME
        self.verify_flags = ssl.VerifyFlags(timeless)
        if isinstance(host := options.get("server_hostname"), str):
            options["server_hostname"] = tcp.plain(host)
        return super().wrap_socket(*args, **options)

    @property
    def lost(self) -> bool:
        """Whether the clock cannot be asked."""
        wall = self.clock.wall_ms()
        return wall is None or (wall / 1000 < self.floor_s and not self.clock.synced())

    def look_at_the_end(self, peer: ssl.SSLSocket) -> None:
        if not int(self.verify_flags) & _NO_CHECK_TIME:
            return
        shown = peer.getpeercert() or {}
        ends = shown.get("notAfter")
        if not isinstance(ends, str) or ssl.cert_time_to_seconds(ends) < self.floor_s:
            raise ssl.SSLCertVerificationError(
                f"the hub's certificate ended ({ends}) before this device's own was made; its clock is not even needed"
            )


def context(identity: Identity, clock: Clock, *, named: bool = True) -> Context:
    """Of one device; with `named` it proves who it is. Raises Unavailable when the files cannot be used."""
    made = Context(ssl.PROTOCOL_TLS_CLIENT)
    made.sslsocket_class = Socket
    made.clock = clock
    known = identity.validity()
    made.floor_s = known.begins if known else 0.0
    try:
        if named:
            made.load_cert_chain(str(identity.certificate), str(identity.key))
        made.load_verify_locations(str(identity.ca))
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"the identity in {identity.home} cannot be used for TLS: {error}; `edgewright agent enroll --again` with "
            "a new token mends it"
        ) from error
    return made


def connections(identity: Identity, clock: Clock, url: str, *, named: bool = False) -> Callable[..., PoolManager]:
    """What makes pools of connections to `url`, through the proxy that enrolment named; it takes the options of
    `urllib3.PoolManager`. The repository asks nobody's name, so `named` is for the hub's own endpoints.

    It raises Unavailable for an identity that cannot be used, and not before: a model needs none to answer."""

    def pool(**options: Any) -> PoolManager:
        if url.startswith("https:"):
            options["ssl_context"] = context(identity, clock, named=named)
        return through(identity.hub.proxy, **options)

    return pool


def through(proxy: str, **options: Any) -> PoolManager:
    """A pool of connections, through the proxy if there is one. `urllib3.ProxyManager` is a `PoolManager`, too."""
    import urllib3

    if not proxy:
        return urllib3.PoolManager(**options)
    known = tunnel.parse(proxy)
    headers = {"Proxy-Authorization": known.authorization} if known.authorization else None
    host = f"[{known.host}]" if ":" in known.host else known.host
    return urllib3.ProxyManager(f"http://{host}:{known.port}", proxy_headers=headers, **options)
