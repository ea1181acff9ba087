"""How long a link may be silent before it is asked whether it lives. Pure.

A carrier's NAT forgets a silent connection after 2 to 30 minutes and tells nobody; a ping costs about 120 bytes on the
wire. So a metered link looks for the longest silence that is answered: half as long again after each that was, half of
the one that was not. A silence that broke the link is not tried again before `AGAIN` shorter ones were answered.

Order: `answered` and `unanswered` are told every silence that ended in a question, with its length in seconds.
"""

from __future__ import annotations

from typing import Final, NamedTuple

FIXED_S: Final = 120.0  # where bytes are not paid for: a dead link is found within three minutes
SHORTEST_S: Final = 60.0
LONGEST_S: Final = 1200.0
ANSWER_S: Final = 30.0  # without an answer for so long a ping is sent, and after so long again the link is dead
AGAIN: Final = 100


class KeepAlive(NamedTuple):
    interval_s: float = FIXED_S
    broken_s: float = float("inf")  # the shortest silence that was not answered
    held: int = 0  # silences of `interval_s` answered since it last changed


def answered(now: KeepAlive, silence_s: float) -> KeepAlive:
    """The link lived after `silence_s`; only a silence about as long as the interval says something about it."""
    if silence_s < 0.9 * now.interval_s:
        return now
    longer = min(LONGEST_S, 1.5 * now.interval_s)
    held = now.held + 1
    if longer == now.interval_s:
        return now._replace(held=held)
    if longer >= now.broken_s and held < AGAIN:
        return now._replace(held=held)
    return KeepAlive(longer, float("inf") if held >= AGAIN else now.broken_s)


def unanswered(now: KeepAlive, silence_s: float) -> KeepAlive:
    """The link was dead after `silence_s`. A silence below the shortest interval is no reason: the link broke."""
    if silence_s < SHORTEST_S:
        return now
    return KeepAlive(max(SHORTEST_S, min(now.interval_s, silence_s) / 2), min(now.broken_s, silence_s))
