"""Where packages come from, and in what two of them differ. Reads manifests, baselines and cards; pure but for that.

A version's parent is the one that was published before it. What was measured while compiling (`evidence.json`) is not
part of a package; the figures that are, with their intervals, stand in the card, whose lines are compared.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from edgewright_contracts.baseline import decode_baseline
from edgewright_contracts.errors import ContractError
from edgewright_contracts.manifest import Manifest

from ..storage import control
from . import stages

CARD: Final = "card.md"
LINES: Final = 400  # of a card's differences
_FIELDS: Final = ("requires_agent", "task", "inputs", "outputs", "labels", "contexts", "preprocess", "ranking")


def lineage(connection: sa.Connection, name: str) -> list[dict[str, Any]]:
    """Every version of a package, the newest first: what it was made of, what of that is new, who decided what, and
    what its rollouts came to. JSON values only."""
    p, a, r = control.packages, control.audit.c, control.rollouts.c
    rows = connection.execute(sa.select(p).where(p.c.name == name).order_by(p.c.published_ms, p.c.version)).all()
    out: list[dict[str, Any]] = []
    before: dict[str, Any] = {}
    for row in rows:
        provenance = dict(row.manifest["provenance"])
        subject = f"{name} {row.version}"
        done = sa.select(a.at_ms, a.who, a.what, a.detail).where(a.subject == subject).order_by(a.id)
        tried = sa.select(r.id, r.state, r.updated_ms).where(r.name == name).order_by(r.created_ms)
        out.append(
            {
                "version": row.version,
                "digest": row.digest,
                "standing": stages.standing(row),
                "published_ms": row.published_ms,
                "parent": out[-1]["version"] if out else None,
                "provenance": provenance,
                "new": [key for key in provenance if provenance[key] != before.get(key)] if before else [],
                "decisions": [dict(one._mapping) for one in connection.execute(done)],
                "rollouts": [
                    dict(one._mapping)
                    for one in connection.execute(tried.where(r.spec["digest"].as_string() == row.digest))
                ],
            }
        )
        before = provenance
    return out[::-1]


def diff(old: Manifest, new: Manifest, blobs: Path) -> dict[str, Any]:
    """What is another in `new`: {files, variants, budgets, fields, provenance, channels, card}. JSON values only."""
    return {
        "files": _files(old, new),
        "bytes": [_size(old), _size(new)],
        "variants": _keyed({v.id: v for v in old.variants}, {v.id: v for v in new.variants}),
        "budgets": _fields(old.budgets, new.budgets, old.budgets.__struct_fields__),
        "fields": _fields(old, new, _FIELDS),
        "provenance": _fields(old.provenance, new.provenance, old.provenance.__struct_fields__),
        "channels": _channels(old, new, blobs),
        "card": _lines(old, new, blobs),
    }


def _size(manifest: Manifest) -> int:
    return sum(file.size for file in manifest.files.values())


def _files(old: Manifest, new: Manifest) -> list[dict[str, Any]]:
    found = []
    for path in sorted({*old.files, *new.files}):
        a, b = old.files.get(path), new.files.get(path)
        if a != b:
            found.append({"file": path, "before": a.size if a else None, "after": b.size if b else None})
    return found


def _fields(old: msgspec.Struct, new: msgspec.Struct, names: Sequence[str]) -> dict[str, list[Any]]:
    pairs = {name: [msgspec.to_builtins(getattr(one, name)) for one in (old, new)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _keyed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """By key, what it was and is; None: it was not, or is no more."""
    return {
        key: [msgspec.to_builtins(side[key]) if key in side else None for side in (old, new)]
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    }


def _channels(old: Manifest, new: Manifest, blobs: Path) -> dict[str, Any]:
    """Of each variant that both have: the channels that are monitored."""
    found = {}
    for variant in sorted({v.id for v in old.variants} & {v.id for v in new.variants}):
        sides = [{c.name: c for c in _baseline(one, variant, blobs)} for one in (old, new)]
        if changed := _keyed(*sides):
            found[variant] = changed
    return found


def _baseline(manifest: Manifest, variant: str, blobs: Path) -> Sequence[Any]:
    data = _blob(manifest, manifest.variant(variant).baseline, blobs)
    try:
        return decode_baseline(data).channels if data is not None else ()
    except ContractError:
        return ()  # of a later release: what it monitors cannot be told


def _lines(old: Manifest, new: Manifest, blobs: Path) -> list[str]:
    before, after = ((_blob(one, CARD, blobs) or b"").decode(errors="replace").splitlines() for one in (old, new))
    lines = difflib.unified_diff(before, after, old.version, new.version, lineterm="", n=0)
    return list(lines)[:LINES]


def _blob(manifest: Manifest, path: str, blobs: Path) -> bytes | None:
    """None: the package has no such file, or it was collected."""
    ref = manifest.files.get(path)
    place = blobs / ref.sha256 if ref else None
    return place.read_bytes() if place is not None and place.is_file() else None
