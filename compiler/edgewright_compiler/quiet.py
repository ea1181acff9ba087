"""Silence for converters, which write to the process's standard streams from Python, C++ and threads alike.

For commands, not for libraries: it redirects file descriptors 1 and 2 of the whole process. Whoever wants to say
something meanwhile writes to the stream that the block is given.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from edgewright_contracts.errors import EdgewrightError

_TAIL = 4000


@dataclass(frozen=True, slots=True)
class Streams:
    out: TextIO  # what standard output was before
    err: TextIO


@contextmanager
def quiet() -> Iterator[Streams]:
    """Standard output and error go to a file inside the block; after an unexpected failure its end is shown.

    An expected failure (EdgewrightError, OSError, an interrupt) speaks for itself: nothing is shown.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as log, os.fdopen(os.dup(1), "w") as out, os.fdopen(os.dup(2), "w") as err:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield Streams(out, err)
        except (EdgewrightError, OSError, KeyboardInterrupt):
            raise
        except BaseException:
            sys.stdout.flush()
            sys.stderr.flush()
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            err.write(log.read().decode("utf-8", "replace"))
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, target in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, target)
                os.close(descriptor)
