"""Evidence as tables in the terminal: what `edgewright inspect` shows of what was measured of a package."""

from __future__ import annotations

from typing import Final

import msgspec
from rich.console import Console

from edgewright_compiler.measuring.dearer import dearer
from edgewright_compiler.measuring.estimate import fits, replaced
from edgewright_compiler.measuring.evidence import Bench, Evidence, Figure, Slice, Time
from edgewright_compiler.pipeline.choice import left_out, misses, pareto
from edgewright_devices import load

from .benching import fitted, slim

SHOWN: Final = 5  # of the suspects: evidence.json has them all


def show_evidence(console: Console, evidence: Evidence, benches: tuple[Bench, ...] = ()) -> None:
    """Every table of it that has rows."""
    _show_variants(console, evidence)
    _show_loss(console, evidence)
    _show_estimates(console, evidence, benches)
    _show_parity(console, evidence)
    _show_choice(console, evidence)
    _show_weaknesses(console, evidence)
    machine = evidence.machine
    console.print(
        f"\nmeasured on {machine.cpu} ({machine.arch}), {evidence.made}, in {evidence.seconds:.0f} s; "
        f"compiled for {evidence.device}",
        highlight=False,
    )
    for warning in (*dearer(evidence), *evidence.warnings):
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)
    if evidence.suspects:
        _show_suspects(console, evidence.suspects)


def _show_suspects(console: Console, suspects: tuple[str, ...]) -> None:
    """Training rows to look at: a label may be wrong, or a row is like no other, which is not wrong."""
    rows = "1 training row stands" if len(suspects) == 1 else f"{len(suspects)} training rows stand"
    console.print(f"{rows} out, worth a look (by their place in your data):", highlight=False)
    for one in suspects[:SHOWN]:
        console.print(f"  {one}", highlight=False, markup=False)
    if len(suspects) > SHOWN:
        console.print(f"  and {len(suspects) - SHOWN} more in evidence.json", highlight=False)


def _show_variants(console: Console, evidence: Evidence) -> None:
    reference = evidence.reference
    names = list(dict.fromkeys(name for v in evidence.variants for name in v.metric))
    _heading(console, f"{evidence.metric}, 95 % interval")
    table = slim(["variant"], [*names, "bytes"])
    for form, size in reference.bytes.items():
        cells = [_interval(evidence, reference.metric.get(name)) for name in names]
        table.add_row(f"{reference.name} ({form})", *cells, f"{size:,}", style="dim")
    for v in evidence.variants:
        table.add_row(v.id, *(_interval(evidence, v.metric.get(name)) for name in names), f"{v.bytes:,}")
    console.print(fitted(table))

    title = "one sample on one thread, where it was compiled; monitor is its part of p50"
    _heading(console, title)
    table = slim(["variant"], ["p50 µs", "p95", "p99", "× kernel", "monitor", "load ms", "+MB"])
    for form, time in reference.time_us.items():
        table.add_row(f"{reference.name} ({form})", *_times(time), "–", "–", "–", style="dim")
    for v in evidence.variants:
        monitor = "–" if v.monitor_us is None else f"{v.monitor_us:+.0f}"
        used = (f"{v.memory.load_ms:.1f}", f"{v.memory.growth_mb:.1f}") if v.memory else ("–", "–")
        table.add_row(v.id, *_times(v.time_us), monitor, *used)
    console.print(fitted(table))
    if evidence.macs is not None and evidence.params is not None:
        both = reference.macs is not None and reference.params is not None
        of = f"; {reference.name} {reference.macs:,} and {reference.params:,}" if both else ""
        console.print(f"{evidence.macs:,} multiply-accumulates, {evidence.params:,} parameters{of}", highlight=False)


def _show_loss(console: Console, evidence: Evidence) -> None:
    limit = "" if evidence.max_drop is None else f", asked for at most {evidence.max_drop:g}"
    for v in evidence.variants:
        if (loss := v.loss) is None:
            continue
        seen = "" if loss.discordant is None else f", {loss.discordant} scored differently"
        lost, most = _points(loss.estimate), _points(loss.bound)
        console.print(
            f"{v.id}: loses {lost} points against {evidence.reference.name}, at most {most} "
            f"with {100 * loss.confidence:g} % confidence{limit} (n = {loss.n:,}{seen}; {loss.method})",
            highlight=False,
        )
    if (c := evidence.calibration) is not None:
        console.print(
            f"confidence: calibration error {100 * c.ece_before:.1f} % before and {100 * c.ece_after:.1f} % after "
            f"temperature {c.temperature:.2f} (n = {c.n:,})",
            highlight=False,
        )


def _show_estimates(console: Console, evidence: Evidence, benches: tuple[Bench, ...]) -> None:
    if not evidence.estimates:
        return
    benches = tuple(bench for bench in benches if fits(load(evidence.device), bench))
    columns = ["estimate of p50", "from–to", "p95, assumed", *(f"measured by {bench.host}" for bench in benches)]
    _heading(console, f"on {evidence.device}: an estimate, until it has measured")
    table = slim(["variant"], columns)
    for name, e in evidence.estimates.items():
        cells = []
        for bench in benches:
            known = replaced(e, bench, name)
            cells.append("–" if known is None else f"{known[0]:.2f} ms; estimate {known[1]:.2g} × that")
        table.add_row(name, f"{e.p50_ms:.2f} ms", f"{e.low_ms:.2f}–{e.high_ms:.2f} ms", f"{e.p95_ms:.2f} ms", *cells)
    console.print(fitted(table))
    name, first = next(iter(evidence.estimates.items()))
    console.print(f"that of {name} rests on: {first.basis}", highlight=False)
    console.print(f"p95: {first.p95_basis or 'the tail of the machine that compiled, scaled'}", highlight=False)
    if not benches:
        console.print(f"its error is {first.error}; `edgewright bench PACKAGE --ssh HOST` measures", highlight=False)


def _show_parity(console: Console, evidence: Evidence) -> None:
    checked = [v for v in evidence.variants if v.parity is not None]
    if not checked:
        return
    against = " or ".join(dict.fromkeys(v.parity.reference or "the reference" for v in checked if v.parity is not None))
    _heading(console, f"answers of every variant against {against}, errors in units of each output's range")
    table = slim(["variant"], ["largest", "mean", "tolerance", "within it", "asked", "same class", "rows"])
    for v in checked:
        if (p := v.parity) is not None:
            limit = "–" if p.tolerance is None else f"{p.tolerance:g}"
            asked = "–" if p.asked is None else f"{100 * p.asked:g} %"
            shares = (limit, f"{100 * p.within:.2f} %", asked, f"{100 * p.agree:.2f} %")
            table.add_row(v.id, f"{p.max_error:.2g}", f"{p.mean_error:.2g}", *shares, str(p.n))
    console.print(fitted(table))
    if evidence.deterministic is not None:
        console.print(f"made twice: {'the same bytes' if evidence.deterministic else '[red]different bytes[/red]'}")


def _show_choice(console: Console, evidence: Evidence) -> None:
    if (choice := evidence.choice) is None:
        return
    _heading(console, "candidates on validation rows that no other of their format beats in everything")
    table = slim(["candidate", ""], ["loss", "±", "bytes", "p50 µs", "× kernel"])
    chosen = {(choice.arch, form, scheme) for form, scheme in choice.chosen.items()}
    front = pareto(choice.candidates)
    rows = [*front, *(c for c in choice.candidates if (c.arch, c.format, c.scheme) in chosen and c not in front)]
    for c in rows:
        taken = (c.arch, c.format, c.scheme) in chosen
        why = "chosen" if taken else "misses" if misses(c, choice.limits) else ""
        table.add_row(c.id, why, f"{c.drop:+.2f}", f"{c.half_width:.2f}", f"{c.bytes:,}",
                      f"{c.p50_us:,.0f}", f"{c.relative:.2f}", style="bold" if taken else "")  # fmt: skip
    console.print(fitted(table))
    asked = {name: limit for name, limit in msgspec.structs.asdict(choice.limits).items() if limit is not None}
    if asked:
        said = ", ".join(f"--{name.replace('_', '-')} {limit:g}" for name, limit in asked.items())
        console.print(f"limits: {said}", highlight=False)
    refused = [c for c in choice.candidates if c.refused]
    could = f"; {len(refused)} could not be made: {refused[0].refused}" if refused else ""
    console.print(f"{len(choice.candidates)} tried; {choice.why}{could}", highlight=False, markup=False)
    if choice.untried:
        console.print(left_out(choice.untried), highlight=False, markup=False)


def _show_weaknesses(console: Console, evidence: Evidence) -> None:
    """Slices and shifts: where the packaged model is weak."""
    scale = _scale(evidence)
    if evidence.slices:
        _heading(console, f"{evidence.metric} by slice")
        table = slim(["slice"], ["rows", "value", "95 % interval"])
        for s in evidence.slices:
            table.add_row(*_slice(evidence, s), style="bold" if s == evidence.worst else "")
        console.print(fitted(table))
    if evidence.worst is not None:
        name, _, value, interval = _slice(evidence, evidence.worst)
        console.print(f"worst slice: {name} at {value} ({interval})", highlight=False, markup=False)
    if evidence.sensitivity:
        _heading(console, "points lost when half of a layer's channels go, untrained")
        table = slim(["layers"], ["channels", "left", "loss"])
        for one in evidence.sensitivity:
            table.add_row(", ".join(one.layers), f"{one.channels}", f"{one.kept}", f"{one.drop:.1f}")
        console.print(fitted(table))
    if evidence.robustness:
        _heading(console, f"{evidence.metric} under shifts of the input")
        table = slim(["shift", "what it does"], ["value", "95 % interval"])
        for shift in evidence.robustness:
            f = shift.figure
            name = f"{shift.name} (adversarial)" if shift.adversarial else shift.name
            table.add_row(name, shift.detail, f"{scale * f.value:.2f}", _between(scale, f))
        console.print(fitted(table))


def _slice(evidence: Evidence, s: Slice) -> tuple[str, str, str, str]:
    scale, f = _scale(evidence), s.figure
    return f"{s.attribute} = {s.value}", f"{f.n:,}", f"{scale * f.value:.2f}", _between(scale, f)


def _scale(evidence: Evidence) -> float:
    """Shares are shown times 100; a mean absolute error in its own unit."""
    return 1.0 if evidence.metric == "mae" else 100.0


def _heading(console: Console, title: str) -> None:
    console.print(f"\n[bold]{title}[/bold]", highlight=False)


def _interval(evidence: Evidence, figure: Figure | None) -> str:
    if figure is None:
        return "–"
    scale = _scale(evidence)
    between = _between(scale, figure)
    return f"{scale * figure.value:.2f}" + (f" ({between})" if between != "–" else "")


def _between(scale: float, figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return "–"
    return f"{scale * figure.low:.1f}–{scale * figure.high:.1f}"


def _points(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # never -0.00


def _times(time: Time) -> tuple[str, ...]:
    return *(f"{us:,.0f}" for us in (time.p50, time.p95, time.p99)), f"{time.per_reference:.2f}"
