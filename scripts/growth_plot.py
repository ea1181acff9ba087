"""Draws what a report costs the hub as a fleet grows: `growth` of benchmarks/results/ingest.json as docs/growth.svg.

`benchmark_docs.py` calls `svg`; it is text in, text out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PANELS = {
    "us_per_report": "µs of CPU per report",
    "bytes_per_report": "bytes on disk per report",
    "rss_mb": "MB of memory",
}
WIDTH, HEIGHT, LEFT, TOP, STEP = 230, 150, 56, 50, 310  # of a panel; from one to the next
STYLE = """  <style>
    .t{font-weight:600;fill:#1b2430}.s{fill:#3c4654;font-size:12px}.g{stroke:#c9d0d8;stroke-width:1}
    .e{fill:none;stroke:#2f6fab;stroke-width:2}.d{fill:#2f6fab}
    @media (prefers-color-scheme:dark){
      .t{fill:#eef2f6}.s{fill:#c3ccd7}.g{stroke:#3a4450}.e{stroke:#7fb5e6}.d{fill:#7fb5e6}
    }
  </style>"""


def svg(growth: Mapping[str, Mapping[str, float]]) -> str:
    """`growth`: figures of the writer by "N devices", N rising. A panel for each of PANELS; log x, linear y from 0."""
    devices = [int(name.split()[0]) for name in growth]
    first, last = math.log10(devices[0]), math.log10(devices[-1])
    across = [round((math.log10(n) - first) / (last - first) * WIDTH, 1) for n in devices]
    box = f"0 0 {STEP * len(PANELS)} {TOP + HEIGHT + 50}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="system-ui, sans-serif" font-size="14">',
        f"  <title>Cost of a report to the hub's writer, {devices[0]:,} to {devices[-1]:,} devices</title>",
        STYLE,
    ]
    for number, (key, title) in enumerate(PANELS.items()):
        values = [figures[key] for figures in growth.values()]
        top, step = _scale(max(values))
        lines.append(f'  <g transform="translate({LEFT + STEP * number} {TOP})">')
        lines.append(f'    <text class="t" x="0" y="-24">{title}</text>')
        for at in range(round(top / step) + 1):
            y = round(HEIGHT * (1 - at * step / top), 1)
            lines.append(f'    <path class="g" d="M0 {y}H{WIDTH}"/>')
            lines.append(f'    <text class="s" x="-8" y="{y + 4}" text-anchor="end">{at * step:,.0f}</text>')
        points = [(x, round(HEIGHT * (1 - value / top), 1)) for x, value in zip(across, values, strict=True)]
        lines.append(f'    <path class="e" d="M{" L".join(f"{x} {y}" for x, y in points)}"/>')
        lines += [f'    <circle class="d" cx="{x}" cy="{y}" r="3.5"/>' for x, y in points]
        for x, n in zip(across, devices, strict=True):
            lines.append(f'    <text class="s" x="{x}" y="{HEIGHT + 20}" text-anchor="middle">{_short(n)}</text>')
        lines.append(f'    <text class="s" x="{WIDTH / 2:g}" y="{HEIGHT + 40}" text-anchor="middle">devices</text>')
        lines.append("  </g>")
    return "\n".join([*lines, "</svg>"]) + "\n"


def _scale(largest: float) -> tuple[float, float]:
    """The end of an axis from 0, and its step: four or five round ones."""
    rough = largest / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= rough)
    return math.ceil(largest / step) * step, step


def _short(number: int) -> str:
    return f"{number // 1000}k" if number % 1000 == 0 else str(number)
