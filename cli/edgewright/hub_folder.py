"""What commands that work on a hub's directory share: its options, and how they answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgewright_contracts.errors import RequestError

DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("hub-data"),
    show_default=True,
    help="The hub's directory.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def say(answer: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(answer) if as_json else text)


def served_before(data: Path) -> None:
    """Raises RequestError for a directory that no hub was started on."""
    if not (data / "repo" / "metadata" / "1.root.json").exists():
        raise RequestError(
            f"--data: expected a hub's directory, {data} is none yet: "
            "start it once with `edgewright hub serve --trust DIR`"
        )
