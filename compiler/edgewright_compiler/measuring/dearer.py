"""Where what is packaged costs more than what it was made of: the figures of both, with the monitor and without.

A package is there to be smaller and faster. Where it is neither, whoever ships it should read so before anybody else
does: a small file may lose to its own monitor.
"""

from __future__ import annotations

from typing import Final

from .evidence import Evidence, VariantEvidence

SLOWER: Final = 1.05  # of the other's p50, from which on one is called slower: equal files differ by that when timed


def dearer(evidence: Evidence) -> tuple[str, ...]:
    """A sentence for each chosen variant and what it costs more of than the reference in its format; () for none."""
    reference = evidence.reference
    chosen = None if evidence.choice is None else set(evidence.choice.chosen.values())
    found = []
    for v in evidence.variants:
        form = v.id.partition("-")[0]
        if (chosen is not None and v.scheme not in chosen) or form not in reference.bytes:
            continue
        against = f"{reference.name} ({form})"
        if v.bytes > (size := reference.bytes[form]):
            found.append(f"{v.id} is larger than {against}: {v.bytes:,} bytes{_bare_bytes(v)}, not {size:,}")
        took = reference.time_us.get(form)
        if took is not None and v.time_us.p50 > SLOWER * took.p50:
            ours, theirs = microseconds(v.time_us.p50), microseconds(took.p50)
            found.append(f"{v.id} is slower than {against}: p50 {ours} µs{_bare_us(v)} here, not {theirs}")
    return tuple(found)


def _bare_bytes(v: VariantEvidence) -> str:
    return "" if v.monitor_bytes is None else f" ({v.bytes - v.monitor_bytes:,} without its monitor)"


def _bare_us(v: VariantEvidence) -> str:
    return "" if v.monitor_us is None else f" ({microseconds(v.time_us.p50 - v.monitor_us)} without its monitor)"


def microseconds(value: float) -> str:
    """As many digits as timing tells."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
