"""The command line's promises: quick help, one message for a failure, exit codes by who must act."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgewright import main
from edgewright_contracts.errors import ContractError, Refused, RequestError, Unavailable


def test_help_imports_no_part_of_the_house() -> None:
    code = "import edgewright.main as m, sys; m.run(['--help']); print([n for n in sys.modules if 'edgewright_' in n])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "['edgewright_contracts', 'edgewright_contracts.errors']"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("the budget is missed"), 1),
        (RequestError("no such recipe"), 2),
        (ContractError("manifest", "one json message", "nothing"), 2),
        (Unavailable("the hub does not answer"), 3),
        (OSError(28, "No space left on device", "/media/x"), 3),
        (ZeroDivisionError("division by zero"), 3),
        (click.UsageError("no such option"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_expected_failure_is_one_line_and_a_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command("fail")
    def fail() -> None:
        raise error

    monkeypatch.setitem(main.cli.commands, "fail", fail)
    monkeypatch.setattr(main.Lazy, "get_command", lambda self, ctx, name: self.commands.get(name))
    assert main.run(["fail"]) == code
    err = capsys.readouterr().err.strip()  # click ends the line that ^C stands on
    assert err.startswith("edgewright: ")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command("fail")
    def fail() -> None:
        raise Unavailable("the hub does not answer")

    monkeypatch.setattr(main.Lazy, "get_command", lambda self, ctx, name: fail)
    for line in (["--debug", "fail"], ["fail", "--debug"]):
        assert main.run(line) == 3
        assert "Traceback" in capsys.readouterr().err


def test_an_unknown_command_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["complie"]) == 2
    assert "No such command 'complie'" in capsys.readouterr().err


def test_a_missing_extra_names_the_pip_install_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    early = "import package_that_is_not_here\n"
    late = "import click\n\n@click.command()\ndef hub():\n    import package_that_is_not_here\n"
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in (("early", early), ("late", late)):
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.setitem(main.COMMANDS, "hub", main.Place(name, "hub", ""))
        assert main.run(["hub"]) == 2
        assert "pip install 'edgewright[hub]'" in capsys.readouterr().err


def test_the_bare_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 2
    assert capsys.readouterr().out.startswith("Usage: ")
