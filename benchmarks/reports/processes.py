"""Processes that a measurement needs: its own parts, each `ingest.py --part`, and mosquitto."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from edgewright_contracts import topics
from edgewright_hub.fleet.ca import open_authority
from edgewright_hub.mqtt.mosquitto import write_configuration

from .traffic import PUMP

SCRIPT: Final = Path(__file__).resolve().parents[1] / "ingest.py"


class Child:
    """Starts at once, so that several start side by side; `wait("ready")` before it is used."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, str(SCRIPT), "--part", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        raise RuntimeError("a process ended before it was done")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.go()
        self.process.communicate(timeout=30)


def in_own_process(kind: str, folder: Path, *, quick: bool) -> Any:
    command = [sys.executable, str(SCRIPT), "--part", kind, str(folder), str(int(quick))]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


@contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    """As `hub broker-config` writes it, and with leave for the pump to speak for all devices."""
    authority = open_authority(folder / "ca", now=datetime.now(UTC))
    port = free_port()
    user = "root" if os.geteuid() == 0 else None
    place = folder / "mosquitto"
    conf = write_configuration(authority, place, port=port, bind="127.0.0.1", now=datetime.now(UTC), user=user)
    acl = place / "acl"
    acl.write_text(f"{acl.read_text()}\nuser {PUMP}\ntopic write {topics.ROOT}/#\n")
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(["/usr/sbin/mosquitto", "-c", str(conf)], stdout=quiet, stderr=quiet)
    try:
        wait_for_port(port)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("the broker does not answer")
