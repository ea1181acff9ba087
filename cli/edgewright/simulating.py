"""`edgewright simulate`: what the hub would decide about a fleet whose truth is known."""

from __future__ import annotations

import json
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

if TYPE_CHECKING:
    from edgewright_hub.simulation.whole import Score

_UNDER: Final = " " * 12
_CODES: Final = {"right": 0, "wrong": 1, "undecided": 4}


@click.command()
@click.option("--devices", type=click.IntRange(1, 100_000), default=200, show_default=True,
              help="For two days about half a minute of CPU, and a minute for each hundred devices.")  # fmt: skip
@click.option("--days", type=click.FloatRange(0.1, 60), default=2.0, show_default=True,
              help="Of virtual time; the rollout or the drift begins in the middle.")  # fmt: skip
@click.option("--scenario", default="good", show_default=True,
              help="What a release does, or what changes: `--scenario list` names them.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=1, show_default=True,
              help="The same seed gives the same run.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def simulate(devices: int, days: float, scenario: str, seed: int, as_json: bool) -> int:
    """Run a virtual fleet through this hub and score what it decides.

    Every device reports over the real wire format into the real ingest, rollouts and drift, on databases that are
    thrown away. Exit code 1: the hub decided wrongly; 4: its rollout has not ended, so it did not decide yet.
    """
    from edgewright_hub.simulation.whole import simulate as run
    from edgewright_hub.simulation.world import SCENARIOS

    if scenario == "list":
        click.echo(json.dumps({"scenarios": list(SCENARIOS)}) if as_json else "\n".join(SCENARIOS))
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="edgewright-simulate-") as folder,
        click.progressbar(
            length=1000, label="virtual time", file=sys.stderr, hidden=as_json or not sys.stderr.isatty()
        ) as bar,
    ):
        score = run(
            Path(folder), scenario, devices=devices, days=days, seed=seed,
            progress=lambda share: bar.update(round(1000 * share) - bar.pos),
        )  # fmt: skip
    click.echo(msgspec.json.encode(score).decode() if as_json else _shown(score))
    return _CODES[score.decision]


def _shown(score: Score) -> str:
    said = {"right": "decided rightly", "wrong": "decided WRONGLY"}.get(score.decision, "has not decided yet")
    lines = [
        f"{score.devices} devices, {score.days:g} days, {score.scenario}, seed {score.seed}: the hub {said}",
        f"  reports   {score.reports:,} messages, {score.inferences:,} inferences, {score.miscounted:,} miscounted",
    ]
    if score.rollout is not None:
        told = score.rollout
        lines += [
            f"  rollout   {told.state} after {told.hours:g} h; {told.exposed} of {score.devices} devices were given it",
            *textwrap.wrap(told.reason, 80, initial_indent=_UNDER, subsequent_indent=_UNDER),
        ]
    if score.drifted:
        cohort = "not at all" if score.cohort_delay_h is None else f"after {score.cohort_delay_h:g} h"
        each = "" if score.device_delay_h is None else f" by themselves, after {score.device_delay_h:g} h (median)"
        lines.append(f"  drift     of {score.drifted} devices; their cohort found {cohort}")
        lines.append(f"{_UNDER}{score.found} of them found{each}")
    lines.append(f"  alarms    {score.false_alarms} without drift; {score.skewed} devices differ from training")
    return "\n".join(lines)
