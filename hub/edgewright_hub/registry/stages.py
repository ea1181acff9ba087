"""What an operator says of a package: candidate, approved, deprecated or revoked. One table of stages.

    candidate    published, and nobody has said yet that it may be rolled out
    approved     it may be rolled out
    deprecated   what runs it may keep it; no rollout begins with it
    revoked      nobody may run it: rollouts under way take it back, devices that run it go back; for good

Besides, its owner signs it or has withdrawn it (`registry`): a rollout needs both, and a device never runs what its
owner does not sign. Every change has a reason and is an entry of the audit log, its subject "NAME VERSION".
"""

from __future__ import annotations

from typing import Any, Final, Literal

import sqlalchemy as sa

from edgewright_contracts.errors import RequestError

from ..storage import control

Stage = Literal["candidate", "approved", "deprecated", "revoked"]
Verb = Literal["approve", "reopen", "deprecate", "revoke"]

STAGES: Final[dict[tuple[Stage, Verb], Stage]] = {
    ("candidate",  "approve"):   "approved",
    ("candidate",  "revoke"):    "revoked",
    ("approved",   "reopen"):    "candidate",   # the consent is taken back
    ("approved",   "deprecate"): "deprecated",
    ("approved",   "revoke"):    "revoked",
    ("deprecated", "approve"):   "approved",
    ("deprecated", "revoke"):    "revoked",
}  # fmt: skip


def package(connection: sa.Connection, name: str, version: str) -> sa.Row[Any]:
    """Its row. Raises RequestError."""
    p = control.packages
    rows = connection.execute(sa.select(p).where(p.c.name == name).order_by(p.c.published_ms)).all()
    found = next((row for row in rows if row.version == version), None)
    if not rows:
        raise RequestError(f"no package is called {name[:80]!r}; `edgewright registry list` lists them")
    if found is None:
        known = ", ".join(row.version for row in rows)
        raise RequestError(f"{name} {version} is not in the registry (published: {known})")
    return found


def decide(
    connection: sa.Connection, name: str, version: str, verb: Verb, *, reason: str, who: str, now_ms: int
) -> sa.Row[Any]:
    """Move it to another stage; the row as it is then. Raises RequestError where the table has no such change."""
    if not reason.strip():
        raise RequestError("expected a reason (--reason): who looks at the package later will want to know")
    found = package(connection, name, version)
    after = STAGES.get((found.stage, verb))
    if after is None:
        possible = ", ".join(other for stage, other in STAGES if stage == found.stage) or "nothing, that is for good"
        raise RequestError(f"{name} {version} is {found.stage} and cannot {verb}; possible now: {possible}")
    p = control.packages
    mine = (p.c.name == name) & (p.c.version == version)
    connection.execute(p.update().where(mine).values(stage=after))
    row = {"at_ms": now_ms, "who": who, "what": f"package {verb}", "detail": reason, "subject": f"{name} {version}"}
    connection.execute(control.audit.insert().values(**row))
    return package(connection, name, version)


def standing(row: sa.Row[Any]) -> str:
    """In one word: its owner's "no" counts more than its operator's stage."""
    return "withdrawn" if row.state != "allowed" else str(row.stage)
