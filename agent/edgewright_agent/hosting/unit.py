"""The systemd unit of an agent: what it may touch, how it is watched, and how it gets there.

The agent needs its home, the network and time on a processor, and gets no more: systemd.exec(5) for each line. Left out
on purpose, with what each would break:

    MemoryDenyWriteExecute   runtimes and their delegates generate code
    ProtectClock             the kernel is asked whether the clock is disciplined (adjtimex); no capability is there to
                             set it
    ProtectControlGroups     the agent sets memory.high of its own cgroup, which `Delegate` gives it
    ProcSubset=pid           /proc/meminfo and the board's name are reported
    ~@privileged             it takes adjtimex and fchown away; without a capability its calls change nothing anyway
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from edgewright_contracts.errors import Refused, RequestError, Unavailable

from ..console import status
from ..serving.listening import place

NAME: Final = "edgewright-agent.service"
FOLDER: Final = Path("/etc/systemd/system")
BOOTED: Final = Path("/run/systemd/system")  # sd_booted(3)
RUNTIME: Final = Path("/run/edgewright")  # RuntimeDirectory, made at each start
COMMAND_S: Final = 120

Run = Callable[[Sequence[str]], None]


_MEMORY: Final = re.compile(r"[1-9][0-9]*[KMGT]?|[1-9][0-9]?%|100%")  # systemd.resource-control(5)
_QUOTA: Final = re.compile(r"[1-9][0-9]*%")


class Options(NamedTuple):
    home: Path  # absolute
    user: str = "edgewright"
    listen: str = ""
    log_format: str = "kv"
    memory_high: str = ""  # as systemd has it: 200M
    cpu_quota: str = ""  # 50%
    watchdog_s: int = 60


def command(options: Options) -> list[str]:
    """What runs the agent, on any init."""
    script = Path(sys.executable).with_name("edgewright")
    begin = [str(script)] if script.exists() else [sys.executable, "-c", "from edgewright.main import main; main()"]
    listen = ["--listen", options.listen] if options.listen else []
    return [*begin, "agent", "run", "--home", str(options.home), "--log-format", options.log_format, *listen]


def text(options: Options) -> str:
    """The unit file. Raises RequestError for values that would say something else in it."""
    for value in options:
        if any(c in str(value) for c in "\n\r\0"):
            raise RequestError(f"expected one line, got {str(value)!r}")
    for value, form, example in ((options.memory_high, _MEMORY, "200M"), (options.cpu_quota, _QUOTA, "50%")):
        if value and not form.fullmatch(value):
            raise RequestError(f"expected a bound such as {example}, got {value!r}")
    _reachable(options)
    bounds = [
        *([f"MemoryHigh={options.memory_high}"] if options.memory_high else []),
        *([f"CPUQuota={options.cpu_quota}"] if options.cpu_quota else []),
    ]
    home = _quoted(str(options.home))
    return "\n".join(
        [
            "[Unit]",
            "Description=Edgewright agent",
            "Wants=network-online.target",
            "After=network-online.target time-sync.target",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=notify",
            "NotifyAccess=main",
            f"ExecStart={' '.join(_quoted(word) for word in command(options))}",
            f"User={options.user}",
            f"WorkingDirectory={home[1:-1] if home.startswith(chr(34)) else home}",
            "Restart=always",
            "RestartSec=5",
            "TimeoutStartSec=120",
            "TimeoutStopSec=45",
            f"WatchdogSec={options.watchdog_s}",
            "OOMPolicy=continue",  # a self-test's child may be killed without the agent
            "TasksMax=256",
            "Delegate=memory",
            *bounds,
            "",
            f"ReadWritePaths={home}",
            "RuntimeDirectory=edgewright",
            "UMask=0077",
            "ProtectSystem=strict",
            "ProtectHome=read-only",
            "PrivateTmp=yes",
            "PrivateDevices=yes",
            "ProtectProc=invisible",
            "ProtectKernelTunables=yes",
            "ProtectKernelModules=yes",
            "ProtectKernelLogs=yes",
            "ProtectHostname=yes",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "AmbientCapabilities=",
            "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
            "RestrictNamespaces=yes",
            "RestrictRealtime=yes",
            "RestrictSUIDSGID=yes",
            "LockPersonality=yes",
            "RemoveIPC=yes",
            "KeyringMode=private",
            "SystemCallArchitectures=native",
            "SystemCallFilter=@system-service adjtimex clock_adjtime",
            "SystemCallErrorNumber=EPERM",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )


def _reachable(options: Options) -> None:
    """The unit may make a socket in its home and in /run/edgewright only. Raises RequestError."""
    where = place(options.listen) if options.listen else None
    if isinstance(where, Path) and not any(where.is_relative_to(one) for one in (options.home, RUNTIME)):
        raise RequestError(
            f"expected --listen unix:{RUNTIME}/NAME, or a path below {options.home}, got {options.listen!r}: "
            f"the service may write nowhere else"
        )


def _quoted(word: str) -> str:
    """As systemd.syntax(7) reads it back: % begins a specifier, $ a variable."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or any(c in word for c in " ';\t") else word


def run(words: Sequence[str]) -> None:
    """Raises Unavailable with what the command said."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{' '.join(words)}: {error}") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[:500]}")


class Installed(NamedTuple):
    path: Path
    changed: bool


def install(options: Options, *, folder: Path = FOLDER, booted: Path = BOOTED, run: Run = run) -> Installed:
    """Write the unit, give the home to its user, and start it; again, it changes nothing that is so already. Raises
    RequestError, Refused, Unavailable."""
    status.of(options.home)  # without an identity or a package it would start and fail for ever
    unit = text(options)
    if not booted.is_dir():
        raise Refused(
            "no systemd runs this machine. Have its init start this, and start it again whenever it ends:\n  "
            + " ".join(command(options))
        )
    _privileged()
    if not _user(options.user):
        run(["useradd", "--system", "--no-create-home", "--home-dir", str(options.home), "--shell",
             shutil.which("nologin") or "/usr/sbin/nologin", options.user])  # fmt: skip
    _give(options.home, options.user)
    path = folder / NAME
    changed = not path.exists() or path.read_text() != unit
    if changed:
        part = path.with_name(f".{NAME}.new")
        part.write_text(unit)
        part.replace(path)
        run(["systemctl", "daemon-reload"])
    run(["systemctl", "enable", NAME])
    run(["systemctl", "restart" if changed else "start", NAME])
    return Installed(path, changed)


def uninstall(*, folder: Path = FOLDER, booted: Path = BOOTED, run: Run = run) -> bool:
    """Stop the unit and remove it; the device's home stays. False when there was none. Raises Refused, Unavailable."""
    path = folder / NAME
    if not path.exists():
        return False
    _privileged()
    if booted.is_dir():
        run(["systemctl", "disable", "--now", NAME])
    path.unlink()
    if booted.is_dir():
        run(["systemctl", "daemon-reload"])
    return True


def _privileged() -> None:
    if os.geteuid() != 0:
        raise Refused("only root changes system units: run it with sudo, or look at the unit with --print")


def _user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _give(home: Path, user: str) -> None:
    """Everything under `home`, which enrolment made as somebody else; links are not followed."""
    try:
        known = pwd.getpwnam(user)
        group = grp.getgrgid(known.pw_gid).gr_gid
        for folder, _, files in os.walk(home):
            for path in (folder, *(os.path.join(folder, one) for one in files)):  # noqa: PTH118 - os.walk's own form
                os.chown(path, known.pw_uid, group, follow_symlinks=False)
    except (KeyError, OSError) as error:
        raise Unavailable(f"{home} cannot be given to the user {user}: {error}") from None
