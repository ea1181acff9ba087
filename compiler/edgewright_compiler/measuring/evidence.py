"""`evidence.json` beside a package: everything that was measured when it was made. And `bench-HOST.json`: what a device
measured later. Neither is covered by the package's digest, so neither carries a promise.

Units are in the names; shares and metrics are in the metric's own unit, drops and bounds in points (metrics.py). An
interval is 95 %, two-sided. What was not measured is None or empty, never 0. New fields only with a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from edgewright_contracts.built import built
from edgewright_contracts.errors import ContractError, RequestError

from ..pipeline.choice import Choice

SCHEMA: Final = 1


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """`board` is what the device tree calls it (Arm); None where the system does not tell."""

    arch: str
    system: str
    cpu: str
    board: str | None = None
    cores: int
    clock_mhz: int | None = None  # the highest that it may run at
    governor: str | None = None
    ram_mb: int | None = None
    int8_dot: bool | None = None  # SDOT on Arm, VNNI on x86
    python: str
    numpy: str
    runtimes: Mapping[str, str]  # name → version of those that work here


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure on n rows; `low` and `high` are its interval, `method` says how it was made."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    method: str = ""


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """Of one sample on one thread, in µs; `per_reference` is p50 over the reference kernel's in the same run."""

    p50: float
    p95: float
    p99: float
    calls: int
    per_reference: float


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Of a fresh process: `growth_mb` is what loading and running the file added to its peak."""

    load_ms: float
    peak_rss_mb: float
    growth_mb: float


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """Against `reference` on `n` rows, in units of each output's range."""

    n: int
    max_error: float
    mean_error: float
    within: float  # share of elements inside the tolerance of this precision
    agree: float  # share of sure rows with the same class; 1 where there are no classes
    tolerance: float | None = None  # of this precision; None in evidence of earlier versions
    asked: float | None = None  # the share that must be inside it, or the file is refused or not chosen
    reference: str = ""  # what answered before; "" in evidence of earlier versions


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """How much worse than the reference, in points: the estimate and its one-sided upper bound."""

    estimate: float
    bound: float
    n: int
    discordant: int | None
    confidence: float
    method: str
    needed: int | None = None  # rows that would bring the bound under the limit; None: no number, or no limit


class VariantEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """One variant of the package. `loss` is None where none was computed on the test set."""

    id: str
    scheme: str
    bytes: int
    metric: Mapping[str, Figure]  # by name of the rows: test, and every view
    loss: Loss | None = None
    time_us: Time
    monitor_us: float | None = None  # what the monitor output adds to p50
    monitor_bytes: int | None = None  # and to the file
    memory: Memory | None = None
    parity: Parity | None = None


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The float model that the package is compared with, in the format and runtime of each of its variants."""

    name: str  # teacher, or student at float
    bytes: Mapping[str, int]  # by format
    metric: Mapping[str, Figure]  # by name of the rows
    time_us: Mapping[str, Time]  # by format
    macs: int | None = None
    params: int | None = None


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Of confidences; the temperature was fitted on validation rows, the errors are on `n` test rows."""

    temperature: float
    ece_before: float
    ece_after: float
    n: int


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    attribute: str
    value: str
    figure: Figure


class LayerDrop(msgspec.Struct, frozen=True, kw_only=True):
    """Points that the student loses when of these layers' `channels` only `kept` remain, without training again."""

    layers: tuple[str, ...]
    channels: int
    kept: int
    drop: float


class Shift(msgspec.Struct, frozen=True, kw_only=True):
    """The metric when every row is changed by `name`; `adversarial` shifts are computed against the model itself."""

    name: str
    detail: str
    figure: Figure
    adversarial: bool = False


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a device that has not measured may need for one sample: an estimate between `low_ms` and `high_ms`.

    `error` says what is known of its error: unknown until a bench of the device lies beside the package. `p95_basis`
    says what p95 rests on; "" in evidence of earlier versions, which scaled the tail of the machine that compiled.
    """

    p50_ms: float
    low_ms: float
    high_ms: float
    p95_ms: float
    basis: str
    p95_basis: str = ""
    error: str = "unknown: no such device has measured it"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA
    made: str  # ISO 8601, UTC
    seconds: float
    device: str
    machine: Machine
    metric: str
    reference: Reference
    variants: tuple[VariantEvidence, ...]
    macs: int | None = None  # of the packaged net, one sample, without monitor
    params: int | None = None
    max_drop: float | None = None  # points; None: no limit was asked for
    choice: Choice | None = None
    calibration: Calibration | None = None
    slices: tuple[Slice, ...] = ()
    worst: Slice | None = None
    robustness: tuple[Shift, ...] = ()
    estimates: Mapping[str, Estimate] = {}  # for `device`, by variant
    deterministic: bool | None = None  # the same step, made twice, gave the same bytes
    sensitivity: tuple[LayerDrop, ...] = ()  # to pruning, the most sensitive first
    suspects: tuple[str, ...] = ()  # training rows whose label looks wrong, or that look like no other
    warnings: tuple[str, ...] = ()


class Benched(msgspec.Struct, frozen=True, kw_only=True):
    """One variant by one runtime on one machine. `failed` says why there are no figures, "" when there are."""

    variant: str
    runtime: str
    version: str
    bytes: int
    failed: str = ""
    selftest: bool | None = None
    time_us: Time | None = None
    memory: Memory | None = None


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine measured of one package."""

    schema: int = SCHEMA
    host: str
    made: str  # ISO 8601, UTC, by the clock of the machine that asked
    name: str
    version: str
    digest: str
    machine: Machine
    reference_us: float
    celsius: tuple[float, float] | None = None  # of the processor, before and after
    variants: tuple[Benched, ...]

    def measured(self, variant: str) -> Benched | None:
        """The fastest runtime that ran this variant and passed."""
        ran = [b for b in self.variants if b.variant == variant and b.time_us is not None and b.selftest]
        return min(ran, key=lambda b: b.time_us.p50 if b.time_us else 0.0, default=None)


def encode(evidence: Evidence | Bench) -> bytes:
    """JSON, a field a line: people read it."""
    return msgspec.json.format(msgspec.json.encode(evidence, order="deterministic"), indent=1) + b"\n"


def decode_evidence(data: bytes) -> Evidence | None:
    """None for what an earlier schema or another tool wrote. Raises ContractError when it is no JSON object."""
    try:
        return msgspec.json.decode(data, type=built(Evidence))
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, RequestError) as error:
        raise ContractError("evidence.json", "one JSON object", str(error)) from None


def decode_bench(data: bytes, name: str) -> Bench:
    """Raises ContractError when it is not what `edgewright bench` writes."""
    try:
        return msgspec.json.decode(data, type=built(Bench))
    except (msgspec.MsgspecError, RequestError) as error:
        raise ContractError(name, "what edgewright bench --json prints", str(error)) from None
