"""Failures: whom an exception of a step is to be blamed on.

Guarantee: only the model's failures block a digest, so whatever is in doubt is not the model's.
"""

from __future__ import annotations

from edgewright_contracts.errors import Refused, RequestError, Unavailable
from edgewright_contracts.event import FailureClass
from edgewright_runtime.runtime import NoMemory

from .refusals import Distrusted, LinkDown, NotAllowed, WrongBytes
from .slots import Damaged
from .update import State
from .verdict import CutShort, NoVerdict


class DiskFull(Unavailable):
    """Too little space for a package."""


class Unsuited(Refused):
    """The package is for another agent or another kind of device; not its fault, and trying again changes nothing."""


def classify(error: Exception, state: State) -> FailureClass:
    """Who is to blame for what the step of `state` threw."""
    if isinstance(error, LinkDown):
        return "link"
    if isinstance(error, Distrusted | NotAllowed | WrongBytes):
        return "hub"
    if isinstance(error, Unsuited):
        return "operator"
    if isinstance(error, CutShort):
        return "power"
    if isinstance(error, NoMemory | MemoryError):
        return "operator"  # free some, or send a smaller variant: given up after a few attempts
    if isinstance(error, OSError | DiskFull | Damaged | NoVerdict):
        return "disk"
    if isinstance(error, Unavailable):
        return "link"
    if state in (State.COMMIT, State.ROLLBACK):
        return "disk"  # these must be done, so they are tried until they are
    if isinstance(error, Refused | RequestError):  # LoadFailed and ContractError: signed, and still unusable
        return "model"
    return "model" if state in (State.SHADOW, State.WARMUP) else "disk"


def passing(error: Exception) -> bool:
    """Whether the same may go well another time: memory comes back, a runtime is mended, a disk is read again."""
    return isinstance(error, OSError | MemoryError | Unavailable)


def said(error: BaseException) -> str:
    """What an operator is told of it: never nothing, and Python's MemoryError says nothing."""
    return str(error) or ("no memory is left" if isinstance(error, MemoryError) else type(error).__name__)
