"""Publishing: blobs first, then the owner's signed list, so that a hub never lists what it does not hold.

Every step may be repeated: a blob that is there is not sent again, a version that is signed with the same digest is
done already. The owner's own list is saved only after the hub took it; if the answer is lost, the next publish finds
the newer list on the hub, sees that it bears the owner's signature, and goes on from there. A hub that was restored
from a backup is behind: it is given the owner's list again, and names the packages whose files it lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from edgewright_contracts.errors import ContractError, Refused, RequestError, Unavailable
from edgewright_contracts.package import Package, read_package

from .keys import Owner, keep_targets, load_owner, next_targets, signed_digest, verified_targets


@dataclass(frozen=True, slots=True)
class Published:
    name: str
    version: str
    digest: str
    targets_version: int
    sent: int  # blobs that the hub did not have
    bytes_sent: int
    already: bool  # the hub listed this digest before


def publish(
    package_path: Path,
    hub_url: str,
    keys_dir: Path,
    token: str,
    ca: Path | None,
    *,
    now: datetime,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    candidate: bool = False,
) -> Published:
    """Verify, upload, sign and list one package. `progress` gets (blobs done, blobs in all); a `candidate` waits on the
    hub for an operator's approval.

    Raises RequestError or ContractError (package, keys, URL), Refused (the hub or immutability says no), Unavailable.
    """
    package = read_package(package_path)
    package.verify()
    owner = load_owner(keys_dir)
    hub = Hub(hub_url, token, ca)
    served = hub.targets_version()
    owner = _newest(owner, hub, served)
    manifest = package.manifest
    version = owner.targets.signed.version
    listed = signed_digest(owner.targets, manifest.name, manifest.version) == package.digest
    if listed and served >= version:
        return Published(manifest.name, manifest.version, package.digest, version, 0, 0, already=True)
    if listed:
        body = (keys_dir / "targets.json").read_bytes()
    else:
        body = next_targets(owner, package, now=now)  # before any upload: a version that may not be is refused here
        version += 1

    blobs = _blobs(package)
    sent = bytes_sent = 0
    for done, (digest, file) in enumerate(blobs):
        progress(done, len(blobs))
        if not hub.has_blob(digest):
            data = package.manifest_bytes if file is None else package.read(file)
            hub.put_blob(digest, data)
            sent += 1
            bytes_sent += len(data)
    hub.post_targets(body, candidate=candidate)
    keep_targets(keys_dir, body)
    progress(len(blobs), len(blobs))
    return Published(manifest.name, manifest.version, package.digest, version, sent, bytes_sent, already=False)


class Hub:
    """The few requests of publishing. Every failure is one of ours: Refused 4xx, Unavailable 5xx or no answer."""

    def __init__(self, url: str, token: str, ca: Path | None) -> None:
        try:
            parts = urlsplit(url)
            _ = parts.port  # beyond 65535 it is none
        except ValueError as error:
            raise RequestError(f"--hub expects https://HOST[:PORT], got {url!r}: {error}") from None
        local = parts.hostname in {"127.0.0.1", "localhost", "::1"}
        if not parts.hostname or parts.scheme not in {"https", "http"} or (parts.scheme == "http" and not local):
            raise RequestError(f"--hub expects https://HOST[:PORT], got {url!r}: a token never travels in the clear")
        if ca is not None and not ca.is_file():
            raise RequestError(f"no CA file at {ca}: expected the hub's ca.pem (it lies in the hub's data directory)")
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token.strip()}"}
        self._http = urllib3.PoolManager(
            ca_certs=str(ca) if ca else None,
            cert_reqs="CERT_REQUIRED",
            timeout=urllib3.Timeout(connect=10, read=60),
            retries=urllib3.Retry(2, backoff_factor=0.2, redirect=0),
        )

    def has_blob(self, digest: str) -> bool:
        return self._ask("HEAD", f"/repo/blobs/{digest}", accept=(200, 404)).status == 200

    def put_blob(self, digest: str, data: bytes) -> None:
        self._ask("PUT", f"/api/v1/blobs/{digest}", data, accept=(200, 201))

    def post_targets(self, data: bytes, *, candidate: bool) -> None:
        self._ask("POST", f"/api/v1/targets{'?candidate=true' if candidate else ''}", data, accept=(200,))

    def targets_version(self) -> int:
        """The version of the list that the hub serves now; it proves nothing, so it only says where to look."""
        try:
            timestamp = json.loads(self.metadata("timestamp.json"))
            snapshot = json.loads(
                self.metadata(f"{int(timestamp['signed']['meta']['snapshot.json']['version'])}.snapshot.json")
            )
            return int(snapshot["signed"]["meta"]["targets.json"]["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise ContractError(
                "timestamp.json", "TUF metadata of the hub", str(error) or type(error).__name__
            ) from None

    def metadata(self, name: str) -> bytes:
        return bytes(self._ask("GET", f"/repo/metadata/{name}", accept=(200,)).data)

    def _ask(
        self, method: str, path: str, body: bytes | None = None, *, accept: tuple[int, ...]
    ) -> urllib3.BaseHTTPResponse:
        try:
            answer = self._http.request(method, self._url + path, body=body, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise Unavailable(
                f"no answer from the hub at {self._url}: {reason}; is it running, and is --ca its own?"
            ) from None
        if answer.status in accept:
            return answer
        said = _said(answer.data)
        if answer.status in {401, 403}:
            raise RequestError(f"the hub refused the token ({said}): expected one with the role publisher or admin")
        if answer.status == 409:
            raise Refused(f"the hub has a newer list than the one that was sent ({said}): publish again")
        if 400 <= answer.status < 500:
            raise Refused(f"the hub refused {method} {path}: {said}")
        raise Unavailable(f"the hub failed at {method} {path} ({answer.status}): {said}; try again")


def _newest(owner: Owner, hub: Hub, served: int) -> Owner:
    """The owner with whichever list is newer, its own or the hub's; the hub's counts only if our key signed it."""
    if served <= owner.targets.signed.version:
        return owner
    data = hub.metadata(f"{served}.targets.json")
    targets = verified_targets(owner.root, data)
    if targets.signed.version != served:
        raise ContractError("targets.json", f"version {served}, as its name says", str(targets.signed.version))
    keep_targets(owner.directory, data)
    return replace(owner, targets=targets)


def _blobs(package: Package) -> list[tuple[str, str | None]]:
    """(sha256, file) of all files, each content once, the manifest last (None)."""
    files: dict[str, str | None] = {}
    for file, ref in sorted(package.manifest.files.items()):
        files.setdefault(ref.sha256, file)
    files[hashlib.sha256(package.manifest_bytes).hexdigest()] = None
    return list(files.items())


def _said(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode("utf-8", "replace").strip() or "no reason given"
