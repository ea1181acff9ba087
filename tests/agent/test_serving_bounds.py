"""What the server bounds for all connections together, and how it ends; answered by something that takes its time."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from edgewright_agent.serving import listening, oip
from edgewright_agent.serving.http import Limits, Request, Response, Server, told
from edgewright_agent.serving.routes import Routes
from edgewright_contracts.errors import Unavailable


class Slow:
    """Admits any body up to 4000 bytes, and answers when it is told to."""

    def __init__(self) -> None:
        self.asked, self.answers = threading.Semaphore(0), threading.Event()

    def admit(self, request: Request) -> int:
        return 4000

    def oversized(self, request: Request) -> None: ...

    def answer(self, request: Request) -> Response:
        self.asked.release()
        assert self.answers.wait(60)
        return told(200, {"got": len(request.body)})


@contextmanager
def serving(answering: Slow, limits: Limits) -> Iterator[tuple[Server, str]]:
    server = Server(listening.listen(listening.Port("127.0.0.1", 0)), answering, limits)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server, server.url.removeprefix("http://").removesuffix("/v2")
    finally:
        answering.answers.set()
        server.close()
        thread.join()


def post(address: str, size: int) -> http.client.HTTPConnection:
    link = http.client.HTTPConnection(address, timeout=60)
    link.request("POST", "/", b"x" * size)
    return link


def said(link: http.client.HTTPConnection) -> tuple[int, dict[str, object]]:
    answer = link.getresponse()
    return answer.status, json.loads(answer.read())


def test_bodies_of_all_connections_are_bounded_together_and_one_alone_is_not():
    slow = Slow()
    with serving(slow, Limits(bodies=1000)) as (_, address):
        first = post(address, 3000)
        assert slow.asked.acquire(timeout=60)
        second = post(address, 10)
        status, words = said(second)
        assert (status, "1000 bytes together" in str(words["error"])) == (503, True)
        slow.answers.set()
        assert said(first) == (200, {"got": 3000})
        first.request("POST", "/", b"x" * 600)
        third = post(address, 300)
        assert (said(first), said(third)) == ((200, {"got": 600}), (200, {"got": 300}))
        for link in (first, second, third):
            link.close()


def test_a_request_under_way_is_answered_when_the_server_ends_and_an_idle_connection_is_not_waited_for():
    slow = Slow()
    with serving(slow, Limits(end_s=60)) as (server, address):
        idle = http.client.HTTPConnection(address, timeout=60)
        idle.connect()
        busy = post(address, 5)
        assert slow.asked.acquire(timeout=60)
        ending = threading.Thread(target=server.close)
        ending.start()
        assert idle.sock.recv(1) == b""
        slow.answers.set()
        answer = busy.getresponse()
        assert (answer.status, answer.headers["Connection"], json.loads(answer.read())) == (200, "close", {"got": 5})
        ending.join()
        busy.close()
        idle.close()


def test_a_request_that_takes_too_long_is_cut_off_when_the_server_ends():
    slow = Slow()
    with serving(slow, Limits(end_s=0.01)) as (server, address):
        busy = post(address, 5)
        assert slow.asked.acquire(timeout=60)
        server.close()
        with pytest.raises(http.client.RemoteDisconnected):
            busy.getresponse()
        busy.close()


def test_numbers_that_json_does_not_have_are_refused_there_and_kept_in_binary():
    found = [{"y": np.array([1.0, np.nan, np.inf], np.float32)}]
    asked = oip.Asked(None, "", None, (), None, False)
    with pytest.raises(Unavailable, match="output 'y' has numbers that JSON cannot carry"):
        oip.answer("m", "1", asked, found, {})
    assert oip.answer("m", "1", asked._replace(binary=True), found, {}).body.endswith(found[0]["y"].tobytes())


def test_the_server_is_ready_when_all_models_are(world):
    with world.agent("dev-1", runtimes=[]) as agent:
        routes = Routes(agent, version="0")
        ready = Request("GET", "/v2/health/ready", {"host": "localhost"})
        assert "for any model" in routes.answer(ready).body.decode()
        agent.model("digits")
        answer = routes.answer(ready)
        assert (answer.status, "no package answers for digits" in answer.body.decode()) == (503, True)
