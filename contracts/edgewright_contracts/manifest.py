"""`manifest.json`: the one file that names, bounds and hashes all others of a package.

The package's name for everybody is `digest(bytes) = sha256(manifest.json)`; so the bytes are kept as they came and
never encoded again. Unknown fields are accepted: a newer compiler may say more, `requires_agent` says what it needs.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Final, Literal

import msgspec

from .codec import Name, Sha256, Text, Version, decode, encode
from .errors import ContractError

MANIFEST_BYTES: Final = 256 * 1024
SCHEMA: Final = 1
MAX_ELEMENTS: Final = 2**31  # of one sample of a tensor: what a device makes of a shape has a bound

Task = Literal["classification", "multilabel", "detection", "regression", "anomaly", "embedding"]
Role = Literal["probabilities", "score", "boxes", "classes", "values", "embedding", "monitor"]
Dtype = Literal["float32", "float16", "uint8", "int8", "int16", "int32", "int64", "bool"]
Format = Literal["onnx", "tflite"]
VariantId = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,31}\Z")]
FilePath = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,63}){0,3}\Z")]
Platform = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_*]{1,32}/[a-z0-9-]{1,32}\Z")]
Context = Annotated[str, msgspec.Meta(max_length=64)]
Dimension = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Ranked = Annotated[tuple[VariantId, ...], msgspec.Meta(max_length=16)]


class FileRef(msgspec.Struct, frozen=True):
    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class TensorIn(msgspec.Struct, frozen=True, kw_only=True):
    """`shape` is of one sample, without the batch. Values outside `valid` are rejected before inference."""

    name: Text
    dtype: Dtype
    shape: Annotated[tuple[Dimension, ...], msgspec.Meta(max_length=8)]
    valid: tuple[float, float] | None = None
    unit: Text = ""


class TensorOut(msgspec.Struct, frozen=True, kw_only=True):
    name: Text
    role: Role
    dtype: Dtype = "float32"
    shape: Annotated[tuple[Dimension, ...], msgspec.Meta(max_length=8)]


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a device loads and runs a variant. A small model is best left at the defaults; of the weights of a large one
    `mmap` keeps no private copy, so that the kernel may drop and read them again."""

    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # of one run; never more than the device has cores
    arena: bool = True  # onnxruntime: keep the memory of a run for the next one
    prepack: bool = True  # onnxruntime: a copy of the weights in the order that the CPU reads them in
    mmap: bool = False  # onnxruntime: weights in a file of their own, mapped, which rules prepacking out


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    id: VariantId
    format: Format
    precision: Literal["fp32", "fp16", "int8", "mixed"]
    batch: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0  # 0: any; TFLite: 1
    session: SessionOptions | msgspec.UnsetType = msgspec.UNSET  # unset: a manifest from before has the same bytes

    @property
    def options(self) -> SessionOptions:
        return SessionOptions() if isinstance(self.session, msgspec.UnsetType) else self.session

    @property
    def model(self) -> str:
        return f"variants/{self.id}/model.{self.format}"

    @property
    def baseline(self) -> str:
        return f"variants/{self.id}/baseline.msgpack"

    @property
    def selftest(self) -> str:
        return f"variants/{self.id}/selftest.npz"


class Budgets(msgspec.Struct, frozen=True, kw_only=True):
    """What the package asks of a device; None is no bound. Checked there by the self-test and during probation.

    `p95_ms` is of one inference; `rss_mb` is what loading and running the file adds to a process; `load_s` of a load.
    """

    p95_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    rss_mb: Annotated[float, msgspec.Meta(gt=0)] | None = None
    load_s: Annotated[float, msgspec.Meta(gt=0)] | None = None

    def __post_init__(self) -> None:
        for name in ("p95_ms", "rss_mb", "load_s"):
            bound = getattr(self, name)
            if bound is not None and not math.isfinite(bound):  # JSON would turn it into null: no bound at all
                raise ContractError(f"budgets.{name}", "a finite number", repr(bound))


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    recipe: Text
    data: Sha256
    code: Sha256
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32)]
    tools: Annotated[dict[str, str], msgspec.Meta(max_length=32)] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    schema: Annotated[int, msgspec.Meta(ge=1, le=SCHEMA)] = SCHEMA
    requires_agent: Version
    name: Name
    version: Version
    task: Task
    inputs: Annotated[tuple[TensorIn, ...], msgspec.Meta(min_length=1, max_length=16)]
    outputs: Annotated[tuple[TensorOut, ...], msgspec.Meta(min_length=1, max_length=16)]
    labels: Annotated[tuple[Text, ...], msgspec.Meta(max_length=4096)] = ()
    contexts: Annotated[tuple[Context, ...], msgspec.Meta(max_length=8)] = ()  # strata that windows may name
    preprocess: Literal["graph", "host"] = "graph"
    variants: Annotated[tuple[Variant, ...], msgspec.Meta(min_length=1, max_length=16)]
    # "<arch>/<runtime>", "*" for any arch → variant ids, best first
    ranking: Annotated[dict[Platform, Ranked], msgspec.Meta(min_length=1, max_length=32)]
    budgets: Budgets = Budgets()
    provenance: Provenance
    files: Annotated[dict[FilePath, FileRef], msgspec.Meta(min_length=1, max_length=128)]

    def __post_init__(self) -> None:
        ids = [v.id for v in self.variants]
        if len(set(ids)) != len(ids):
            raise ContractError("variants", "distinct ids", ", ".join(ids))
        for place, ranked in self.ranking.items():
            for one in ranked:
                if one not in ids:
                    raise ContractError(f"ranking[{place}]", f"one of {', '.join(ids)}", one)
        for variant in self.variants:
            for path in (variant.model, variant.baseline, variant.selftest):
                if path not in self.files:
                    raise ContractError("files", f"an entry for {path}", "none")
        for tensor in self.inputs:
            if tensor.valid is not None and not -math.inf < tensor.valid[0] <= tensor.valid[1] < math.inf:
                raise ContractError("inputs.valid", "a finite range from low to high", repr(tensor.valid))
        for field, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [t.name for t in tensors]
            if len(set(names)) != len(names):
                raise ContractError(field, "distinct names", ", ".join(names))
            for shape in (t.shape for t in tensors):
                if (elements := math.prod(shape)) > MAX_ELEMENTS:
                    raise ContractError(f"{field}.shape", f"at most {MAX_ELEMENTS} elements", str(elements))

    def variant(self, identifier: str) -> Variant:
        for one in self.variants:
            if one.id == identifier:
                return one
        raise ContractError("variant", f"one of {', '.join(v.id for v in self.variants)}", identifier)

    def ranked(self, arch: str, runtimes: tuple[str, ...]) -> list[tuple[Variant, str]]:
        """(variant, runtime) pairs that this device can run, best first: by the device's own order of runtimes."""
        found: list[tuple[Variant, str]] = []
        for runtime in runtimes:
            ids = self.ranking.get(f"{arch}/{runtime}") or self.ranking.get(f"*/{runtime}") or ()
            found += [(self.variant(one), runtime) for one in ids]
        return found


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON: fields in their order here, keys of maps sorted, no spaces; equal manifests give equal bytes.

    Raises ContractError.
    """
    return encode(manifest, name="manifest", limit=MANIFEST_BYTES, wire="json")


def decode_manifest(data: bytes) -> Manifest:
    """Raises ContractError."""
    return decode(Manifest, data, name="manifest", limit=MANIFEST_BYTES, wire="json")


def digest(manifest_bytes: bytes) -> str:
    return hashlib.sha256(manifest_bytes).hexdigest()


def target_path(name: str, version: str) -> str:
    """The TUF target of one version: immutable, one per version."""
    return f"packages/{name}/{version}/manifest.json"
