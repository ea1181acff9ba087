"""Golden vectors hold an application to the preprocessing that a package was made with."""

from __future__ import annotations

import io

import numpy as np
import pytest

from edgewright_contracts.errors import ContractError, Refused
from edgewright_contracts.manifest import Manifest, TensorIn, decode_manifest
from edgewright_runtime.golden import Golden, check, read_golden
from sim.releases import manifest_of

RAW = np.arange(60, dtype=np.int16).reshape(5, 12)


def archive(**arrays) -> bytes:
    out = io.BytesIO()
    np.savez(out, **{name.replace("_", ":"): array for name, array in arrays.items()})
    return out.getvalue()


def manifest(*inputs: TensorIn) -> Manifest:
    return decode_manifest(manifest_of(preprocess="host", inputs=inputs or (X,)))


X = TensorIn(name="x", dtype="float32", shape=(12,))


def loud(raw):
    return raw.astype(np.float32) / 3


def test_the_transform_that_made_them_passes_sample_by_sample():
    golden = read_golden(archive(raw_sound=RAW, tensor_x=loud(RAW)), manifest())
    seen = []

    def one(raw):
        seen.append(raw.shape)
        return loud(raw)

    check(golden, one)
    assert seen == [(1, 12)] * 5
    assert golden.name == "x"


def test_fractions_may_differ_by_a_rounding_and_by_no_more():
    golden = Golden("x", RAW, loud(RAW))
    check(golden, lambda raw: loud(raw) + np.float32(1e-6))
    with pytest.raises(Refused, match=r"x: sample 0: expected 0 at \[0\], got 0.0099999\d+; 5 of 5 samples differ"):
        check(golden, lambda raw: loud(raw) + np.float32(1e-2))
    late = np.where(RAW == 45, 9, RAW)
    with pytest.raises(Refused, match=r"x: sample 3: expected 15 at \[9\], got 3; 1 of 5 samples differ"):
        check(Golden("x", late, loud(RAW)), loud)


def test_whole_numbers_must_be_the_same():
    golden = Golden("ids", RAW, RAW.astype(np.int32))
    with pytest.raises(Refused, match=r"ids: sample 0: expected 7 at \[7\], got 8"):
        check(golden, lambda raw: np.where(raw == 7, 8, raw).astype(np.int32))


def test_what_is_no_number_must_be_none_there_too():
    tensor = np.array([[np.nan, np.inf, 1]], np.float32)
    golden = Golden("x", np.zeros((1, 1)), tensor)
    check(golden, lambda _: tensor.copy())
    with pytest.raises(Refused, match=r"expected inf at \[1\], got -inf"):
        check(golden, lambda _: np.array([[np.nan, -np.inf, 1]], np.float32))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda raw: loud(raw)[:, :4], r"expected float32\[1, 12\], got float32\[1, 4\]"),
        (lambda raw: loud(raw).astype(np.float64), r"expected float32\[1, 12\], got float64\[1, 12\]"),
        (lambda raw: loud(raw).tolist(), r"expected an array float32\[1, 12\], got list"),
    ],
)
def test_another_shape_dtype_or_kind_is_refused(transform, message):
    with pytest.raises(Refused, match=message):
        check(Golden("x", RAW, loud(RAW)), transform)


@pytest.mark.parametrize(
    "data",
    [
        archive(tensor_x=loud(RAW)),
        archive(raw_sound=RAW),
        archive(raw_sound=RAW, raw_more=RAW, tensor_x=loud(RAW)),
        archive(raw_sound=RAW, tensor_y=loud(RAW)),
        archive(raw_sound=RAW, tensor_x=RAW),
        archive(raw_sound=RAW, tensor_x=loud(RAW)[:, :4]),
        archive(raw_sound=RAW[:3], tensor_x=loud(RAW)),
        archive(raw_sound=RAW[:0], tensor_x=loud(RAW)[:0]),
        archive(raw_sound=RAW[0, 0], tensor_x=loud(RAW)),
    ],
)
def test_vectors_of_something_else_than_the_packages_input_are_no_contract(data):
    with pytest.raises(
        ContractError, match=r"golden.npz: expected one array raw:… and of its rows tensor:x float32\[12"
    ):
        read_golden(data, manifest())


def test_a_package_of_two_inputs_has_no_vectors_and_junk_is_no_archive():
    with pytest.raises(ContractError, match="and no other input"):
        read_golden(archive(raw_sound=RAW, tensor_x=loud(RAW)), manifest(X, TensorIn(name="z", dtype="int8", shape=())))
    for junk in (b"", b"PK nothing", archive(raw_sound=np.array([{}]))):
        with pytest.raises(ContractError, match="an npz archive without pickles"):
            read_golden(junk, manifest())
