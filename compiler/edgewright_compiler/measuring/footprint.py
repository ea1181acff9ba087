"""Load time and peak memory of one model file, measured in a process of its own.

`python -m edgewright_compiler.measuring.footprint` is that process: it reads a request from stdin and prints one JSON
object. A file that crashes, hangs or eats all memory takes it along and nobody else. The runtime is loaded and proven
before the count begins, so that what is told is the file's share. Costs about 0.5 s, most of it numpy's import.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgewright_contracts.built import built
from edgewright_contracts.errors import EdgewrightError, Refused, Unavailable
from edgewright_contracts.manifest import TensorIn, TensorOut
from edgewright_runtime.runtime import Array, open_session, probe

from .evidence import Memory

TIMEOUT_S: Final = 120
ROWS: Final = 8  # run once each: what a runtime allocates at the first run is part of the peak
_STATUS: Final = Path("/proc/self/status")
_RESET: Final = Path("/proc/self/clear_refs")


class Request(msgspec.Struct, frozen=True):
    """`rows` are bytes of C-ordered arrays [n, *shape] in the declared dtypes."""

    model: str
    runtime: str
    inputs: tuple[TensorIn, ...]
    outputs: tuple[TensorOut, ...]
    rows: Mapping[str, bytes]


class Answer(msgspec.Struct, frozen=True):
    """`exit_code` is that of the error tree (contracts/errors.py) for what was raised."""

    memory: Memory | None = None
    error: str = ""
    exit_code: int = 0


def footprint(
    model: Path,
    runtime: str,
    inputs: tuple[TensorIn, ...],
    outputs: tuple[TensorOut, ...],
    rows: Mapping[str, Array],
    *,
    timeout_s: float = TIMEOUT_S,
) -> Memory:
    """Raises Refused when the file does not load or run, or crashes its process; Unavailable when the machine is to
    blame: no runtime, no memory, no time."""
    request = Request(
        str(model.resolve()),
        runtime,
        inputs,
        outputs,
        {t.name: np.ascontiguousarray(rows[t.name][:ROWS], np.dtype(t.dtype)).tobytes() for t in inputs},
    )
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __spec__.name],
            input=msgspec.msgpack.encode(request),
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{model.name}: {runtime} did not load and run {ROWS} rows in {timeout_s:g} s") from None
    return _told(done.returncode, done.stdout, done.stderr, f"{model.name} in {runtime}")


def _told(code: int, out: bytes, err: bytes, what: str) -> Memory:
    if code == -signal.SIGKILL:
        raise Unavailable(f"{what}: its process was killed by SIGKILL, most often for want of memory; free some")
    if code < 0:
        raise Refused(f"{what}: its process died of {signal.Signals(-code).name}; the runtime cannot run this file")
    try:
        answer = msgspec.json.decode(out, type=built(Answer))
    except msgspec.MsgspecError:
        last = err.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise Unavailable(f"{what}: its process ended with code {code} and no answer: {last[0]}") from None
    if answer.memory is None:
        raise (Refused if answer.exit_code == Refused.exit_code else Unavailable)(f"{what}: {answer.error}")
    return answer.memory


def _measured(request: Request) -> Memory:
    probe(request.runtime)
    arrays = {t.name: np.frombuffer(request.rows[t.name], t.dtype).reshape(-1, *t.shape) for t in request.inputs}
    before = _restarted()
    session = open_session(Path(request.model), request.runtime, inputs=request.inputs, outputs=request.outputs)
    for i in range(len(next(iter(arrays.values())))):
        session.run({name: rows[i : i + 1] for name, rows in arrays.items()})
    peak = _status("VmHWM")
    # A second time for the clock: the first session of a process also waits for the library to come from the disk.
    start = time.perf_counter()
    open_session(Path(request.model), request.runtime, inputs=request.inputs, outputs=request.outputs)
    load_ms = (time.perf_counter() - start) * 1000
    return Memory(load_ms=round(load_ms, 2), peak_rss_mb=round(peak, 2), growth_mb=round(max(peak - before, 0), 2))


def _restarted() -> float:
    """Let the peak begin at what is resident now, and return that, in MB.

    Not ru_maxrss: that is inherited from whoever started this process, however large it was.
    """
    try:
        _RESET.write_text("5")
    except OSError:
        return _status("VmHWM")  # a kernel without it: then only what rises above the start-up's peak is seen
    return _status("VmRSS")


def _status(name: str) -> float:
    line = next(one for one in _STATUS.read_text().splitlines() if one.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=built(Request))
    try:
        answer = Answer(_measured(request))
    except EdgewrightError as error:
        answer = Answer(error=str(error), exit_code=error.exit_code)
    except MemoryError:
        answer = Answer(error="not enough memory to load and run it; free some", exit_code=Unavailable.exit_code)
    except Exception as error:  # whatever a runtime throws on a file that it had loaded is about the file
        answer = Answer(error=f"{type(error).__name__}: {error}", exit_code=Refused.exit_code)
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
