"""What the hub wants and what comes of it in weeks: in virtual time, with an agent whose threads do not run."""

from __future__ import annotations

import msgspec
import pytest

from edgewright_agent.updating import orders, update
from edgewright_agent.updating.failures import DiskFull
from edgewright_agent.updating.inbox import Sealed
from edgewright_agent.updating.refusals import LinkDown, NotAllowed
from edgewright_agent.updating.slots import Committed, ModelState, Store
from edgewright_agent.updating.update import Event, Record, State
from edgewright_contracts.desired import DesiredModel
from edgewright_contracts.report import Window
from sim import packages
from sim.twin import DIGEST, HOUR, Device


@pytest.fixture
def device(tmp_path):
    made = Device(tmp_path)
    yield made
    made.agent.close()


@pytest.mark.parametrize(
    ("error", "failure"),
    [(LinkDown("no route"), "link"), (NotAllowed("not signed"), "hub"), (DiskFull("full"), "disk")],
)
def test_what_fails_for_weeks_is_held_with_its_reason_and_then_nothing_is_written_any_more(device, error, failure):
    device.failing = error
    device.want(1)
    device.live(7 * 24 * HOUR)
    assert device.job.record.state is State.IDLE  # a week is not too long
    device.live(7 * 24 * HOUR)
    last = device.host.told[-1]
    assert (last.before, last.after, last.failure, last.attempt) == ("idle", "held", failure, 40)
    assert last.reason == f"held after 40 attempts, until something new is wanted, or it is cleared; the last: {error}"
    writes, told = device.disk.writes, len(device.host.told)
    assert writes < 100
    device.live(60 * 24 * HOUR, 6 * HOUR)
    device.boot(unclean=True)
    device.want(1)  # the document that it has on its disk
    device.live(24 * HOUR)
    assert (device.disk.writes, len(device.host.told)) == (writes, told)
    device.want(2)  # any newer one: for all we know the hub has been mended
    device.live(HOUR)
    assert device.states()[told : told + 3] == ["idle", "fetch", "idle"]
    assert device.job.record.attempt > 1
    device.want(3, digest="e" * 64)
    device.live(1, 1)
    assert (device.job.record.digest, device.job.record.attempt) == ("e" * 64, 1)


def test_a_device_without_a_network_keeps_its_attempts_for_when_there_is_one(device):
    device.failing = LinkDown("no route")
    device.want(1)
    device.live(1, 1)
    device.host.online = False
    told = len(device.host.told)
    device.live(30 * 24 * HOUR, HOUR)
    assert len(device.host.told) == told
    device.host.online = True
    device.live(HOUR)
    assert device.job.record.attempt > 1
    assert device.job.record.state is State.IDLE


def test_an_attempt_that_restarts_cut_off_again_and_again_is_given_up_for_now(device):
    device.failing = LinkDown("no route")
    device.want(1)
    orders.begin(device.job)
    for _ in range(update.STEPS):
        if not update.looping(device.job.record):
            device.job.keep(update.advance(device.job.record, Event.DONE))  # → stage
            device.boot(unclean=True)  # → fetch
            device.want(1)
    device.live(1, 1)
    last = device.host.told[-1]
    assert (last.before, last.after, last.failure) == ("fetch", "idle", "power")
    assert last.reason.startswith("29 steps without an end")
    assert device.job.state.blocked == {}


def test_a_person_at_the_device_clears_what_is_held_or_blocked_in_one_write(device):
    device.failing = NotAllowed("not signed")
    device.want(1)
    device.live(300 * 24 * HOUR, 6 * HOUR)
    assert device.job.record.state is State.HELD
    orders.cleared(device.job, "e" * 64)  # another
    assert device.job.record.state is State.HELD
    orders.cleared(device.job, DIGEST)
    assert device.states()[-1] == "idle"
    assert device.host.told[-1].reason == "cleared by hand"
    device.live(1)
    device.job.go(Event.BROKEN, reason="self-test", failure="model")
    writes = device.disk.writes
    orders.cleared(device.job, DIGEST)
    assert device.disk.writes == writes + 1
    assert (device.job.record.state, device.job.state.blocked) == (State.IDLE, {})
    assert (device.host.told[-1].after, device.host.told[-1].failure) == ("idle", "operator")


def test_only_a_newer_document_clears_a_blocked_package(device):
    blocked = Record(state=State.BLOCKED, wanted=DesiredModel(name="digits", digest=DIGEST), rev=5, failure="model")
    device.job.save(ModelState(record=blocked, blocked={DIGEST: "crashes"}))
    device.boot()
    device.want(5, cleared=(DIGEST,))  # what cleared it before it failed once more
    assert device.job.record.state is State.BLOCKED
    device.want(6, cleared=(DIGEST,))
    assert device.job.record.state is State.IDLE
    assert device.job.state.blocked == {}


def test_hours_are_kept_and_what_waits_for_them_is_told_once(device):
    now = device.clock.wall_ms()
    device.failing = LinkDown("no route")
    device.want(1, not_before=now + 2 * 3600_000, not_after=now + 4 * 3600_000)
    device.live(HOUR)
    (told,) = device.host.told
    assert (told.after, told.failure) == ("idle", None)
    assert told.reason.startswith(f"waits until {now + 2 * 3600_000} ms (UTC)")
    device.live(2 * HOUR)
    assert device.states()[1:3] == ["fetch", "idle"]
    device.live(2 * HOUR)
    assert device.host.told[-1].reason.startswith("not begun: it was wanted until")
    told_n = len(device.host.told)
    device.live(24 * HOUR)
    assert len(device.host.told) == told_n


def test_an_update_that_is_not_ready_in_its_hours_does_not_switch_behind_them(device):
    device.want(1, not_after=device.clock.wall_ms() + 1000)
    orders.begin(device.job)
    device.clock.advance(2)
    device.live(1, 1)
    last = device.host.told[-1]
    assert (last.before, last.after, last.failure) == ("fetch", "idle", "operator")
    assert last.reason.startswith("not ready in time")
    device.live(HOUR)
    assert device.host.told[-1].reason.startswith("not begun")


def test_hours_that_pass_while_a_device_waits_for_them_are_told_too(device):
    now = device.clock.wall_ms()
    device.want(1, not_before=now + 1800_000, not_after=now + 1801_000)
    device.live(2 * HOUR, HOUR)
    assert [e.reason.partition(":")[0].partition(" until")[0] for e in device.host.told] == ["waits", "not begun"]
    assert [e.failure for e in device.host.told] == [None, "operator"]


def test_a_device_without_a_clock_waits_and_says_so(device):
    device.clock.set_wall(None)
    device.want(1, not_before=1)
    device.live(HOUR)
    (told,) = device.host.told
    assert "does not know the time yet" in told.reason


def test_a_held_device_begins_nothing_says_so_once_and_goes_on_when_it_is_released(device):
    device.failing = LinkDown("no route")
    device.want(1, held=True)
    device.live(HOUR)
    (told,) = device.host.told
    assert (told.after, told.failure, told.reason) == (
        "idle",
        "operator",
        "waits: this device is held by the operator of its hub",
    )
    device.want(2)
    device.live(HOUR)
    assert "fetch" in device.states()


def test_a_disk_that_takes_events_but_no_state_hears_each_only_once(device):
    device.job.save(ModelState(record=Record(state=State.ROLLBACK, wanted=DesiredModel(name="digits", digest=DIGEST))))
    device.disk.refused = ("state.json",)
    tried = []
    device.host.switch = lambda *_: tried.append(device.clock.mono_ns)
    device.live(4 * 24 * HOUR)
    assert 1 <= len(device.host.told) <= 2
    assert 15 < len(tried) < 30  # less and less often
    device.disk.refused = ()
    device.live(10 * HOUR)
    assert device.job.record.state is State.IDLE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("packages")
    return [packages.make_package(root / str(i), version=f"{i}.0.0", seed=i) for i in (1, 2)]


@pytest.fixture
def two(made, device):
    """v1 committed and in slot a, v2 on trial in slot b."""
    first, second = made
    device.put(first, "a", active="a")
    store = Store(device.disk, device.models, "digits")
    store.commit()
    trial = Record(state=State.PROBATION, wanted=DesiredModel(name="digits", digest=second.digest))
    device.put(second, "b", active="b", record=trial, blocked={DIGEST: "self-test"})
    return first, second


def test_a_state_of_a_later_agent_costs_the_trial_and_neither_the_answers_nor_what_was_blocked(device, two):
    first, _ = two
    path = device.models / "digits" / "state.json"
    said = msgspec.json.decode(path.read_bytes())
    said |= {"v": 99, "record": {"state": "levitating"}}
    path.write_bytes(msgspec.json.encode(said))
    before = path.read_bytes()
    device.boot()
    assert device.host.answers == first.digest
    assert device.job.record.state is State.IDLE
    assert list(device.job.state.blocked) == [DIGEST]
    assert "state.json" in device.host.told[0].reason
    assert path.read_bytes() == before  # the later agent finds it again, unless something new happens


@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 300, b'{"v":2,"active":"c"}'])
@pytest.mark.parametrize("disk", ["well", "read-only"])
def test_a_damaged_state_on_any_disk_leaves_what_was_committed_answering(device, two, damage, disk):
    first, _ = two
    (device.models / "digits" / "state.json").write_bytes(damage)
    device.disk.refused = ("",) if disk == "read-only" else ()
    device.boot()
    assert device.host.answers == first.digest
    device.disk.refused = ()


def test_a_state_that_cannot_be_read_leaves_what_was_committed_answering(device, two):
    device.disk.unreadable = ("state.json",)
    device.boot()
    assert device.host.answers == two[0].digest


def test_without_a_word_of_what_was_committed_what_ran_goes_on(device, two):
    (device.models / "digits" / "committed.json").unlink()
    path = device.models / "digits" / "state.json"
    path.write_bytes(path.read_bytes().replace(b'"probation"', b'"levitating"'))
    device.boot()
    assert device.host.answers == two[1].digest


def test_a_state_of_the_agent_before_is_read(device, two):
    path = device.models / "digits" / "state.json"
    said = msgspec.json.decode(path.read_bytes()) | {"v": 1}
    said["record"] = {k: v for k, v in said["record"].items() if k not in ("rev", "steps", "watched")} | {"v": 1}
    path.write_bytes(msgspec.json.encode(said))
    device.boot()
    assert device.host.answers == two[1].digest
    assert device.job.record.state is State.PROBATION
    assert device.job.state.v == 2


def test_what_is_committed_is_written_once(device, made):
    device.put(made[0], "a", active="a")
    store = Store(device.disk, device.models, "digits")
    store.commit()
    writes = device.disk.writes
    store.commit()
    assert device.disk.writes == writes
    said = msgspec.json.decode((device.models / "digits" / "committed.json").read_bytes(), type=Committed)
    assert said.side == "a"


def test_a_candidate_that_takes_the_process_down_from_the_shadow_three_times_is_blocked(device, two):
    first, second = two
    wanted = DesiredModel(name="digits", digest=second.digest)
    store = Store(device.disk, device.models, "digits")
    store.save(msgspec.structs.replace(store.state, active="a", record=Record(state=State.SHADOW, wanted=wanted)))
    for crashes in (1, 2):
        device.boot(unclean=True)
        assert (device.job.record.state, device.job.record.crashes) == (State.SHADOW, crashes)
    device.boot(unclean=True)
    assert "3 unclean boots in shadow" in [e.reason for e in device.host.told]
    assert second.digest in device.job.state.blocked
    assert device.host.answers == first.digest


def test_a_silent_window_of_a_probation_writes_nothing(device, two):
    second = two[1]
    device.boot()
    window = Window(
        boot_id="1" * 16, mono_start_ms=0, mono_end_ms=1, wall_start_ms=None, clock="unknown", next_due_s=1,
        digest=second.digest[:16], variant="onnx-fp32", edge_hash="e" * 16, phase="probation",
    )  # fmt: skip
    device.installer._observed(Sealed("digits", [window], 1.0))
    writes = device.disk.writes
    for _ in range(5):
        device.installer._observed(Sealed("digits", [window], 1.0))
    assert device.disk.writes == writes


@pytest.mark.parametrize("state", list(State))
def test_a_device_that_boots_in_any_state_answers_and_comes_to_rest(device, two, state):
    """With the repository away and nothing new: the model that ran answers, and the machine stands still or waits."""
    first, second = two
    device.failing = LinkDown("no route")
    wanted = DesiredModel(name="digits", digest=second.digest)
    failure = {State.ROLLBACK: "operator", State.BLOCKED: "model", State.HELD: "hub"}.get(state)
    after_switch = state in (State.PROBATION, State.COMMIT, State.ROLLBACK)
    blocked = {second.digest: "self-test"} if state is State.BLOCKED else {}
    record = Record(state=state, wanted=wanted, rev=1, attempt=1, failure=failure)
    store = Store(device.disk, device.models, "digits")
    store.save(
        msgspec.structs.replace(
            store.state, active="b" if after_switch else "a", record=record, blocked=blocked,
            b=None if state in (State.FETCH, State.STAGE) else store.state.b,
        )
    )  # fmt: skip
    device.boot(unclean=True)
    goes_on = state in (State.PROBATION, State.COMMIT)
    assert device.host.answers == (second.digest if goes_on else first.digest)
    if state in (State.SELFTEST, State.SHADOW, State.WARMUP, State.ACTIVATE):
        return  # real steps: test_update_end_to_end and test_shadow
    device.want(1, digest=second.digest)
    device.live(8 * HOUR)
    rest = {State.PROBATION: (State.IDLE, State.PROBATION), State.BLOCKED: (State.BLOCKED,), State.HELD: (State.HELD,)}
    assert device.job.record.state in rest.get(state, (State.IDLE,))


def test_an_update_begins_when_the_device_has_room_for_it(device):
    device.failing, device.host.room = LinkDown("no route"), False
    device.want(1)
    device.live(3600)
    assert device.states() == []
    device.host.room = True
    device.live(3600)
    assert device.states()[0] == State.FETCH


def test_a_first_package_on_trial_answers_until_the_next_one_that_is_wanted_does(device, tmp_path_factory):
    """And it goes on when the next one is none."""
    first = packages.make_package(tmp_path_factory.mktemp("first") / "p", version="1.0.0")
    wanted = DesiredModel(name="digits", digest=first.digest)
    device.put(first, "a", active="a", record=Record(state=State.PROBATION, wanted=wanted, rev=1, attempt=1))
    device.boot()
    device.failing = LinkDown("no route")
    device.want(2)
    device.live(HOUR)
    assert device.host.answers == first.digest
    assert device.job.state.running.digest == first.digest
    if device.job.record.state is State.IDLE:
        device.job.go(Event.WANTED)
    device.job.go(Event.BROKEN, reason="self-test", failure="model")
    device.live(HOUR)
    assert device.host.answers == first.digest
    device.want(3, None)  # but no package at all is what the operator may want
    device.live(HOUR)
    assert device.host.answers is None
