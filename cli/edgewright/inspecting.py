"""`edgewright inspect PACKAGE`: verify it, and show in the terminal all that was measured of it. Needs no compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from edgewright_compiler.data.loaders import function
from edgewright_compiler.measuring.evidence import Bench, decode_bench, decode_evidence
from edgewright_compiler.measuring.remote import file_for
from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.errors import ContractError, RequestError
from edgewright_contracts.package import Package, read_package
from edgewright_runtime.golden import GOLDEN_FILE, Golden, check, read_golden

from .benching import fitted, show_bench, slim
from .evidence_tables import show_evidence


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--transform", help="FILE.py:FUNCTION, your application's step before a package of `preprocess: host`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(package: Path, transform: str | None, as_json: bool) -> None:
    """Verify PACKAGE (a directory or an .ewp) and show what it holds and what was measured of it.

    Figures come from evidence.json and from benches of devices beside it; they are not covered by the digest. With
    --transform, exit 1 when the function makes of the package's raw samples anything else than the package expects.
    """
    found = read_package(package)
    found.verify()
    golden = None if transform is None else _reproduced(found, transform)
    benches = _benches(package, found)
    if as_json:
        facts = {
            "digest": found.digest,
            "manifest": msgspec.Raw(found.manifest_bytes),
            "evidence": _object(found),
            "benches": benches,
            **({} if golden is None else {"transform": {"function": transform, "samples": len(golden.raw)}}),
        }
        return click.echo(msgspec.json.encode(facts).decode())
    data = found.evidence()
    evidence = None if data is None else decode_evidence(data)
    console = Console()
    _show_manifest(console, found)
    if golden is not None:
        said = f"before  {transform} makes of all {len(golden.raw)} golden samples what the package expects"
        console.print(said, highlight=False, markup=False)
    if evidence is None:
        _show_files(console, found)
        lacks = "no evidence.json beside it" if data is None else "its evidence.json is of another version"
        console.print(f"{lacks}: nothing is shown of its accuracy and cost", highlight=False)
    else:
        show_evidence(console, evidence, benches)
    for bench in benches:
        show_bench(console, bench)
    return None


def _show_manifest(console: Console, package: Package) -> None:
    m = package.manifest
    console.print(f"[bold]{m.name} {m.version}[/bold]  {m.task}, every file verified")
    console.print(f"digest  {package.digest}", highlight=False)
    for tensor in m.inputs:
        valid = "" if tensor.valid is None else f" from {tensor.valid[0]:g} to {tensor.valid[1]:g}"
        shape = list(tensor.shape)
        console.print(
            f"input   {tensor.name} {tensor.dtype}{shape}{valid} {tensor.unit}", highlight=False, markup=False
        )
    if m.preprocess == "host":
        said = (
            "before  the application makes this of its raw samples (preprocess: host), at a cost that is in no figure "
            "here; check yours with --transform FILE.py:FUNCTION"
        )
        console.print(said, highlight=False, markup=False)
    for out in m.outputs:
        console.print(f"output  {out.name} {out.dtype}{list(out.shape)}, {out.role}", highlight=False, markup=False)
    if m.labels:
        more = f" and {len(m.labels) - 12} more" if len(m.labels) > 12 else ""
        console.print(f"labels  {', '.join(m.labels[:12])}{more}", highlight=False, markup=False)
    p = m.provenance
    console.print(f"made    by {p.recipe}, seed {p.seed}", highlight=False, markup=False)
    budgets = {"p95": (m.budgets.p95_ms, "ms"), "memory": (m.budgets.rss_mb, "MB"), "load": (m.budgets.load_s, "s")}
    asked = [f"{name} {limit:g} {unit}" for name, (limit, unit) in budgets.items() if limit is not None]
    if asked:
        console.print(f"budgets on the device: {', '.join(asked)}", highlight=False)
    for place, ids in sorted(m.ranking.items()):
        console.print(f"order   {place}: {' before '.join(ids)}", highlight=False)


def _reproduced(package: Package, place: str) -> Golden:
    """The golden vectors that the function makes. Raises Refused when it does not; RequestError, ContractError."""
    m = package.manifest
    if m.preprocess != "host":
        raise RequestError(
            f"--transform is for a package of preprocess: host; {m.name} {m.version} takes raw samples as they are"
        )
    golden = read_golden(package.read(GOLDEN_FILE), m)
    check(golden, function(place))
    return golden


def _show_files(console: Console, package: Package) -> None:
    table = slim(["variant"], ["bytes", "channels", "reference rows"])
    for v in package.manifest.variants:
        baseline = decode_baseline(package.read(v.baseline))
        size = package.manifest.files[v.model].size
        table.add_row(v.id, f"{size:,}", str(len(baseline.channels)), f"{baseline.n:,}")
    console.print(fitted(table))


def _benches(path: Path, package: Package) -> tuple[Bench, ...]:
    """What devices measured of this very package, by host; benches of other digests are not its own."""
    pattern = file_for(path, "*").name.replace("bench-.json", "bench-*.json")
    folder = path if path.is_dir() else path.parent
    found = [decode_bench(file.read_bytes(), str(file)) for file in sorted(folder.glob(pattern))]
    return tuple(bench for bench in found if bench.digest == package.digest)


def _object(package: Package) -> dict[str, Any] | None:
    """evidence.json as it is. Raises ContractError when it is no JSON object."""
    data = package.evidence()
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ContractError("evidence.json", "one JSON object", str(error)) from None
