"""The same rules for mosquitto: a configuration and an ACL file that make it the broker of this hub.

TLS with client certificates only; a certificate's common name is the user name and the client id (without the second
line anybody with a certificate could take over another's session by its client id). Every device may publish under its
own `up/` and read its own `down/`; mosquitto drops what is not allowed without a word. It knows nothing of hub.db: a
key that a later enrolment replaced stays valid here until its certificate ends, unlike on the embedded broker.
"""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path

from edgewright_contracts.topics import ROOT, RULES

from ..fleet.ca import HUB_NAME, Authority


def acl() -> str:
    return f"user {HUB_NAME}\ntopic readwrite {ROOT}/#\n\npattern write {ROOT}/%u/up/+\npattern read {ROOT}/%u/down/+\n"


def configuration(
    folder: Path, *, port: int, bind: str, user: str | None = None, websocket_port: int | None = None
) -> str:
    """mosquitto.conf for the files of `folder`; `user` is whom mosquitto becomes when it is started by root. With a
    `websocket_port` it speaks MQTT over WebSocket there, too, under the same rules."""
    limit = max(rule.limit for rule in RULES.values()) + 1024
    door = [
        f"cafile {folder}/ca.pem",
        f"certfile {folder}/server.pem",
        f"keyfile {folder}/server.key",
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
        "allow_anonymous false",
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


def write_configuration(
    authority: Authority,
    folder: Path,
    *,
    port: int,
    bind: str,
    now: datetime,
    user: str | None = None,
    websocket_port: int | None = None,
) -> Path:
    """Write mosquitto.conf, acl, ca.pem and a server certificate into `folder`; returns the path of mosquitto.conf."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    authority.keep_server(() if bind in {"0.0.0.0", "::"} else (bind,), folder, now=now)  # noqa: S104 - compared
    shutil.copyfile(authority.folder / "ca.pem", folder / "ca.pem")
    acl_file = folder / "acl"
    acl_file.write_text(acl())
    acl_file.chmod(0o600)
    conf = folder / "mosquitto.conf"
    conf.write_text(configuration(folder, port=port, bind=bind, user=user, websocket_port=websocket_port))
    if user and user != "root" and os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    return conf
