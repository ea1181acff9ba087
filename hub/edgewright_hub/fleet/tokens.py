"""Tokens: what lets a device enrol once, and what lets a person or a program use the API.

Both are 32 random bytes, kept only as their sha256. An enrolment token is one string that a person can carry: the
secret, and the hashes of root.json and of the hub's CA, so that a device trusts nothing that the network says first.
`ew1.` + base64url of JSON {"secret", "root_sha256", "ca_sha256", "pattern"}, without padding; the pattern lets a device
choose an id that fits, the hub's own copy decides.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import Final, Literal, NamedTuple, cast, get_args

import msgspec
import sqlalchemy as sa

from edgewright_contracts.built import built
from edgewright_contracts.errors import ContractError, Refused, RequestError

from ..storage import control
from ..storage.store import outside

PREFIX: Final = "ew1."
TOKEN_BYTES: Final = 1024
Role = Literal["viewer", "operator", "publisher", "admin"]
Kind = Literal["open", "list", "queue"]  # whoever has it; devices of a list; each waits for a person's yes


class EnrolmentToken(msgspec.Struct, frozen=True, kw_only=True):
    secret: str
    root_sha256: str
    ca_sha256: str
    pattern: str = ""


def issue(
    engine: sa.Engine,
    *,
    uses: int,
    expires_s: float,
    pattern: str,
    fleet: str,
    root_sha256: str,
    ca_sha256: str,
    now_ms: int,
    kind: Kind = "open",
) -> str:
    """A new enrolment token for `uses` devices whose whole id matches `pattern`. Raises ContractError, or
    Unavailable when hub.db cannot be written."""
    with outside(engine), engine.begin() as connection:
        return make(
            connection,
            uses=uses,
            expires_s=expires_s,
            pattern=pattern,
            fleet=fleet,
            root_sha256=root_sha256,
            ca_sha256=ca_sha256,
            now_ms=now_ms,
            kind=kind,
        )


def make(
    connection: sa.Connection,
    *,
    uses: int,
    expires_s: float,
    pattern: str,
    fleet: str,
    root_sha256: str,
    ca_sha256: str,
    now_ms: int,
    kind: Kind,
) -> str:
    """As `issue`, in a transaction of the caller's."""
    if not 1 <= uses <= 1_000_000:
        raise ContractError("uses", "1 to 1000000", str(uses))
    if not 0 < expires_s <= 366 * 86400:
        raise ContractError("expires_s", "more than 0 and at most a year", str(expires_s))
    if not 1 <= len(pattern) <= 200:
        raise ContractError("pattern", "1 to 200 characters", str(len(pattern)))
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", fleet):
        raise ContractError("fleet", "a name of a-z, 0-9 and -, at most 63 characters", repr(fleet))
    try:
        re.compile(pattern)
    except re.error as error:
        raise ContractError("pattern", "a regular expression", f"{pattern!r}: {error}") from None
    secret = secrets.token_urlsafe(32)
    row = {"hash": hash_of(secret), "uses_left": uses, "expires_ms": now_ms + int(expires_s * 1000)}
    connection.execute(control.enrol_tokens.insert().values(**row, pattern=pattern, fleet=fleet, kind=kind))
    body = msgspec.json.encode(
        EnrolmentToken(secret=secret, root_sha256=root_sha256, ca_sha256=ca_sha256, pattern=pattern)
    )
    return PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")


def parse(text: str) -> EnrolmentToken:
    """Raises ContractError."""
    if len(text) > TOKEN_BYTES or not text.startswith(PREFIX):
        raise ContractError("token", f"a string that begins with {PREFIX}", repr(text[:8]))
    encoded = text.removeprefix(PREFIX)
    try:
        return msgspec.json.decode(
            base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)), type=built(EnrolmentToken)
        )
    except (ValueError, msgspec.MsgspecError) as error:
        raise ContractError("token", "an enrolment token, copied whole", str(error)) from None


class Terms(NamedTuple):
    hash: str
    fleet: str
    pattern: str
    kind: Kind


def terms(connection: sa.Connection, secret: str, device: str, *, now_ms: int | None) -> Terms:
    """What the token with this secret gives to `device`; nothing is spent. `now_ms` None: even if it has expired since.
    Raises Refused."""
    row = connection.execute(
        sa.select(control.enrol_tokens).where(control.enrol_tokens.c.hash == hash_of(secret))
    ).one_or_none()
    if row is None or not hmac.compare_digest(row.hash, hash_of(secret)):
        raise Refused("token: expected one that this hub issued, got an unknown one; ask its operator for a new one")
    if now_ms is not None and now_ms >= row.expires_ms:
        raise Refused("token: it has expired; ask the hub's operator for a new one")
    if not re.fullmatch(row.pattern, device):
        raise Refused(f"token: it is for device ids like {row.pattern!r}, got {device!r}")
    return Terms(row.hash, row.fleet, row.pattern, row.kind)


def spend(connection: sa.Connection, token_hash: str) -> None:
    """Take one use; a single statement decides, so that two devices cannot both have the last. Raises Refused."""
    table = control.enrol_tokens
    left = (
        table.update().where(table.c.hash == token_hash, table.c.uses_left > 0).values(uses_left=table.c.uses_left - 1)
    )
    if connection.execute(left).rowcount != 1:
        raise Refused("token: all its uses are spent; ask the hub's operator for a new one")


def grant(engine: sa.Engine, *, role: Role, name: str) -> str:
    """A new API token. Raises ContractError for an unknown role or no name, Unavailable when hub.db cannot be
    written."""
    if not 1 <= len(name) <= 64 or name != name.strip() or not name.isprintable():
        raise ContractError("name", "1 to 64 characters, no blank at either end", repr(name[:80]))
    if role not in get_args(Role):
        raise ContractError("role", " | ".join(get_args(Role)), repr(role))
    token = secrets.token_urlsafe(32)
    with outside(engine), engine.begin() as connection:
        connection.execute(control.api_tokens.insert().values(hash=hash_of(token), role=role, name=name))
    return token


def appoint(engine: sa.Engine, *, role: Role, name: str, replace: bool, now_ms: int) -> str:
    """The API token of a person or program that has none; `replace`: or instead of those it has, which end now. Raises
    Refused for a name that has one, and as `grant`."""
    known = [one for one, _ in holders(engine) if one == name]
    if known and not replace:
        raise Refused(f"{name} has a token already: --replace ends it and makes another, --revoke only ends it")
    if known:
        dismiss(engine, name, now_ms=now_ms)
    made = grant(engine, role=role, name=name)
    _noted(engine, "token made", f"{name}: {role}", now_ms)
    return made


def dismiss(engine: sa.Engine, name: str, *, now_ms: int) -> int:
    """End every API token of this name, from now on; how many. Raises RequestError for none, Unavailable."""
    with outside(engine), engine.begin() as connection:
        mine = control.api_tokens.delete().where(control.api_tokens.c.name == name)
        number = connection.execute(mine).rowcount
    if not number:
        raise RequestError(f"{name[:80]!r} has no token; `edgewright hub users` lists who has")
    _noted(engine, "token revoked", name, now_ms)
    return number


def holders(engine: sa.Engine) -> list[tuple[str, str]]:
    """(name, role) of every API token, by name."""
    t = control.api_tokens.c
    with outside(engine), engine.connect() as connection:
        return [(row.name, row.role) for row in connection.execute(sa.select(t.name, t.role).order_by(t.name, t.role))]


def _noted(engine: sa.Engine, what: str, detail: str, now_ms: int) -> None:
    row = {"at_ms": now_ms, "who": "the data directory", "what": what, "detail": detail}
    with outside(engine), engine.begin() as connection:
        connection.execute(control.audit.insert().values(**row))


def holder(engine: sa.Engine, token: str) -> tuple[Role, str] | None:
    """(role, name) of an API token, or None."""
    if not token or len(token) > TOKEN_BYTES:
        return None
    wanted = hash_of(token)
    with engine.connect() as connection:
        row = connection.execute(sa.select(control.api_tokens).where(control.api_tokens.c.hash == wanted)).one_or_none()
    if row is None or not hmac.compare_digest(row.hash, wanted):
        return None
    return cast("Role", row.role), str(row.name)


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
