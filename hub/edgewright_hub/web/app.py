"""The hub's two web applications, assembled from their parts.

`device_app` (TLS) is what devices, publishers and the command line talk to: enrolment, repository, API. `page_app`
(plain HTTP, loopback only) is what the operator's browser on this machine sees: the page, live events, and the API,
where reading needs no token. The page app answers only requests that name it by a loopback address, so that a web
site cannot read it through the operator's browser under a name of its own.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgewright_contracts.errors import EdgewrightError, Refused, RequestError

from ..accuracy.imports import FILE_BYTES as LABELS_BYTES
from ..registry.registry import TARGETS_BYTES, Conflict
from ..registry.repository import BLOB_BYTES
from ..rollouts.records import NotFound
from ..storage.store import away
from . import (
    accuracy,
    alerting,
    api,
    devices,
    drift,
    metrics,
    packages,
    pages,
    renewal,
    rollouts,
    samples,
    sampling,
    websocket,
)
from .api import Hub

BODY_BYTES: Final = 256 * 1024
RETRY: Final = {"Retry-After": "5"}
RECORD_BYTES: Final = 2048
_LIMITS: Final = (
    ("/api/v1/blobs/", BLOB_BYTES),
    ("/api/v1/targets", TARGETS_BYTES),
    ("/api/v1/labels", LABELS_BYTES),
    ("/api/v1/fleet/expected", devices.LIST_BYTES),
)
# The first that fits.
_STATUS: Final[tuple[tuple[type[EdgewrightError], int], ...]] = (
    (NotFound, 404),
    (Conflict, 409),
    (Refused, 422),
    (RequestError, 400),
    (EdgewrightError, 503),
)


_LOG = logging.getLogger(__name__)


def device_app(hub: Hub, mqtt: websocket.Connected | None = None) -> FastAPI:
    """With `mqtt`, an embedded broker, it speaks MQTT over WebSocket too."""
    app = _app(hub)
    app.include_router(api.enrol_router)
    app.include_router(renewal.router)
    app.include_router(samples.router)
    if mqtt is not None:
        app.router.routes.append(websocket.route(mqtt))
    _answer(app)
    app.mount("/repo", RepositoryFiles(directory=hub.registry.folder))
    return app


def page_app(hub: Hub) -> FastAPI:
    app = _app(hub)
    _answer(app)
    app.include_router(pages.router)
    for kind, answer in _ANSWERS:
        app.add_exception_handler(kind, pages.read_by_people(answer))
    app.mount("/static", pages.static)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    return app


def _answer(app: FastAPI) -> None:
    """The API. A name in a path may hold a slash, which nothing has, so that it is answered in words; what has more
    behind the name therefore comes before what has not: `sampling` before `devices`."""
    for one in (api, drift, sampling, devices, packages, accuracy, alerting, metrics, rollouts):
        app.include_router(one.router)


def _app(hub: Hub) -> FastAPI:
    # No /docs: that page would load its scripts from the internet. /openapi.json describes everything.
    app = FastAPI(title="Edgewright hub", docs_url=None, redoc_url=None)
    app.state.hub = hub
    app.include_router(api.health_router)
    for kind, answer in _ANSWERS:
        app.add_exception_handler(kind, answer)
    app.add_middleware(Bounded)
    return app


def _error(status: int, message: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


async def _expected(_: Request, error: Exception) -> Response:
    return _error(next(status for kind, status in _STATUS if isinstance(error, kind)), str(error))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = str(error.detail)
    if said in ("Not Found", "Method Not Allowed"):  # Starlette's own words for what no route takes
        said = f"nothing here answers {request.method} {request.scope['path'][:200]}; /openapi.json lists what does"
    return _error(error.status_code, said, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = [f"{'.'.join(str(p) for p in one['loc'][1:]) or one['loc'][0]}: {one['msg']}" for one in error.errors()[:5]]
    return _error(400, "; ".join(said))


async def _database(_: Request, error: Exception) -> Response:
    if not away(error):
        _LOG.error("a request failed", exc_info=error)
        return await _unexpected(_, error)
    return _error(503, "the hub's database cannot be reached at present; try again in a few seconds", RETRY)


async def _unexpected(_: Request, error: Exception) -> Response:
    return _error(503, f"the hub failed ({type(error).__name__}); its log says more")


_ANSWERS: Final = (
    (EdgewrightError, _expected),
    (HTTPException, _http),
    (RequestValidationError, _invalid),
    (SQLAlchemyError, _database),
    (Exception, _unexpected),
)


class Bounded:
    """Refuses a request body that is larger than its path allows, by its header or while it comes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = next((size for prefix, size in _LIMITS if scope["path"].startswith(prefix)), BODY_BYTES)
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared) > limit:
            answer = _error(413, f"expected a body of at most {limit} bytes, got {declared.decode('latin-1')[:20]}")
            await answer(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413, f"expected a body of at most {limit} bytes")
            return message

        await self._app(scope, counted, send)


class RepositoryFiles(StaticFiles):
    """The static TUF repository: Range, ETag and 304 come from StaticFiles. All names but two contain a hash or a
    version, so what they name never changes.

    Bodies go out in pieces of `RECORD_BYTES`, of which TLS makes a record each. A device can use a record only once it
    is whole: on a link that breaks every 10 kB, records of 16 kB (what TLS makes of a large piece) would never come
    through. Small ones cost 1 % more bytes.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def in_records(message: Message) -> None:
            body = message.get("body", b"")
            last = max(0, len(body) - 1) // RECORD_BYTES * RECORD_BYTES
            for at in range(0, last, RECORD_BYTES):
                await send({**message, "body": body[at : at + RECORD_BYTES], "more_body": True})
            await send({**message, "body": body[last:]} if last else message)

        await super().__call__(scope, receive, in_records)

    def file_response(self, full_path: Any, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(full_path, *args, **kwargs)
        fixed = not str(full_path).endswith("/timestamp.json")
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if fixed else "no-cache"
        return response

    async def get_response(self, path: str, scope: Scope) -> Response:
        if any(part.startswith(".") for part in path.split("/")) or path.endswith(".part"):
            raise HTTPException(404)  # what is being written
        return await super().get_response(path, scope)
