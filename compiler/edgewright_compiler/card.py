"""The model card: what the model is for, what it was made of, how good it is and where it ends. Deterministic: what a
clock measured is in evidence.json."""

from __future__ import annotations

from collections.abc import Iterable

from edgewright_contracts.manifest import Provenance

from .measuring.evidence import Evidence, Figure, Loss
from .recipe import Recipe
from .rows import Data


def write_card(recipe: Recipe, data: Data, evidence: Evidence, provenance: Provenance, *, reference_rows: int) -> str:
    """Markdown."""
    named = f", {len(data.labels)} classes: {', '.join(data.labels[:50])}" if data.labels else ""
    lines = [f"# {recipe.name} {recipe.version}", "", f"Task: {recipe.task}{named}.", ""]
    lines += [f"- {note}" for note in (*recipe.notes, *data.notes)]
    lines += [f"- Noticed in the data: {warning}" for warning in evidence.warnings]
    lines += ["", f"## {evidence.metric} of each variant, 95 % interval", ""]
    tests = list(evidence.variants[0].metric)
    reference = [f"{evidence.reference.name} (float)", *_cells(evidence.reference.metric.get(t) for t in tests)]
    rows = [[v.id, *_cells(v.metric[t] for t in tests), _loss(v.loss), f"{v.bytes}"] for v in evidence.variants]
    lines += _table(["variant", *tests, "loss against the reference, points", "bytes"], [[*reference, "", ""], *rows])
    lines += ["", "What it takes beside the reference, with the monitor and without, is in evidence.json: a clock"]
    lines += ["measured it. `edgewright inspect` shows it, and warns where the package is larger or slower."]
    if evidence.calibration is not None:
        c = evidence.calibration
        lines += ["", "## Confidence", ""]
        lines.append(
            f"Scaled by a temperature of {c.temperature:.3f}, fitted on validation rows. Expected calibration error on "
            f"{c.n} test rows: {100 * c.ece_before:.2f} before, {100 * c.ece_after:.2f} after, points."
        )
    if evidence.slices:
        lines += ["", f"## {evidence.metric} by slice of the test rows", ""]
        lines += _table(
            ["slice", "n", evidence.metric],
            [[f"{s.attribute} = {s.value}", f"{s.figure.n}", _figure(s.figure)] for s in evidence.slices],
        )
        if evidence.worst is not None:
            lines += ["", f"Served worst: {evidence.worst.attribute} = {evidence.worst.value}."]
    lines += ["", "## Made from", "", f"- recipe: {provenance.recipe}, seed {provenance.seed}"]
    lines += [f"- data: sha256 {provenance.data}", f"- code: sha256 {provenance.code}"]
    lines += [f"- reference counts: {reference_rows} rows that no weight was trained on"]
    lines += [f"- tools: {', '.join(f'{k} {v}' for k, v in sorted(provenance.tools.items()))}", ""]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cells(figures: Iterable[Figure | None]) -> list[str]:
    return ["–" if f is None else _figure(f) for f in figures]


def _figure(f: Figure) -> str:
    between = "" if f.low is None or f.high is None else f" ({f.low:.4f} to {f.high:.4f})"
    return f"{f.value:.4f}{between}"


def _loss(loss: Loss | None) -> str:
    if loss is None:
        return ""
    return f"{loss.estimate:.2f}, at most {loss.bound:.2f} ({100 * loss.confidence:.0f} %, n = {loss.n})"
