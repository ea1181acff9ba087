"""Entry point: finds the command's module when it is named, and turns every expected failure into one line and a code.

Exit codes: 0 done; 1 the answer is "no"; 2 the request was wrong; 3 something outside failed; 130 interrupted.
A command module is imported only when one of its commands runs, so `edgewright --help` loads no torch and no server.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Final, NamedTuple

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
    "inspect": Place("edgewright.compiling", "compiler", "Show and verify a package."),
    "keys": Place("edgewright.trusting", "compiler", "The owner's signing keys."),
    "publish": Place("edgewright.trusting", "compiler", "Sign a package and publish it on a hub."),
    "agent": Place("edgewright.agents", "agent", "Run and inspect the agent on a device."),
    "hub": Place("edgewright.hubs", "hub", "Run the hub."),
    "fleet": Place("edgewright.fleets", "hub", "Devices of a hub and their drift."),
    "rollout": Place("edgewright.fleets", "hub", "Staged rollouts on a hub."),
}


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
        try:
            module = importlib.import_module(place.module)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("edgewright"):
                raise
            raise click.UsageError(
                f"`edgewright {name}` needs the package {error.name!r}, which is not installed. "
                f"Install it with: pip install 'edgewright[{place.extra}]'"
            ) from None
        command = getattr(module, name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgewright")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
def cli(debug: bool) -> None:
    """Compile a model for a device, ship it to a fleet, and know whether it still works there."""


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two spinning threads cost ten times the wall time on small models
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; prints one message for an expected failure."""
    debug = "--debug" in arguments
    try:
        code = cli.main(args=arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        return _say("interrupted", 130)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except click.ClickException as error:
        if debug:
            traceback.print_exc()
        return _say(error.format_message(), 2)
    except EdgewrightError as error:
        if debug:
            traceback.print_exc()
        return _say(str(error), error.exit_code)
    except OSError as error:
        if debug:
            traceback.print_exc()
        return _say(_disk_or_network(error), 3)


def _disk_or_network(error: OSError) -> str:
    place = f" ({error.filename})" if error.filename else ""
    return f"the system refused: {error.strerror or error}{place}"


def _say(message: str, code: int) -> int:
    click.echo(f"edgewright: {message}", err=True)
    return code
