"""Hostile bytes end in a ContractError that names the message or its field, soon and in little memory."""

from __future__ import annotations

import json
import time
import tracemalloc
import zlib
from collections.abc import Callable

import msgspec
import pytest

from edgewright_contracts import baseline, birth, desired, event, manifest, report
from edgewright_contracts.errors import ContractError
from edgewright_contracts.topics import RULES

Decoder = Callable[[bytes], object]

JSON: dict[str, tuple[Decoder, str]] = {
    "manifest": (manifest.decode_manifest, "anomaly.manifest.json"),
    "birth": (birth.decode_birth, "birth.json"),
    "status": (birth.decode_status, "status.json"),
    "desired": (desired.decode_desired, "desired.json"),
    "command": (desired.decode_command, "command.json"),
    "event": (event.decode_event, "event.json"),
}
MSGPACK: dict[str, tuple[Decoder, str]] = {
    "baseline": (baseline.decode_baseline, "anomaly.baseline.msgpack"),
    "report": (report.decode_report, "anomaly.report.msgpack"),
    "window": (report.decode_window, "anomaly.window.msgpack"),
    "ack": (desired.decode_ack, "ack.msgpack"),
}
EVERY = {**JSON, **MSGPACK}


def refused(decode: Decoder, data: bytes) -> ContractError:
    with pytest.raises(ContractError) as caught:
        decode(data)
    assert len(str(caught.value)) < 4000  # a message goes to a log
    return caught.value


@pytest.mark.parametrize("name", EVERY)
def test_nothing_garbage_or_the_wrong_message_is_refused(name: str, golden: dict[str, bytes]) -> None:
    decode = EVERY[name][0]
    others = [golden[file] for other, (_, file) in EVERY.items() if other != name]
    for data in (
        b"",
        b"\x00",
        b"null",
        b"[]",
        b"{}",
        b"\xc0",
        b"\x80",
        b"\x90",
        b"\xff" * 100,
        b"\xef\xbb\xbf{}",
        *others,
    ):
        assert refused(decode, data).field.startswith(name)


@pytest.mark.parametrize("name", EVERY)
def test_every_truncation_and_every_byte_behind_the_end_is_refused(name: str, golden: dict[str, bytes]) -> None:
    decode, file = EVERY[name]
    data = golden[file]
    for end in range(len(data)):
        assert refused(decode, data[:end]).field.startswith(name)
    tails = (b"\x00", b"\xc0", data) if name in MSGPACK else (b"\x00", b"x", b"{}", data)
    for tail in tails:
        assert refused(decode, data + tail).field == name


@pytest.mark.parametrize("name", EVERY)
def test_a_message_beyond_its_limit_is_refused_before_it_is_read(name: str) -> None:
    limits = {"manifest": manifest.MANIFEST_BYTES, "baseline": baseline.BASELINE_BYTES, "window": report.WINDOW_BYTES}
    limit = limits.get(name) or RULES[name].limit  # type: ignore[index]
    data = bytes(limit + 1)
    started = time.process_time()
    error = refused(EVERY[name][0], data)
    assert time.process_time() - started < 0.1
    assert error.field == name
    assert error.expected == f"at most {limit} bytes"


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize(
    "value",
    [
        b"[" * 8000,
        b"[" * 400 + b"]" * 400 + b"x",
        b'{"a":' * 2000,
        b"NaN",
        b"Infinity",
        b'"\\ud800"x',
        b'"\xff"x',
        b"'x'",
        b"01",
        b"+1",
        b"1_0",
    ],
)
def test_hostile_json_in_a_field_that_nobody_knows_is_refused(
    name: str, value: bytes, golden: dict[str, bytes]
) -> None:
    decode, file = JSON[name]
    assert refused(decode, golden[file][:-1] + b',"unknown":' + value + b"}").field == name


@pytest.mark.parametrize("name", JSON)
def test_a_key_given_twice_is_refused_at_any_depth(name: str, golden: dict[str, bytes]) -> None:
    decode, file = JSON[name]
    data = golden[file]
    first = data[1 : data.index(b":")]
    value = json.dumps(json.loads(data)[json.loads(first)]).encode()
    error = refused(decode, data[:-1] + b"," + first + b":" + value + b"}")
    assert error.expected == "each key once in a map"
    assert refused(decode, data[:-1] + b',"x":[{"y":{"z":1,"\\u007a":2}}]}').got == "'z' twice"


def test_a_key_given_twice_in_messagepack_is_refused(golden: dict[str, bytes]) -> None:
    data = golden["anomaly.report.msgpack"]
    twice = data.replace(b"\xa7timeout", b"\xa7runtime")
    assert twice != data
    assert refused(report.decode_report, twice).got == "'runtime' twice"
    longer = data.replace(b"\xa7timeout", b"\xd9\x07runtime")  # the same key in another form
    assert refused(report.decode_report, longer).got == "'runtime' twice"
    data = golden["anomaly.baseline.msgpack"]
    assert data[0] == 0x85
    assert refused(baseline.decode_baseline, b"\x86" + data[1:] + b"\xa1n\x05").got == "'n' twice"
    assert baseline.decode_baseline(b"\x86" + data[1:] + b"\xa1m\x05").n == 4500


def test_the_walk_for_repeated_keys_understands_every_form(golden: dict[str, bytes]) -> None:
    """A field of tomorrow may hold anything that MessagePack has; only a repeated key in it is an error."""
    forms: list[bytes] = [
        b"\x05\xe0\xc0\xc2\xc3\xca1234\xcb12345678\xcc1\xcd12\xce1234\xcf12345678\xd01\xd112\xd21234\xd312345678",
        b"\xd4\x05x\xd5\x05xx\xd6\x05xxxx\xd7\x05xxxxxxxx\xd8\x05xxxxxxxxxxxxxxxx",
        b"\xc4\x01x\xc5\x00\x01x\xc6\x00\x00\x00\x01x\xc7\x02\x05xx\xc8\x00\x02\x05xx\xc9\x00\x00\x00\x02\x05xx",
        b"\xa1x\xd9\x01x\xda\x00\x01x\xdb\x00\x00\x00\x01x",
        b"\x90\x91\x01\xdc\x00\x02\x01\x02\xdd\x00\x00\x00\x01\x01",
        b"\x80\x81\xa1x\x01\xde\x00\x01\xa1x\x81\xa1x\x01\xdf\x00\x00\x00\x02\xa1x\x01\xa1y\xa1x",
    ]
    counts = (15, 5, 6, 4, 4, 4)
    head = golden["anomaly.report.msgpack"]
    assert head[0] == 0x94
    grown = b"\x95" + head[1:]
    inner = b"\xdc" + sum(counts).to_bytes(2, "big") + b"".join(forms)
    msgspec.msgpack.decode(inner, ext_hook=lambda code, data: data)  # the forms are what they are meant to be
    assert report.decode_report(grown + inner) == report.decode_report(head)
    for spoiled in (b"\x82\xa1x\x01\xa1x\x02", b"\x82\xa1x\x01\xd9\x01x\x02", b"\x91\x81\xa1a\x82\xa1x\x01\xa1x\x01"):
        assert refused(report.decode_report, grown + spoiled).got == "'x' twice"
        after = grown + b"\xdc" + (sum(counts) + 1).to_bytes(2, "big") + b"".join(forms) + spoiled
        assert refused(report.decode_report, after).got == "'x' twice"


@pytest.mark.parametrize(
    "value",
    [-1, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), True, None, 1.0, 1.5, float("nan"), float("inf"), "1", b"1", [1], {}],
)
def test_only_a_whole_number_in_range_is_a_high_water(value: object) -> None:
    error = refused(desired.decode_ack, msgspec.msgpack.encode(["0" * 16, value, 0]))
    assert error.field == "ack.high_water"


@pytest.mark.parametrize(
    "number", ["-1", "9007199254740993", "9" * 25, "9" * 3000, "true", "null", "1.0", "1e3", "1e999", '"1"', "-0.5"]
)
def test_only_a_whole_number_in_range_is_a_time(number: str, golden: dict[str, bytes]) -> None:
    data = golden["command.json"].replace(b"1767229200000", number.encode())
    assert refused(desired.decode_command, data).field == "command.expires_at"


def test_a_number_of_sixty_thousand_digits_costs_no_time(golden: dict[str, bytes]) -> None:
    digits = b"9" * 60_000
    started = time.process_time()
    refused(desired.decode_desired, golden["desired.json"].replace(b'"rev":42', b'"rev":' + digits))
    refused(desired.decode_desired, golden["desired.json"].replace(b'"window_s":600.0', b'"window_s":' + digits))
    known = desired.decode_desired(golden["desired.json"][:-1] + b',"unknown":' + digits + b"}")
    assert known == desired.decode_desired(golden["desired.json"])
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "edges",
    [
        [0.0, float("nan")],
        [float("-inf"), 0.0],
        [0.0, 1e39],
        [0.0, 0.1],
        [-0.0, 0.0],
        [1.0, 0.0],
        [0.0],
        [0.0, "1"],
        [0.0, None],
        [0.0, True],
        list(map(float, range(12))),
    ],
)
def test_edges_that_are_no_rising_float32_are_refused(edges: list[object], golden: dict[str, bytes]) -> None:
    tree = msgspec.msgpack.decode(golden["anomaly.baseline.msgpack"])
    tree["channels"][0]["edges"] = edges
    field = refused(baseline.decode_baseline, msgspec.msgpack.encode(tree)).field
    assert field.startswith("baseline.channels[")
    assert ".edges" in field


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("edge_hash",), "0" * 16, "baseline.edge_hash"),
        (("counts",), b"\x80", "baseline.counts"),
        (("counts",), b"\x80\x00", "baseline.counts"),
        (("counts",), b"", "baseline.counts"),
        (("counts",), b"\xff" * 60_000, "baseline.counts"),
        (("channels",), [], "baseline.channels"),
        (("n",), 2**40 + 1, "baseline.n"),
        (("v",), 2, "baseline.v"),
        (("channels", 0, "kind"), "guess", "baseline.channels[0].kind"),
        (("channels", 0, "name"), "A B", "baseline.channels[0].name"),
        (("channels", 0, "source", "threshold"), float("nan"), "baseline.threshold"),
        (("channels", 0, "source", "column"), -1, "baseline.channels[0].source.column"),
        (("channels", 0, "source", "tensor"), "x" * 1025, "baseline.channels[0].source.tensor"),
        (("channels", 0, "values"), [2**40], "baseline.channels[0].values[0]"),
        (("channels", 1, "name"), "mean", "baseline.channels"),
    ],
)
def test_a_broken_baseline_is_refused_by_name(
    path: tuple[str | int, ...], value: object, field: str, golden: dict[str, bytes]
) -> None:
    tree = msgspec.msgpack.decode(golden["anomaly.baseline.msgpack"])
    at = tree
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    assert refused(baseline.decode_baseline, msgspec.msgpack.encode(tree)).field == field


def test_too_few_elements_are_refused_and_more_are_of_tomorrow(golden: dict[str, bytes]) -> None:
    fields = msgspec.msgpack.decode(golden["anomaly.report.msgpack"])
    for length in range(len(fields)):
        assert refused(report.decode_report, msgspec.msgpack.encode(fields[:length])).field == "report"
    window = fields[-1]
    for length in range(11):
        short = [*fields[:-1], window[:length]]
        assert refused(report.decode_report, msgspec.msgpack.encode(short)).field == "report.window"
    more = [*fields[:-1], [*window, 1, None], "more"]
    assert report.decode_report(msgspec.msgpack.encode(more)) == report.decode_report(golden["anomaly.report.msgpack"])


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\x91" * 60_000,
        b"\x81\xa1x" * 20_000,
    ],
)
@pytest.mark.parametrize("name", MSGPACK)
def test_a_promise_of_gigabytes_or_of_depth_costs_nothing(name: str, data: bytes, golden: dict[str, bytes]) -> None:
    decode, file = MSGPACK[name]
    head = golden[file]
    grown = bytes([head[0] + 1]) + head[1:] if head[0] < 0xA0 else head
    behind = grown + (b"\xa1z" if name == "baseline" else b"") + data  # as the value of a field that nobody knows
    tracemalloc.start()
    try:
        started = time.process_time()
        assert refused(decode, data).field.startswith(name)
        assert refused(decode, behind).field.startswith(name)
        assert time.process_time() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("head", [None, b"\xc1" + bytes(34)])
def test_a_report_that_unpacks_to_gigabytes_is_refused_in_little_memory(head: bytes | None) -> None:
    stream = zlib.compressobj(9, wbits=15 if head is None else -15)
    bomb = (head or b"") + stream.compress(bytes(32 * 2**20)) + stream.flush()
    assert len(bomb) <= report.REPORT_BYTES
    tracemalloc.start()
    try:
        error = refused(report.decode_report, bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert error.expected == f"at most {report.REPORT_BYTES} bytes unpacked"


def test_a_zlib_stream_that_is_cut_doubled_nested_or_needs_a_dictionary_is_refused(golden: dict[str, bytes]) -> None:
    raw = golden["anomaly.report.msgpack"]
    packed = zlib.compress(raw)
    for end in range(1, len(packed)):
        assert refused(report.decode_report, packed[:end]).field == "report"
    with_dictionary = zlib.compressobj(zdict=raw[:100])
    needs = with_dictionary.compress(raw) + with_dictionary.flush()
    for data in (packed + b"\x00", packed + packed, zlib.compress(packed), needs, b"\x78", zlib.compress(b"")):
        assert refused(report.decode_report, data).field == "report"
    assert refused(report.decode_report, packed[:-1] + bytes([packed[-1] ^ 1])).field == "report"  # checksum


def test_a_packed_report_that_is_cut_prolonged_or_contradicts_itself_is_refused(golden: dict[str, bytes]) -> None:
    packed = golden["anomaly.report.packed"]
    for end in range(1, len(packed)):
        assert refused(report.decode_report, packed[:end]).field.startswith("report")
    bits = int.from_bytes(packed[33:35], "big")
    fewer = packed[:33] + (bits - 1).to_bytes(2, "big") + packed[36:]
    for data in (packed + b"\x00", fewer, packed[:35] + packed[35 + bits :]):
        assert refused(report.decode_report, data).field.startswith("report")


def test_the_most_items_that_fit_cost_less_than_a_second() -> None:
    one = report.decode_report
    started = time.process_time()
    refused(one, b"\xdc\xff\x00" + b"\xc0" * 65_280)
    head = b"\x95\x01\xb0" + b"0" * 16 + b"\x01"
    refused(one, head + b"\x90" + b"\xdc\xff\x00" + b"\x80" * 65_280)
    assert time.process_time() - started < 1
