"""The protocol against somebody else's client, tritonclient, unchanged; and against what is no request."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import threading
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

with warnings.catch_warnings():  # gevent and its friends warn at import, of things that are not ours
    warnings.simplefilter("ignore")
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

from edgewright_agent.serving import http as bounded
from edgewright_agent.serving import listening, service
from edgewright_contracts import binning
from edgewright_contracts.desired import Config, Desired, DesiredModel, Probation
from edgewright_contracts.errors import RequestError, Unavailable
from sim import packages

INFER = "/v2/models/digits/infer"


@contextmanager
def running(agent, place=None, limits=None):
    server = service.serving(agent, listening.listen(place or listening.Port("127.0.0.1", 0)))
    server._limits = limits or server._limits
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(world, agent, "127.0.0.1:PORT") with two models that answer."""
    from agent.conftest import World  # the fixture `world` lives for one test only
    from sim.repository import Repository

    folder = tmp_path_factory.mktemp("oip")
    repository = Repository(folder / "repo")
    with repository.served() as url:
        world = World(folder, url, repository)
        one, two = world.package("v1"), world.package("w1", name="words", seed=3, with_tflite=True)
        with world.agent() as agent:
            trial = Probation(windows=1, max_s=600)
            models = (
                DesiredModel(name="digits", digest=one.digest, probation=trial),
                DesiredModel(name="words", digest=two.digest, variant="tflite-fp32", probation=trial),
            )
            config = Config(window_s=0.5, rollout_window_s=0.5)
            world.hub.want("dev-1", Desired(rev=1, config=config, models=models))
            assert agent.model("digits").wait(60)
            assert agent.model("words").wait(60)
            with running(agent) as server:
                yield world, agent, server.url.removeprefix("http://").removesuffix("/v2")


@pytest.fixture
def client(served):
    client = triton.InferenceServerClient(served[2], concurrency=4)
    yield client
    client.close()


def asked(x, *, name="image", datatype="UINT8", binary=True):
    given = triton.InferInput(name, list(x.shape), datatype)
    given.set_data_from_numpy(x, binary_data=binary)
    return given


@pytest.fixture
def counted(served, monkeypatch):
    """The reasons of what the meter is told of, as it comes."""
    meter, reasons = served[1]._meter, []
    tell = meter.reject
    monkeypatch.setattr(meter, "reject", lambda *said: (reasons.append(said[-1]), tell(*said)))
    return reasons


def test_triton_sees_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1.0.0")
    assert not client.is_model_ready("digits", "9.9.9")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    told = client.get_model_metadata("digits", "1.0.0")
    assert told["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8]}]
    assert told["versions"] == ["1.0.0"]
    assert client.get_model_metadata("words")["inputs"][0]["shape"] == [1, 8, 8]  # TFLite


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_triton_infers_in_binary_and_in_json(client, binary_in, binary_out):
    x, labels = packages.draw(4, seed=3)
    outputs = None if binary_out is None else [triton.InferRequestedOutput("probabilities", binary_data=binary_out)]
    found = client.infer("digits", [asked(x, binary=binary_in)], outputs=outputs, request_id="abc",
                         parameters={"context": "night"})  # fmt: skip
    assert found.as_numpy("probabilities").shape == (4, 10)
    assert list(found.as_numpy("probabilities").argmax(1)) == list(labels)
    said = found.get_response()
    assert (said["id"], said["model_version"]) == ("abc", "1.0.0")
    assert len(said["parameters"]["prediction"].split()) == 4
    assert (found.as_numpy("monitor") is None) == (binary_out is not None)


def test_each_row_of_a_batch_is_one_inference_and_its_outcome_joins(served, client):
    world, agent, _ = served
    x, labels = packages.draw(8, seed=4)
    found = client.infer("digits", [asked(x)])
    for number, truth in zip(found.get_response()["parameters"]["prediction"].split(), labels, strict=True):
        agent.label(int(number), int(truth))
    assert agent.settle()
    windows = world.hub.windows["dev-1"]
    assert world.hub.wait(lambda: sum(w.outcomes["correct"].hits for w in windows if "correct" in w.outcomes) == 8)


def test_many_clients_use_two_models_at_once_over_kept_connections(served):
    x, labels = packages.draw(40, seed=5)
    wrong = []

    def work(name):
        link = http.client.HTTPConnection(served[2], timeout=20)
        for image, label in zip(x, labels, strict=True):
            given = {"name": "image", "shape": [1, 8, 8], "datatype": "UINT8", "data": image.tolist()}
            link.request("POST", f"/v2/models/{name}/infer", json.dumps({"inputs": [given]}))
            said = json.load(link.getresponse())
            found = {o["name"]: o["data"] for o in said["outputs"]}
            if said["model_name"] != name or int(np.argmax(found["probabilities"])) != label:
                wrong.append(said)
        link.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("digits", "words") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


FLOATS = np.zeros((1, 8, 8), np.float32)
IMAGE = np.zeros((1, 8, 8), np.uint8)
BAD = {
    "dtype": (lambda: asked(FLOATS, datatype="FP32"), "expected an array of uint8", "dtype"),
    "shape": (lambda: asked(IMAGE[:, :7]), "shape", "shape"),
    "rank": (lambda: asked(IMAGE[None]), "shape", "shape"),
    "range": (lambda: asked(IMAGE + 17), "at most 16", "range"),
    "bytes": (lambda: asked(np.array([b"x"], object), datatype="BYTES"), "got BYTES", "malformed"),
    "name": (lambda: asked(IMAGE, name="picture"), "inputs among image", "malformed"),
    "too many": (lambda: asked(np.zeros((65, 8, 8), np.uint8)), "1 to 64 samples", "malformed"),
    "none": (lambda: asked(np.zeros((0, 8, 8), np.uint8)), "1 to 64 samples", "malformed"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("binary", [True, False])
def test_what_a_model_cannot_take_is_an_error_with_a_reason_and_is_counted(client, counted, kind, binary):
    make, reason, counter = BAD[kind]
    given = make()
    if not binary and kind != "bytes":
        x = np.frombuffer(given._raw_data or b"", given.datatype().replace("FP32", "f4").replace("UINT8", "u1"))
        given.set_data_from_numpy(x.reshape(given.shape()), binary_data=False)
    with pytest.raises(InferenceServerException, match=reason) as caught:
        client.infer("digits", [given])
    assert caught.value.status() == "400"
    assert counted == [counter]


def test_a_client_says_how_old_its_input_is(served, client):
    windows = served[0].hub.windows["dev-1"]
    for age_ms in (40, 2500.5):
        client.infer("digits", [asked(IMAGE)], parameters={"age_ms": age_ms})
    assert served[0].hub.wait(lambda: sum(binning.unpack_grid(w.input_age).sum() for w in windows) == 2)
    young, old = np.flatnonzero(sum(binning.unpack_grid(w.input_age) for w in windows))
    assert binning.GRID_EDGES_NS[young] / 1e6 == pytest.approx(40, rel=0.9)
    assert binning.GRID_EDGES_NS[old] / 1e6 == pytest.approx(2500, rel=0.5)


def test_what_was_rejected_is_in_the_report(served, client):
    windows = served[0].hub.windows["dev-1"]
    with pytest.raises(InferenceServerException):
        client.infer("words", [asked(IMAGE + 17)])
    assert served[0].hub.wait(lambda: sum(w.rejected.get("range", 0) for w in windows if w.variant[0] == "t") == 1)


def test_a_rejected_row_is_named_and_a_batch_needs_a_variant_that_takes_it(client):
    x = np.zeros((3, 8, 8), np.uint8)
    x[1] = 99
    with pytest.raises(InferenceServerException, match=r"sample 1: .* at most 16"):
        client.infer("digits", [asked(x)])
    with pytest.raises(InferenceServerException, match="one sample of shape"):
        client.infer("words", [asked(IMAGE.repeat(2, 0))])


def test_triton_hears_of_models_and_outputs_that_are_not_there(client):
    for call in (
        lambda: client.infer("other", [asked(IMAGE)]),
        lambda: client.infer("digits", [asked(IMAGE)], model_version="7"),
        lambda: client.infer("digits", [asked(IMAGE)], outputs=[triton.InferRequestedOutput("nope")]),
        lambda: client.infer("digits", [asked(IMAGE)], outputs=[triton.InferRequestedOutput("monitor", class_count=2)]),
        lambda: client.infer("digits", [asked(IMAGE)], request_compression_algorithm="gzip"),
        lambda: client.get_model_config("digits"),
    ):
        with pytest.raises(InferenceServerException, match=r"no model|no version|outputs among|classif|Encoding|path"):
            call()


def ask(address, body, path=INFER, method="POST", **headers):
    link = http.client.HTTPConnection(address, timeout=60)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        link.request(method, path, data, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = link.getresponse()
        return answer.status, json.load(answer)
    finally:
        link.close()


def tensor(**fields):
    return {"inputs": [{"name": "image", "shape": [1, 8, 8], "datatype": "UINT8", "data": [0] * 64, **fields}]}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "parse"), (b"{", "parse"), (b"\xff\xfe", "parse"), (b"[1]", "list"), (b"[" * 50_000, "parse"),
        ({}, "inputs"), ({"inputs": {}}, "inputs"), ({"inputs": [1]}, "object"), ({"inputs": []}, "expected an input"),
        (tensor(name=1), "name"), (tensor(datatype=["FP32"]), "datatype"), (tensor(datatype="FP99"), "datatype"),
        (tensor(shape=[-1]), "shape"), (tensor(shape="8"), "shape"), (tensor(shape=[2**31] * 8), "shape"),
        (tensor(shape=[True, 8, 8]), "shape"), (tensor(data=[1.5] * 64), "uint8"), (tensor(data=["1"] * 64), "uint8"),
        (tensor(data=[999] * 64), "uint8"), (tensor(data=[True] * 64), "uint8"), (tensor(data=[0] * 63), "64 numbers"),
        (tensor(data=[[1], [2, 3]]), "list"), (tensor(data=7), "list"), (tensor(data=[None] * 64), "uint8"),
        (tensor(data=[10**40] * 64), "uint8"), (tensor(datatype="FP32", data=[10**400] * 64), "parse|int too large"),
        ({"inputs": tensor()["inputs"] * 2}, "twice"), ({**tensor(), "id": 7}, "'id'"),
        ({**tensor(), "parameters": [1]}, "parameters"), ({**tensor(), "parameters": {"context": 1}}, "context"),
        ({**tensor(), "parameters": {"context": "noon"}}, "context among night"),
        *(({**tensor(), "parameters": {"age_ms": age}}, "age_ms") for age in ("5", -1, True, float("nan"), 10**30)),
        ({**tensor(), "outputs": "all"}, "outputs"), ({**tensor(), "outputs": [{"name": "x"}]}, "outputs among"),
        (tensor(parameters={"binary_data_size": 64}), "Content-Length"),
    ],
)  # fmt: skip
def test_wrong_requests_get_one_message(served, body, reason):
    code, answer = ask(served[2], body)
    assert (code, set(answer)) == (400, {"error"})
    assert re.search(reason, answer["error"]), answer


def test_nan_is_counted_as_such_whichever_way_it_comes():
    from edgewright_agent.serving import oip
    from edgewright_contracts import manifest as m

    shaped = packages.INPUTS[0]
    floats = m.TensorIn(name="image", dtype="float32", shape=shaped.shape)

    class Declared:
        inputs, outputs = (floats,), packages.OUTPUTS

    variant = m.Variant(id="x", format="onnx", precision="fp32")
    for word in ("NaN", "Infinity", "1e39"):
        body = json.dumps(tensor(datatype="FP32", data=[0.0] * 64)).replace("0.0", word, 1).encode()
        row = oip.parse(body, None, Declared, variant).rows[0]["image"]
        assert row.dtype == np.float32
        assert not np.isfinite(row[0, 0])


@pytest.mark.parametrize(
    ("size", "tail", "header", "reason"),
    [
        (64, b"\0" * 63, None, "64 bytes behind"), (64, b"\0" * 65, None, "1 more"), (63, b"\0" * 63, None, "size 64"),
        ("64", b"\0" * 64, None, "size 64"), (True, b"\0" * 64, None, "size 64"), (-1, b"\0" * 64, None, "size 64"),
        (64, b"\0" * 64, "99999", "at most the body"), (64, b"\0" * 64, "-1", "at most the body"),
        (64, b"\0" * 64, "5", "parse"), (64, b"\0" * 64, "x", "at most the body"),
    ],
)  # fmt: skip
def test_binary_sizes_must_add_up(served, size, tail, header, reason):
    document = tensor(parameters={"binary_data_size": size})
    del document["inputs"][0]["data"]
    head = json.dumps(document).encode()
    length = header or str(len(head))
    code, answer = ask(served[2], head + tail, Inference_Header_Content_Length=length)
    assert (code, reason in answer["error"]) == (400, True), answer


def test_what_a_web_page_can_send_is_refused(served):
    _, agent, address = served
    path, body = "/v2/models/digits/outcome", {"id": "1", "name": "pick_ok", "happened": True}
    assert ask(address, body, path)[0] == 200
    for headers in (
        {"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "[::1"},
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"}, {"Sec-Fetch-Site": "cross-site"},
    ):  # fmt: skip
        code, answer = ask(address, body, path, **headers)
        assert (code, set(answer)) == (403, {"error"}), headers
    # A page whose name was bound to this machine may read, too.
    assert ask(address, None, "/v2/models/digits", "GET", Host="evil.example")[0] == 403
    assert agent.settle()


def raw(address, *pieces):
    """Everything that the server says to these bytes, until it ends the connection."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as link:
        for piece in pieces:
            link.sendall(piece)
        said = b""
        while more := link.recv(1000):
            said += more
    return said


HEAD = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\n"


def test_requests_whose_framing_is_wrong_or_too_large_are_answered_and_end_their_connection(served, counted):
    address = served[2]
    assert raw(address, HEAD + b"Content-Length: 99999999999\r\n\r\n").startswith(b"HTTP/1.1 413 ")
    assert counted == ["size"]
    assert b" 413 " in raw(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n",
                           b"20000\r\n" + b" " * 131072 + b"\r\n0\r\n\r\n")  # fmt: skip
    assert counted == ["size", "size"]
    outcome = HEAD.replace(b"infer", b"outcome") + b"Content-Length: 9999\r\n\r\n"
    assert b" 413 " in raw(address, outcome)
    assert counted == ["size", "size"]  # an outcome is no input
    for length in (b"abc", b"-5", b"", b"9" * 30, "²".encode()):
        assert b" 400 " in raw(address, HEAD + b"Content-Length: " + length + b"\r\n\r\n")[:20], length
    assert b" 400 " in raw(address, b"\x16\x03\x01 no HTTP at all\r\n\r\n")
    assert b" 431 " in raw(address, HEAD + b"X: " + b"y" * 20_000)
    assert b" 405 " in raw(address, b"DELETE /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b" 501 " in raw(address, HEAD + b"Transfer-Encoding: gzip\r\n\r\n")
    assert raw(address, b"GET /v2/health/live HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert raw(address, b"HEAD /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").endswith(b"\r\n\r\n")
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as link:
        link.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert link.recv(1000).startswith(b"HTTP/1.1 100 ")
        link.sendall(b"{}")
        assert link.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_chunks_and_requests_in_one_packet_are_understood(served):
    body = json.dumps(tensor()).encode()
    cut = [body[i : i + 50] for i in range(0, len(body), 50)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut) + b"0\r\n\r\n"
    one = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    two = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    assert raw(served[2], one + two).count(b"HTTP/1.1 200 ") == 2


def test_a_slow_client_is_ended_and_holds_nothing_up(served):
    _, agent, _ = served
    limits = bounded.Limits(connections=2, idle_s=0.2, request_s=0.3, drain_s=0.1)
    with running(agent) as server:
        server._limits = limits
        address = server.url.removeprefix("http://").removesuffix("/v2")
        assert b" 408 " in raw(address, HEAD + b"Content-Length: 10\r\n\r\n12345")
        assert raw(address) == b""  # it says nothing at all


def test_connections_beyond_the_bound_are_told_so(served):
    from edgewright_agent.serving.routes import Routes

    listener = listening.listen(listening.Port("127.0.0.1", 0))
    server = bounded.Server(listener, Routes(served[1], version="0"), bounded.Limits(connections=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    address = server.url.removeprefix("http://").removesuffix("/v2")
    first = http.client.HTTPConnection(address, timeout=60)
    first.request("GET", "/v2/health/live")
    assert first.getresponse().read()
    assert raw(address).startswith(b"HTTP/1.1 503 ")
    server.close()
    thread.join()
    first.close()


class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host)


def test_a_unix_socket_is_for_its_group_and_replaces_what_a_killed_agent_left(served, tmp_path):
    path = tmp_path / "oip.sock"
    for _ in range(2):  # the second time over what the first one left
        with running(served[1], path) as server:
            assert server.url == f"unix:{path}"
            assert path.stat().st_mode & 0o777 == 0o660
            link = Unix(str(path), timeout=60)
            link.request("POST", INFER, json.dumps(tensor()), {"Host": "whatever"})
            assert link.getresponse().status == 200
            link.close()
            with pytest.raises(Unavailable, match="another program listens"):
                listening.listen(path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Unavailable, match="something else than a socket"):
        listening.listen(tmp_path / "file")
    with pytest.raises(Unavailable, match="cannot listen"):
        listening.listen(tmp_path / "nowhere" / "x")


@pytest.mark.parametrize("said", ["0.0.0.0:80", "example.org:80", "127.0.0.1", "127.0.0.1:x", "unix:here", ":80"])
def test_only_this_machine_is_served(said):
    with pytest.raises(RequestError, match=r"loopback|--listen"):
        listening.place(said)


def test_places_are_read():
    assert listening.place("[::1]:80") == listening.Port("::1", 80)
    assert str(listening.place("unix:/run/x.sock")) == "/run/x.sock"


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_the_other_loopback_is_served_too(served):
    try:
        with running(served[1], listening.Port("::1", 0)) as server:
            port = int(server.url.removesuffix("/v2").rpartition(":")[2])
            for host in ("[::1]", "localhost"):
                link = http.client.HTTPConnection("::1", port, timeout=60)
                link.request("GET", "/v2/models/digits", headers={"Host": host})
                assert link.getresponse().status == 200
                link.close()
    except Unavailable as error:
        pytest.skip(f"no IPv6 here: {error}")


def test_a_client_that_resets_its_connection_takes_nothing_with_it(served):
    host, _, port = served[2].rpartition(":")
    for piece in (b"", HEAD, HEAD + b"Content-Length: 10\r\n\r\n12"):
        link = socket.create_connection((host, int(port)), 5)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        link.sendall(piece)
        link.close()
    assert ask(served[2], tensor())[0] == 200
