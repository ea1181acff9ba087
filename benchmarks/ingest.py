"""What a report costs the hub, and what stays the same while a fleet grows and a day passes.

    python benchmarks/ingest.py [--quick] [--json]

The hub's side is the real `Consumer` (decode, dedupe, merge, commit, acknowledge to broker and device) in a process of
its own, over TLS, on a database on disk; reports have 22 channels and are sent by 10,000 devices in 20 fleets through a
pump in another process. All CPU is that of the process, whatever else the machine does.

- `cpu_ratio`: CPU of the consumer for each report over that of a paho callback with manual acknowledgement that does
  nothing else, both MQTT 3.1.1, QoS 1, on the same mosquitto, in turns; medians. `reports_per_s` is what one core
  would do at that price. `packed_ratio` is the same for reports as agents compress them.
- `core_share_10k`: CPU over wall time at 10,000 reports a minute; with the embedded broker, that broker's included,
  whose reports come over a few connections (`connections`), because TLS sessions of 10,000 devices do not fit here.
  `nothing_share_10k` is the callback that does nothing at that pace, where paho is woken for each report.
- `drift_query_ms_10k`: how far 20 fleets moved in the last 24 hours, each channel, as the hub answers it.
- `rss_growth_mb_24h`: from the third simulated hour to the twenty-fourth, with device-hours and retention running.
- `growth`: writer alone, 1,000 to 100,000 devices.

`--quick`: fewer reports, rounds, seconds and devices; under a minute; results are not written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from provenance import provenance  # noqa: E402
from reports.fleet import FULL, QUICK, Plan  # noqa: E402
from reports.price import RATE, embedded_share, ratio, share  # noqa: E402
from reports.processes import in_own_process  # noqa: E402
from reports.traffic import noop, pump  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part(*arguments.part)
        return
    plan = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        plain = ratio(folder, plan, packed=False, rounds=plan.rounds)
        packed = ratio(folder, plan, packed=True, rounds=max(1, plan.rounds // 2))
        shares = {"mosquitto": share(folder, plan, ours=True), "embedded": embedded_share(folder, plan)}
        nothing = share(folder, plan, ours=False)
        print(f"share of a core at 10,000 reports a minute: {shares}; nothing {nothing}", flush=True)
        rest = {kind: in_own_process(kind, folder, quick=arguments.quick) for kind in ("drift", "day", "growth")}
    result = {
        "cpu_ratio": round(plain["ratio"], 3),
        "reports_per_s": round(1e6 / plain["ours_us"]),
        "core_share_10k": {key: round(value, 4) for key, value in shares.items()},
        "drift_query_ms_10k": round(rest["drift"], 2),
        "rss_growth_mb_24h": round(rest["day"]["growth_mb"], 2),
        "nothing_share_10k": round(nothing, 4),
        "packed_ratio": round(packed["ratio"], 3),
        "connections": plan.connections,
        "cpu_us": {"plain": plain, "packed": packed},
        "day": rest["day"],
        "growth": rest["growth"],
    }
    for key, value in result.items():
        print(f"{key}: {value}")
    if not arguments.quick:
        target = ROOT / "benchmarks" / "results" / "ingest.json"
        target.write_text(json.dumps({**result, **provenance()}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(result))


def part(kind: str, place: str, *more: str) -> None:
    """One process of the measurement. Each loads what it needs: most of the time of short ones is loading."""
    folder = Path(place)
    match kind:
        case "pump":
            port, reports, devices, rate, packed = more
            pump(folder, [int(port)], int(reports), int(devices), float(rate), packed == "1")
        case "devices":
            port, reports, connections = map(int, more)
            pump(folder, [port] * connections, reports, connections, RATE, packed=False)
        case "noop":
            noop(folder, int(more[0]), int(more[1]))
        case "hub" | "embedded":
            from reports import hub

            serve = hub.hub if kind == "hub" else hub.embedded
            serve(folder, Path(more[0]), *map(int, more[1:]))
        case _:
            print(json.dumps(_measure(kind)(folder, QUICK if more[0] == "1" else FULL)))


def _measure(kind: str) -> Callable[[Path, Plan], Any]:
    from reports import database, drift

    return {"drift": drift.drift_query, "day": database.day, "growth": database.growth}[kind]


if __name__ == "__main__":
    main()
