"""Entry point: finds the command's module when it is named, and turns every expected failure into one line and a code.

Exit codes: 0 done; 1 the answer is "no"; 2 the request was wrong; 3 something outside failed; 4 no answer yet
(`simulate`); 130 interrupted.
A command module is imported only when one of its commands runs, so `edgewright --help` loads no torch and no server.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Final, NamedTuple, NoReturn

import click

from edgewright_contracts.errors import EdgewrightError


class Place(NamedTuple):
    module: str
    extra: str  # the pip extra that brings what the module imports
    help: str


COMMANDS: Final[dict[str, Place]] = {
    "demo": Place("edgewright.demo.command", "all", "The whole loop on this machine, on real data."),
    "init": Place("edgewright.compiling", "compiler", "A project of your own from a reference recipe."),
    "compile": Place("edgewright.compiling", "compiler", "Compile a recipe for a device into a package."),
    "inspect": Place("edgewright.inspecting", "compiler", "Verify a package and show what was measured of it."),
    "bench": Place("edgewright.benching", "agent-onnx,agent-tflite", "Measure a package here, or on a device by ssh."),
    "runs": Place("edgewright.runs", "compiler", "List, show and compare what was compiled here."),
    "keys": Place("edgewright.trusting", "compiler", "The owner's signing keys."),
    "sign": Place("edgewright.trusting", "compiler", "Sign a package for devices that get it by hand."),
    "publish": Place("edgewright.trusting", "compiler", "Sign a package and publish it on a hub."),
    "agent": Place("edgewright.agents", "agent,agent-enroll", "Run and inspect the agent on a device."),
    "hub": Place("edgewright.hubs", "hub", "Run the hub."),
    "fleet": Place("edgewright.fleets", "hub", "Devices of a hub and their drift."),
    "registry": Place("edgewright.registries", "hub", "Packages of a hub: stages, lineage, differences."),
    "rollout": Place("edgewright.rollouts", "hub", "Staged rollouts on a hub."),
    "simulate": Place("edgewright.simulating", "hub", "What the hub would decide about a virtual fleet."),
}


_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Lazy(click.Group):
    """A group whose commands live in modules of their own; a missing package names the extra that brings it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in COMMANDS.items()])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        place = COMMANDS.get(name)
        if place is None:
            return None
        module = importlib.import_module(place.module)
        command = getattr(module, name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgewright")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure; anywhere on the line.")
def cli(debug: bool) -> None:
    """Compile a model for a device, ship it to a fleet, and know whether it still works there."""


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two spinning threads cost ten times the wall time on small models
    signal.signal(signal.SIGTERM, _interrupt)  # what a command began is cleaned up; servers set their own
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; a failure is one message, and its traceback with --debug."""
    rest = [a for a in arguments if a != "--debug"]
    try:
        code = cli.main(args=rest, prog_name="edgewright", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _say("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        return _say(*_told(error, rest))


def _told(error: Exception, arguments: list[str]) -> tuple[str, int]:
    """What a person is told, and the exit code."""
    if isinstance(error, click.ClickException):
        ctx = error.ctx if isinstance(error, click.UsageError) else None
        return error.format_message() + (f" See `{ctx.command_path} --help`." if ctx else ""), 2
    if isinstance(error, EdgewrightError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("edgewright"):
        name = next((a for a in arguments if a in COMMANDS), "")
        extra = COMMANDS[name].extra if name else "all"
        return (
            f"`edgewright {' '.join(arguments[:2])}` needs the package {error.name!r}, which is not installed. "
            f"Install it with: pip install 'edgewright[{extra}]'"
        ), 2
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"the disk is full{_place(error)}: nothing half-written was kept; free some space and repeat", 3
    if isinstance(error, OSError):
        return f"the system refused: {error.strerror or error}{_place(error)}", 3
    return (
        f"{type(error).__name__}: {error}. This is a fault of edgewright, not of the request; "
        f"`edgewright --debug {' '.join(arguments)}` shows where"
    ), 3


def _place(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""


def _say(message: str, code: int) -> int:
    click.echo(f"edgewright: {message}", err=True)
    return code


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
