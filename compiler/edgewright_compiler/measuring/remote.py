"""The bench on another machine, over ssh: one connection, nothing installed there and nothing left there.

What goes over is a tar of the package and of the few modules that a bench needs, unpacked into a directory that only
its owner may read and that is removed however the bench ends. What must be there: sh, tar, Python 3.11 or newer with
numpy, msgspec and one of the runtimes, as an agent's venv has. What comes back is one JSON object.

ssh never asks: whom it does not know and what it may not do is an error here, because a question in the midst of a
stream of bytes helps nobody.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import tarfile
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from edgewright_contracts.built import built
from edgewright_contracts.errors import Refused, RequestError, Unavailable
from edgewright_contracts.package import MANIFEST, Package

from .bench import Reply
from .evidence import Bench

MINUTES: Final = 30  # of one bench; a board that needs more is stuck
CODE: Final = {
    "edgewright_contracts": None,
    "edgewright_runtime": None,
    "edgewright_compiler": ("__init__",),
    "edgewright_compiler.pipeline": ("__init__", "choice"),
    "edgewright_compiler.measuring": ("__init__", "bench", "evidence", "footprint", "latency", "machine"),
}

# Where an agent's venv usually lies, then what is on the path.
PYTHONS: Final = ("$HOME/edgewright/bin/python", "/opt/edgewright/bin/python", "$HOME/.venv/bin/python",
                  "$HOME/venv/bin/python", "python3")  # fmt: skip

NO_PYTHON, UNFIT, NO_ROOM = 72, 71, 73

_CHECK: Final = """
import sys
from importlib.util import find_spec
if sys.version_info < (3, 11):
    sys.exit("is Python %d.%d, needed is 3.11 or newer" % sys.version_info[:2])
lacks = [name for name in ("numpy", "msgspec") if find_spec(name) is None]
if not any(find_spec(name) for name in ("onnxruntime", "ai_edge_litert", "tflite_runtime")):
    lacks.append("a runtime")
if lacks:
    sys.exit("lacks " + ", ".join(lacks))
"""

_SCRIPT: Final = """
umask 077
found=; fit=
for python in {pythons}; do
    command -v "$python" >/dev/null 2>&1 || continue
    found=$python
    if "$python" -c {check} </dev/null >/dev/null 2>&1; then fit=$python; break; fi
done
[ -n "$found" ] || exit {no_python}
[ -n "$fit" ] || {{ echo "$found" >&2; "$found" -c {check} </dev/null; exit {unfit}; }}
folder=$(mktemp -d "${{TMPDIR:-/tmp}}/edgewright-bench.XXXXXX") || exit {no_room}
trap 'rm -rf "$folder"' EXIT
trap 'exit 129' HUP INT TERM PIPE
tar -xzf - -C "$folder" || exit {no_room}
export PYTHONPATH="$folder/code" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 TMPDIR="$folder"
"$fit" -P -m edgewright_compiler.measuring.bench "$folder/package" {calls}
"""


def bench_over_ssh(package: Package, host: str, *, calls: int, python: str | None, made: str) -> Bench:
    """`host` as ssh takes it: a name of its configuration, user@host, or ssh://user@host:port. `python` is the one to
    use there; None looks in the usual places.

    Raises Unavailable when the host does not let us in, lacks what is needed, or breaks off; RequestError for a host
    that is none; whatever the bench itself raises there.
    """
    if not host or host.startswith("-"):
        raise RequestError(f"--ssh: expected a host as ssh takes it (user@host), got {host!r}")
    script = _SCRIPT.format(
        pythons=" ".join(f'"{one}"' for one in PYTHONS) if python is None else shlex.quote(python),
        check=shlex.quote(_CHECK),
        calls=calls,
        no_python=NO_PYTHON,
        unfit=UNFIT,
        no_room=NO_ROOM,
    )
    options = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15"]
    command = ["ssh", *options, "--", host, f"exec sh -c {shlex.quote(script)}"]
    try:
        done = subprocess.run(command, input=bundle(package), capture_output=True, timeout=MINUTES * 60, check=False)
    except FileNotFoundError:
        raise Unavailable("a bench over ssh needs the program ssh (Debian: apt install openssh-client)") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{host} did not finish the bench in {MINUTES} minutes; try fewer --calls") from None
    if done.returncode:
        raise Unavailable(_said(host, done.returncode, done.stderr.decode(errors="replace")))
    try:
        reply = msgspec.json.decode(done.stdout, type=built(Reply))
    except msgspec.MsgspecError:
        start = done.stdout[:80].decode(errors="replace")
        raise Unavailable(
            f"{host}: expected one JSON object, got {start!r}; does its shell print something at start-up?"
        ) from None
    if reply.bench is None:
        kind = {Refused.exit_code: Refused, RequestError.exit_code: RequestError}.get(reply.exit_code, Unavailable)
        raise kind(f"{host}: {reply.error}")
    return msgspec.structs.replace(reply.bench, host=host, made=made)


def bundle(package: Package) -> bytes:
    """A tar.gz of `code/` and `package/`; only what the manifest names, every file verified."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=3) as archive:
        for module, names in CODE.items():
            folder = module.replace(".", "/")
            for file in resources.files(module).iterdir():
                if file.name.endswith(".py") and (names is None or file.name.removesuffix(".py") in names):
                    _add(archive, f"code/{folder}/{file.name}", file.read_bytes())
        _add(archive, f"package/{MANIFEST}", package.manifest_bytes)
        for name in sorted(package.manifest.files):
            _add(archive, f"package/{name}", package.read(name))
    return out.getvalue()


def file_for(package: Path, host: str) -> Path:
    """Where the evidence of a host lies: inside a package directory, beside an `.ewp`."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", host.removeprefix("ssh://")).strip("-.")
    name = f"bench-{safe}.json"
    return package / name if package.is_dir() else package.with_name(f"{package.stem}.{name}")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o600
    archive.addfile(info, io.BytesIO(data))


def _said(host: str, code: int, stderr: str) -> str:
    lines = [line.strip() for line in stderr.strip().splitlines() if line.strip()] or [f"it ended with code {code}"]
    last = lines[-1]
    if code == NO_PYTHON:
        return f"{host} has no Python where one was looked for; name it with --python"
    if code == UNFIT:
        return (
            f"{host}: {lines[0]} {last}. There: python3 -m venv ~/edgewright && ~/edgewright/bin/pip install "
            "numpy msgspec onnxruntime (or ai-edge-litert); or name another with --python"
        )
    if code == NO_ROOM:
        return f"{host} could not unpack the package: {last}; is its disk full, is tar there?"
    if code != 255:
        return f"{host}: the bench broke off with code {code}: {last}"
    if "host key" in stderr.lower() or "HOST IDENTIFICATION" in stderr:
        return (
            f"ssh does not trust the key of {host} (unknown, or changed). "
            f"Run `ssh {host}` once, compare the fingerprint, then repeat"
        )
    if "Permission denied" in stderr:
        return f"{host} does not accept this user's key: {last}. `ssh-copy-id {host}` brings it there"
    return f"no connection to {host}: {last}"
