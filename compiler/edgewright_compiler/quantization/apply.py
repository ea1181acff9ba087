"""From a float file to what a scheme makes of it, the same way for both formats.

Guarantee: equal (scheme, source, calibration) give equal bytes; `target` is there only when a runtime has loaded it and
answered. Only what lies under the module path `scope` changes, so the monitor stays float: an int8 monitor would count
its own rounding. With `scope=None`, for files of others, everything may change.

Cost: 0.2 to 5 s, most of it running the calibration rows.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from edgewright_contracts.errors import Refused, RequestError

from ..rows import Rows, count
from .schemes import Scheme

MIN_ROWS: Final = 32  # fewer and the ranges are those of single samples


def quantize(
    scheme: Scheme,
    source: Path,
    target: Path,
    calibration: Rows,
    *,
    scope: str | None = "net",
    ranges: Path | None = None,
) -> None:
    """Write `target` from `source`, both of the scheme's format. `ranges` is a file that keeps what calibration found,
    for further schemes with the same source, rows and way of calibration.

    `calibration` are raw rows by input name: they set ranges, and show that the file answers. Raises RequestError for
    rows that cannot calibrate (too few, not finite) or do not fit the file, Refused when the file is already quantized,
    has nothing to quantize, cannot be quantized so, or is not taken by its runtime afterwards.
    """
    if source.suffix != f".{scheme.format}" or target.suffix != f".{scheme.format}":
        raise RequestError(f"{scheme.id}: expected .{scheme.format} files, got {source.name} and {target.name}")
    check_rows(calibration, MIN_ROWS if scheme.calibrated else 1)
    with _no_announcements():
        back_end = importlib.import_module(f".{scheme.format}", __package__)  # each takes a second or two to import
        try:
            back_end.make(scheme, source, target, calibration, scope, ranges)
            back_end.prove(target, calibration)
        except Exception as error:
            target.unlink(missing_ok=True)
            if isinstance(error, Refused | RequestError | OSError):
                raise
            raise Refused(
                f"{scheme.id}: {source.name} cannot be quantized so: {type(error).__name__}: {_line(error)}; "
                "the way out: another scheme, or the layer that it names in float_layers"
            ) from error


def check_rows(rows: Rows, least: int) -> None:
    """Raises RequestError when there are fewer than `least`, or one holds what is not a number."""
    n = count(rows) if rows else 0
    if n < least:
        raise RequestError(
            f"calibration: expected at least {least} rows, got {n}; give more training rows, or a scheme without "
            "calibration (dynamic, fp16)"
        )
    for name, array in rows.items():
        if len(array) != n:
            raise RequestError(f"calibration: expected {n} rows of input {name!r} as of the others, got {len(array)}")
        if array.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(array.reshape(n, -1)).all(axis=1))
            if len(bad):
                raise RequestError(
                    f"calibration: expected finite numbers, got NaN or infinity in row {bad[0]} of input {name!r} "
                    f"({len(bad)} such rows of {n}); drop or repair them"
                )


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


@contextmanager
def _no_announcements() -> Iterator[None]:
    """Both quantizers announce every step on the root logger and warn about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
