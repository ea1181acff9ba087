"""The hub's JSON API from the command line: one connection, one token, and errors that say what to do."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import click
import urllib3
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from edgewright_contracts.errors import EdgewrightError, Refused, RequestError, Unavailable

F = TypeVar("F", bound=Callable[..., Any])

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
PATIENCE_S: Final = 20.0  # for an answer
_DATA_HELP: Final = "Data directory of a hub on this machine, instead of the three above."


class HubClient:
    """`url` as https://host:port; `ca` the hub's CA file, so that nothing but that hub is believed."""

    def __init__(self, url: str, *, ca: Path | None = None, token: str = "") -> None:
        if ca is not None and not (ca.is_file() and b"-----BEGIN CERTIFICATE" in ca.read_bytes()):
            said = "it is none" if ca.is_file() else "there is no such file"
            raise RequestError(f"--ca: expected the hub's CA certificate (ca.pem in its data directory), {ca}: {said}")
        if not _is_address(url):
            raise RequestError(f"--hub expects https://HOST[:PORT], got {url!r}: a token never travels in the clear")
        self._url = url.rstrip("/")
        self._http = urllib3.PoolManager(ca_certs=str(ca) if ca else None, retries=False)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def post(self, path: str, body: object = None, *, patience_s: float = PATIENCE_S, late: str = "") -> Any:
        """`late`: what may have happened, and how to find out, when there is no answer in time."""
        return self._call("POST", path, _json(body or {}), patience_s=patience_s, late=late)

    def post_bytes(self, path: str, body: bytes) -> Any:
        return self._call("POST", path, body, "application/octet-stream")

    def get_bytes(self, path: str) -> bytes:
        return self._bytes("GET", path, None, "")

    def put(self, path: str, body: object) -> Any:
        return self._call("PUT", path, _json(body))

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path, None)

    def _call(
        self, method: str, path: str, body: bytes | None, kind: str = "application/json",
        *, patience_s: float = PATIENCE_S, late: str = "",
    ) -> Any:  # fmt: skip
        try:
            return json.loads(self._bytes(method, path, body, kind, patience_s=patience_s, late=late))
        except ValueError:
            raise Unavailable(f"{method} {path}: expected JSON from {self._url}, got something else") from None

    def _bytes(
        self, method: str, path: str, body: bytes | None, kind: str,
        *, patience_s: float = PATIENCE_S, late: str = "",
    ) -> bytes:  # fmt: skip
        headers = {**self._headers, "Content-Type": kind} if body else self._headers
        timeout = urllib3.Timeout(connect=min(PATIENCE_S, patience_s), read=patience_s)
        try:
            answer = self._http.request(method, self._url + path, body=body, headers=headers, timeout=timeout)
        except urllib3.exceptions.ReadTimeoutError:
            late = late or ("" if method == "GET" else "it may still do what it was told; look before you repeat it")
            raise Unavailable(
                f"no answer from the hub at {self._url} within {patience_s:g} s{late and ': '}{late}"
            ) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(
                f"no answer from the hub at {self._url}: {error}; is it running, and is this its CA?"
            ) from None
        if answer.status < 400:
            return answer.data
        raise _failure(answer.status, answer.data, f"{method} {path}")


def _json(body: object) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError:
        raise RequestError("expected finite numbers, got one that is infinite or none (nan)") from None


def _is_address(url: str) -> bool:
    try:
        found = parse_url(url)
    except LocationParseError:  # as a port beyond 65535
        return False
    return found.scheme == "https" and bool(found.host)


def path(*names: str, **asked: Any) -> str:
    """`/api/v1/NAME/NAME?KEY=VALUE` of names and values as a person typed them, whatever characters they hold; a list
    stands for a key more than once. Raises RequestError for an empty name."""
    if not all(names):
        raise RequestError("expected a name or an id, got an empty one: is a variable of a script not set?")
    place = "/".join(map(_segment, names))
    return f"/api/v1/{place}{'?' if asked else ''}{urlencode(asked, doseq=True, errors='replace')}"


def _segment(name: str) -> str:
    # Nothing but dots is a step up the path, and `quote` leaves dots as they are.
    return "%2E" * len(name) if name in (".", "..") else quote(name, safe="", errors="replace")


def with_hub(command: F) -> F:
    """Gives the command a HubClient and --json."""

    @click.option("--hub", "url", metavar="URL", help="https://HOST:PORT of the hub.")
    @click.option("--ca", type=_FILE, help="The hub's CA certificate (ca.pem).")
    @click.option("--token-file", type=_FILE, help="File with a token of the hub.")
    @click.option("--data", type=_FOLDER, default=Path("hub-data"), show_default=True, help=_DATA_HELP)
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, url: str | None, ca: Path | None, token_file: Path | None, data: Path, **kwargs: Any
    ) -> Any:
        return command(_client(url, ca, token_file, data), *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def _client(url: str | None, ca: Path | None, token_file: Path | None, data: Path) -> HubClient:
    if url is None:
        place = data / "hub.json"
        if not place.is_file():
            raise RequestError(
                f"no hub is named and none runs on {data} ({place} is absent). "
                "Name one with --hub URL --ca FILE --token-file FILE, or a running one's directory with --data"
            )
        try:
            url = str(json.loads(place.read_bytes())["https"])
        except (ValueError, KeyError, TypeError):
            raise RequestError(
                f"{place}: expected the addresses of a hub, got something else; start the hub again"
            ) from None
        ca, token_file = ca or data / "ca.pem", token_file or data / "admin.token"
    return HubClient(url, ca=ca, token=read_token(token_file))


def read_token(file: Path | None) -> str:
    """The token in `file`, without its newline; the empty string for None."""
    if file is None:
        return ""
    try:
        token = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--token-file: expected a file that holds a token of the hub, {file}: {error}") from None
    if not token or token.split() != [token]:
        raise RequestError(f"--token-file: expected one token of the hub in {file}, got {len(token.split())} words")
    return token


def _failure(status: int, data: bytes, what: str) -> EdgewrightError:
    try:
        message = str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        message = data[:300].decode(errors="replace") or f"status {status}"
    if status >= 500:
        return Unavailable(f"{what}: {message} (status {status})")
    if status in (401, 403):
        return RequestError(f"{what}: {message}; name a file with a token of the right role by --token-file")
    return Refused(message) if status in (409, 422) else RequestError(message)
