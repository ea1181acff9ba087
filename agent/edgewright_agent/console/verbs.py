"""What the hub may command, but for what the telemetry thread does itself: each answers with the text of an event."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from edgewright_contracts.desired import Limits

from ..limits.device import resident_kb
from ..samples.sampling import Sampling
from .logtail import LogTail


def verbs(
    home: Path,
    *,
    answering: Callable[[], list[str]],
    limits: Callable[[], Limits],
    dead: Callable[[], list[str]],
    sampling: Sampling,
    tail: LogTail,
) -> Mapping[str, Callable[[], str]]:
    """`answering` are the models that have a package, `dead` the threads that ended."""

    def bench() -> str:
        from .bench import bench  # seldom asked for, and memory is scarce

        return msgspec.json.encode([bench(home, name) for name in answering()]).decode()

    def collect() -> str:
        from .collect import collect

        more = {
            "limits": msgspec.to_builtins(limits()),
            "rss_mb": round(resident_kb() / 1024, 1),
            "dead": dead(),
            "samples": dict(sampling.counted),
        }
        return collect(home, log=tail.text(), more=more)

    def resample() -> str:
        sampling.again()
        return msgspec.json.encode({"on": sampling.on, "counted": sampling.counted}).decode()

    return {"bench": bench, "collect": collect, "resample": resample}
