"""The pages of figures say what the results say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgewright.main import cli

ROOT = Path(__file__).parent.parent.parent


def test_the_page_of_benchmarks_was_made_from_the_results():
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "page", ["README.md", "docs/agent.md", "docs/arm64.md", "docs/operations.md", "docs/quality.md", "docs/rollouts.md"]
)
def test_commands_of_the_pages_and_their_options_exist(page):
    text = (ROOT / page).read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("edgewright ")]
    inline = re.findall(r"`(edgewright [^`\n]*)`", text)
    for line in [*lines, *inline]:
        command: click.Command = cli
        words = [re.split(r"[=(]", word)[0] for word in shlex.split(line, comments=True)[1:]]
        while words and isinstance(command, click.Group) and not words[0].isupper():
            found = command.get_command(click.Context(command), words[0])
            assert found is not None, f"{page}: {line}"
            command, words = found, words[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        asked = {word for word in words if word.startswith("--")}
        assert asked <= known, f"{page}: {line}"
