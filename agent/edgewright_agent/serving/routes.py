"""What the paths of the protocol mean to an agent.

    GET  /v2   /v2/health/live   /v2/health/ready
    GET  /v2/models/NAME[/versions/V]          metadata
    GET  /v2/models/NAME[/versions/V]/ready
    POST /v2/models/NAME[/versions/V]/infer    `oip`; parameters.context names a stratum of the manifest, and
                                               parameters.age_ms says how long ago the input was taken
    POST /v2/models/NAME/outcome    {"id": ID, "truth": 3}  or  {"id": ID, "name": "pick_ok", "happened": true}

An answer to infer says in its parameters which package answered (digest, variant) and under which ids its samples were
counted (`prediction`, one for each, with spaces between): what `outcome` takes as ID, until the agent is restarted.

Errors are {"error": "..."}: 400 for a wrong request, 403 for one that a web page may have sent, 404 for an unknown
path, model or version, 405, 408 and 413 as in HTTP, 503 while no package answers or the model fails. What a model is
asked and cannot take is counted by reason in its windows.

Nothing here authenticates, so that nothing but programs on this machine may be answered: over TCP a request must name a
loopback host; nowhere may it carry what a browser adds to a request of a page (Origin, Sec-Fetch-Site), or a body of a
type that a page may send without being asked first (Fetch standard, CORS-safelisted request headers).
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from edgewright_contracts.errors import EdgewrightError, RequestError, Unavailable

from ..agent import Agent
from ..inference.model import Active, Model, Rejected
from . import oip
from .http import Request, Response, told

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
OUTCOME_BYTES: Final = 4 << 10
EXTENSIONS: Final = ["binary_tensor_data", "parameters"]
TYPES: Final = ("application/json", "application/octet-stream")  # and none at all, as tritonclient sends

log = logging.getLogger(__name__)


class NotFound(RequestError):
    """No such path, model or version."""


class NotAllowed(RequestError):
    """Not with this method."""


class Foreign(RequestError):
    """What may come from a web page."""


class Routes:
    """`local`: whoever connects has been let in by the file system already, so any Host will do."""

    def __init__(self, agent: Agent, *, version: str, local: bool = False) -> None:
        self._agent, self._version, self._local = agent, version, local

    def admit(self, request: Request) -> int | Response:
        try:
            self._guard(request)
            parts = _parts(request)
            if request.method in ("GET", "HEAD"):
                return 0
            if request.method != "POST":
                raise NotAllowed(f"expected GET or POST, got {request.method[:20]}")
            if "content-encoding" in request.headers:
                raise RequestError("expected a body without Content-Encoding: nothing is inflated here")
            match parts:
                case ["v2", "models", name, *_, "infer"]:
                    bound = oip.bound(_active(self._model(name)).subject.manifest)
                    return bound if oip.JSON_LENGTH.lower() in request.headers else min(bound, oip.JSON_BYTES)
                case _:
                    return OUTCOME_BYTES
        except EdgewrightError as error:
            return _said(error, close=True)

    def oversized(self, request: Request) -> None:
        match _parts(request):
            case ["v2", "models", name, *_, "infer"]:
                self._model(name).refuse("size")

    def answer(self, request: Request) -> Response:
        try:
            parts = _parts(request)
            return self._post(parts, request) if request.method == "POST" else told(200, self._get(parts))
        except EdgewrightError as error:
            return _said(error)
        except MemoryError:
            return told(503, {"error": "expected memory for this request, got none; send a smaller one"})
        except Exception as error:
            log.exception("%s went wrong", request.path[:200])
            return told(500, {"error": f"a bug of the agent: {type(error).__name__}: {error}"})

    def _guard(self, request: Request) -> None:
        said = request.headers
        host = said.get("host", "")
        name = host[1 : host.find("]")] if host.startswith("[") else host.rpartition(":")[0] or host
        if not self._local and name not in LOOPBACK:
            raise Foreign(f"expected a Host of {', '.join(LOOPBACK)}, got {host[:80]!r}")
        if "origin" in said or said.get("sec-fetch-site", "none") != "none":
            raise Foreign("expected no Origin and no Sec-Fetch-Site: web pages are not served")
        kind = said.get("content-type", TYPES[0]).partition(";")[0].strip().lower()
        if request.method == "POST" and kind not in TYPES:
            raise Foreign(f"expected Content-Type: {' or '.join(TYPES)}, got {kind[:80]!r}")

    def _get(self, parts: list[str]) -> dict[str, Any]:
        match parts:
            case ["v2"]:
                return {"name": "edgewright", "version": self._version, "extensions": EXTENSIONS}
            case ["v2", "health", "live"]:
                if dead := self._agent.dead():
                    raise Unavailable(f"ended, and must be started again: {', '.join(dead)}")
                return {"live": True}
            case ["v2", "health", "ready"]:
                models = self._agent.models()
                if missing := [m.name for m in models if m.active is None] or ([] if models else ["any model"]):
                    raise Unavailable(
                        f"no package answers for {', '.join(missing)}; `edgewright agent status` says why"
                    )
                return {"ready": True}
            case ["v2", "models", name]:
                return metadata(name, _active(self._model(name)))
            case ["v2", "models", name, "versions", version]:
                return metadata(name, _of_version(self._model(name), version))
            case ["v2", "models", name, "ready"]:
                _active(self._model(name))
                return {"name": name, "ready": True}
            case ["v2", "models", name, "versions", version, "ready"]:
                _of_version(self._model(name), version)
                return {"name": name, "ready": True}
            case ["v2", "models", _, *_, "infer" | "outcome"]:
                raise NotAllowed("expected POST, got GET")
        raise NotFound(f"no such path: /{'/'.join(parts)[:200]}")

    def _post(self, parts: list[str], request: Request) -> Response:
        match parts:
            case ["v2", "models", name, "infer"]:
                model = self._model(name)
                return infer(model, _active(model), request)
            case ["v2", "models", name, "versions", version, "infer"]:
                model = self._model(name)
                return infer(model, _of_version(model, version), request)
            case ["v2", "models", name, "outcome"]:
                self._model(name)
                return told(200, outcome(self._agent, oip.loads(request.body)))
        raise NotFound(f"no such path to POST to: /{'/'.join(parts)[:200]}")

    def _model(self, name: str) -> Model:
        models = self._agent.models()
        found = next((m for m in models if m.name == name), None)
        if found is None:
            raise NotFound(f"no model {name[:64]!r} here; there is: {', '.join(m.name for m in models) or 'none yet'}")
        return found


def infer(model: Model, active: Active, request: Request) -> Response:
    """`active` gives the shapes; should another package take over meanwhile, the answer names that one.

    Raises RequestError, Unavailable. Of several samples, those before the one that was rejected have been counted.
    """
    manifest, variant = active.subject.manifest, active.subject.variant
    try:
        asked = oip.parse(request.body, request.headers.get(oip.JSON_LENGTH.lower()), manifest, variant)
    except RequestError:
        model.refuse("malformed")
        raise
    captured_at = None if asked.age_ms is None else time.monotonic_ns() - int(asked.age_ms * 1e6)
    found = []
    for number, row in enumerate(asked.rows):
        try:
            found.append(model.predict(row, context=asked.context, captured_at=captured_at))
        except Rejected as error:
            raise error if len(asked.rows) == 1 else RequestError(f"sample {number}: {error}") from None
    last = found[-1]
    now = model.active
    version = now.subject.manifest.version if now is not None and now.digest == last.digest else manifest.version
    parameters = {
        "digest": last.digest,
        "variant": last.variant,
        "prediction": " ".join(str(one.id) for one in found),
    }
    return oip.answer(model.name, version, asked, [one.outputs for one in found], parameters)


def outcome(agent: Agent, body: dict[str, Any]) -> dict[str, Any]:
    """Raises RequestError."""
    said, truth, name, happened = (body.get(key) for key in ("id", "truth", "name", "happened"))
    known = isinstance(said, str) and said.isascii() and said.isdigit() and len(said) < 19
    if known and (isinstance(truth, str) or (type(truth) is int and abs(truth) < 2**31)):
        agent.label(int(str(said)), truth)
    elif known and isinstance(name, str) and isinstance(happened, bool):
        agent.outcome(int(str(said)), name, happened)
    else:
        raise RequestError(
            "expected id (the prediction's, as a string) with truth (a class's number or label), "
            f"or with name and happened (true or false); got {', '.join(sorted(body))[:200] or 'nothing'}"
        )
    return {"accepted": True}


def metadata(name: str, active: Active) -> dict[str, Any]:
    manifest, variant = active.subject.manifest, active.subject.variant
    return {
        "name": name,
        "versions": [manifest.version],
        "platform": active.session.runtime,
        "inputs": oip.described(manifest.inputs, variant),
        "outputs": oip.described(manifest.outputs, variant),
        "parameters": {"digest": active.digest, "variant": active.variant},
    }


def _active(model: Model) -> Active:
    if model.active is None:
        raise Unavailable(f"no package of {model.name} answers here; `agent status` says why")
    return model.active


def _of_version(model: Model, version: str) -> Active:
    active = _active(model)
    runs = active.subject.manifest.version
    if version != runs:
        raise NotFound(f"no version {version[:32]!r} of {model.name} here; it runs {runs}")
    return active


def _parts(request: Request) -> list[str]:
    return request.path.strip("/").split("/")


def _said(error: EdgewrightError, *, close: bool = False) -> Response:
    status = 400
    if isinstance(error, Unavailable):
        status = 503
    for kind, code in ((Foreign, 403), (NotFound, 404), (NotAllowed, 405)):
        if isinstance(error, kind):
            status = code
    return told(status, {"error": str(error)}, close=close)
