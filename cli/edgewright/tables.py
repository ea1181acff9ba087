"""What commands of a hub print for people: tables, tones of states, and how long ago something was."""

from __future__ import annotations

import time
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_TONES: Final = {
    "promoted": "green", "done": "green", "running": "cyan", "alarm": "red", "ok": "green",
    "rolled back": "red", "refused by self-test": "red", "aborted": "yellow", "paused": "yellow",
    "unapproved": "yellow", "rolling-back": "red", "reverting": "yellow", "reverted": "yellow",
    "taken back": "yellow", "withdrawn": "red", "asked": "yellow", "under way": "cyan", "arrived": "green",
    "failed": "red", "expired": "red",
}  # fmt: skip


def print_table(table: Table, summary: str) -> None:
    console = Console()
    if table.row_count:
        console.print(table)
    console.print(summary, style="dim", highlight=False)


def toned(word: str) -> str:
    return f"[{_TONES.get(word, 'default')}]{escape(word)}[/]"


def ago(then_ms: int | None) -> str:
    if then_ms is None:
        return "never"
    seconds = max(0.0, time.time() - then_ms / 1000)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
