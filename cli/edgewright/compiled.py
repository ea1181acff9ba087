"""What a compilation came to: one table for people, one object for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from edgewright_compiler.measuring.dearer import dearer
from edgewright_compiler.measuring.evidence import Evidence
from edgewright_compiler.pipeline.choice import left_out
from edgewright_contracts.package import Package

from .benching import fitted, slim


def summary(package: Package, evidence: Evidence, run: Path) -> dict[str, Any]:
    """`run` is the folder of the run."""
    manifest = package.manifest
    return {
        "package": str(package.root),
        "name": manifest.name,
        "version": manifest.version,
        "digest": package.digest,
        "run": str(run),
        "seconds": evidence.seconds,
        "metric": evidence.metric,
        "reference": {
            "name": evidence.reference.name,
            "metric": {name: round(f.value, 5) for name, f in evidence.reference.metric.items()},
            "bytes": evidence.reference.bytes,
            "p50_us": {form: time.p50 for form, time in evidence.reference.time_us.items()},
        },
        # architectures of a search, for want of minutes
        "untried": [] if evidence.choice is None else [arch.id for arch in evidence.choice.untried],
        "dearer": dearer(evidence),  # than the reference, in words; empty where the package costs less
        "variants": [
            {
                "id": v.id,
                "scheme": v.scheme,
                "metric": {name: round(f.value, 5) for name, f in v.metric.items()},
                "loss": v.loss,
                "bytes": v.bytes,
                "p50_us": v.time_us.p50,
                "p95_us": v.time_us.p95,
                "monitor_us": v.monitor_us,
            }
            for v in evidence.variants
        ],
    }


def show(console: Console, package: Package, evidence: Evidence, notes: tuple[str, ...] = ()) -> None:
    """Reference and variants beside each other, and what to be told besides."""
    manifest = package.manifest
    tests = list(evidence.variants[0].metric)
    title = f"{manifest.name} {manifest.version}: {evidence.metric}; loss ≤ its 95 % bound; times of one sample, here"
    console.print(f"[bold]{title}[/bold]", highlight=False)
    table = slim(["variant"], [*tests, "loss", "bytes", "smaller", "p50 µs", "faster"])
    reference = evidence.reference
    for form, time in reference.time_us.items():
        shares = [f"{reference.metric[test].value:.4f}" for test in tests]
        cells = ("", f"{reference.bytes[form]:,}", "", f"{time.p50:.0f}", "")
        table.add_row(f"{reference.name} ({form})", *shares, *cells, style="dim")
    for v in evidence.variants:
        form = v.id.partition("-")[0]
        loss = "" if v.loss is None else f"{v.loss.estimate:+.2f} ≤ {v.loss.bound:.2f}"
        smaller = faster = ""
        if form in reference.bytes:
            smaller = f"{reference.bytes[form] / v.bytes:.1f}x"
            faster = f"{reference.time_us[form].p50 / v.time_us.p50:.1f}x"
        shares = [f"{v.metric[test].value:.4f}" for test in tests]
        table.add_row(v.id, *shares, loss, f"{v.bytes:,}", smaller, f"{v.time_us.p50:.0f}", faster)
    console.print(fitted(table))
    for note in notes:
        console.print(note, highlight=False)
    for warning in (*dearer(evidence), *evidence.warnings):
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)
    if evidence.choice is not None and evidence.choice.untried:
        console.print(left_out(evidence.choice.untried), highlight=False)
    console.print(f"digest {package.digest}", highlight=False)
    console.print(f"{package.root} in {evidence.seconds:.1f} s; all that was measured: ", end="", highlight=False)
    console.print(f"edgewright inspect {package.root}", highlight=False, soft_wrap=True)
