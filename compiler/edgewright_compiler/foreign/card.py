"""The card of a package made of somebody else's file: what was looked at, and what was not."""

from __future__ import annotations

from collections.abc import Sequence

from edgewright_contracts.manifest import Provenance, Task

from ..measuring.evidence import Evidence
from .judge import AGREEMENT


def write_card(
    name: str,
    version: str,
    task: Task,
    labels: Sequence[str],
    notes: Sequence[str],
    evidence: Evidence,
    provenance: Provenance,
    reference_rows: int,
) -> str:
    """Markdown; deterministic but for what the choice says of measured times."""
    named = f", {len(labels)} classes: {', '.join(labels[:50])}" if labels else ""
    lines = [
        f"# {name} {version}",
        "",
        f"Task: {task}{named}. Made of a finished file, which was not trained here.",
        "",
    ]
    lines += [f"- {note}" for note in notes]
    lines += ["", "## Forms", ""]
    if evidence.metric == AGREEMENT:
        lines += [
            "Accuracy was not measured. Agreement is the share of output elements that stay within the tolerance of"
        ]
        lines += ["their precision against the file as it came.", ""]
    lines += [
        f"| variant | {evidence.metric} | on | loss, points | bytes | without monitor |",
        "|---|---|---|---|---|---|",
    ]
    reference = evidence.reference
    for rows, figure in reference.metric.items():
        size = ", ".join(str(n) for n in reference.bytes.values())
        lines.append(f"| {reference.name} | {figure.value:.4f} | {figure.n} {rows} | | {size} | {size} |")
    for v in evidence.variants:
        loss = "" if v.loss is None else f"{v.loss.estimate:.2f}, at most {v.loss.bound:.2f}"
        bare = v.bytes - (v.monitor_bytes or 0)
        for rows, figure in v.metric.items():
            lines.append(f"| {v.id} | {figure.value:.4f} | {figure.n} {rows} | {loss} | {v.bytes} | {bare} |")
    lines += ["", "## Made from", "", f"- {provenance.recipe}, seed {provenance.seed}"]
    lines += [f"- data: sha256 {provenance.data}", f"- code: sha256 {provenance.code}"]
    lines += [f"- reference counts: {reference_rows} rows"]
    lines += [f"- tools: {', '.join(f'{k} {v}' for k, v in sorted(provenance.tools.items()))}", ""]
    return "\n".join(lines)
