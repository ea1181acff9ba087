"""`edgewright registry`: the packages of a hub, what their operators say of them, where they come from, how they
differ."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .hub_client import HubClient, path, with_hub
from .tables import ago, print_table

_TONES: Final = {"approved": "green", "candidate": "yellow", "deprecated": "yellow", "revoked": "red",
                 "withdrawn": "red"}  # fmt: skip


@click.group()
def registry() -> None:
    """Packages of a hub."""


@registry.command("list")
@with_hub
def packages(client: HubClient, as_json: bool) -> None:
    """Every package that was ever published here."""
    rows = client.get("/api/v1/packages")
    if as_json:
        return click.echo(json.dumps({"packages": rows}))
    table = Table("package", "digest", "standing", "published", box=None, header_style="dim")
    for row in rows:
        standing = row["stage"] if row["state"] == "allowed" else row["state"]
        name = escape(f"{row['name']} {row['version']}")
        table.add_row(name, row["digest"][:12], _toned(standing) + _blocked(row), ago(row["published_ms"]))
    return print_table(table, f"{len(rows)} packages")


@registry.command()
@click.argument("name")
@with_hub
def lineage(client: HubClient, name: str, as_json: bool) -> None:
    """Every version of NAME: what it was made of, who decided what about it, and what its rollouts came to."""
    rows = client.get(path("packages", name, "lineage"))
    if as_json:
        return click.echo(json.dumps({"name": name, "versions": rows}))
    console = Console()
    for row in rows:
        standing = _toned(row["standing"]) + _blocked(row)
        head = f"[bold]{escape(name)} {escape(row['version'])}[/]  {row['digest'][:12]}  {standing}"
        console.print(f"{head}  published {ago(row['published_ms'])}", highlight=False)
        made = row["provenance"]
        new = f"; new since {row['parent']}: {', '.join(row['new']) or 'nothing'}" if row["parent"] else ""
        of = f"recipe {made['recipe']}, data {made['data'][:12]}, code {made['code'][:12]}, seed {made['seed']}{new}"
        console.print(f"  {escape(of)}", highlight=False)
        for one in row["decisions"]:
            said = f"{one['what']} by {one['who']} {ago(one['at_ms'])}: {one['detail']}"
            console.print(f"  {escape(said)}", highlight=False)
        for one in row["rollouts"]:
            console.print(f"  rollout {one['id']}: {one['state']}, {ago(one['updated_ms'])}", highlight=False)
    return console.print(f"{len(rows)} versions", style="dim", highlight=False)


@registry.command()
@click.argument("name")
@click.argument("old")
@click.argument("new")
@with_hub
def diff(client: HubClient, name: str, old: str, new: str, as_json: bool) -> None:
    """In what version NEW of NAME differs from OLD: files, variants, limits, channels, provenance, card."""
    found = client.get(path("packages", name, "diff", old=old, new=new))
    if as_json:
        return click.echo(json.dumps({"name": name, "old": old, "new": new, **found}))
    console = Console()
    before, after = found["bytes"]
    head = f"[bold]{escape(f'{name} {old} → {new}')}[/]  {before:,} → {after:,} bytes ({after - before:+,})"
    console.print(head, highlight=False)
    table = Table("file", "before", "after", box=None, header_style="dim")
    for one in found["files"]:
        sizes = ("–" if one[side] is None else f"{one[side]:,}" for side in ("before", "after"))
        table.add_row(escape(one["file"]), *sizes)
    if table.row_count:
        console.print(table)
    for part in ("variants", "budgets", "fields", "provenance"):
        for key, (was, now) in found[part].items():
            _changed(console, f"{part} {key}", was, now)
    for variant, channels in found["channels"].items():
        for key, (was, now) in channels.items():
            what = "added" if was is None else "removed" if now is None else "has other cells"
            console.print(f"channel {escape(key)} of {escape(variant)}: {what}", highlight=False)
    for line in found["card"][2:]:
        console.print(escape(line), style="green" if line.startswith("+") else "red", highlight=False)
    return None


def _changed(console: Console, what: str, was: Any, now: Any) -> None:
    """A struct by the fields that differ."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                _changed(console, f"{what} {key}", was.get(key), now.get(key))
        return
    console.print(f"{escape(what)}: {escape(_short(was))} → {escape(_short(now))}", highlight=False)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 30 else f"{text[:27]}..."


def _verb(verb: str, text: str) -> None:
    @registry.command(verb, help=text)
    @click.argument("name")
    @click.argument("version")
    @click.option("--reason", required=True, help="Why, for who reads it later.")
    @with_hub
    def act(client: HubClient, name: str, version: str, reason: str, as_json: bool) -> None:
        done = client.post(path("packages", name, version, verb), {"reason": reason})
        if as_json:
            return click.echo(json.dumps(done))
        click.echo(f"{name} {version} is {done['standing']}")
        if verb == "revoke":
            back = done["sent_back"]
            click.echo(f"{len(back)} devices are sent back{': ' if back else ''}{', '.join(back[:5])}")
            for to, n in Counter(done["to"].values()).items():
                where = f"{name} {to}" if to else f"no version of {name}: none is left that they may run"
                click.echo(f"  {n} to {where}")
            if done["held"]:
                click.echo(f"  {len(done['held'])} of them held, and only once they are released")
            for rollout in done["rollouts"]:
                click.echo(f"rollout {rollout} takes it back from its own devices now")
        if verb == "revoke" and done["signed"]:
            click.echo("Its owner still signs it: have the owner publish a list without it, so that no device takes it")
        return None


_verb("approve", "Let rollouts begin with a package.")
_verb("reopen", "Take the approval back: it is a candidate again.")
_verb("deprecate", "What runs it may keep it; no rollout begins with it.")
_verb("revoke", "Nobody may run it: rollouts take it back, devices that run it go back. For good.")


def _toned(standing: str) -> str:
    return f"[{_TONES.get(standing, 'default')}]{standing}[/]"


def _blocked(row: dict[str, Any]) -> str:
    return f", [red]blocked by {row['blocked_by']}[/]" if row["blocked_by"] else ""


@registry.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@with_hub
def gc(client: HubClient, dry_run: bool, as_json: bool) -> None:
    """Remove files that no device, no rollout and no signed list needs; never what a rollback needs."""
    done = client.post("/api/v1/gc", {"dry_run": dry_run})
    if as_json:
        return click.echo(json.dumps(done))
    for name, why in done["kept"].items():
        click.echo(f"kept     {name}: {why}")
    verb = "would remove" if dry_run else "removed"
    return click.echo(f"{verb} {len(done['removed'])} files, {done['bytes']:,} bytes")
