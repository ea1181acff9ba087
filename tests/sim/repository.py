"""A TUF repository of an owner and a hub in one, written to a folder and served over plain HTTP on loopback.

    repo = Repository(folder); repo.publish(package); with repo.served() as url: ...

`requests` are kept; `break_after` cuts the next blob after so many bytes; `down` answers 503; what ends in `endless` is
served without an end.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edgewright_contracts.manifest import target_path
from edgewright_contracts.package import Package

ROLES = ("root", "targets", "snapshot", "timestamp")


class Repository:
    def __init__(self, folder: Path, now: datetime | None = None) -> None:
        self.folder, self.now = folder, now or datetime.now(UTC).replace(microsecond=0)
        for sub in ("metadata", "targets", "blobs"):
            (folder / sub).mkdir(parents=True)
        self.signers = {role: CryptoSigner.generate_ed25519() for role in ROLES}
        self.metadata = {
            "root": Metadata(Root(version=1, expires=self._in(365), consistent_snapshot=True)),
            "targets": Metadata(Targets(version=1, expires=self._in(365))),
            "snapshot": Metadata(Snapshot(version=1, expires=self._in(7))),
            "timestamp": Metadata(Timestamp(version=1, expires=self._in(3))),
        }
        for role in ROLES:
            self.metadata["root"].signed.add_key(self.signers[role].public_key, role)
        self.requests: list[tuple[str, str]] = []  # path, Range
        self.break_after: int | None = None
        self.down = False
        self.endless: str | None = None
        self.write("root")
        self.release()

    @property
    def root(self) -> bytes:
        return (self.folder / "metadata" / "1.root.json").read_bytes()

    def publish(self, package: Package) -> None:
        """Sign a package's manifest and offer its files."""
        path = target_path(package.manifest.name, package.manifest.version)
        target = TargetFile.from_data(path, package.manifest_bytes, ["sha256"])
        self.metadata["targets"].signed.targets[path] = target
        file = self.folder / "targets" / Path(path).parent / f"{package.digest}.manifest.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(package.manifest_bytes)
        for name, ref in package.manifest.files.items():
            (self.folder / "blobs" / ref.sha256).write_bytes((package.root / name).read_bytes())
        self.release()

    def withdraw(self, package: Package) -> None:
        del self.metadata["targets"].signed.targets[target_path(package.manifest.name, package.manifest.version)]
        self.release()

    def release(self) -> None:
        """New targets, snapshot and timestamp, each one version up."""
        targets, snapshot, timestamp = (self.metadata[r].signed for r in ROLES[1:])
        targets.version += 1
        snapshot.version += 1
        timestamp.version += 1
        snapshot.meta = {"targets.json": MetaFile(targets.version)}
        timestamp.snapshot_meta = MetaFile(snapshot.version)
        for role in ROLES[1:]:
            self.write(role)

    def write(self, role: str, signer: CryptoSigner | None = None) -> None:
        """Sign a role's metadata as it is now and put it up."""
        document = self.metadata[role]
        document.sign(signer or self.signers[role])
        name = "timestamp.json" if role == "timestamp" else f"{document.signed.version}.{role}.json"
        document.to_file(str(self.folder / "metadata" / name))

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        repository = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                repository.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that hangs up in the middle is what some tests are about."""

        server = Server(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range", "")
        self.requests.append((request.path, wanted))
        file = self.folder / request.path.lstrip("/")
        if self.down or not file.is_file():
            request.send_error(503 if self.down else 404)
            return
        data = file.read_bytes()
        if self.endless is not None and request.path.endswith(self.endless):
            request.send_response(200)
            request.end_headers()
            while True:  # until the client hangs up
                request.wfile.write(data)
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        if request.headers.get("If-Range", tag) != tag:
            wanted = ""
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(data) > 0:
            request.send_error(416)
            return
        request.send_response(206 if wanted else 200)
        request.send_header("Content-Length", str(len(data) - start))
        request.send_header("ETag", tag)
        if wanted:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        body = data[start:]
        if self.break_after is not None and "/blobs/" in request.path and len(body) > self.break_after:
            request.wfile.write(body[: self.break_after])
            self.break_after = None
            request.close_connection = True
            return
        request.wfile.write(body)

    def _in(self, days: float) -> datetime:
        return self.now + timedelta(days=days)
