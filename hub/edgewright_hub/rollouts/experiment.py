"""An experiment: a rollout that stays at a share of its devices until what the release changes is known. Pure.

It ends by a person, by time, or when an interval of the effect on its outcome leaves out that there is none: of the
difference 0, or of the ratio 1. Both hold whenever they are looked at (`effect`), so that looking at every step costs
nothing. Harm ends it before, as in any stage.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .effect import Effect
from .specification import Experiment

Answer = Literal["promote", "take back"]


class Conclusion(msgspec.Struct, frozen=True, kw_only=True):
    answer: Answer
    reason: str
    effects: tuple[Effect, ...]  # as they were known then
    at_ms: int


def answer(experiment: Experiment, effects: tuple[Effect, ...], compared_s: float) -> tuple[Answer, str] | None:
    """What it has shown after so long, and why; None: nothing yet. Effects are of rates of which less is better."""
    for one in effects:
        if one.metric == experiment.outcome and (one.better or one.worse):
            return ("promote" if one.better else "take back"), told(one)
    if experiment.at_most_s is None or compared_s < experiment.at_most_s:
        return None
    known = "; ".join(told(one) for one in effects if experiment.outcome in ("", one.metric))
    return experiment.undecided, f"undecided after {experiment.at_most_s:g} s: {known or 'nothing was compared'}"


def told(one: Effect) -> str:
    high = "any" if one.ratio_high is None else f"{one.ratio_high:.2f}"
    ratio = "" if one.ratio is None else f", a ratio of {one.ratio:.2f} ({one.ratio_low:.2f} to {high})"
    apart = "in any way" if one.apart is None else f"by {one.apart:.0%}"
    return (
        f"{one.metric} {one.treated:.2%} against {one.control:.2%}, a difference of {100 * one.difference:+.2f} points "
        f"({100 * one.difference_low:+.2f} to {100 * one.difference_high:+.2f}, {one.certainty:.0%} sure){ratio}"
        + (f"; the devices by themselves may differ {apart}" if one.apart != 0 else "")
    )
