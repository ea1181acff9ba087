"""The same rules for mosquitto: a folder that makes it the broker of this hub.

    mosquitto.conf   acl   ca.pem  server.pem  server.key   revoked.pem   passwords  monitor.password

TLS with client certificates only; a certificate's common name is the user name and the client id (without the second
line anybody with a certificate could take over another's session by its client id). Every device may publish under its
own `up/` and read its own `down/`; mosquitto drops what is not allowed without a word. The password file lets in one
user, on loopback and only where it is asked for: `MONITOR`, who reads how mosquitto fares ($SYS) and nothing else.

mosquitto knows nothing of hub.db. Retired devices are named in the ACL, which ends what they say and hear, and their
certificates and replaced keys in revoked.pem, which keeps them from connecting: both as of the moment when this was
written. Written again, and told so by SIGHUP, mosquitto knows what changed, and nobody else notices.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
import secrets
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from edgewright_contracts import durable
from edgewright_contracts.errors import RequestError
from edgewright_contracts.topics import ROOT, RULES

from ..fleet.ca import HUB_NAME, Authority
from ..fleet.revoked import NOBODY, Revoked, revocation_list

MONITOR: Final = "_monitor"  # no device can be called so
USER: Final = "mosquitto"  # made by the packages of Debian, Fedora and Alpine
_ROUNDS: Final = 101  # of PBKDF2, as mosquitto_passwd takes: the password is 32 random bytes


def acl(retired: Sequence[str] = ()) -> str:
    """mosquitto looks at what is denied to a user before what a pattern allows."""
    hub = f"user {HUB_NAME}\ntopic readwrite {ROOT}/#\n"
    monitor = f"user {MONITOR}\ntopic deny {ROOT}/#\ntopic read $SYS/#\n"
    gone = "".join(f"user {device}\ntopic deny #\n\n" for device in retired)
    return f"{hub}\n{monitor}\n{gone}pattern write {ROOT}/%u/up/+\npattern read {ROOT}/%u/down/+\n"


def configuration(
    folder: Path,
    *,
    port: int,
    bind: str,
    user: str | None = None,
    websocket_port: int | None = None,
    monitor_port: int | None = None,
    revocation: bool = True,
) -> str:
    """mosquitto.conf for the files of `folder`; `user` is whom mosquitto becomes when it is started by root. With a
    `websocket_port` it speaks MQTT over WebSocket there, too, under the same rules; with a `monitor_port`, without TLS,
    to `MONITOR` on this machine. `revocation`: whether there is a list of what is revoked."""
    limit = max(rule.limit for rule in RULES.values()) + 1024
    door = [
        f"cafile {folder}/ca.pem",
        f"certfile {folder}/server.pem",
        f"keyfile {folder}/server.key",
        *([f"crlfile {folder}/revoked.pem"] if revocation else []),
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
    ]
    web = [f"listener {websocket_port} {bind}", "protocol websockets", *door] if websocket_port else []
    lines = [
        "per_listener_settings false",
        *([f"user {user}"] if user else []),
        f"listener {port} {bind}",
        *door,
        *web,
        *([f"listener {monitor_port} 127.0.0.1"] if monitor_port else []),
        "allow_anonymous false",
        f"password_file {folder}/passwords",
        f"acl_file {folder}/acl",
        "persistence true",
        f"persistence_location {folder}/",  # the slash at the end is needed
        "autosave_interval 30",
        f"message_size_limit {limit}",
        # What waits for a hub that is away; devices keep everything until it is acknowledged end to end.
        "max_inflight_messages 1000",  # more than the hub commits at once: it acknowledges after that
        "max_queued_messages 10000",
        "max_queued_bytes 67108864",
    ]
    return "\n".join(lines) + "\n"


def becomes(user: str | None, folder: Path) -> str | None:
    """Whom mosquitto becomes: `user`; if root is to start it and names nobody, the user that its packages make. Raises
    RequestError where nobody of that name could read what is written to `folder`, which ends mosquitto's start."""
    if os.geteuid() != 0:
        return user
    name = user or USER
    try:
        who = pwd.getpwnam(name)
    except KeyError:
        raise RequestError(
            f"--user: expected the user that mosquitto becomes when root starts it, this machine has no {name!r}: "
            "name one, or install mosquitto first"
        ) from None
    groups = os.getgrouplist(name, who.pw_gid)
    for place in (one for one in folder.absolute().parents if one.exists() and who.pw_uid != 0):
        about = place.stat()
        turn = 0o100 if about.st_uid == who.pw_uid else 0o010 if about.st_gid in groups else 0o001
        if not about.st_mode & turn:
            raise RequestError(
                f"{folder}: expected a folder that the user {name} can reach, {place} does not let it in: "
                "name another, for instance /etc/edgewright-broker; or see --user"
            )
    return name


def write_configuration(
    authority: Authority,
    folder: Path,
    *,
    port: int,
    bind: str,
    now: datetime,
    user: str | None = None,
    websocket_port: int | None = None,
    monitor_port: int | None = None,
    names: Sequence[str] = (),
    revoked: Revoked = NOBODY,
) -> Path:
    """Write all of it into `folder`; returns the path of mosquitto.conf. What is there and still right is kept: the
    server's certificate (for `names` and the address), the monitor's password."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    bound = () if bind in {"0.0.0.0", "::"} else (bind,)  # noqa: S104 - compared
    authority.keep_server((*names, *bound), folder, now=now)
    durable.replace(folder / "ca.pem", authority.ca_pem)
    listed = revocation_list(authority, revoked.serials, now=now)
    if listed is not None:
        durable.replace(folder / "revoked.pem", listed)
    durable.replace(folder / "acl", acl(revoked.devices).encode(), mode=0o600)
    _password(folder)
    text = configuration(
        folder,
        port=port,
        bind=bind,
        user=user,
        websocket_port=websocket_port,
        monitor_port=monitor_port,
        revocation=listed is not None,
    )
    conf = folder / "mosquitto.conf"
    durable.replace(conf, text.encode())
    if user and user != "root" and os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    return conf


def _password(folder: Path) -> None:
    """Of the monitor, in its own file, and as mosquitto keeps it."""
    kept = folder / "monitor.password"
    if kept.exists() and (folder / "passwords").exists():
        return
    password, salt = secrets.token_urlsafe(32), secrets.token_bytes(12)
    derived = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ROUNDS, 64)
    line = f"{MONITOR}:$7${_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(derived).decode()}\n"
    durable.replace(kept, f"{password}\n".encode(), mode=0o600)
    durable.replace(folder / "passwords", line.encode(), mode=0o600)
