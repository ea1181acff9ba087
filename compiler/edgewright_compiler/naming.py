"""How packages and tasks are called. Imports no library, so that a request is checked before any is loaded."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from edgewright_contracts.built import built
from edgewright_contracts.codec import Name, Version
from edgewright_contracts.errors import RequestError
from edgewright_contracts.manifest import Task

TASKS: Final[dict[str, Task]] = {  # as the command line calls them, and as the manifest does
    "classify": "classification",
    "multilabel": "multilabel",
    "regress": "regression",
    "detect": "detection",
    "anomaly": "anomaly",
}
_ALLOWED: Final = (
    ("name", Name, "at most 63 small letters a-z, digits and -, with no - in front"),
    ("version", Version, "at most 64 letters, digits and . + _ -, a letter or digit in front, as 1.0.0"),
)


def slug(name: str) -> str:
    """`name` as a package may be called."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63] or "model"


def nameable(name: str, version: str) -> None:
    """Raises RequestError where no package can be called so."""
    for (what, kind, allowed), value in zip(_ALLOWED, (name, version), strict=True):
        try:
            msgspec.convert(value, built(kind))
        except msgspec.ValidationError:
            raise RequestError(f"a package cannot have the {what} {value!r}: expected {allowed}") from None
