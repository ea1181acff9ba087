"""The model card: what the model is for, what it was made of, how good it is and where it ends. Deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgewright_contracts.manifest import Provenance, Task

from .measure import Accuracy


def write_card(
    *,
    name: str,
    version: str,
    task: Task,
    labels: Sequence[str],
    notes: Sequence[str],
    accuracies: Mapping[str, Mapping[str, Accuracy]],
    sizes: Mapping[str, int],
    provenance: Provenance,
    reference_rows: int,
) -> str:
    """Markdown; `accuracies` is variant → test → accuracy. Latency is absent: it belongs to a machine."""
    tests = list(next(iter(accuracies.values())))
    lines = [f"# {name} {version}", "", f"Task: {task}, {len(labels)} classes: {', '.join(labels)}.", ""]
    lines += [f"- {note}" for note in notes]
    lines += ["", "## Accuracy of each variant, 95 % interval", ""]
    lines += [f"| variant | {' | '.join(tests)} | bytes |", "|---" * (len(tests) + 2) + "|"]
    for variant, by_test in accuracies.items():
        cells = [_interval(by_test[test]) for test in tests]
        lines.append(f"| {variant} | {' | '.join(cells)} | {sizes[variant]} |")
    for test in tests:
        lines += ["", f"## Recall by class, {test}, n = {next(iter(accuracies.values()))[test].n}", ""]
        lines += [f"| variant | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
        for variant, by_test in accuracies.items():
            cells = ["–" if r is None else f"{100 * r:.1f}" for r in by_test[test].recall]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    lines += ["", "## Made from", "", f"- recipe: {provenance.recipe}, seed {provenance.seed}"]
    lines += [f"- data: sha256 {provenance.data}", f"- code: sha256 {provenance.code}"]
    lines += [f"- reference counts: {reference_rows} rows that no weight was trained on"]
    lines += [f"- tools: {', '.join(f'{k} {v}' for k, v in sorted(provenance.tools.items()))}", ""]
    return "\n".join(lines)


def _interval(a: Accuracy) -> str:
    low, high = a.interval
    return f"{100 * a.share:.2f} % ({100 * low:.1f}–{100 * high:.1f})"
