"""Any bytes end in a ContractError, or in a message that is written and read again as itself.

Inputs are random bytes and mutations of the golden messages: bit flips, cuts, splices of two messages, repeats, and
MessagePack trees with a value replaced. EDGEWRIGHT_FUZZ=N draws N new examples for each test instead of the
same few.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewright_contracts import baseline, binning, birth, desired, event, manifest, report, topics
from edgewright_contracts.codec import REPORT_BYTES
from edgewright_contracts.errors import ContractError
from edgewright_contracts.packing import plain
from sim.reports import encode_report

N = int(os.environ.get("EDGEWRIGHT_FUZZ", "0"))
FUZZ = settings(
    max_examples=N or 200,
    derandomize=not N,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

GOLDEN = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "golden" / "v1").iterdir())}
SEEDS = sorted(GOLDEN.values(), key=lambda data: (len(data), data))

# name → decoder, encoder, ends of the golden files that it reads
DECODERS: dict[str, tuple[Callable[[bytes], msgspec.Struct], Callable[..., bytes], tuple[str, ...]]] = {
    "manifest": (manifest.decode_manifest, manifest.encode_manifest, (".manifest.json",)),
    "baseline": (baseline.decode_baseline, baseline.encode_baseline, (".baseline.msgpack",)),
    "report": (report.decode_report, encode_report, (".report.msgpack", ".report.packed", ".report.zlib")),
    "window": (report.decode_window, report.encode_window, (".window.msgpack",)),
    "birth": (birth.decode_birth, birth.encode, ("birth.json",)),
    "status": (birth.decode_status, birth.encode, ("status.json",)),
    "desired": (desired.decode_desired, desired.encode, ("desired.json",)),
    "command": (desired.decode_command, desired.encode, ("command.json",)),
    "ack": (desired.decode_ack, desired.encode_ack, ("ack.msgpack",)),
    "event": (event.decode_event, event.encode_event, ("event.json",)),
}


def seeds(name: str) -> list[bytes]:
    return [data for file, data in GOLDEN.items() if file.endswith(DECODERS[name][2])]


def must_hold(name: str, data: bytes) -> bool:
    """Whether `data` was taken. Any exception but a ContractError that names the message fails the test."""
    decode, encode, _ = DECODERS[name]
    try:
        message = decode(data)
    except ContractError as error:
        refusal = error
    else:
        again = encode(message)
        assert decode(again) == message
        assert encode(decode(again)) == again
        return True
    assert refusal.field == name or refusal.field.startswith((f"{name}.", f"{name}["))
    assert refusal.expected
    assert refusal.got
    return False


NUMBERS = [
    b"\xcb\x7f\xf8" + bytes(6),
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xc0",
    b"\xc3",
    b"\xff",
    b"\x80",
]
SIZES = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xa1\xff",
    b"\xc7\x01\x05x",
    b"\x00",
]
WORDS = [
    b"\xff",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"1.5",
    b"9" * 30,
    b'"\\ud800"',
    b"[",
    b"{",
    b"}",
    b'"',
    b",",
    b"\\u0000",
]
PIECES = st.one_of(st.binary(max_size=12), st.sampled_from([*NUMBERS, *SIZES, *WORDS]))


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    data = bytearray(draw(st.sampled_from(seeds(name))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        to = min(len(data), at + draw(st.integers(0, 8)))
        action = draw(st.sampled_from(["flip", "cut", "put", "insert", "splice", "repeat", "drop"]))
        if action == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut":
            del data[at:]
        elif action == "put":
            data[at:to] = draw(PIECES)
        elif action == "insert":
            data[at:at] = draw(PIECES)
        elif action == "splice":
            other = draw(st.sampled_from(SEEDS))
            start = draw(st.integers(0, len(other) - 1))
            data[at:to] = other[start : start + draw(st.integers(1, 64))]
        elif action == "repeat":
            data[at:at] = data[at:to] * draw(st.integers(1, 40))
        else:
            del data[at:to]
    return bytes(data)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 1, 2**40, 2**40 + 1, 2**53, 2**53 + 1]),
    st.floats(),
    st.text(max_size=70),
    st.binary(max_size=70),
)
TREES = st.recursive(
    LEAVES,
    lambda t: st.one_of(st.lists(t, max_size=4), st.dictionaries(st.text(max_size=4), t, max_size=4)),
    max_leaves=8,
)


def near(value: object) -> st.SearchStrategy[object]:
    """Another value of the same type, which a decoder may well take."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(0, max(1, value))
    return st.just(value)


@st.composite
def regrown(draw: st.DrawFn, name: str) -> bytes:
    """A golden message, well-formed, with one or two values somewhere in its tree replaced, dropped or added."""
    data = draw(st.sampled_from(seeds(name)))
    text = data[:1] == b"{"
    data = data if text else plain(data, name=name, limit=REPORT_BYTES)
    tree = json.loads(data) if text else msgspec.msgpack.decode(data)
    for _ in range(draw(st.integers(1, 2))):
        at = tree
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.booleans()):
                at = at[key]
                continue
            action = draw(st.sampled_from(["replace", "drop", "add"]))
            if action == "replace":
                at[key] = draw(st.one_of(TREES, near(at[key])))
            elif action == "drop":
                del at[key]
            elif isinstance(at, list):
                at.insert(key, draw(TREES))
            else:
                at[draw(st.text(max_size=4))] = draw(TREES)
            break
    if text:
        return json.dumps(tree, default=list, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return msgspec.msgpack.encode(tree)


@pytest.mark.parametrize("name", DECODERS)
def test_random_bytes(name: str) -> None:
    @FUZZ
    @given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(zlib.compress)))
    def check(data: bytes) -> None:
        must_hold(name, data)

    check()


@pytest.mark.parametrize("name", DECODERS)
def test_mutations_of_golden_messages(name: str) -> None:
    @FUZZ
    @given(mutated(name))
    def check(data: bytes) -> None:
        must_hold(name, data)

    check()


@pytest.mark.parametrize("name", DECODERS)
def test_well_formed_messages_with_other_values(name: str) -> None:
    taken = []

    @FUZZ
    @given(regrown(name))
    def check(data: bytes) -> None:
        taken.append(must_hold(name, data))

    check()
    assert any(taken)  # else the mutations only scratch the surface
    assert not all(taken)


@pytest.mark.parametrize("name", DECODERS)
def test_every_flip_of_one_bit_of_a_golden_message(name: str) -> None:
    """All of them in a small message; a fixed stride through a large one."""
    data = bytearray(min(seeds(name), key=len))
    stride = 1 if N else max(1, len(data) * 8 // 1000)
    for bit in range(0, len(data) * 8, stride):
        data[bit // 8] ^= 1 << bit % 8
        must_hold(name, bytes(data))
        data[bit // 8] ^= 1 << bit % 8


@FUZZ
@given(st.binary(max_size=80), st.text(max_size=60))
def test_the_small_decoders(data: bytes, text: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: binning.unpack(data),
        lambda: binning.unpack_grid(data),
        lambda: binning.add(data, data[::-1]),
        lambda: binning.add_grid(data, data[::-1]),
        lambda: topics.parse(text),
        lambda: topics.topic(text, "report"),
    ]
    for call in calls:
        try:
            call()
        except ContractError:
            continue
    topics.allowed(text, text, publish=False)
