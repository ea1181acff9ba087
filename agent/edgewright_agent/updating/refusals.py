"""What a repository's answers are refused for. A module of its own, so that telling failures apart loads no HTTP."""

from __future__ import annotations

from edgewright_contracts.errors import Refused, Unavailable


class LinkDown(Unavailable):
    """The repository cannot be reached, or broke off. `after_s`: trying again before that is in vain."""

    after_s = 0.0


class BrokeOff(LinkDown):
    """In the middle of an answer."""


class Spent(LinkDown):
    """The day's ration of bytes is used up."""

    def __init__(self, limit: int, after_s: float) -> None:
        super().__init__(
            f"the {limit} bytes that this device may download in a day are used up; it goes on when the next begins"
        )
        self.after_s = after_s


class Absent(LinkDown):
    """The repository answers, and does not have it."""


class WrongBytes(Refused):
    """The repository served something else than the signed manifest names."""


class Distrusted(Refused):
    """The repository's metadata does not verify: expired, rolled back, or not signed by who must."""


class NotAllowed(Refused):
    """The digest is not among those that the owner signs now."""
