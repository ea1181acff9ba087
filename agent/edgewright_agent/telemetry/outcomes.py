"""What an application learns of an inference later: its true class, or whether something named came of it.

Guarantee: what cannot be counted is refused where it is said, and never reaches the telemetry thread.
"""

from __future__ import annotations

import operator
import re
from typing import Final, NamedTuple

from edgewright_contracts.errors import RequestError
from edgewright_contracts.report import CORRECT

NAME: Final = re.compile(r"\A[ -~]{1,64}\Z")  # codec.Label


class Outcome(NamedTuple):
    id: int
    name: str
    truth: int | str  # for `correct` the class, by index or label; else whether it came out true


def label(identifier: int, truth: int | str) -> Outcome:
    """Raises RequestError."""
    known = truth if isinstance(truth, str) else _whole(truth, "a class")
    return Outcome(_whole(identifier, "an id"), CORRECT, known)


def named(identifier: int, name: str, happened: bool) -> Outcome:
    """Raises RequestError."""
    if not isinstance(name, str) or not NAME.match(name) or name == CORRECT:
        raise RequestError(
            f"expected an outcome name of 1 to 64 ASCII characters other than {CORRECT!r}, got {repr(name)[:80]}"
        )
    return Outcome(_whole(identifier, "an id"), name, int(bool(happened)))


def _whole(number: int, what: str) -> int:
    """Of numpy's integers, too."""
    try:
        return operator.index(number)
    except TypeError:
        raise RequestError(f"expected {what}, a whole number, got {repr(number)[:80]}") from None
