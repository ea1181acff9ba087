"""What a rollout would do, as `edgewright rollout plan` prints it: 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ZONES: Final = 4  # that are told
RARE: Final = 100.0  # times the usual rate: told as the rate itself


def print_plan(plan: dict[str, Any]) -> None:
    console = Console()
    console.print(f"[bold]{escape(plan['model'])} {escape(plan['version'])}[/]  for {plan['devices']} devices")
    table = Table("stage", "new", "in all", "takes", "waits for", "sees", "failing", box=None, header_style="dim")
    for stage in plan["stages"]:
        ratios = stage["visible"]
        sees = ", ".join(_seen(metric, ratios.get(metric), rate) for metric, rate in stage["visible_rates"].items())
        table.add_row(
            escape(str(stage["stage"])),
            str(stage["new"]),
            str(stage["exposed"]),
            lasting(stage["expected_s"]),
            escape(stage["waits_for"]) or "–",
            escape(sees) or "–",
            "–" if stage["failing"] is None else str(stage["failing"]),
        )
    console.print(table)
    console.print("sees: times the usual rate, or the rate where that is (nearly) 0, the smallest", style="dim")
    console.print("that is rolled back; failing: so many devices roll it back, if they do not", style="dim")
    console.print("fail without it too", style="dim")
    rates = ", ".join(f"{metric} {rate:.3%}" for metric, rate in plan["rates"].items())
    console.print(f"usual rates: {escape(rates) or 'nothing was counted before; fixed limits hold'}", highlight=False)
    for metric, came in plan["seldom"].items():
        last = f"{datetime.fromtimestamp(came['last_ms'] / 1000, UTC):%a %d %b}"
        told = f"on {came['days']} of the last 30 days, the last on {last}, and none since: waited for"
        console.print(f"{escape(metric)}: {told}", highlight=False)
    if "label" in plan["rates"] and "label" not in plan["seldom"]:
        late = plan["label_delay_s"]
        told = "how late labels come is not known: the times leave it out"
        console.print(told if late is None else f"labels come {lasting(late)} late in the mean", highlight=False)
    print_unknown(console, plan["not_waited_for"])
    full, delta = plan["bytes"]["full"], plan["bytes"]["delta"]
    console.print(f"downloads: {size(full)} in all, {size(delta)} with the patches there are", highlight=False)
    for one in plan["openings"][:ZONES]:
        begin, end = (datetime.fromtimestamp(one[at] / 1000, ZoneInfo(one["tz"])) for at in ("begin_ms", "end_ms"))
        until = f"{end:%H:%M}" if end - begin < timedelta(days=1) else f"{end:%a %d %b %H:%M}"
        console.print(f"open: {begin:%a %d %b %H:%M} to {until} {one['tz']}, {one['devices']} devices", highlight=False)
    if len(plan["openings"]) > ZONES:
        console.print(
            f"and {len(plan['openings']) - ZONES} more time zones, the last of which are open later", highlight=False
        )
    expected = lasting(plan["expected_s"])
    console.print(f"a good release takes {expected}; {lasting(plan['longest_s'])} at the longest", highlight=False)
    if plan["approvals"]:
        console.print(f"begins when {plan['approvals']} other persons have approved it", highlight=False)
    print_left_out(console, plan["excluded"])


def _seen(metric: str, ratio: float | None, rate: float) -> str:
    return f"{metric} {100 * rate:.2g}%" if ratio is None or ratio >= RARE else f"{metric} ×{ratio:.2f}"


def print_unknown(console: Console, metrics: Sequence[str]) -> None:
    for metric in metrics:
        console.print(f"{escape(metric)}: none in the 30 days before, so it is not waited for", highlight=False)


def print_left_out(console: Console, excluded: Sequence[dict[str, Any]]) -> None:
    for one in excluded:
        named = ", ".join(one["devices"][:3]) + (" …" if one["n"] > 3 else "")
        console.print(f"without {one['n']} ({escape(named)}): {escape(one['why'])}", highlight=False)


def lasting(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for size_s, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.3g} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"
