"""A group of commands of which one is meant when none is named: `fleet alerts` is `fleet alerts show`."""

from __future__ import annotations

import click


class ShownByDefault(click.Group):
    """Without a command of its own it is `show`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        meant = args and (not args[0].startswith("-") or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if meant else ["show", *args])
