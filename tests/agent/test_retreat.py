"""What answers when a package is left, or does not load: in virtual time, with real files and sessions."""

from __future__ import annotations

import errno

import msgspec
import pytest

from edgewright_agent.updating import install, retreat
from edgewright_agent.updating.inbox import Sealed, Wish
from edgewright_agent.updating.refusals import LinkDown
from edgewright_agent.updating.slots import Store
from edgewright_agent.updating.update import Record, State
from edgewright_agent.updating.verdict import Verdict
from edgewright_contracts.desired import DesiredModel, Probation
from edgewright_contracts.errors import Unavailable
from edgewright_contracts.report import Window
from edgewright_runtime.runtime import LoadFailed, NoMemory
from sim import packages
from sim.twin import HOUR, Device

OTHER = "d" * 64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("packages")
    return [packages.make_package(root / str(i), version=f"{i}.0.0", seed=i) for i in (1, 2)]


@pytest.fixture
def device(tmp_path):
    one = Device(tmp_path)
    one.failing = LinkDown("no route")
    yield one
    one.agent.close()


@pytest.fixture
def first(device, made):
    """The first package of this device, on trial; nothing was before it."""
    wanted = DesiredModel(name="digits", digest=made[0].digest, probation=Probation(windows=3, max_s=HOUR))
    device.put(made[0], "a", active="a", record=Record(state=State.PROBATION, wanted=wanted, rev=1, attempt=1))
    device.boot()
    device.want(1, digest=made[0].digest, probation=Probation(windows=3, max_s=HOUR))
    assert device.host.answers == made[0].digest
    return made[0]


@pytest.fixture
def both(device, made):
    """v1 answered before v2, which is committed."""
    device.put(made[0], "a")
    wanted = DesiredModel(name="digits", digest=made[1].digest)
    device.put(made[1], "b", active="b", record=Record(wanted=wanted, rev=1, attempt=1))
    return made


def seal(device, n=0, *, errors=0, rejected=0) -> None:
    """A window of what is on trial."""
    window = Window(
        boot_id="1" * 16, mono_start_ms=0, mono_end_ms=1, wall_start_ms=None, clock="unknown", next_due_s=1,
        digest=device.job.record.digest[:16], variant="onnx-fp32", edge_hash="e" * 16, phase="probation", n=n,
        errors={"ValueError": errors} if errors else {}, rejected={"range": rejected} if rejected else {},
    )  # fmt: skip
    device.installer._observed(Sealed("digits", [window], 1.0))
    device.live(1, 1)


def test_a_first_package_whose_callers_send_wrong_inputs_only_goes_on_answering_and_the_operator_hears_of_them(
    device, first
):
    for _ in range(10):
        seal(device, rejected=500)
    assert device.host.answers == first.digest
    assert device.job.record.healthy == 0  # for nothing was inferred
    device.live(2 * HOUR)
    assert device.host.answers == first.digest
    back = next(e for e in device.host.told if e.after == "rollback")
    assert back.reason == "no verdict in 3600 s: 0 of 3 healthy windows; 5000 of 5000 inputs were rejected"
    assert back.failure == "operator"
    assert not device.job.state.blocked


def test_a_first_package_most_of_whose_inputs_are_wrong_is_committed_and_the_operator_hears_of_them(device, first):
    for _ in range(3):
        seal(device, 100, rejected=300)
    assert (device.host.answers, device.states()[-2:]) == (first.digest, ["commit", "idle"])
    done = next(e for e in device.host.told if e.after == "commit")
    assert done.reason == "3 healthy windows; 900 of 1200 inputs were rejected"


def test_where_another_package_could_answer_wrong_inputs_send_one_back_even_without_a_past(device, both):
    wanted = DesiredModel(name="digits", digest=both[1].digest, probation=Probation(windows=3, max_s=HOUR))
    store = Store(device.disk, device.models, "digits")
    store.save(msgspec.structs.replace(store.state, record=Record(state=State.PROBATION, wanted=wanted, rev=1)))
    device.boot()
    device.want(1, digest=both[1].digest)
    assert device.job.record.before.n == 0
    seal(device, 100, rejected=300)
    assert device.host.answers == both[0].digest
    assert device.job.state.blocked == {both[1].digest: "rejected inputs: 300 of 400, against a limit of 2%"}


def test_a_first_package_whose_own_errors_send_it_back_says_why_nothing_answers(device, first):
    seal(device, 100, errors=60, rejected=300)
    assert device.host.answers is None
    why = "errors: 60 of 100, against a limit of 2%"
    told = [(e.after, e.failure, e.reason) for e in device.host.told[-2:]]
    nothing = "nothing was there before: until another package comes, nothing answers"
    assert told == [("rollback", "model", why), ("blocked", "model", nothing)]
    assert device.job.state.blocked == {first.digest: why}  # which `agent status` says


def test_what_failed_before_does_not_answer_for_what_fails_now(device, both):
    wanted = DesiredModel(name="digits", digest=both[1].digest)
    store = Store(device.disk, device.models, "digits")
    record = Record(state=State.ROLLBACK, wanted=wanted, rev=1, failure="model", reason="errors")
    store.save(msgspec.structs.replace(store.state, record=record, blocked={both[0].digest: "crashes"}))
    device.boot()
    assert device.host.answers is None


def test_a_first_package_that_is_not_wanted_any_more_answers_until_another_does(device, first):
    device.want(2, digest=OTHER)
    device.live(12 * HOUR)
    assert device.host.answers == first.digest
    assert ("idle", "1.0.0 goes on: nothing else is here") in [(e.after, e.reason) for e in device.host.told]
    assert device.job.record.digest == OTHER  # which is tried again and again
    assert device.job.state.slot("a").digest == first.digest
    device.boot(unclean=True)
    assert device.host.answers == first.digest


@pytest.mark.parametrize("at", ["once", "after a reboot"])
def test_a_first_package_stops_when_the_hub_wants_none(device, first, at):
    if at == "after a reboot":
        device.job.keep(msgspec.structs.replace(device.job.record, state=State.ROLLBACK, failure="operator"))
        device.boot(unclean=True)
    device.want(2, digest=None)
    device.live(HOUR)
    assert device.host.answers is None
    assert device.job.state.active is None


def test_a_first_package_without_a_verdict_goes_on_and_the_operator_hears_why(device, first):
    device.live(2 * HOUR)
    assert device.host.answers == first.digest
    back = next(e for e in device.host.told if e.after == "rollback")
    assert (back.before, back.failure) == ("probation", "operator")
    assert back.reason == "no verdict in 3600 s: 0 of 3 healthy windows"
    writes = device.disk.writes
    device.live(30 * 24 * HOUR, HOUR)
    assert device.disk.writes == writes


def test_a_first_package_whose_process_dies_again_and_again_rests_and_is_tried_again(device, first):
    for _ in range(3):
        device.boot(unclean=True)
    assert (device.host.answers, device.job.state.blocked) == (None, {})
    back = next(e for e in device.host.told if e.after == "rollback")
    assert (back.failure, back.reason) == ("power", "3 unclean boots in probation: crashed, killed or out of memory")
    device.failing = None
    device.want(1, digest=first.digest)
    device.live(60, 1)
    assert device.host.answers == first.digest


@pytest.mark.parametrize("failure", ["model", "power"])
def test_a_first_package_that_fails_or_that_the_power_fails_with_does_not_go_on(device, first, failure):
    device.job.keep(msgspec.structs.replace(device.job.record, state=State.ROLLBACK, failure=failure))
    device.boot()
    assert device.host.answers is None


@pytest.mark.parametrize("error", [NoMemory("none left"), Unavailable("no such runtime"), OSError(errno.EIO, "I/O")])
def test_what_does_not_load_now_is_kept_and_loaded_when_it_does(device, both, monkeypatch, error):
    def fails(*_):
        raise error

    whole = retreat.load
    monkeypatch.setattr(retreat, "load", fails)
    device.boot()
    device.want(1, digest=both[1].digest)
    told = len(device.host.told)
    device.live(24 * HOUR)
    assert device.host.answers is None
    assert len(device.host.told) == told  # once is enough
    assert {device.job.state.a.digest, device.job.state.b.digest} == {one.digest for one in both}
    monkeypatch.setattr(retreat, "load", whole)
    device.live(8 * HOUR)
    assert device.host.answers == both[1].digest
    assert device.job.load_at_s is None


def test_what_does_not_load_at_one_start_does_at_the_next(device, both, monkeypatch):
    def fails(store, side):
        raise NoMemory("none left")

    with monkeypatch.context() as now:
        now.setattr(retreat, "load", fails)
        device.boot()
    device.boot()
    assert device.host.answers == both[1].digest


def test_what_never_loads_gives_way_to_what_answered_before(device, both, monkeypatch):
    whole = retreat.load

    def fails(store, side):
        if side == "b":
            raise LoadFailed("no model")
        return whole(store, side)

    monkeypatch.setattr(retreat, "load", fails)
    device.boot()
    assert device.host.answers == both[0].digest
    assert device.job.state.b is None


@pytest.mark.parametrize("why", ["blocked", "only staged"])
def test_a_slot_that_never_proved_good_does_not_answer_for_one_that_has_rotted(device, both, why):
    store = Store(device.disk, device.models, "digits")
    spare = DesiredModel(name="digits", digest=both[0].digest)
    changes = {"blocked": {both[0].digest: "crashes"}} if why == "blocked" else {"record": Record(wanted=spare)}
    store.save(msgspec.structs.replace(store.state, **changes))
    (store.side("b") / "variants" / "onnx-fp32" / "model.onnx").write_bytes(b"rot")
    device.boot()
    assert device.host.answers is None


def test_a_self_test_that_hangs_keeps_a_start_waiting_only_so_long_and_goes_on_behind_it(device, both):
    device.slow_s = 100.0
    began = device.clock.mono_ns
    device.boot()
    assert (device.clock.mono_ns - began) / 1e9 == pytest.approx(install.START_S, abs=1)
    assert device.host.answers is None
    device.want(1, digest=both[1].digest)
    device.live(1, 1)
    assert device.host.answers == both[1].digest


def test_what_is_withdrawn_while_its_self_test_hangs_behind_a_start_is_left(device, first):
    device.slow_s = 100.0
    device.boot()
    device.want(2, digest=OTHER)
    device.live(HOUR)
    assert device.job.record.digest == OTHER
    assert device.host.answers is None  # nothing has ever passed here
    assert (device.job.load_at_s, device.job.state.active) == (None, None)


def test_what_crashes_on_a_new_runtime_is_not_loaded_however_often_the_device_starts(device, first):
    device.verdict = Verdict(False, "killed by signal 11")
    for _ in range(2):
        device.boot()
        device.want(1, digest=first.digest)
        device.live(1, 1)
        assert device.host.answers is None


def test_a_proof_that_cannot_be_read_is_none(device, both):
    (device.models / "digits" / "b" / "proof.json").mkdir()
    device.boot()
    assert device.host.answers == both[1].digest


def test_a_damaged_model_keeps_no_other_from_answering(device, both, monkeypatch):
    (device.models / "another").mkdir()
    whole = device.installer._resume

    def bug(job, *given):
        if job.store.name == "another":
            raise RuntimeError("a bug")
        whole(job, *given)

    monkeypatch.setattr(install.Installer, "_resume", lambda _, *given: bug(*given))
    device.boot()
    assert device.host.answers == both[1].digest
    assert any("a bug" in e.reason for e in device.host.told)


def test_a_trial_ends_in_its_time_although_the_device_reboots_each_day_and_little_is_written_for_it(device, both):
    wanted = DesiredModel(name="digits", digest=both[1].digest, probation=Probation(windows=3, max_s=5 * 24 * HOUR))
    store = Store(device.disk, device.models, "digits")
    record = Record(state=State.PROBATION, wanted=wanted, rev=1, attempt=1)
    store.save(msgspec.structs.replace(store.state, record=record))
    for day in range(7):
        device.boot(unclean=day % 2 == 0, cut=True)
        device.installer._want(Wish(wanted, (), 1))
        before = device.disk.writes
        device.live(23 * HOUR)
        if day == 2:
            assert device.host.answers == both[1].digest
            assert device.disk.writes - before <= 24
    assert device.host.answers == both[0].digest
    assert "no verdict in 432000 s: 0 of 3 healthy windows" in [e.reason for e in device.host.told]


def test_a_disk_that_takes_nothing_hears_seldom_how_long_a_trial_lasts(device, first):
    device.disk.refused = ("state.json",)
    tried = []
    keep = device.job.keep_trial
    device.job.keep_trial = lambda record: tried.append(device.clock.mono_ns) or keep(record)
    device.live(0.9 * HOUR, 1.0)
    assert 5 <= len(tried) <= 8
    device.disk.refused = ()
