"""What a device that has measured nothing may need for one sample: an estimate, always with its interval and its basis.

Model: a variant costs as many reference kernels there as here; the kernel there takes its operations over clock ×
operations per cycle × the share of that peak which small products reach. That share is measured here and assumed there
(0.2 to 0.8), and gives the interval. An int8 variant gains from an 8-bit dot product about as much again, so where one
machine has it and the other has not, the interval opens by `DOT` on that side.

What the model leaves out: memory bandwidth, caches, heat, and that runtimes have other kernels for other processors.
Its error is unknown until a bench of the device is put beside it; that replaces it.

Only the median is predicted. The tail that was measured here is this machine's (its neighbours, its scheduler) and
tells nothing of the device: p95 is an assumption, `TAIL` times the median, and is called one.
"""

from __future__ import annotations

import math
from typing import Final

from edgewright_devices import DeviceProfile

from .evidence import Bench, Estimate, Machine, Time
from .latency import KERNEL_FLOP

REACHED: Final = (0.2, 0.8)  # of peak, by products of 64 × 64
DOT: Final = 2.0
TAIL: Final = 1.2  # p95 over p50 of a device that does little else: assumed, not measured


def predict(profile: DeviceProfile, here: Machine, measured: Time, *, int8: bool) -> Estimate:
    """For one sample of one variant that took `measured` on this machine."""
    slowest, fastest = (KERNEL_FLOP / (profile.clock_mhz * profile.fp32_per_cycle * share) for share in REACHED)
    low, high = (measured.per_reference * us / 1000 for us in (fastest, slowest))
    basis = (
        f"{measured.per_reference:.3g} reference kernels as measured on {here.cpu}, a kernel taken as "
        f"{fastest / 1000:.2g} to {slowest / 1000:.2g} ms at {profile.clock_mhz} MHz × {profile.fp32_per_cycle} fp32 "
        f"operations a cycle × {REACHED[0]:g} to {REACHED[1]:g}"
    )
    if int8 and here.int8_dot is not None and here.int8_dot != profile.int8_dot:
        low, high = (low, high * DOT) if here.int8_dot else (low / DOT, high)
        basis += f"; int8 {'without' if here.int8_dot else 'with'} an 8-bit dot product there: up to {DOT:g} times "
        basis += "slower" if here.int8_dot else "faster"
    if here.arch != profile.arch:
        basis += f"; measured on {here.arch}, the device is {profile.arch}"
    p50 = math.sqrt(low * high)
    tail = f"{TAIL:g} × p50, assumed of a device that does little else; the tail here is this machine's own"
    return Estimate(p50_ms=p50, low_ms=low, high_ms=high, p95_ms=p50 * TAIL, p95_basis=tail, basis=basis)


def replaced(estimate: Estimate, bench: Bench, variant: str) -> tuple[float, float] | None:
    """(p50, estimate / p50), in ms, as the device measured it; None when this bench has no figure of the variant."""
    found = bench.measured(variant)
    if found is None or found.time_us is None:
        return None
    return found.time_us.p50 / 1000, estimate.p50_ms / (found.time_us.p50 / 1000)


def fits(profile: DeviceProfile, bench: Bench) -> bool:
    """Whether a bench can stand for this profile: the same architecture, and an 8-bit dot product or none, alike.

    A profile is a floor, so more cores, clock or memory do not matter.
    """
    machine = bench.machine
    return machine.arch == profile.arch and machine.int8_dot in (None, profile.int8_dot)
