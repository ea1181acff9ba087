"""The `demo` command: a directory, the story, a summary, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from edgewright_contracts.errors import EdgewrightError

from .fleet import LocalFleet
from .processes import Processes
from .story import DEVICES, Story, failure


@click.command()
@click.option("--keep", is_flag=True, help="Leave it all running, with the hub's page open to a browser, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end; the story goes to stderr.")
def demo(keep: bool, as_json: bool) -> int:
    """The whole loop on this machine, on real data: compile, ship, update, refuse, roll back, detect drift.

    Exits 0 only when every claim was observed, 1 when one was not, 3 when something outside stopped it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell's background job ignores SIGINT until it is told otherwise
        signal.signal(number, _interrupt)
    console = Console(stderr=as_json)
    code = 1
    root = Path(tempfile.mkdtemp(prefix="edgewright-demo-"))
    try:
        with Processes(root) as processes:
            story = Story(LocalFleet(root, processes), console)
            try:
                story.tell()
            except EdgewrightError as error:
                code = error.exit_code
                story.claims.append(failure(error))
                console.print(f"\n{error}", style="red", markup=False, highlight=False)
            seconds = time.monotonic() - story.started
            console.print(summary(story))
            good = sum(claim.seen for claim in story.claims)
            console.print(f"{good} of {len(story.claims)} claims seen in {seconds:.0f} s")
            if as_json:
                click.echo(json.dumps(result(story, seconds)))
            if keep:
                console.print(f"The hub's page: {story.fleet.page}   logs: {processes.logs}   Ctrl-C ends everything.")
                signal.pause()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0 if passed(story) else code


def passed(story: Story) -> bool:
    return bool(story.claims) and all(claim.seen for claim in story.claims)


def result(story: Story, seconds: float) -> dict[str, Any]:
    """What `--json` prints. `compile` is of the first version's ONNX variants; `versions` has all."""
    first = story.figures.get("v1", {}).get("variants", {})
    return {
        "ok": passed(story),
        "compile": {kind: first.get(f"onnx-{kind}") for kind in ("fp32", "int8")},
        "versions": story.figures,
        "rollouts": story.rollouts,
        "drift": story.drift,
        "claims": [{"text": claim.text, "seen": claim.seen} for claim in story.claims],
        "seconds": round(seconds, 1),
    }


def summary(story: Story) -> Table:
    table = Table("release", "package", "accuracy", "outcome", "exposed", "stages", "seconds")
    for rollout in story.rollouts:
        measured = story.figures.get(rollout["version"])
        table.add_row(
            rollout["version"],
            rollout["package_version"],
            f"{measured['variants']['onnx-int8']['accuracy']:.1%}" if measured else "not measured",
            rollout["outcome"],
            f"{rollout['devices_exposed']} of {len(DEVICES)}",
            str(rollout["stages"]),
            f"{rollout['seconds']:.0f}",
        )
    return table


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
