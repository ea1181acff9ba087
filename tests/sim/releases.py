"""The smallest packages that a registry takes, and the owner's lists that release them. Nothing in them runs."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, TargetFile, Targets  # type: ignore[attr-defined]

from edgewright_compiler.keys import load_owner
from edgewright_contracts import manifest as m


def files_of(version: str) -> dict[str, bytes]:
    variant = m.Variant(id="onnx-fp32", format="onnx", precision="fp32")
    return {
        variant.model: b"model " + version.encode() * 100,
        variant.baseline: b"baseline",
        variant.selftest: b"selftest",
        "card.md": b"# card",
    }


def manifest_of(version: str = "1.0.0", *, name: str = "digits", **changes: Any) -> bytes:
    base: dict[str, Any] = {
        "requires_agent": "0.1.0",
        "name": name,
        "version": version,
        "task": "regression",
        "inputs": (m.TensorIn(name="x", dtype="float32", shape=(4,)),),
        "outputs": (m.TensorOut(name="y", role="values", shape=(1,)),),
        "variants": (m.Variant(id="onnx-fp32", format="onnx", precision="fp32"),),
        "ranking": {"*/onnxruntime": ("onnx-fp32",)},
        "provenance": m.Provenance(recipe="tests", data="0" * 64, code="0" * 64, seed=0),
        "files": {k: m.FileRef(hashlib.sha256(v).hexdigest(), len(v)) for k, v in files_of(version).items()},
    }
    return m.encode_manifest(m.Manifest(**{**base, **changes}))


def targets_of(
    owner: Path, version: int, *manifests: bytes, expires: timedelta = timedelta(days=365), paths: tuple[str, ...] = ()
) -> bytes:
    """The owner's list with exactly these packages, signed."""
    listed = {}
    for number, body in enumerate(manifests):
        one = m.decode_manifest(body)
        path = paths[number] if paths else m.target_path(one.name, one.version)
        listed[path] = TargetFile.from_data(path, body, ["sha256"])
    now = datetime.now(UTC).replace(microsecond=0)
    content = Metadata(Targets(version=version, expires=now + expires, targets=listed))
    content.sign(load_owner(owner).signer)
    return bytes(content.to_bytes())
