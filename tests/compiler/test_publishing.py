"""Keys and publishing: what the owner signs is what a TUF client accepts, and a version never changes."""

from __future__ import annotations

import hashlib
import json
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from edgewright_compiler.keys import init_keys, keep_targets, load_owner, next_targets, verified_targets
from edgewright_compiler.publish import publish
from edgewright_contracts.errors import Refused, RequestError, Unavailable
from edgewright_contracts.manifest import FileRef, Manifest, Provenance, TensorIn, TensorOut, Variant, encode_manifest
from edgewright_contracts.package import MANIFEST, Package, read_package

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
VARIANT = Variant(id="onnx-fp32", format="onnx", precision="fp32")


def package(root: Path, version: str = "1.0.0", body: bytes = b"model") -> Package:
    files = {VARIANT.model: body, VARIANT.baseline: b"baseline", VARIANT.selftest: b"selftest", "card.md": b"baseline"}
    manifest = Manifest(
        requires_agent="0.1",
        name="digits",
        version=version,
        task="classification",
        inputs=(TensorIn(name="x", dtype="uint8", shape=(8, 8)),),
        outputs=(TensorOut(name="probabilities", role="probabilities", shape=(10,)),),
        variants=(VARIANT,),
        ranking={"*/onnxruntime": ("onnx-fp32",)},
        provenance=Provenance(recipe="digits", data="0" * 64, code="1" * 64, seed=1),
        files={name: FileRef(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()},
    )
    for name, data in {**files, MANIFEST: encode_manifest(manifest)}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return read_package(root)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    init_keys(tmp_path / "keys", now=NOW)
    return tmp_path / "keys"


class StubHub:
    """The hub's side of the seam: static metadata, blobs, a newer list or 409."""

    def __init__(self, keys: Path) -> None:
        self.root = (keys / "hub" / "1.root.json").read_bytes()
        self.targets = (keys / "hub" / "1.targets.json").read_bytes()
        self.blobs: dict[str, bytes] = {}
        self.lose_answer = False
        self.token = "secret"
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def answer(self, status: int, data: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def body(self) -> bytes:
                return self.rfile.read(int(self.headers["Content-Length"]))

            def do_HEAD(self) -> None:
                self.answer(200 if self.path.rsplit("/", 1)[1] in hub.blobs else 404)

            def do_GET(self) -> None:
                version = hub.version()
                table = {
                    "timestamp.json": json.dumps({"signed": {"meta": {"snapshot.json": {"version": 9}}}}).encode(),
                    "9.snapshot.json": json.dumps(
                        {"signed": {"meta": {"targets.json": {"version": version}}}}
                    ).encode(),
                    f"{version}.targets.json": hub.targets,
                }
                name = self.path.rsplit("/", 1)[1]
                self.answer(200, table[name]) if name in table else self.answer(404)

            def do_PUT(self) -> None:
                data = self.body()
                digest = self.path.rsplit("/", 1)[1]
                assert hashlib.sha256(data).hexdigest() == digest
                hub.blobs[digest] = data
                self.answer(201)

            def do_POST(self) -> None:
                data = self.body()
                if self.headers["Authorization"] != f"Bearer {hub.token}":
                    return self.answer(401, b'{"error": "unknown token"}')
                new = verified_targets(Metadata.from_bytes(hub.root), data)
                if new.signed.version <= hub.version():
                    return self.answer(409, b'{"error": "not newer"}')
                missing = [p for p, t in new.signed.targets.items() if t.hashes["sha256"] not in hub.blobs]
                if missing:
                    return self.answer(422, json.dumps({"error": f"{missing[0]}: put it first"}).encode())
                hub.targets = data
                if hub.lose_answer:
                    hub.lose_answer = False
                    return self.answer(503, b'{"error": "lost"}')
                return self.answer(200)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def version(self) -> int:
        return int(json.loads(self.targets)["signed"]["version"])


@pytest.fixture
def hub(keys: Path) -> Iterator[StubHub]:
    stub = StubHub(keys)
    thread = threading.Thread(target=stub.server.serve_forever, args=(0.01,))
    thread.start()
    yield stub
    stub.server.shutdown()
    thread.join()
    stub.server.server_close()


def test_new_keys_are_secret_and_give_the_hub_only_what_it_needs(keys: Path) -> None:
    names = {p.relative_to(keys).as_posix() for p in keys.rglob("*") if p.is_file()}
    hub = {"hub/1.root.json", "hub/1.targets.json", "hub/snapshot.pem", "hub/timestamp.pem"}
    assert names == hub | {"root.pem", "targets.pem", "targets.json"}
    assert all(stat.S_IMODE((keys / n).stat().st_mode) == 0o600 for n in names if n.endswith(".pem"))
    root = Metadata.from_bytes((keys / "hub/1.root.json").read_bytes())
    root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    assert root.signed.expires == NOW + timedelta(days=365)
    assert root.signed.consistent_snapshot


def test_keys_are_never_overwritten(keys: Path) -> None:
    before = (keys / "root.pem").read_bytes()
    with pytest.raises(RequestError, match="never overwritten"):
        init_keys(keys, now=NOW)
    assert (keys / "root.pem").read_bytes() == before


def test_missing_or_mixed_keys_are_a_wrong_request(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="keys init"):
        load_owner(tmp_path / "nothing")
    init_keys(tmp_path / "other", now=NOW)
    for name in ("targets.pem", "targets.json"):
        good = (keys / name).read_bytes()
        (keys / name).write_bytes((tmp_path / "other" / name).read_bytes())
        with pytest.raises(RequestError, match="do not fit together"):
            load_owner(keys)
        (keys / name).write_bytes(b"rubbish")
        with pytest.raises(RequestError, match="do not fit together"):
            load_owner(keys)
        (keys / name).write_bytes(good)
    load_owner(keys)


def test_a_release_is_the_next_version_with_the_manifest_as_its_target(keys: Path, tmp_path: Path) -> None:
    one = package(tmp_path / "p")
    data = next_targets(load_owner(keys), one, now=NOW)
    assert data == next_targets(load_owner(keys), one, now=NOW)
    signed = verified_targets(load_owner(keys).root, data).signed
    target = signed.targets["packages/digits/1.0.0/manifest.json"]
    assert (signed.version, target.length, target.hashes) == (2, len(one.manifest_bytes), {"sha256": one.digest})
    assert signed.expires == NOW + timedelta(days=365)
    target.verify_length_and_hashes(one.manifest_bytes)


def test_a_version_never_changes(keys: Path, tmp_path: Path) -> None:
    keep_targets(keys, next_targets(load_owner(keys), package(tmp_path / "p"), now=NOW))
    with pytest.raises(Refused, match="never changes"):
        next_targets(load_owner(keys), package(tmp_path / "q", body=b"other"), now=NOW)
    data = next_targets(load_owner(keys), package(tmp_path / "r", version="1.0.1", body=b"other"), now=NOW)
    assert len(verified_targets(load_owner(keys).root, data).signed.targets) == 2


def test_a_signature_of_another_owner_is_refused(keys: Path, tmp_path: Path) -> None:
    init_keys(tmp_path / "thief", now=NOW)
    data = next_targets(load_owner(tmp_path / "thief"), package(tmp_path / "p"), now=NOW)
    with pytest.raises(Refused, match="does not bear the signature"):
        verified_targets(load_owner(keys).root, data)


def test_publishing_sends_each_content_once_and_lists_it_last(hub: StubHub, keys: Path, tmp_path: Path) -> None:
    one = package(tmp_path / "p")
    done = publish(one.root, hub.url, keys, "secret\n", None, now=NOW)
    assert (done.targets_version, done.sent, done.already) == (2, 4, False)  # card.md and baseline are equal
    assert set(hub.blobs) == {r.sha256 for r in one.manifest.files.values()} | {one.digest}
    again = publish(one.root, hub.url, keys, "secret", None, now=NOW)
    assert (again.already, again.sent, hub.version()) == (True, 0, 2)
    two = publish(package(tmp_path / "q", "1.1.0", b"other").root, hub.url, keys, "secret", None, now=NOW)
    assert (two.sent, two.targets_version) == (2, 3)


def test_a_lost_answer_costs_nothing(hub: StubHub, keys: Path, tmp_path: Path) -> None:
    one = package(tmp_path / "p")
    hub.lose_answer = True
    with pytest.raises(Unavailable, match="lost"):
        publish(one.root, hub.url, keys, "secret", None, now=NOW)
    assert publish(one.root, hub.url, keys, "secret", None, now=NOW).already
    assert load_owner(keys).targets.signed.version == 2


def test_a_newer_list_on_the_hub_counts_only_with_our_signature(hub: StubHub, keys: Path, tmp_path: Path) -> None:
    init_keys(tmp_path / "thief", now=NOW)
    hub.targets = next_targets(load_owner(tmp_path / "thief"), package(tmp_path / "p"), now=NOW)
    with pytest.raises(Refused, match="does not bear the signature"):
        publish(tmp_path / "p", hub.url, keys, "secret", None, now=NOW)
    assert load_owner(keys).targets.signed.version == 1


def test_refusals_of_the_hub_are_told_and_nothing_is_kept(hub: StubHub, keys: Path, tmp_path: Path) -> None:
    one = package(tmp_path / "p")
    with pytest.raises(RequestError, match="token"):
        publish(one.root, hub.url, keys, "wrong", None, now=NOW)
    assert load_owner(keys).targets.signed.version == 1


def test_a_restored_hub_is_given_the_owners_list_again(hub: StubHub, keys: Path, tmp_path: Path) -> None:
    one, two = package(tmp_path / "p"), package(tmp_path / "q", "1.1.0", b"other")
    first = hub.targets
    for each in (one, two):
        publish(each.root, hub.url, keys, "secret", None, now=NOW)
    hub.targets = first  # a backup from before both
    hub.blobs.clear()
    with pytest.raises(Refused, match=r"1\.1\.0.*put it first"):
        publish(one.root, hub.url, keys, "secret", None, now=NOW)
    done = publish(two.root, hub.url, keys, "secret", None, now=NOW)
    assert (done.already, done.targets_version, hub.version()) == (False, 3, 3)
    assert publish(one.root, hub.url, keys, "secret", None, now=NOW).already


def test_wrong_addresses_and_absent_files_are_named(keys: Path, tmp_path: Path) -> None:
    path = package(tmp_path / "p").root
    with pytest.raises(RequestError, match="in the clear"):
        publish(path, "http://hub.example", keys, "secret", None, now=NOW)
    for url in ("https://[::1", "https://hub.example:99999"):
        with pytest.raises(RequestError, match="--hub expects https://HOST"):
            publish(path, url, keys, "secret", None, now=NOW)
    with pytest.raises(RequestError, match="no CA file"):
        publish(path, "https://127.0.0.1:1", keys, "secret", tmp_path / "ca.pem", now=NOW)
    with pytest.raises(Unavailable, match="no answer"):
        publish(path, "http://127.0.0.1:1", keys, "secret", None, now=NOW)
    with pytest.raises(RequestError, match="no package"):
        publish(tmp_path / "none", "http://127.0.0.1:1", keys, "secret", None, now=NOW)
