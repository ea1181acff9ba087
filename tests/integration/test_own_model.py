"""docs/your-own-model.md, run as it stands: what a reader copies must work."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "your-own-model.md"
PORTS = (8443, 8080, 8883, 8500)  # the page uses the defaults


def script() -> str:
    """One shell script of all blocks: a Python block becomes the file that its first line names.

    Those under "Preprocessing" need no hub and no agent: compiler/test_own_preprocessing.py runs them in its process.
    """
    lines = ["set -eu -o pipefail"]
    page = re.sub(r"^## Preprocessing\n.*?(?=^## )", "", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if language == "sh":
            lines.append(body)
        else:
            assert language == "python", f"{language}: a block that nobody runs"
            name = body.splitlines()[0].removeprefix("# ")
            lines.append(f"cat > {name} <<'END-OF-BLOCK'\n{body}END-OF-BLOCK")
    return "\n".join(lines)


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.process
@pytest.mark.slow
def test_the_blocks_of_the_page_lead_to_an_agent_that_serves_the_package(tmp_path: Path) -> None:
    taken = [port for port in PORTS if not free(port)]
    if taken:
        pytest.skip(f"the page uses the default ports, and {taken} are in use here")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (tmp_path / "log").open("wb") as log:
        shell = subprocess.Popen(
            ["bash", "-c", script()], cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = shell.wait(280)
        finally:
            ended(shell.pid)
    said = (tmp_path / "log").read_text(errors="replace")
    assert code == 0, said[-3000:] + "".join(tail(tmp_path / name) for name in ("hub.log", "agent.log"))
    assert re.search(r"^\d+ of 90 right$", said, re.MULTILINE)
    assert "mymodel 1.0.0 onnx-" in said  # what `agent predict` prints
    assert (tmp_path / "packages" / "mymodel-1.0.0" / "card.md").is_file()


def ended(group: int) -> None:
    """End whatever the script has left running."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, sign)
        except ProcessLookupError:
            return
        time.sleep(0.5)


def tail(path: Path) -> str:
    return f"\n{path.name}:\n{path.read_text(errors='replace')[-1500:]}" if path.is_file() else ""
