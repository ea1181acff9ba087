"""By which way the broker is tried next: TCP on its own port, or WebSocket on the port of HTTPS. Pure.

Where a firewall lets only 443 out, TCP fails at every try; so after `TRIES` failures in a row the other way has its
turn, and so on around. What connected last is tried first. A device that was enrolled with `--websocket` never tries
TCP. Both ways go through the proxy, if there is one: many proxies let CONNECT to 443 only.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from ..identity import Hub

TRIES: Final = 2


class Route(NamedTuple):
    kind: Literal["tcp", "websockets"]  # as paho names them
    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        return f"{'wss://' if self.path else ''}{self.host}:{self.port}{self.path}"


def routes(hub: Hub) -> tuple[Route, ...]:
    """In the order of preference; never empty."""
    tcp = Route("tcp", hub.broker.host, hub.broker.port)
    if hub.websocket is None:
        return (tcp,)
    web = Route("websockets", hub.websocket.host, hub.websocket.port, hub.websocket.path)
    if hub.link == "websocket":
        return (web,)
    return (web, tcp) if hub.proxy else (tcp, web)


def choose(known: tuple[Route, ...], good: Route | None, failures: int) -> Route:
    """The way for the next try, after `failures` in a row; `good` is the one that connected last."""
    first = known.index(good) if good in known else 0
    return known[(first + failures // TRIES) % len(known)]
