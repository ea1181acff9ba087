"""The error tree, grouped by who must act. Each branch has the exit code that the command line gives.

EdgewrightError
├── Refused         1   the answer is "no": a budget missed, a gate refused, a signature that does not verify
├── RequestError    2   the request was wrong: the caller must change it
│   └── ContractError   bytes or values that break a contract
└── Unavailable     3   something outside failed (network, disk, port); trying again may help

A message says what was expected, what came, and the way out.
"""

from __future__ import annotations


class EdgewrightError(Exception):
    exit_code = 3


class Refused(EdgewrightError):
    exit_code = 1


class RequestError(EdgewrightError):
    exit_code = 2


class Unavailable(EdgewrightError):
    exit_code = 3


class ContractError(RequestError):
    """`field` names the place in the message, as `window.cells` or `models[0].digest`."""

    def __init__(self, field: str, expected: str, got: str) -> None:
        super().__init__(f"{field}: expected {expected}, got {got}")
        self.field = field
        self.expected = expected
        self.got = got
