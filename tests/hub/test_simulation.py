"""Virtual fleets: what is drawn is what was asked for, and the hub's own engine decides about it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import rollout_peers
import rollout_policies

from edgewright.main import run as command
from edgewright_hub.rollouts.gates import GatePolicy
from edgewright_hub.simulation import trial
from edgewright_hub.simulation.fleet import Fleet
from edgewright_hub.simulation.whole import Rollout, Score, decided, simulate
from edgewright_hub.simulation.world import GOOD, RELEASES, Release, World

SMALL = World(devices=400, before_s=6 * 3600.0)


def _start(world: World = SMALL, seed: int = 1) -> trial.Start:
    rng = np.random.default_rng(seed)
    return trial.Start.of(Fleet.drawn(world, rng), rng)


def _run(release: Release, *, world: World = SMALL, seed: int = 1, hours: float = 12) -> trial.Outcome:
    return trial.run(_start(world, seed), release, GatePolicy(), np.random.default_rng(seed), longest_s=hours * 3600)


def test_a_fleet_counts_at_the_rates_that_were_asked_for_and_more_unevenly_than_chance() -> None:
    start = _start(msgspec.structs.replace(SMALL, daily=0.0))
    rates = start.pre.events.sum(1) / start.pre.trials.sum(1)
    assert rates == pytest.approx([0.01, 0.041, 0.08], rel=0.1)
    assert start.phi[0] == pytest.approx(1 + 0.6 * 0.49, abs=0.1)
    assert start.phi[1] > 1.2
    assert start.phi[2] == pytest.approx(1.0, abs=0.1)


def test_the_same_seed_is_the_same_rollout() -> None:
    assert _run(RELEASES["errors"], seed=3) == _run(RELEASES["errors"], seed=3)
    assert _run(RELEASES["errors"], seed=3) != _run(RELEASES["errors"], seed=4)


@pytest.mark.parametrize("name", ["many-errors", "slow", "crash"])
def test_a_release_that_plainly_harms_is_taken_back_from_the_first_devices(name: str) -> None:
    outcome = _run(RELEASES[name])
    assert (outcome.ending, outcome.full) == ("rolled back", False), outcome.reason
    assert outcome.exposed <= 0.1 * SMALL.devices


def test_a_good_release_reaches_every_device_that_has_a_link() -> None:
    outcome = _run(GOOD, world=msgspec.structs.replace(SMALL, outages=2.0))
    assert outcome.ending == "promoted", outcome.reason
    assert outcome.exposed >= 0.9 * SMALL.devices


def test_a_device_is_away_after_its_promise_and_silent_after_twice_that() -> None:
    devices, rng = trial.Devices(_start(World(devices=3, before_s=600.0, lost=1.0))), np.random.default_rng(1)
    seen = [devices.window(turn, GOOD, rng) for turn in range(6)]
    assert [bool(one.present.any()) for one in seen] == [True, False, False, False, False, False]
    assert [one.lost is not None and bool(one.lost.all()) for one in seen] == [False, False, False, True, False, False]


def test_devices_that_a_release_silences_are_never_followed_by_everyone() -> None:
    assert not _run(RELEASES["silent-crash"], hours=6).full


def test_a_harm_that_grows_is_not_there_at_first() -> None:
    start = _start()
    runs, rng = np.ones(400, np.bool_), np.random.default_rng(1)

    def errors(since_s: float) -> float:
        seen = start.fleet.window(0, RELEASES["gradual"], runs, np.full(400, since_s), start.labels, rng)
        return float(seen.events[0].sum() / seen.trials[0].sum())

    assert errors(4 * 3600.0) / errors(0.0) == pytest.approx(3.0, rel=0.5)


def test_policies_of_others_see_what_they_look_at() -> None:
    groups = rollout_peers.Groups.drawn(World(devices=400), 40, np.random.default_rng(1))

    def full(policy: str, release: str) -> float:
        decide, rng = rollout_peers.POLICIES[policy], np.random.default_rng(2)
        return float(rollout_peers.run(groups, RELEASES[release], decide, rng, longest_s=6 * 3600).full.mean())

    assert full("hawkBit-like", "good") == full("hawkBit-like", "many-errors") == 1.0
    assert full("thresholds", "many-errors") == full("peek z", "many-errors") == 0.0
    assert full("peek z", "good") < 0.2 < 0.6 < full("fixed DiD", "good")


def test_an_interrupted_benchmark_goes_on_where_it_ended(tmp_path: Path) -> None:
    jobs = [rollout_policies.Job(World(devices=60, error=0.0, before_s=3600.0), 5, number) for number in range(3)]
    keep = tmp_path / "runs"
    first = rollout_policies.all_played(jobs[:2], keep, map)
    every = rollout_policies.all_played(jobs, keep, map)
    assert [every[job.key] for job in jobs[:2]] == [first[job.key] for job in jobs[:2]]
    assert len(keep.read_bytes().splitlines()) == len(every) == 3
    assert rollout_policies.ours(jobs, every)["bad"].full == 0.0


def _whole(place: Path) -> Score:
    place.mkdir()
    world = World(outages=12.0, outage_s=900.0)
    return simulate(place, "many-errors", devices=8, days=0.08, seed=1, progress=lambda _: None, world=world)


def test_the_whole_hub_stops_a_release_that_harms_and_counts_every_inference_once(tmp_path: Path) -> None:
    first, again = (_whole(tmp_path / name) for name in ("a", "b"))
    assert msgspec.structs.replace(again, cpu_s=first.cpu_s) == first
    assert (first.miscounted, first.decision) == (0, "right"), first
    assert first.rollout is not None
    assert first.rollout.state in ("rolling-back", "rolled-back")
    assert first.reports > 200


def test_a_person_reads_the_score_in_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    code = command(["simulate", "--scenario", "drift", "--devices", "2", "--days", "0.1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 devices, 0.1 days, drift, seed 1: the hub decided ")
    assert code == (0 if lines[0].endswith("rightly") else 1)
    assert any(line.startswith("  drift     of 2 devices") for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_rollout_that_has_not_ended_is_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["simulate", "--scenario", "good", "--devices", "2", "--days", "0.1"]
    assert command([*asked, "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["decision"] == "undecided"
    assert command(asked) == 4
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0].endswith("the hub has not decided yet"), max(map(len, lines)) <= 80) == (True, True)


@pytest.mark.parametrize(
    ("state", "full", "of_harmless", "of_harmful"),
    [
        ("done", True, "right", "wrong"),
        ("running", False, "undecided", "undecided"),
        ("running", True, "undecided", "wrong"),
        ("rolled-back", False, "wrong", "right"),
        ("rolled-back", True, "wrong", "wrong"),
    ],
)
def test_what_a_rollout_came_to_is_right_wrong_or_not_there_yet(
    state: str, full: bool, of_harmless: str, of_harmful: str
) -> None:
    one = Rollout(state=state, reason="", exposed=1, full=full, hours=1.0)
    assert (decided(one, harmless=True), decided(one, harmless=False)) == (of_harmless, of_harmful)


def test_the_command_tells_what_it_can_play_and_refuses_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["simulate", "--scenario", "list", "--json"]) == 0
    assert "silent-crash" in json.loads(capsys.readouterr().out)["scenarios"]
    assert command(["simulate", "--scenario", "weather"]) == 2
    assert "calm" in capsys.readouterr().err
