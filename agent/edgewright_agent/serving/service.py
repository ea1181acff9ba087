"""The daemon: an agent behind the Open Inference Protocol v2 (JSON over HTTP) on loopback, until SIGTERM.

    GET  /v2/health/live   /v2/health/ready   /v2/models/<name>   /v2/models/<name>/ready
    POST /v2/models/<name>/infer      {"inputs": [{"name", "shape", "datatype", "data"}], "parameters": {"context"}}
    POST /v2/models/<name>/outcome    {"id": "7", "truth": 3}  or  {"id": "7", "name": "pick_ok", "happened": true}

A shape is the manifest's, with or without a batch of 1 in front. Errors are {"error": "..."}: 400 for a wrong request,
403 for one that a web page may have sent, 404 for an unknown path, 503 while no package answers. Thin on purpose: an
application in Python uses `Agent` itself.

Nothing here authenticates, so that nothing but programs on this machine may be answered: a request must name a loopback
host, carry no Origin, and post JSON as such. A page in a browser can do none of these at once.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import numpy as np

from edgewright_contracts.errors import EdgewrightError, RequestError, Unavailable
from edgewright_runtime.runtime import Array

from ..agent import Agent
from ..inference.model import Model

BODY_BYTES: Final = 64 << 20
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
DTYPES: Final = {
    "BOOL": "bool", "UINT8": "uint8", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32",
}  # fmt: skip
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}

log = logging.getLogger(__name__)


def serve(agent: Agent, host: str | None, port: int) -> None:
    """Run until SIGTERM or SIGINT; `host` None serves no HTTP. Raises RequestError, Unavailable for a taken port."""
    if host is not None and host not in LOOPBACK:
        raise RequestError(f"expected a loopback address to listen on, got {host}: the protocol has no authentication")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = _bind(agent, host, port) if host is not None else None
    with agent:
        if server is not None:
            threading.Thread(target=_serve, args=(server, ended), name="edgewright-http", daemon=True).start()
            log.info("serving http://%s:%d/v2", f"[{host}]" if ":" in str(host) else host, server.server_port)
        log.info(
            "%s runs; hub %s:%d", agent.identity.device, agent.identity.hub.broker.host, agent.identity.hub.broker.port
        )
        ended.wait()
        log.info("ending; what was counted is sealed and sent at the next start")
        if server is not None:
            server.shutdown()
            server.server_close()


def _bind(agent: Agent, host: str, port: int) -> Server:
    try:
        return Server((host, port), agent)
    except OSError as error:
        agent.close()
        raise Unavailable(
            f"cannot listen on {host} port {port}: {error.strerror or error}; end what has it, or name another "
            f"with --listen (port 0 takes a free one)"
        ) from None


def _serve(server: Server, ended: threading.Event) -> None:
    try:
        server.serve_forever()
    except Exception:  # a daemon that does not answer any more must end, so that whoever supervises it starts it again
        log.exception("serving HTTP ended")
    finally:
        ended.set()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], agent: Agent) -> None:
        self.agent = agent
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)


class NotFound(RequestError):
    pass


class Foreign(RequestError):
    """What may come from a web page."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        log.debug(format, *args)

    def _answer(self, route: Any) -> None:
        try:
            self._local()
            status, body = 200, route(self.path.split("?")[0].strip("/").split("/"))
        except Foreign as error:
            self.close_connection = True  # its body was not read
            status, body = 403, {"error": str(error)}
        except NotFound as error:
            status, body = 404, {"error": str(error)}
        except Unavailable as error:
            status, body = 503, {"error": str(error)}
        except EdgewrightError as error:
            status, body = 400, {"error": str(error)}
        except Exception as error:
            log.exception("%s went wrong", self.path)
            status, body = 500, {"error": f"a bug of the agent: {type(error).__name__}: {error}"}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _local(self) -> None:
        host = self.headers.get("Host") or ""
        name = host[1 : host.find("]")] if host.startswith("[") else host.rpartition(":")[0] or host
        if name not in LOOPBACK:
            raise Foreign(f"expected a Host of {', '.join(LOOPBACK)}, got {host[:80]!r}")
        if self.headers.get("Origin") is not None:
            raise Foreign("expected no Origin: web pages are not served")
        if self.command == "POST" and self.headers.get_content_type() != "application/json":
            raise Foreign(f"expected Content-Type: application/json, got {self.headers.get_content_type()}")

    def _get(self, parts: list[str]) -> dict[str, Any]:
        match parts:
            case ["v2"]:
                return {"name": "edgewright", "extensions": []}
            case ["v2", "health", "live"]:
                if dead := self.server.agent.dead():
                    raise Unavailable(f"ended, and must be started again: {', '.join(dead)}")
                return {"live": True}
            case ["v2", "health", "ready"]:
                if not any(m.active for m in self.server.agent.models()):
                    raise Unavailable("no model has a package yet")
                return {"ready": True}
            case ["v2", "models", name]:
                return metadata(self._model(name))
            case ["v2", "models", name, "ready"]:
                metadata(self._model(name))
                return {"name": name, "ready": True}
        raise NotFound(f"no such path: {self.path}")

    def _post(self, parts: list[str]) -> dict[str, Any]:
        body = self._body()  # before anything is refused: unread, it would be taken for the next request
        match parts:
            case ["v2", "models", name, "infer"]:
                return infer(self._model(name), body)
            case ["v2", "models", name, "outcome"]:
                self._model(name)
                return outcome(self.server.agent, body)
        raise NotFound(f"no such path: {self.path}")

    def _model(self, name: str) -> Model:
        found = next((m for m in self.server.agent.models() if m.name == name), None)
        if found is None:
            known = ", ".join(m.name for m in self.server.agent.models()) or "none yet"
            raise NotFound(f"no model {name!r} here; there is: {known}")
        return found

    def _body(self) -> dict[str, Any]:
        said = self.headers.get("Content-Length") or ""
        length = int(said) if said.isascii() and said.isdigit() and len(said) < 20 else 0
        if not 0 < length <= BODY_BYTES:
            self.close_connection = True  # what was not read cannot be told from the next request
            raise RequestError(f"expected a body of 1 to {BODY_BYTES} bytes with its Content-Length, got {said[:20]!r}")
        try:
            body = json.loads(self.rfile.read(length))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"expected a JSON object, got what does not parse: {error}") from None
        if not isinstance(body, dict):
            raise RequestError(f"expected a JSON object, got {type(body).__name__}")
        return body


def infer(model: Model, body: dict[str, Any]) -> dict[str, Any]:
    """Raises RequestError, Unavailable."""
    if model.active is None:
        raise Unavailable(f"model {model.name} has no package yet")
    shapes = {t.name: t.shape for t in model.active.subject.manifest.inputs}
    inputs = dict(tensor(given, shapes) for given in _list(body, "inputs"))
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(f"expected an object 'parameters' in the body, got {type(parameters).__name__}")
    found = model.predict(inputs, context=str(parameters.get("context", "")))
    return {
        "model_name": model.name,
        "model_version": found.digest,
        "id": str(found.id),
        "parameters": {"variant": found.variant},
        "outputs": [
            {"name": k, "datatype": NAMES[y.dtype.name], "shape": [1, *y.shape], "data": y.reshape(-1).tolist()}
            for k, y in found.outputs.items()
        ],
    }


def tensor(given: Any, shapes: dict[str, tuple[int, ...]]) -> tuple[str, Array]:
    """(name, one sample) of an input of the protocol. Raises RequestError."""
    try:
        name, datatype, shape = str(given["name"]), given["datatype"], tuple(int(n) for n in given["shape"])
        x = np.asarray(given["data"], dtype=DTYPES[datatype]).reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RequestError(
            f"expected an input with name, shape, datatype ({', '.join(DTYPES)}) and data, got one where {error!r}"
        ) from None
    return name, x[0] if shape == (1, *shapes.get(name, ())) else x


def outcome(agent: Agent, body: dict[str, Any]) -> dict[str, Any]:
    try:
        identifier = int(body["id"])
        if "truth" in body:
            truth = body["truth"]
            agent.label(identifier, truth if isinstance(truth, str) else int(truth))
        else:
            agent.outcome(identifier, str(body["name"]), bool(body["happened"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"expected id with truth, or with name and happened; got {error!r}") from None
    return {"accepted": True}


def metadata(model: Model) -> dict[str, Any]:
    active = model.active
    if active is None:
        raise Unavailable(f"model {model.name} has no package yet")
    manifest = active.subject.manifest
    return {
        "name": model.name,
        "versions": [manifest.version],
        "platform": active.session.runtime,
        "inputs": [{"name": t.name, "datatype": NAMES[t.dtype], "shape": [1, *t.shape]} for t in manifest.inputs],
        "outputs": [{"name": t.name, "datatype": NAMES[t.dtype], "shape": [1, *t.shape]} for t in manifest.outputs],
        "parameters": {"digest": active.digest, "variant": active.variant},
    }


def _list(body: dict[str, Any], key: str) -> list[Any]:
    found = body.get(key)
    if not isinstance(found, list):
        raise RequestError(f"expected a list {key!r} in the body")
    return found
