"""Any body, header and path end in an answer in JSON of 200, 4xx or 503, never in a bug of the agent.

Inputs are random bytes, JSON of any shape, requests that are nearly right, and binary tensors of any length. Framing is
given random bytes over a real socket. EDGEWRIGHT_FUZZ=N draws N new examples for each test instead of the same few.
"""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewright_agent.serving import http, listening
from edgewright_agent.serving.routes import Routes
from edgewright_agent.updating.update import State
from sim import packages

N = int(os.environ.get("EDGEWRIGHT_FUZZ", "0"))
FUZZ = settings(
    max_examples=N or 100, derandomize=not N, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def routes(tmp_path_factory):
    from agent.conftest import World
    from sim.repository import Repository

    folder = tmp_path_factory.mktemp("fuzz")
    repository = Repository(folder / "repo")
    with repository.served() as url:
        world = World(folder, url, repository)
        package = world.package("v1")
        with world.agent() as agent:
            world.want(package)
            model, image = agent.model("digits"), packages.draw(1, seed=1)[0][0]
            assert model.wait(60)
            while agent._installer.states()["digits"].record.state is not State.IDLE:
                model.predict({"image": image})  # until its trial is over: what is refused ends none
            yield Routes(agent, version="0")


LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 8, 16, 17, 64, 65, 255, 256, -1, 2**31, 2**63, 2**64, 10**400]),
    st.floats(),
    st.text(max_size=12),
)
TREE = st.recursive(
    LEAF,
    lambda t: st.one_of(st.lists(t, max_size=9), st.dictionaries(st.text(max_size=6), t, max_size=3)),
    max_leaves=12,
)
DATATYPE = st.sampled_from(["UINT8", "FP32", "BOOL", "INT64", "FP16", "FP64", "BYTES", "UINT64", "", "uint8"])
SHAPE = st.one_of(st.sampled_from([[1, 8, 8], [8, 8], [2, 8, 8], [64], [0, 8, 8], [1, 64]]), TREE)


@st.composite
def tensors(draw):
    data = st.one_of(
        st.lists(st.integers(-1, 20), min_size=64, max_size=64),
        st.lists(st.lists(st.integers(0, 16), min_size=8, max_size=8), min_size=8, max_size=16),
        TREE,
    )
    found = {
        "name": draw(st.one_of(st.just("image"), TREE)),
        "shape": draw(SHAPE),
        "datatype": draw(st.one_of(DATATYPE, TREE)),
        "data": draw(data),
    }
    for key in draw(st.lists(st.sampled_from(list(found)), max_size=1)):
        del found[key]
    if draw(st.booleans()):
        found["parameters"] = draw(st.one_of(TREE, st.fixed_dictionaries({"binary_data_size": st.one_of(LEAF)})))
    return found


@st.composite
def documents(draw):
    found = {"inputs": draw(st.one_of(st.lists(tensors(), max_size=2), TREE))}
    for key in draw(st.lists(st.sampled_from(["id", "parameters", "outputs"]), unique=True)):
        found[key] = draw(TREE)
    if draw(st.booleans()):
        outputs = st.fixed_dictionaries(
            {"name": st.sampled_from(["probabilities", "monitor", "x"]), "parameters": TREE}
        )
        found["outputs"] = draw(st.lists(outputs, max_size=3))
    return found


BODY = st.one_of(
    st.binary(max_size=300),
    st.one_of(TREE, documents()).map(lambda d: json.dumps(d).encode()),
    st.integers(1, 3000).map(lambda n: b"[" * n),
    st.integers(1, 3000).map(lambda n: b'{"inputs":[{"name":"image","shape":[1],"datatype":"FP32","data":' + b"[" * n),
)
PATH = st.one_of(
    st.sampled_from(
        ["/v2/models/digits/infer", "/v2/models/digits/versions/1.0.0/infer", "/v2/models/digits/outcome", "/v2"]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40).map(lambda t: "/" + t),
)


def must_answer(routes, request):
    admitted = routes.admit(request)
    said = admitted if isinstance(admitted, http.Response) else routes.answer(request)
    assert said.status == 200 or 400 <= said.status < 500 or said.status == 503, said
    binary = dict(said.headers).get("Inference-Header-Content-Length")
    assert isinstance(json.loads(said.body[: int(binary)] if binary else said.body), dict)
    return said.status


def test_any_body_is_answered(routes):
    seen = set()

    @FUZZ
    @given(PATH, BODY, st.one_of(st.none(), st.integers(0, 500).map(str), st.text(max_size=9)))
    def check(path, body, length):
        headers = {"host": "localhost"} | ({} if length is None else {"inference-header-content-length": length})
        seen.add(must_answer(routes, http.Request("POST", path, headers, body)))

    check()
    assert {400, 404} <= seen


def test_requests_that_are_nearly_right_are_answered(routes):
    seen = set()
    image = packages.draw(1, seed=2)[0][0]

    @FUZZ
    @given(tensors(), st.integers(0, 3), st.booleans(), st.sampled_from([None, 0, 1, 63, 64, 65, 128]))
    def check(other, keep, binary, size):
        right = {"name": "image", "shape": [1, 8, 8], "datatype": "UINT8", "data": image.reshape(-1).tolist()}
        given_ = {**right, **dict(list(other.items())[keep:])} if keep < 3 else right
        tail = b""
        if binary and size is not None:
            given_ = {**given_, "parameters": {"binary_data_size": size}}
            given_.pop("data", None)
            tail = b"\1" * 64
        head = json.dumps({"inputs": [given_]}).encode()
        headers = {"host": "localhost"} | ({"inference-header-content-length": str(len(head))} if tail else {})
        seen.add(must_answer(routes, http.Request("POST", "/v2/models/digits/infer", headers, head + tail)))

    check()
    assert seen == {200, 400}


def test_any_headers_are_answered(routes):
    names = st.sampled_from(["host", "origin", "content-type", "content-length", "content-encoding", "sec-fetch-site"])

    @FUZZ
    @given(st.sampled_from(["GET", "POST", "HEAD", "PUT", ""]), PATH, st.dictionaries(names, st.text(max_size=20)))
    def check(method, path, headers):
        must_answer(routes, http.Request(method, path, headers))

    check()


def test_any_bytes_on_a_connection_leave_the_server_answering(routes):
    listener = listening.listen(listening.Port("127.0.0.1", 0))
    server = http.Server(listener, routes, http.Limits(idle_s=0.02, request_s=0.02, drain_s=0.01))
    thread = threading.Thread(target=server.run)
    thread.start()
    address = listener.getsockname()
    lines = st.sampled_from(
        [b"POST /v2/models/digits/infer HTTP/1.1\r\n", b"Host: localhost\r\n", b"Content-Length: 5\r\n", b"\r\n", b"{}",
         b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"GET /v2 HTTP/1.1\r\n", b"\x00",
         b": \r\n"]
    )  # fmt: skip

    def exchange(data):
        with socket.create_connection(address, 5) as link:
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
            said = b""
            try:
                while more := link.recv(4000):
                    said += more
            except ConnectionResetError:
                pass
        return said

    @settings(FUZZ, max_examples=N or 80)
    @given(st.one_of(st.binary(max_size=200), st.lists(lines, max_size=8).map(b"".join)))
    def check(data):
        said = exchange(data)
        assert said == b"" or said.startswith(b"HTTP/1.1 ")
        assert not said.startswith(b"HTTP/1.1 500")

    check()
    assert exchange(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200")
    server.close()
    thread.join()
