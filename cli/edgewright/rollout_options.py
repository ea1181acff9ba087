"""What `rollout create` and `rollout plan` are asked by: options on one side, a specification as JSON on the other."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from edgewright_contracts.errors import RequestError

from .inventory import named

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, dir_okay=False)
_UNITS: Final = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES: Final = {"": 1.0, "k": 1e3, "M": 1e6}
_STAGES: Final = "1,25%,100%"


def specified(command: F) -> F:
    """Gives the command MODEL and all that a rollout may be asked for, as `spec`."""

    @click.argument("model")
    @click.option("--version", default="", help="Version to roll out.")
    @click.option("--digest", default="", help="Or its digest.")
    @click.option("--fleet", "fleet_name", default="", callback=named, help="Fleet to give it to; none: all of them.")
    @click.option("--device", "names", multiple=True, callback=named, help="Only these devices.")
    @click.option("--select", default="", metavar="SELECTOR", callback=named,
                  help="Only devices that it means, as site=berlin,!held.")  # fmt: skip
    @click.option("--stages", default=_STAGES, show_default=True, help="Devices reached by each stage, in all.")
    @click.option("--stage", "stage", multiple=True, help="Instead, one by one: a count, a share or a selector.")
    @click.option("--gate", type=_FILE, help="JSON file of gate margins, where they differ from the defaults.")
    @click.option("--outcome-gate", multiple=True, metavar="NAME=R0:R1[:DELTA]", help="Misses of a named outcome.")
    @click.option("--window-s", type=float, default=60.0, show_default=True, help="Seconds of a report on trial.")
    @click.option("--timeout-s", type=float, default=3600.0, show_default=True, help="Seconds a device may take.")
    @click.option("--during", multiple=True, metavar="HOURS", help="Local hours, as 'Mon-Fri 02:00-04:00'.")
    @click.option("--concurrency", type=int, help="Most devices that update at once.")
    @click.option("--bandwidth", metavar="BYTES/S", help="Of all its downloads together, as 500k or 2M.")
    @click.option("--approvals", type=int, default=0, help="Other persons who must approve it: 0, 1 or 2.")
    @click.option("--experiment", metavar="SHARE", help="Stay at this share, as 50%, and compare.")
    @click.option("--outcome", default="", help="Named outcome whose interval ends the experiment.")
    @click.option("--at-most", metavar="TIME", help="The experiment ends after this, as 3d.")
    @click.option("--undecided", type=click.Choice(["promote", "back"]), default="back", help="What holds then.")
    @click.option("--retry", multiple=True, metavar="CLASS=N[:TIME]", help="Attempts after link, power, disk, hub.")
    @click.option("--cooldown", default="0", metavar="TIME", help="Rest of devices that it is taken back from.")
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        asked = {name: kwargs.pop(name) for name in _NAMES}
        return command(*args, spec=specification(**asked), **kwargs)

    return wrapped  # type: ignore[return-value]


_NAMES: Final = (
    "model", "version", "digest", "fleet_name", "names", "select", "stages", "stage", "gate", "outcome_gate",
    "window_s", "timeout_s", "during", "concurrency", "bandwidth", "approvals", "experiment", "outcome", "at_most",
    "undecided", "retry", "cooldown",
)  # fmt: skip


def specification(**asked: Any) -> dict[str, Any]:
    """The JSON of a rollout's specification; what was not asked for is left to the hub. Raises RequestError."""
    stages = asked["stage"] or asked["stages"].split(",")
    spec: dict[str, Any] = {
        "model": asked["model"],
        "version": asked["version"],
        "digest": asked["digest"],
        "fleet": asked["fleet_name"],
        "devices": asked["names"],
        "stages": [_count(one) for one in stages],
        "window_s": asked["window_s"],
        "device_timeout_s": asked["timeout_s"],
        "windows": asked["during"],
        "approvals": asked["approvals"],
        "cooldown_s": seconds("--cooldown", asked["cooldown"]),
    }
    if asked["select"]:
        spec["selector"] = asked["select"]
    gate = _json_file(asked["gate"]) if asked["gate"] is not None else {}
    if asked["outcome_gate"]:
        gate["outcomes"] = {**gate.get("outcomes", {}), **dict(map(_margin, asked["outcome_gate"]))}
    if asked["concurrency"] is not None:
        spec["concurrency"] = asked["concurrency"]
    if asked["bandwidth"]:
        spec["bandwidth_bytes_s"] = _scaled("--bandwidth", asked["bandwidth"], _SIZES, "bytes, as 500k or 2M")
    if asked["experiment"]:
        spec["experiment"] = {
            "share": _count(asked["experiment"]),
            "outcome": asked["outcome"],
            "at_most_s": seconds("--at-most", asked["at_most"]) if asked["at_most"] else None,
            "undecided": "promote" if asked["undecided"] == "promote" else "take back",
        }
    elif asked["outcome"] or asked["at_most"]:
        raise RequestError("--outcome and --at-most belong to --experiment SHARE, which is absent")
    retry = dict(map(_retry, asked["retry"]))
    return {**spec, **({"gate": gate} if gate else {}), **({"retry": retry} if retry else {})}


def seconds(option: str, text: str) -> float:
    """Of 90, 90s, 5min, 2h or 3d. Raises RequestError."""
    return _scaled(option, text, _UNITS, "a time, as 90s, 5min, 2h or 3d")


def _scaled(option: str, text: str, units: dict[str, float], expected: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    if found is None or found[2] not in units:
        raise RequestError(f"{option}: expected {expected}; got {text!r}")
    return float(found[1]) * units[found[2]]


def _count(stage: str) -> int | str:
    return int(stage) if stage.strip().isdecimal() else stage.strip()


def _margin(text: str) -> tuple[str, dict[str, float]]:
    name, _, numbers = text.partition("=")
    try:
        values = [float(one) for one in numbers.split(":")]
    except ValueError:
        values = []
    if not name or len(values) not in (2, 3):
        raise RequestError(f"--outcome-gate: expected NAME=R0:R1 or NAME=R0:R1:DELTA, as pick_ok=1.1:1.5; got {text!r}")
    return name, dict(zip(("r0", "r1", "delta"), values, strict=False))


def _retry(text: str) -> tuple[str, dict[str, float]]:
    cause, _, said = text.partition("=")
    attempts, _, first = said.partition(":")
    if not cause or not attempts.isdecimal():
        raise RequestError(f"--retry: expected CLASS=N or CLASS=N:TIME, as link=8:2min; got {text!r}")
    return cause, {"attempts": int(attempts), **({"first_s": seconds("--retry", first)} if first else {})}


def _json_file(place: Path) -> Any:
    try:
        return json.loads(place.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(f"--gate: expected a JSON file, {place}: {error}") from None
