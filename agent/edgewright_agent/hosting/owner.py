"""Whom a home belongs to: what root does by hand in the home of a service must stay readable to that service, and must
not follow what that service's user laid there."""

from __future__ import annotations

import os
from pathlib import Path


def act_as_owner(home: Path) -> None:
    """From now on this process is the user whose home it is, if it was root and the home is somebody else's.

    For the short-lived processes of commands: there is no way back. Raises OSError.
    """
    if os.geteuid() != 0 or not home.is_dir():
        return
    owner = home.stat()
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
