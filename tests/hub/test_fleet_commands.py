"""`edgewright fleet` and `edgewright rollout` against a hub process: answers, exit codes, and reasons."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import sqlalchemy as sa

from edgewright.main import cli, run
from edgewright_hub.storage import telemetry
from edgewright_hub.storage.places import places
from edgewright_hub.storage.telemetry import open_telemetry

pytestmark = pytest.mark.process


def test_a_rollout_is_started_watched_paused_and_aborted(edgewright: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = edgewright("rollout", "create", "digits", "--version", "1.0.0", "--stages", "1,100%", "--json")
    created = json.loads(out)
    assert (code, created["state"], created["version"]) == (0, "running", "1.0.0")
    until = time.monotonic() + 60
    while not (seen := json.loads(edgewright("rollout", "status", created["id"], "--json")[1]))["devices_exposed"]:
        assert time.monotonic() < until
    assert [d["status"] for d in seen["devices"]].count("asked") == 1
    code, out, _ = edgewright("rollout", "status")
    assert code == 0
    assert created["id"] in out
    for verb, state in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
        assert json.loads(edgewright("rollout", verb, created["id"], "--json")[1])["state"] == state
    code, _, err = edgewright("rollout", "resume", created["id"])
    assert code == 2
    assert "is aborted and cannot resume; possible now: nothing, it has ended" in err


def test_wrong_requests_say_why_and_exit_with_two(edgewright: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = edgewright("rollout", "create", "digits", "--version", "9.9.9")
    assert (code, out) == (2, "")
    assert err == ("edgewright: digits 9.9.9 is not in the registry (published: 1.0.0, 2.0.0). Publish it first\n")
    code, _, err = edgewright("rollout", "create", "digits", "--version", "1.0.0", "--stages", "50%,10%")
    assert code == 2
    assert "stages: expected counts or percentages that grow and end in 100%, as 1, 25%, 100%; got 50%, 10%" in err
    for option, value in (("--stages", "one,100%"), ("--fleet", "moon"), ("--gate", '{"alhpa": 0.1}')):
        code, _, err = edgewright("rollout", "create", "digits", "--version", "1.0.0", option, value)
        assert (code, value.strip("{}").split(":")[0].strip('"').split(",")[0] in err) == (2, True), err
    for option in ("--select", "--fleet", "--device"):  # as a script does whose variable is not set
        code, _, err = edgewright("rollout", "create", "digits", "--version", "1.0.0", option, "")
        assert (code, f"{option} is empty, and would mean every device" in err) == (2, True)
    code, _, err = edgewright("fleet", "accuracy", "--model", "lost")
    assert (code, "no package is called 'lost'" in err) == (2, True), err
    code, _, err = edgewright("rollout", "status", "r99")
    assert code == 2
    assert "r99" in err


def test_a_name_that_nothing_has_is_answered_by_what_it_names(edgewright: Callable[..., tuple[int, str, str]]) -> None:
    fleet = ("show @", "retire @", "collect @", "collect @ --newest", "samples export --out /dev/null --device @",
             "cohort @ --remove", "cohort @ --select id=pi-0", "hold @ --reason x", "accuracy --fleet @",
             "acknowledge @", "drift accept @ --reason x", "retrain @ --never")  # fmt: skip
    others = ("rollout status @", "rollout abort @", "rollout approve @ --digest 1", "rollout conclude @ --back",
              "rollout create @ --version 1.0.0", "registry lineage @", "registry diff @ 1.0.0 2.0.0",
              "registry approve @ 1.0.0 --reason x")  # fmt: skip
    for line in (*(f"fleet {one}" for one in fleet), *others):
        for name in ("a/ü ?b#%2F", ".."):
            code, out, err = edgewright(*(name if word == "@" else word for word in line.split()))
            assert (code, out, repr(name) in err) == (2, "", True), (line, err)
        code, out, err = edgewright(*("" if word == "@" else word for word in line.split()))
        assert (code, out, " empty" in err or "got ''" in err) == (2, "", True), (line, err)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fleet alerts bogus", "No such command 'bogus'. See `edgewright fleet alerts --help`"),
        ("fleet alerts close 99999999999999999999", "number: Input should be less than"),
        (
            "fleet webhook add https://x.example/ --kind rolout",
            "drift, expiry, export, hub, retrain, rollout; got 'rol",
        ),
        ("fleet config pi-0 --set window_s=NaN", "expected finite numbers"),
        ("fleet retrain --on-drift", "expected the MODEL"),
        ("fleet collect pi-0 --device x", "No such option '--device'. See `edgewright fleet collect --help`"),
        ("rollout create digits --version 1.0.0 --stages ²,100%", "stages: expected counts or percentages"),
        ("rollout revert r99", "Missing option '--reason'"),
        ("rollout status r99 --ca /dev/null", "expected the hub's CA certificate"),
        ("rollout status r99 --hub https://[::1", "--hub expects https://HOST"),
        ("rollout status r99 --hub https://hub:99999", "--hub expects https://HOST"),
        ("rollout status r99 --token-file /dev/null", "expected one token of the hub in /dev/null, got 0 words"),
        ("hub token --pattern ''", "pattern: expected 1 to 200 characters, got 0"),
        ("hub user '' --role viewer", "name: expected 1 to 64 characters"),
        ("hub broker-config /dev/null/x --listen 127.0.0.1:1883 --monitor-port 1883", "expected ports that differ"),
        ("hub serve --window-s nan", "expected numbers of seconds"),
    ],
)
def test_what_is_wrong_on_the_line_is_told_in_one_message(
    edgewright: Callable[..., tuple[int, str, str]], line: str, said: str
) -> None:
    code, out, err = edgewright(*shlex.split(line))
    assert (code, out, said in err, err.count("\n")) == (2, "", True, 1), err


def test_devices_and_drift_are_listed(edgewright: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = edgewright("fleet", "devices", "--json")
    assert code == 0
    assert [d["device"] for d in json.loads(out)["devices"]] == ["pi-0", "pi-1", "pi-2"]
    assert "3 of 3 online" in edgewright("fleet", "devices")[1]
    code, out, _ = edgewright("fleet", "drift", "--json")
    told = json.loads(out)
    assert (code, told["alarms"], told["drift"], told["budget"]["false_pages_a_month"]) == (0, 0, [], 1.0)
    assert "0 alarms; 0 streams of devices are watched; at most 1 false pages" in edgewright("fleet", "drift")[1]
    assert json.loads(edgewright("fleet", "drift", "--by", "site", "--json")[1]) == {"by": "site", "rows": []}
    for key in ("colour", "site=berlin", "!site", "site,hw"):
        code, _, err = edgewright("fleet", "drift", "--by", key)
        assert (code, "expected one" in err) == (2, True), err


def test_a_device_whose_reports_do_not_come_is_overdue_and_not_online(
    edgewright: Callable[..., tuple[int, str, str]], data: Path
) -> None:
    engine, d = open_telemetry(places(data).telemetry), telemetry.devices
    mine = d.update().where(d.c.device == "pi-2")
    with engine.begin() as connection:
        before = connection.execute(sa.select(d.c.next_due_ms).where(d.c.device == "pi-2")).scalar_one()
        connection.execute(mine.values(next_due_ms=1000))
    rows = json.loads(edgewright("fleet", "devices", "--json")[1])["devices"]
    assert [(one["online"], one["overdue"]) for one in rows] == [(True, False), (True, False), (True, True)]
    out = edgewright("fleet", "devices")[1]
    assert "2 of 3 online, 1 connected and their reports are overdue" in out
    assert "pi-2  overdue" in edgewright("fleet", "show", "pi-2")[1]
    with engine.begin() as connection:
        connection.execute(mine.values(next_due_ms=before))
    engine.dispose()


def test_a_budget_of_false_pages_is_set_and_nothing_is_accepted_without_an_alarm(
    edgewright: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, _ = edgewright("fleet", "drift", "budget", "0.5", "--reason", "quiet nights", "--json")
    assert (code, json.loads(out)["false_pages_a_month"]) == (0, 0.5)
    assert "at most 0.5 false pages a month" in edgewright("fleet", "drift", "budget")[1]
    for arguments, said in (
        (("budget", "2"), "expected a reason"),
        (("budget", "0", "--reason", "none"), "0.001 to 10000 false pages a month"),
        (("accept", "pi-0", "--reason", "lens"), "'pi-0' has no drift alarm"),
        (("accept", "pi-0", "--undo", "--reason", "lens"), "nothing was accepted for 'pi-0'"),
        (("accept", "pi-0?x", "--reason", "lens"), "'pi-0?x' has no drift alarm"),
        (("accept", "lab/pi-0#1", "--undo", "--reason", "lens"), "nothing was accepted for 'lab/pi-0#1'"),
        (("--by", "a/b"), "expected one"),
    ):
        code, _, err = edgewright("fleet", "drift", *arguments)
        assert (code, said in err) == (2, True), err


def test_without_a_hub_it_says_how_to_name_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fleet", "devices", "--data", str(tmp_path)]) == 2
    assert "Name one with --hub URL --ca FILE --token-file FILE" in capsys.readouterr().err
    assert run(["fleet", "devices", "--hub", "https://127.0.0.1:1"]) == 3
    assert "no answer from the hub at https://127.0.0.1:1" in capsys.readouterr().err


def test_a_configuration_is_set_shown_and_reset(edgewright: Callable[..., tuple[int, str, str]]) -> None:
    told = [
        "fleet",
        "config",
        "pi-0",
        "--set",
        "profile=metered",
        "--set",
        "limits.rss_mb=80",
        "--reason",
        "by satellite",
    ]
    code, out, _ = edgewright(*told, "--json")
    (one,) = json.loads(out)["configs"]
    assert (code, one["config"]["profile"], one["config"]["limits"]["rss_mb"]) == (0, "metered", 80.0)
    assert (one["history"][0]["who"], one["history"][0]["reason"]) == ("admin", "by satellite")
    code, out, _ = edgewright("fleet", "config", "pi-0")
    assert (code, "metered" in out, "by satellite" in out) == (0, True, True)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "set otherwise for pi-0" in edgewright("fleet", "config")[1]
    (two,) = json.loads(edgewright("fleet", "config", "pi-0", "--reset", "--json")[1])["configs"]
    assert (two["config"]["profile"], two["settings"], len(two["history"])) == ("normal", [], 2)


def test_a_wrong_configuration_is_refused_with_what_there_is(edgewright: Callable[..., tuple[int, str, str]]) -> None:
    for asked, said in (
        (("--set", "porfile=metered"), "porfile: there is no such setting. There are window_s"),
        (("--set", "profile=cheap"), "profile"),
        (("--set", "profile"), "expected KEY=VALUE"),
        (("--fleet", "moon", "--reset"), "no enrolled device is in a fleet 'moon'"),
        (("--reason", "why not"), "--reason belongs to a change"),
    ):
        code, out, err = edgewright("fleet", "config", *asked)
        assert (code, out, said in err) == (2, "", True), err


LINES = """
fleet accept pi-9
fleet accuracy
fleet acknowledge pi-9
fleet alerts acknowledge 99
fleet alerts close 99
fleet alerts show
fleet cohort
fleet collect pi-9
fleet config
fleet decommission pi-9
fleet devices
fleet drift accept pi-9 --reason x
fleet drift budget
fleet drift show
fleet enroll TABLE --out OUT
fleet hold pi-9 --reason x
fleet labels import TABLE
fleet labels show
fleet queue
fleet refuse pi-9
fleet release pi-9
fleet retire pi-9
fleet retrain
fleet samples export --out FOLDER
fleet samples list
fleet samples request pi-9 --reason x
fleet samples show
fleet set pi-9 site=x
fleet show pi-9
fleet webhook add nonsense
fleet webhook remove 99
fleet webhook show
fleet webhook test 99
hub gc --dry-run
registry approve digits 9 --reason x
registry deprecate digits 9 --reason x
registry diff digits 1.0.0 9
registry gc --dry-run
registry lineage nosuch
registry list
registry reopen digits 9 --reason x
registry revoke digits 9 --reason x
rollout abort r99
rollout approve r99 --digest 00
rollout conclude r99 --back
rollout create digits --version 9
rollout pause r99
rollout plan digits --version 9
rollout resume r99
rollout revert r99 --reason x
rollout status
"""


def _commands(command: click.Command, before: tuple[str, ...] = ()) -> Iterator[str]:
    """Those that talk to a hub, as they are called."""
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from _commands(found, (*before, name))
    elif {"url", "token_file"} <= {one.name for one in command.params}:
        yield " ".join(before)


def test_every_command_ends_with_one_message_or_one_json_object(
    edgewright: Callable[..., tuple[int, str, str]], data: Path, tmp_path: Path
) -> None:
    table, wrong, tokens = (tmp_path / name for name in ("table.csv", "wrong", "tokens.csv"))
    table.write_text("id\npi-77\n")
    wrong.write_text("wrong\n")
    places = {"TABLE": str(table), "OUT": str(tokens), "FOLDER": str(tmp_path / "folder")}
    lines = [[places.get(word, word) for word in line.split()] for line in LINES.strip().splitlines()]
    known = [one for name in ("fleet", "hub", "registry", "rollout") for one in _commands(_group(name), (name,))]
    assert [one for one in known if not any(" ".join(line).startswith(one) for line in lines)] == []
    nowhere = ["--hub", "https://127.0.0.1:1", "--ca", str(data / "ca.pem")]
    for line in lines:
        for more, code in ((nowhere, 3), (["--token-file", str(wrong)], 2)):
            ended, out, err = edgewright(*line, *more, "--json")
            assert (ended, out, err.count("\n")) == (code, "", 1), (line, err)
            assert err.startswith("edgewright: "), err
            assert not tokens.exists(), "none is made, so none is kept"
        ended, out, err = edgewright(*line, "--json")
        assert ended in (0, 2), (line, err)
        assert (out.count("\n"), err.count("\n")) == ((1, 0) if ended == 0 else (0, 1)), (line, out, err)
        assert ended == 2 or isinstance(json.loads(out), dict)
        tokens.unlink(missing_ok=True)


def _group(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found
