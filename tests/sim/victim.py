"""A device in a process of its own, to be killed: `python victim.py HOME`. It is asked all the time, and says on stdout
what it seals before and after the spool has it, and which package first answers. It ends when stdin does."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from pathlib import Path

import msgspec


def say(*words: object) -> None:
    os.write(1, msgspec.json.encode(words) + b"\n")  # one write: whole or not there


def main(home: Path) -> None:
    from edgewright_agent.agent import Agent
    from edgewright_contracts.errors import Unavailable
    from sim import packages

    agent = Agent(home, runtimes=["onnxruntime"])
    seal = agent._spool.seal

    def told(windows, *more) -> None:
        marks = [(w.boot_id, w.mono_start_ms, w.digest, w.phase, w.n) for w in windows]
        say("sealing", marks)
        seal(windows, *more)
        say("sealed", marks)

    agent._spool.seal = told
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    images = packages.draw(50, seed=3)[0]
    with agent:
        said = ""
        for i in itertools.count():
            with contextlib.suppress(Unavailable):
                digest = agent.model("digits").predict({"image": images[i % 50]}).digest
                if digest != said:
                    say("answers", digest)
                    said = digest
            if ended.wait(0.005):
                break


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(Path(sys.argv[1]))
