"""The daemon: an agent, and the protocol where it shall listen, until SIGTERM. An application in Python needs none of
this: it uses `Agent` itself."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
from pathlib import Path

from edgewright_contracts import __version__

from ..agent import Agent
from .http import Server
from .listening import Place, listen
from .routes import Routes

log = logging.getLogger(__name__)


def serve(agent: Agent, place: Place | None) -> None:
    """Run until SIGTERM, SIGINT, or SIGHUP of a terminal that was closed; without a `place`, nothing is served. Raises
    Unavailable for one that is taken."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:  # as nohup leaves it
            signal.signal(number, lambda *_: ended.set())
    try:
        listener = listen(place) if place is not None else None
    except BaseException:
        agent.close()
        raise
    server = serving(agent, listener) if listener is not None else None
    with agent:
        # Each full collection would go through all that was imported, 37 000 objects, while every inference waits for
        # it: 12 ms and more. In an application's process that is the application's to decide.
        gc.collect()
        gc.freeze()
        if server is not None:
            threading.Thread(target=_run, args=(server, ended), name="edgewright-http", daemon=True).start()
            log.info("serving %s", server.url)
        hub = agent.identity.hub.broker
        if agent.identity.damage:
            log.error("no hub is known: %s", agent.identity.damage)
        elif agent.identity.alone:
            log.info("runs without a hub; what is counted stays on this device")
        else:
            log.info("%s runs; hub %s:%d", agent.identity.device, hub.host, hub.port)
        ended.wait()
        log.info("ending; what was counted is sealed and sent at the next start")
        if server is not None:
            server.close()
        if isinstance(place, Path):
            place.unlink(missing_ok=True)


def serving(agent: Agent, listener: socket.socket) -> Server:
    """The protocol on a socket that listens already."""
    local = listener.family == socket.AF_UNIX
    return Server(listener, Routes(agent, version=__version__, local=local))


def _run(server: Server, ended: threading.Event) -> None:
    try:
        server.run()
    except Exception:  # a daemon that does not answer any more must end, so that whoever supervises it starts it again
        log.exception("serving HTTP ended")
    finally:
        ended.set()
