"""Open Inference Protocol v2 (REST) and its binary tensor extension: bytes to samples, predictions to bytes. Pure.

Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md; extension:
github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md. A body is a JSON object; behind it,
when the header Inference-Header-Content-Length gives the object's own bytes, lie the binary tensors in the order of the
inputs, little-endian, row-major. Nothing is converted silently: 1.5 is no UINT8, "5" and true are no numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np

from edgewright_contracts.errors import RequestError, Unavailable
from edgewright_contracts.manifest import MAX_ELEMENTS, Manifest, TensorIn, TensorOut, Variant
from edgewright_runtime.runtime import Array

from .http import Response, told

JSON_LENGTH: Final = "Inference-Header-Content-Length"
DTYPES: Final = {
    "BOOL": "bool", "UINT8": "uint8", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32",
}  # fmt: skip
UNDECLARED: Final = {"UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "FP64": "float64"}
FITS: Final[dict[str, set[type]]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}  # kind → types in JSON
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}

ROWS: Final = 64  # samples in one request
HEAD_BYTES: Final = 64 << 10  # of JSON around the numbers
NUMBER_BYTES: Final = 26  # of one number as JSON
JSON_BYTES: Final = 8 << 20  # it takes up to ten times as much memory when it is parsed
BODY_BYTES: Final = 64 << 20


class Asked(NamedTuple):
    """One request: `rows` samples, each a mapping of inputs without a batch."""

    id: str | None
    context: str
    age_ms: float | None  # of the input, when it came; None: not said
    rows: list[dict[str, Array]]
    outputs: tuple[tuple[str, bool], ...] | None  # (name, in binary); None: all
    binary: bool  # of outputs that do not say


def bound(manifest: Manifest) -> int:
    """Bytes that the largest sensible request of this model has."""
    elements = sum(prod(t.shape) for t in manifest.inputs)
    return min(BODY_BYTES, HEAD_BYTES + ROWS * elements * NUMBER_BYTES)


def parse(body: bytes, json_length: str | None, manifest: Manifest, variant: Variant) -> Asked:
    """Raises RequestError. That a tensor is not what the manifest declares is for `Model.predict` to refuse."""
    size = _json_size(body, json_length)
    document = loads(body[:size])
    parameters = _parameters(document)
    shapes = {t.name: t.shape for t in manifest.inputs}
    tensors: dict[str, Array] = {}
    rest = memoryview(body)[size:]
    for given in _list(document, "inputs"):
        name, x, taken = _tensor(given, rest, binary=json_length is not None)
        rest = rest[taken:]
        if name not in shapes:
            raise RequestError(f"expected inputs among {', '.join(shapes)}, got {name[:80]!r}")
        if name in tensors:
            raise RequestError(f"expected each input once, got {name[:80]!r} twice")
        tensors[name] = x
    if rest:
        raise RequestError(f"expected the binary_data_size of all inputs to add up to the body, got {len(rest)} more")
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise RequestError(f"expected a string 'id', got {type(identifier).__name__}")
    context = parameters.get("context", "")
    if not isinstance(context, str):
        raise RequestError(f"expected a string 'context', got {type(context).__name__}")
    age_ms = parameters.get("age_ms")
    if age_ms is not None and (type(age_ms) not in (int, float) or not 0 <= age_ms < 1e12):
        raise RequestError(f"expected age_ms, milliseconds since the input was taken, from 0, got {str(age_ms)[:40]!r}")
    binary = _flag(parameters, "binary_data_output", False)
    outputs = _selected(document, manifest.outputs, binary)
    return Asked(identifier, context, age_ms, _rows(tensors, shapes, many=variant.batch == 0), outputs, binary)


def loads(data: bytes) -> dict[str, Any]:
    """A JSON object. NaN is taken, as tritonclient writes it: the model's checks count it. Raises RequestError."""
    if len(data) > JSON_BYTES:
        raise RequestError(f"expected at most {JSON_BYTES} bytes of JSON, got {len(data)}; send binary tensors")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"expected a JSON object, got what does not parse: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise RequestError(f"expected a JSON object, got {type(document).__name__}")
    return document


def answer(
    name: str, version: str, asked: Asked, found: Sequence[Mapping[str, Array]], parameters: Mapping[str, str]
) -> Response:
    """`found` are the outputs of one sample each."""
    wanted = asked.outputs if asked.outputs is not None else tuple((key, asked.binary) for key in found[0])
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for key, binary in wanted:
        y = np.stack([one[key] for one in found])
        said = {"name": key, "datatype": NAMES[y.dtype.name], "shape": list(y.shape)}
        if binary:
            blobs.append(_little(y).tobytes())
            outputs.append({**said, "parameters": {"binary_data_size": len(blobs[-1])}})
        elif not np.isfinite(y).all():
            raise Unavailable(f"output {key!r} has numbers that JSON cannot carry (NaN or infinite); ask for it binary")
        else:
            outputs.append({**said, "data": y.reshape(-1).tolist()})
    body: dict[str, Any] = {"model_name": name, "model_version": version}
    if asked.id is not None:
        body["id"] = asked.id
    body |= {"parameters": dict(parameters), "outputs": outputs}
    if not blobs:
        return told(200, body)
    head = json.dumps(body).encode()
    headers = (("Content-Type", "application/octet-stream"), (JSON_LENGTH, str(len(head))))
    return Response(200, head + b"".join(blobs), headers)


def described(tensors: Sequence[TensorIn | TensorOut], variant: Variant) -> list[dict[str, Any]]:
    """Tensors as model metadata names them: -1 is a batch of any size."""
    batch = -1 if variant.batch == 0 else 1
    return [{"name": t.name, "datatype": NAMES[t.dtype], "shape": [batch, *t.shape]} for t in tensors]


def _json_size(body: bytes, said: str | None) -> int:
    if said is None:
        return len(body)
    if not (said.isascii() and said.isdigit() and len(said) < 12) or int(said) > len(body):
        raise RequestError(f"expected {JSON_LENGTH} to be at most the body's {len(body)} bytes, got {said[:20]!r}")
    return int(said)


def _tensor(given: Any, rest: memoryview, *, binary: bool) -> tuple[str, Array, int]:
    """(name, array, bytes taken of `rest`). Raises RequestError."""
    if not isinstance(given, dict):
        raise RequestError(f"expected an object for each input, got {type(given).__name__}")
    name, datatype = given.get("name"), given.get("datatype")
    if not isinstance(name, str):
        raise RequestError(f"expected a string 'name' of an input, got {type(name).__name__}")
    where = f"input {name[:80]!r}"
    shape = _shape(given.get("shape"), where)
    dtype = np.dtype(_numpy_name(datatype, where))
    size = _parameters(given).get("binary_data_size")
    if size is None:
        return name, _from_json(given.get("data"), dtype, shape, where), 0
    if not binary:
        raise RequestError(f"{where}: expected the header {JSON_LENGTH} beside binary_data_size, got none")
    if "data" in given:
        raise RequestError(f"{where}: expected data or binary_data_size, got both")
    need = prod(shape) * dtype.itemsize
    if size is True or size is False or size != need:
        raise RequestError(f"{where}: expected binary_data_size {need} for {datatype} of {list(shape)}, got {size!r}")
    if need > len(rest):
        raise RequestError(f"{where}: expected {need} bytes behind the JSON, got {len(rest)}")
    return name, _from_bytes(rest[:need], dtype, shape, where), need


def _numpy_name(datatype: object, where: str) -> str:
    if datatype == "BYTES":
        raise RequestError(f"{where}: expected numbers, got BYTES; text goes as the UINT8 that the model declares")
    known = {**DTYPES, **UNDECLARED}
    if not isinstance(datatype, str) or datatype not in known:
        raise RequestError(f"{where}: expected a datatype among {', '.join(DTYPES)}, got {str(datatype)[:40]!r}")
    return known[datatype]


def _shape(given: object, where: str) -> tuple[int, ...]:
    shape = tuple(given) if isinstance(given, list) else (None,)
    whole = [n for n in shape if type(n) is int and 0 <= n <= MAX_ELEMENTS]
    if len(whole) != len(shape) or len(whole) > 9 or prod(whole) > MAX_ELEMENTS:
        raise RequestError(f"{where}: expected a shape of at most 9 numbers from 0, got {str(given)[:80]}")
    return tuple(whole)


def _from_json(data: object, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Array:
    """Flat or nested evenly; every number must fit the datatype without a change. Raises RequestError."""
    if not isinstance(data, list):
        raise RequestError(f"{where}: expected a list 'data', got {type(data).__name__}")
    try:
        # As objects first: numpy would make room for the longest of strings in every place.
        flat = np.asarray(data, object).reshape(-1).tolist() if data and isinstance(data[0], list) else data
        if strange := set(map(type, flat)) - FITS[dtype.kind]:
            raise RequestError(f"{where}: expected numbers of {dtype}, got {min(t.__name__ for t in strange)}")
        if len(flat) != prod(shape):
            raise RequestError(f"{where}: expected {prod(shape)} numbers for shape {list(shape)}, got {len(flat)}")
        if flat and dtype.kind in "iu" and (min(flat) < np.iinfo(dtype).min or max(flat) > np.iinfo(dtype).max):
            raise RequestError(f"{where}: expected numbers that {dtype} holds, got others")
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and the model's range judges it
            return np.array(flat, np.float64 if dtype.kind == "f" else dtype).astype(dtype, copy=False).reshape(shape)
    except (ValueError, OverflowError, RecursionError) as error:
        raise RequestError(f"{where}: expected numbers, flat or nested evenly, got {str(error)[:120]}") from None


def _from_bytes(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Array:
    """A copy, for a runtime wants its tensors aligned. Raises RequestError."""
    if dtype.kind == "b" and data and np.frombuffer(data, np.uint8).max() > 1:
        raise RequestError(f"{where}: expected bytes of 0 and 1 for BOOL, got others")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _rows(tensors: dict[str, Array], shapes: Mapping[str, tuple[int, ...]], *, many: bool) -> list[dict[str, Array]]:
    """Samples of inputs that all have the same batch in front. Where there is none, or inputs differ in it, the tensors
    are one sample as they came, and the model's checks say what is wrong with it. Raises RequestError."""
    batches = {len(x) if x.ndim and x.shape[1:] == shapes[name] else None for name, x in tensors.items()}
    n = batches.pop() if len(batches) == 1 else None
    if n == 0 or (n is not None and n > ROWS and many):
        raise RequestError(f"expected 1 to {ROWS} samples in a request, got {n}")
    if n == 1 or (n is not None and many):
        return [{name: x[i] for name, x in tensors.items()} for i in range(n)]
    return [tensors]


def _selected(
    document: dict[str, Any], outputs: Sequence[TensorOut], binary: bool
) -> tuple[tuple[str, bool], ...] | None:
    if document.get("outputs") is None:
        return None
    known = [t.name for t in outputs]
    found: dict[str, bool] = {}
    for one in _list(document, "outputs"):
        name = one.get("name") if isinstance(one, dict) else one
        if not isinstance(name, str) or name not in known:
            raise RequestError(f"expected outputs among {', '.join(known)}, got {str(name)[:80]!r}")
        parameters = _parameters(one) if isinstance(one, dict) else {}
        if "classification" in parameters:
            raise RequestError(f"output {name!r}: expected no classification, which this server does not do")
        found[name] = _flag(parameters, "binary_data", binary)
    return tuple(found.items()) or None


def _flag(parameters: Mapping[str, Any], key: str, otherwise: bool) -> bool:
    value = parameters.get(key, otherwise)
    if not isinstance(value, bool):
        raise RequestError(f"expected true or false for {key}, got {str(value)[:40]!r}")
    return value


def _parameters(document: Mapping[str, Any]) -> dict[str, Any]:
    found = document.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise RequestError(f"expected an object 'parameters', got {type(found).__name__}")
    return found or {}


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    found = document.get(key)
    if not isinstance(found, list):
        raise RequestError(f"expected a list {key!r}, got {type(found).__name__}")
    return found


def _little(y: Array) -> Array:
    return y if sys.byteorder == "little" else y.astype(y.dtype.newbyteorder("<"))
