"""What is wished of this device is handed to those who do it: the hub's document, and what was brought by hand."""

from __future__ import annotations

import msgspec

from edgewright_contracts.desired import Config, Desired

from .delivery.reporter import Reporter
from .hosting import logs
from .telemetry.notices import Notice
from .updating.fetch import Link
from .updating.install import Installer
from .updating.sideload import Sideload, Sideloads


class Following:
    def __init__(self, reporter: Reporter, link: Link, installer: Installer, sideloads: Sideloads) -> None:
        self._reporter, self._link, self._installer, self._sideloads = reporter, link, installer, sideloads
        self._followed: Config | None = None
        self._offered: dict[str, Sideload] = {}

    def follow(self, desired: Desired) -> None:
        if desired.rev:  # else nobody has asked, and the application's own choice stands
            logs.follow(desired.config.log_level)
        before, self._followed = self._followed, desired.config
        if before is not None and before != desired.config:
            self._reporter.notices.note(
                Notice(f"config {before.version}", f"config {desired.config.version}", changed(before, desired))
            )
        self._reporter.watch.obey(desired.config)
        self._link.pace(desired.config.download)
        self._installer.desire(self._sideloads.over(desired))

    def anew(self) -> None:
        """What was wished last, or nothing."""
        self.follow(self._reporter.desired or Desired(rev=0))

    def look(self) -> None:
        """What was brought by hand since the last look is wanted from now on; what was cleared by hand is told on."""
        offered = self._sideloads.wishes()
        if offered != self._offered:
            self._offered = offered
            self.anew()
        self._sideloads.settle(self._settled)
        for name, digests in self._sideloads.clears().items():
            self._sideloads.cleared(name)  # first: what fails again must not be cleared again
            for digest in digests:
                self._installer.clear(name, digest)

    def _settled(self, wish: Sideload) -> bool:
        """Whether a package that was brought lies in a slot, or is blocked."""
        state = self._installer.states().get(wish.name)
        held = [slot.digest for slot in (state.a, state.b) if slot is not None] if state else []
        return state is not None and (wish.digest in held or wish.digest in state.blocked)


def changed(before: Config, desired: Desired) -> str:
    """What of the configuration is followed from now on, for the operator who asked for it."""
    was, now = msgspec.to_builtins(before), msgspec.to_builtins(desired.config)
    moved = [f"{name} {was[name]} → {now[name]}" for name in now if now[name] != was[name] and name != "version"]
    return f"revision {desired.rev} is followed: {', '.join(moved) or 'as before'}"[:1024]
