"""What the self-test's process says of a model, and what its end says when it says nothing.

Apart from both ends, so that the agent loads neither the test nor what starts processes until there is one to run.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from edgewright_contracts.errors import Unavailable
from edgewright_contracts.manifest import FileRef

NO_MEMORY: Final = 75  # exit code: memory ran out, and Python or the runtime noticed
VERDICT_BYTES: Final = 64 << 10


class Verdict(msgspec.Struct, frozen=True):
    passed: bool
    reason: str  # why not; of a pass, what is left to probation
    rss_mb: float = 0.0  # that it adds to a process
    load_s: float = 0.0
    p95_ms: float = 0.0  # of one sample
    files: dict[str, FileRef] = {}  # of the slot's folder `optimised` that passed
    damaged: bool = False  # the files are not those of the manifest, so nothing was learnt about the model
    ran: bool = False  # to the end: it answers, if not as it should


class Ended(NamedTuple):
    code: int | None  # None: it did not, and was ended; negative: died of this signal
    out: bytes
    log: str
    used_s: float = 0.0  # processor time until the agent last looked


class CutShort(Unavailable):
    """The self-test was ended from outside: by a service manager, a shell, the end of the agent, or a device without
    processor time for it."""


class NoVerdict(Unavailable):
    """The self-test could not judge the model: the device, its Python or its flash failed before."""
