"""Manifest, birth, status, desired, command, ack and event come back as they were; what breaks a rule is named."""

from __future__ import annotations

import re
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright_contracts import birth, desired, event, manifest
from edgewright_contracts.codec import MAX_COUNT, Count, Name, Sha256, decode
from edgewright_contracts.desired import MASK_BITS, Ack
from edgewright_contracts.errors import ContractError, EdgewrightError, Refused, RequestError, Unavailable
from edgewright_contracts.event import EVENT_BYTES, LOG_TAIL_BYTES, FailureClass
from edgewright_contracts.manifest import Dtype, FileRef, Role, Task

HEX = "0123456789abcdef"
HEX64 = st.text(HEX, min_size=16, max_size=16)
SHA = st.text(HEX, min_size=64, max_size=64)
NAMES = st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z")
VERSIONS = st.from_regex(r"\A[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}\Z")
VARIANTS = st.sampled_from(["onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8"])
MILLIS = st.integers(0, 2**53)
SEQS = st.integers(1, 2**53)
COUNTS = st.integers(0, MAX_COUNT)
TEXT = st.text(max_size=40)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.one_of(st.none(), strategy)


@st.composite
def manifests(draw: st.DrawFn) -> manifest.Manifest:
    variants = tuple(
        manifest.Variant(
            id=one,
            format="onnx" if one.startswith("onnx") else "tflite",
            precision="fp32" if one.endswith("fp32") else "int8",
            batch=draw(st.integers(0, 4096)),
            session=draw(
                st.one_of(
                    st.just(msgspec.UNSET),
                    st.builds(
                        manifest.SessionOptions, threads=st.integers(1, 64), arena=st.booleans(), mmap=st.booleans()
                    ),
                )
            ),
        )
        for one in draw(st.lists(VARIANTS, min_size=1, max_size=4, unique=True))
    )
    shapes = st.one_of(st.lists(st.integers(0, 12), max_size=8).map(tuple), st.just((2**31,)))
    inputs = tuple(
        manifest.TensorIn(
            name=name,
            dtype=draw(st.sampled_from(get_args(Dtype))),
            shape=draw(shapes),
            valid=draw(maybe(st.tuples(FLOATS, FLOATS).map(sorted).map(tuple))),  # type: ignore[arg-type]
            unit=draw(TEXT),
        )
        for name in draw(st.lists(TEXT, min_size=1, max_size=3, unique=True))
    )
    outputs = tuple(
        manifest.TensorOut(name=name, role=draw(st.sampled_from(get_args(Role))), shape=draw(shapes))
        for name in draw(st.lists(TEXT, min_size=1, max_size=3, unique=True))
    )
    refs = st.builds(FileRef, SHA, COUNTS)
    files = {path: draw(refs) for v in variants for path in (v.model, v.baseline, v.selftest)}
    positive = st.floats(min_value=1e-9, max_value=1e300)
    return manifest.Manifest(
        requires_agent=draw(VERSIONS),
        name=draw(NAMES),
        version=draw(VERSIONS),
        task=draw(st.sampled_from(get_args(Task))),
        inputs=inputs,
        outputs=outputs,
        labels=tuple(draw(st.lists(TEXT, max_size=5))),
        contexts=tuple(draw(st.lists(TEXT, max_size=8))),
        preprocess=draw(st.sampled_from(["graph", "host"])),
        variants=variants,
        ranking={"*/onnxruntime": tuple(v.id for v in variants)},
        budgets=manifest.Budgets(p95_ms=draw(maybe(positive)), rss_mb=draw(maybe(positive))),  # type: ignore[arg-type]
        provenance=manifest.Provenance(
            recipe=draw(TEXT),
            data=draw(SHA),
            code=draw(SHA),
            seed=draw(st.integers(0, 2**32)),
            tools=draw(st.dictionaries(TEXT, TEXT, max_size=4)),
        ),
        files={**files, "card.md": draw(refs)},
    )


BIRTHS = st.builds(
    birth.Birth,
    device=NAMES,
    boot_id=HEX64,
    connection=COUNTS,
    agent=VERSIONS,
    hardware=st.builds(birth.Hardware, arch=TEXT, model=TEXT, cores=COUNTS, ram_mb=COUNTS),
    runtimes=st.dictionaries(st.text("abcdefgh-. ", min_size=1, max_size=9), TEXT, max_size=8),
    slots=st.lists(
        st.builds(
            birth.Slot,
            model=NAMES,
            digest=SHA,
            version=VERSIONS,
            variant=VARIANTS,
            state=st.sampled_from(["active", "previous", "staged", "probation"]),
        ),
        max_size=3,
    ).map(tuple),
    clock=st.sampled_from(["synced", "free", "unknown"]),
    uptime_ms=MILLIS,
    window_s=COUNTS,
    unclean=st.lists(st.builds(birth.Unclean, boot_id=HEX64, open_since_mono_ms=MILLIS), max_size=3).map(tuple),
    spool=st.builds(birth.Spool, id=HEX64, next_seq=SEQS, unacknowledged=COUNTS, sealed=COUNTS, dropped=COUNTS),
    desired_rev=COUNTS,
)
STATUSES = st.builds(birth.Status, online=st.booleans(), boot_id=HEX64, connection=COUNTS)
SECONDS = st.floats(min_value=0.5, max_value=86400.0)
POSITIVE = st.floats(min_value=0.5, max_value=2.0**40)
DESIRED = st.builds(
    desired.Desired,
    rev=COUNTS,
    config=st.builds(
        desired.Config,
        version=COUNTS,
        window_s=SECONDS,
        rollout_window_s=SECONDS,
        monitor_every=st.integers(1, 10**6),
        compress=st.booleans(),
        bytes_per_day=maybe(COUNTS),
        profile=st.sampled_from(["normal", "metered"]),
        window_rows=COUNTS,
        window_max_s=SECONDS,
        scene_s=st.floats(0, 86400.0),
        limits=st.builds(
            desired.Limits,
            rss_mb=maybe(POSITIVE),
            cpu_permille=maybe(COUNTS),
            temperature_c=maybe(POSITIVE),
            written_per_day=maybe(COUNTS),
        ),
        download=st.builds(
            desired.Download,
            bytes_per_s=maybe(st.integers(128, 2**40)),
            bytes_per_day=maybe(COUNTS),
            spread_s=st.floats(0, 86400.0),
        ),
        samples=maybe(st.builds(desired.Samples, per_day=st.integers(1, 10_000), ttl_s=SECONDS)),
        log_level=st.sampled_from(["debug", "info", "warning"]),
    ),
    models=st.lists(
        st.builds(
            desired.DesiredModel,
            name=NAMES,
            digest=maybe(SHA),
            variant=maybe(VARIANTS),
            rollout=TEXT,
            not_before=maybe(MILLIS),
            not_after=maybe(MILLIS),
            shadow=maybe(st.builds(desired.Shadow, share=st.floats(0.001, 1.0), windows=st.integers(1, 10_000))),
            probation=st.builds(desired.Probation, windows=st.integers(1, 10_000), max_s=SECONDS),
        ),
        max_size=4,
        unique_by=lambda m: m.name,
    ).map(tuple),
    cleared_digests=st.lists(SHA, max_size=3).map(tuple),
)
COMMANDS = st.builds(
    desired.Command,
    id=HEX64,
    verb=st.sampled_from(["bench", "report_now", "collect", "resample", "new_spool"]),
    expires_at=MILLIS,
    argument=TEXT,
)
MARKS = st.one_of(st.just(""), st.builds(desired.birth_mark, HEX64, st.integers(0, 2**53)))
ACKS = st.builds(Ack, HEX64, st.integers(0, 2**53), st.integers(0, 2**64 - 1), MARKS)
EVENTS = st.builds(
    event.Event,
    spool_id=HEX64,
    seq=SEQS,
    boot_id=st.one_of(st.just(""), HEX64),
    mono_ms=MILLIS,
    wall_ms=maybe(MILLIS),
    model=st.one_of(st.just(""), NAMES),
    digest=st.one_of(st.just(""), SHA),
    variant=st.one_of(st.just(""), VARIANTS),
    rollout=TEXT,
    before=st.sampled_from(["idle", "fetch", "probation"]),
    after=st.sampled_from(["commit", "rollback", "blocked"]),
    reason=TEXT,
    failure=maybe(st.sampled_from(get_args(FailureClass))),
    attempt=COUNTS,
    log=st.text(max_size=300),
)


@given(manifests())
def test_a_manifest_comes_back_as_it_was(one: manifest.Manifest) -> None:
    assert manifest.decode_manifest(manifest.encode_manifest(one)) == one


@given(BIRTHS)
def test_a_birth_comes_back_as_it_was(one: birth.Birth) -> None:
    assert birth.decode_birth(birth.encode(one)) == one


@given(STATUSES)
def test_a_status_comes_back_as_it_was(one: birth.Status) -> None:
    assert birth.decode_status(birth.encode(one)) == one


@given(DESIRED)
def test_a_desired_comes_back_as_it_was(one: desired.Desired) -> None:
    assert desired.decode_desired(desired.encode(one)) == one


@given(COMMANDS)
def test_a_command_comes_back_as_it_was(one: desired.Command) -> None:
    assert desired.decode_command(desired.encode(one)) == one


@given(EVENTS)
def test_an_event_comes_back_as_it_was(one: event.Event) -> None:
    data = event.encode_event(one)
    assert event.decode_event(data) == one
    assert b'"from":' in data
    assert b'"to":' in data
    assert b'"class":' in data


@given(ACKS)
def test_an_ack_comes_back_as_it_was(ack: Ack) -> None:
    assert desired.decode_ack(desired.encode_ack(ack)) == ack


def test_an_ack_that_names_no_birth_is_read_as_before_and_the_longest_one_fits() -> None:
    old = msgspec.msgpack.encode(["f" * 16, 6, 5])
    assert desired.decode_ack(old) == Ack("f" * 16, 6, 5, "")
    assert desired.encode_ack(Ack("f" * 16, 6, 5)) == old
    longest = Ack("f" * 16, 2**53, 2**64 - 1, desired.birth_mark("f" * 16, 2**53))
    assert desired.decode_ack(desired.encode_ack(longest)) == longest


@pytest.mark.parametrize("mark", ["f" * 16, f"{'f' * 16}.", f"{'g' * 16}.1", f"{'f' * 16}.-1", "x"])
def test_what_names_no_birth_is_no_ack(mark: str) -> None:
    with pytest.raises(ContractError, match=r"birth|ack"):
        desired.decode_ack(msgspec.msgpack.encode(["f" * 16, 6, 5, mark]))


@given(ACKS, st.integers(-5, 80))
def test_an_ack_holds_what_is_below_the_high_water_or_in_the_mask(ack: Ack, step: int) -> None:
    seq = ack.high_water + step
    ahead = step - 1
    assert (seq in ack) == (step <= 0 or (ahead < MASK_BITS and f"{ack.mask:064b}"[::-1][ahead] == "1"))


@given(st.integers(0, 2**53 - 64), st.sets(st.integers(0, MASK_BITS - 1)))
def test_an_ack_made_from_a_set_holds_exactly_that_set(high_water: int, bits: set[int]) -> None:
    ack = Ack("0" * 16, high_water, sum(1 << b for b in bits))
    ahead = range(high_water + 1, high_water + 2 * MASK_BITS)
    assert [seq for seq in ahead if seq in ack] == [high_water + 1 + b for b in sorted(bits)]


def test_every_sequence_number_of_a_report_can_be_acknowledged() -> None:
    ack = Ack("0" * 16, 2**53, 0)
    assert 2**53 in desired.decode_ack(desired.encode_ack(ack))


@pytest.mark.parametrize("log", ["\x1b" * LOG_TAIL_BYTES, "\U0001f600" * LOG_TAIL_BYTES, '"\\' * (LOG_TAIL_BYTES // 2)])
def test_an_event_with_the_longest_log_fits_its_limit(log: str) -> None:
    one = event.Event(
        spool_id="0" * 16,
        seq=2**53,
        boot_id="0" * 16,
        mono_ms=2**53,
        wall_ms=2**53,
        model="m" * 63,
        digest="d" * 64,
        variant="v" * 32,
        rollout="\x00" * 64,
        before="\x00" * 32,
        after="\x00" * 32,
        reason="\x00" * 1024,
        failure="operator",
        attempt=MAX_COUNT,
        log=log,
    )
    assert len(event.encode_event(one)) <= EVENT_BYTES
    assert event.decode_event(event.encode_event(one)) == one


def test_the_fullest_desired_fits_its_limit() -> None:
    models = tuple(
        desired.DesiredModel(
            name=f"{i:02}" + "m" * 61,
            digest="d" * 64,
            variant="v" * 32,
            rollout="\x00" * 64,
            not_before=2**53,
            not_after=2**53,
            shadow=desired.Shadow(share=0.123456789012345, windows=10_000),
            probation=desired.Probation(windows=10_000, max_s=1234567.12345678),
        )
        for i in range(32)
    )
    full = desired.Desired(
        rev=MAX_COUNT, config=desired.Config(bytes_per_day=MAX_COUNT), models=models, cleared_digests=("c" * 64,) * 64
    )
    assert desired.decode_desired(desired.encode(full)) == full


def good_manifest(golden: dict[str, bytes]) -> manifest.Manifest:
    return manifest.decode_manifest(golden["detection.manifest.json"])


def test_equal_manifests_give_equal_bytes_whatever_numbers_they_were_made_from(golden: dict[str, bytes]) -> None:
    one = good_manifest(golden)
    whole = tuple(
        manifest.TensorIn(name=t.name, dtype=t.dtype, shape=t.shape, valid=(0, 255), unit=t.unit) for t in one.inputs
    )
    other = manifest.Manifest(**{**{f: getattr(one, f) for f in one.__struct_fields__}, "inputs": whole})
    assert manifest.encode_manifest(other) == manifest.encode_manifest(one)


def test_a_device_runs_what_its_runtimes_can_in_the_order_of_the_package(golden: dict[str, bytes]) -> None:
    one = good_manifest(golden)
    ranked = [(v.id, r) for v, r in one.ranked("x86_64", ("litert", "onnxruntime", "tflite-runtime", "unknown"))]
    assert ranked == [("tflite-int8", "litert"), ("onnx-int8", "onnxruntime"), ("onnx-fp32", "onnxruntime")]
    assert [v.id for v, _ in one.ranked("aarch64", ("tflite-runtime",))] == ["tflite-int8"]
    with pytest.raises(ContractError, match="onnx-fp32"):
        one.variant("onnx-fp64")


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        (b'"onnx-fp32"]', b'"onnx-fp64"]', "manifest.ranking[*/onnxruntime]"),
        (b'"id":"onnx-int8"', b'"id":"onnx-fp32"', "manifest.variants"),
        (b'"variants/onnx-int8/model.onnx"', b'"variants/onnx-int9/model.onnx"', "manifest.files"),
        (b'"card.md"', b'"../card.md"', "manifest.files"),
        (b'"card.md"', b'"/card.md"', "manifest.files"),
        (b'"card.md"', b'"a/../card.md"', "manifest.files"),
        (b'"card.md"', b'"card\\u0000.md"', "manifest.files"),
        (b'"valid":[0.0,255.0]', b'"valid":[255.0,0.0]', "manifest.inputs.valid"),
        (b'"valid":[0.0,255.0]', b'"valid":[0.0]', "manifest.inputs[0].valid"),
        (b'"valid":[0.0,255.0]', b'"valid":[0.0,1e999]', "manifest.inputs[0].valid[1]"),
        (b'"name":"scores"', b'"name":"boxes"', "manifest.outputs"),
        (b'"shape":[240,320,3]', b'"shape":[65536,65536]', "manifest.inputs.shape"),
        (b'"shape":[20,4]', b'"shape":[-1,4]', "manifest.outputs[0].shape[0]"),
        (b'["onnx-int8","onnx-fp32"]', b'["onnx-int8"' + b',"onnx-int8"' * 16 + b"]", "manifest.ranking[...]"),
        (b'"p95_ms":20.0', b'"p95_ms":-1', "manifest.budgets.p95_ms"),
        (b'"task":"detection"', b'"task":"divination"', "manifest.task"),
        (b'"task":"detection",', b"", "manifest.task"),
        (b'"night"', b'"' + b"n" * 65 + b'"', "manifest.contexts[1]"),
        (b'"schema":1', b'"schema":2', "manifest.schema"),
        (b'"name":"golden-detection"', b'"name":"Golden/Detection"', "manifest.name"),
        (b'"version":"1.2.3"', b'"version":"../../root"', "manifest.version"),
    ],
)
def test_a_broken_manifest_is_refused_by_name(
    golden: dict[str, bytes], before: bytes, after: bytes, field: str
) -> None:
    data = golden["detection.manifest.json"]
    assert before in data
    with pytest.raises(ContractError) as caught:
        manifest.decode_manifest(data.replace(before, after, 1))
    assert caught.value.field == field


@pytest.mark.parametrize("bound", ["p95_ms", "rss_mb", "load_s"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_budget_that_json_cannot_hold_is_refused_not_dropped(bound: str, value: float) -> None:
    with pytest.raises(ContractError, match=f"budgets.{bound}"):
        manifest.Budgets(**{bound: value})


def test_two_entries_for_one_model_are_refused() -> None:
    two = (desired.DesiredModel(name="a", digest=None), desired.DesiredModel(name="a", digest="0" * 64))
    with pytest.raises(ContractError, match="models"):
        desired.Desired(rev=1, models=two)


class Sent(msgspec.Struct):
    devices: tuple[Name, ...] = ()
    digest: Sha256 = "0" * 64
    n: Count = 0


@pytest.mark.parametrize("wire", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"devices": ["a", "B/c"]}, "devices[1]: expected a name of a-z, 0-9 and -, at most 63 characters, got 'B/c'"),
        ({"digest": "12"}, "digest: expected 64 hexadecimal digits, got '12'"),
        ({"n": -1}, "n: expected `int` >= 0, got -1"),
        ({"n": "x" * 999}, "n: expected `int`, got `str`"),
        ({"digest": "x" * 999}, "digest: expected 64 hexadecimal digits, got '" + "x" * 116 + "..."),
    ],
)
def test_what_breaks_a_rule_is_told_with_what_came(wire: str, sent: dict[str, object], said: str) -> None:
    data = getattr(msgspec, wire).encode(sent)
    with pytest.raises(ContractError, match=f"^asked.{re.escape(said)}$"):
        decode(Sent, data, name="asked", limit=2048, wire=wire)


def test_errors_say_who_must_act() -> None:
    codes = {kind: kind.exit_code for kind in (Refused, RequestError, ContractError, Unavailable)}
    assert codes == {Refused: 1, RequestError: 2, ContractError: 2, Unavailable: 3}
    assert all(issubclass(kind, EdgewrightError) for kind in codes)
    assert str(ContractError("a.b", "x", "y")) == "a.b: expected x, got y"
