"""The spool on disk: whatever call the power is cut at, what was sealed is offered, once, with dense numbers."""

from __future__ import annotations

import contextlib
import errno
import itertools
from pathlib import Path

import msgspec
import pytest

from edgewright_agent.delivery import coarsening, journal
from edgewright_agent.delivery import spool as spools
from edgewright_agent.delivery.ledger import Merged, Sealed
from edgewright_agent.delivery.spool import Spool, Terms
from edgewright_contracts import event, report
from edgewright_contracts.birth import Unclean
from edgewright_contracts.desired import Ack
from edgewright_contracts.packing import PACKED
from sim.disk import KEEPS, PowerCut, SimDisk

ROOT = Path("/home/spool")


NOW = 1_800_000_000_000


def window(n: int, *, start_ms: int = 0, boot: str = "1" * 16, wall: int | None = NOW, **more) -> report.Window:
    """`wall` is that of the beginning; left out, it goes with `start_ms`."""
    clock = more.pop("clock", "unknown" if wall is None else "synced")
    return report.Window(
        boot_id=boot,
        mono_start_ms=start_ms,
        mono_end_ms=start_ms + 1000,
        wall_start_ms=NOW + start_ms if wall == NOW else wall,
        clock=clock,
        next_due_s=600,
        digest="d" * 16,
        variant="onnx-fp32",
        edge_hash="e" * 16,
        n=n,
        **more,
    )


def draft(after: str) -> event.Event:
    return event.Event(spool_id="0" * 16, seq=1, boot_id="1" * 16, mono_ms=1, wall_ms=None, before="idle", after=after)


def opened(boot: int, since: int = 0) -> Unclean:
    return Unclean(boot_id=f"{boot:016x}", open_since_mono_ms=since)


def open_spool(disk, boot: int = 1, cap: int = spools.CAP_BYTES) -> Spool:
    ids = itertools.count(boot * 1000)
    spool = Spool(disk, ROOT, new_id=lambda: f"{next(ids):016x}", cap=cap)
    spool.begin(opened(boot))
    return spool


def counts(offers) -> list[int]:
    return [report.decode_report(o.payload).window.n for o in offers if o.kind == "report"]


def test_windows_and_events_share_one_dense_sequence_and_survive_until_acknowledged():
    disk = SimDisk()
    spool = open_spool(disk)
    spool.seal([window(3)], opened(1, 10))
    spool.event(draft("fetch"))
    spool.seal([window(4)], opened(1, 20))
    first = spool.offer()
    assert [(o.seq, o.kind) for o in first] == [(1, "report"), (2, "event"), (3, "report")]
    told = event.decode_event(first[1].payload)
    assert (told.seq, told.spool_id, told.after) == (2, spool.state.spool_id, "fetch")
    again = open_spool(disk, boot=2)
    assert again.offer() == first  # byte for byte
    again.ack(Ack(again.state.spool_id, 2))
    assert [o.seq for o in again.offer()] == [3]
    assert again.told().unacknowledged == 1


def test_compression_is_fixed_with_the_number():
    disk = SimDisk()
    spool = open_spool(disk)
    spool.seal([window(3)], opened(1))
    before = spool.offer(Terms(compress=True))
    assert before[0].payload[:1] == PACKED
    assert open_spool(disk, 2).offer() == before


def script(spool: Spool, done: list[str]) -> None:
    """What a boot does; `done` says which promises were given before the power went."""
    for i, n in enumerate((1, 10, 100)):
        spool.seal([window(n, start_ms=i)], opened(1, i + 1))
        done.append(f"sealed {n}")
        offers = spool.offer()
        done += [f"offered {o.seq} {n}" for o, n in zip(offers, counts(offers), strict=True)]
        if i == 1:
            spool.ack(Ack(spool.state.spool_id, 1))
            done.append("acked")
    spool.close()
    done.append("closed")


@pytest.mark.parametrize("keep", KEEPS)
def test_a_power_cut_at_any_call_loses_nothing_that_was_sealed_and_renumbers_nothing(keep):
    whole = SimDisk()
    script(open_spool(whole), [])
    assert whole.calls > 15
    for cut_at in range(1, whole.calls + 2):
        disk, done = SimDisk(), []
        disk.cut_at = cut_at
        with contextlib.suppress(PowerCut):
            script(open_spool(disk), done)
        disk.crash(keep, seed=cut_at)
        spool = open_spool(disk, boot=2)
        offers = spool.offer()
        found = {o.seq: n for o, n in zip(offers, counts(offers), strict=True)}
        given = dict(tuple(map(int, d.split()[1:])) for d in done if d.startswith("offered"))
        sealed = {int(d.split()[1]) for d in done if d.startswith("sealed")}
        for seq, n in given.items():
            assert found.get(seq, n) == n, (cut_at, "a number was given to another window")
        missing = sealed - set(found.values())
        assert missing <= ({1} if "acked" in done or keep != "least" else set()), (cut_at, missing)
        assert sorted(found) == list(range(min(found, default=1), min(found, default=1) + len(found)))
        declared = [u.boot_id for u in spool.state.unclean]
        if "closed" in done:
            assert not declared
        elif "sealed 1" in done and len(found) + ("acked" in done) < 3:
            assert declared == [f"{1:016x}"], (cut_at, "an open window went undeclared")


def test_a_torn_tail_is_cut_and_what_comes_after_it_is_kept():
    disk = SimDisk()
    spool = open_spool(disk)
    spool.seal([window(1)], opened(1))
    path = next(p for p in disk.names if p.suffix == ".log")
    disk.names[path].data += b"\x50\x00\x00\x00torn"
    again = open_spool(disk, 2)
    again.seal([window(2)], opened(2))
    assert counts(open_spool(disk, 3).offer()) == [1, 2]


def test_a_full_disk_keeps_what_was_sealed_and_takes_more_once_there_is_space():
    disk = SimDisk()
    spool = open_spool(disk)
    spool.seal([window(1)], opened(1))
    disk.full = True
    with pytest.raises(OSError, match="space"):
        spool.seal([window(2)], opened(1))
    disk.full = False
    spool.seal([window(2)], opened(1))
    assert counts(spool.offer()) == [1, 2]
    assert counts(open_spool(disk, 2).offer()) == [1, 2]


def test_short_of_space_windows_merge_into_hours_and_then_days_and_no_count_is_lost():
    disk = SimDisk()
    spool = open_spool(disk, cap=3000)
    minute, total = 60_000, 0
    for i in range(300):  # five hours
        spool.seal([window(i, start_ms=i * minute, boot=f"{i // 200:016x}")], opened(1))
        total += i
    assert spool.state.held_bytes <= 3000
    assert spool.state.dropped == 0
    found = [report.decode_window(i.body) for i in spool.state.unnumbered]
    assert sum(w.n for w in found) == total
    assert sum(w.span for w in found) == 300
    assert max(w.mono_end_ms - w.mono_start_ms for w in found) <= 24 * 3_600_000


def test_the_oldest_become_coarse_first_and_the_newest_keep_their_resolution():
    spool = open_spool(SimDisk(), cap=4000)
    minute = 60_000
    for i in range(3000):
        spool.seal([window(i, start_ms=i * minute)], opened(1))
        assert spool.state.held_bytes <= 4000
    spans = [report.decode_window(i.body).span for i in spool.state.unnumbered]
    assert spans[0] > 60  # days
    assert 60 in spans  # then hours
    assert set(spans[-3:]) == {1}
    assert (sum(spans), spool.state.dropped) == (3000, 0)


def test_windows_of_boots_without_a_clock_merge_and_their_span_stays_within_a_day():
    spool = open_spool(SimDisk(), cap=2000)
    total = 0
    for boot in range(40):
        for i in range(10):
            spool.seal([window(i, start_ms=i * 300_000, boot=f"{boot:016x}", wall=None)], opened(boot))
            total += i
    found = [report.decode_window(i.body) for i in spool.state.unnumbered]
    assert sum(w.n for w in found) == total
    assert {w.wall_start_ms for w in found} == {None}
    assert max(w.mono_end_ms - w.mono_start_ms for w in found) <= coarsening.DAY_MS


def test_one_day_of_many_boots_is_no_longer_than_a_day_whatever_their_monotonic_clocks_showed():
    day = 1_800_057_600_000
    assert day % coarsening.DAY_MS == 0
    a = window(1, boot="a" * 16, start_ms=90 * coarsening.DAY_MS, wall=day + 3_600_000)
    b = window(2, boot="b" * 16, start_ms=0, wall=day + 7_200_000)
    assert coarsening.group(a, coarsening.DAY_MS) == coarsening.group(b, coarsening.DAY_MS)
    one = coarsening.merged([a, b])
    assert (one.n, one.boot_id, one.wall_start_ms) == (3, "", day + 3_600_000)
    assert (one.mono_start_ms, one.mono_end_ms) == (3_600_000, 7_201_000)
    later = window(4, boot="c" * 16, start_ms=5, wall=day + 10_800_000)
    assert coarsening.merged([one, later]) == coarsening.merged([coarsening.merged([later, a]), b])


def test_a_clock_that_jumps_in_the_middle_of_an_hour_puts_no_two_times_into_one_window():
    years = 10 * 31_557_600_000
    before, after = window(1, start_ms=0), window(1, start_ms=60_000, wall=1_800_000_000_000 + years)
    none = window(1, start_ms=120_000, wall=None)
    assert len({coarsening.group(w, span) for w in (before, after, none) for span in coarsening.SPANS}) == 6


def test_what_a_clock_that_was_wrong_has_dated_is_dated_anew_before_it_gets_its_number():
    spool = open_spool(SimDisk())
    at = 1_800_000_000_000
    free = window(1, start_ms=5000, wall=at - 10**10, clock="free")
    spool.seal([free, window(2, start_ms=6000), window(3, start_ms=7000, boot="f" * 16, wall=None)], opened(1))
    offers = spool.offer(Terms(boot_id="1" * 16, offset_ms=at, clock="synced"))
    found = [report.decode_report(o.payload).window for o in offers]
    assert [(w.n, w.wall_start_ms, w.clock) for w in found] == [
        (1, at + 5000, "free"),
        (2, at + 6000, "synced"),
        (3, None, "unknown"),
    ]


def test_a_boot_costs_one_small_record_however_much_is_held():
    disk = SimDisk()
    spool = open_spool(disk)
    spool.seal([window(1, start_ms=i) for i in range(1000)], opened(1))
    before = disk.written
    for boot in range(2, 12):
        assert len(open_spool(disk, boot).state.items) == 1000
    assert disk.written - before < 1000
    assert len(open_spool(disk, 12).state.unclean) == 11


def test_numbered_windows_do_not_merge_even_when_space_runs_short():
    disk = SimDisk()
    spool = open_spool(disk, cap=1500)
    spool.seal([window(i, start_ms=i) for i in range(5)], opened(1))
    first = spool.offer()
    spool.seal([window(100 + i, start_ms=i) for i in range(20)], opened(1))
    assert spool.offer()[: len(first)] == first


def test_what_fits_no_more_is_dropped_oldest_first_and_counted():
    disk = SimDisk()
    spool = open_spool(disk, cap=600)
    for i in range(20):
        spool.seal([window(1, rollout=f"r{i}")], opened(1))  # distinct keys never merge
    assert spool.state.held_bytes <= 600
    assert spool.state.dropped > 0
    assert spool.told().dropped + len(spool.state.items) == 20


def test_events_that_repeat_themselves_push_no_count_out_of_a_full_spool():
    spool = open_spool(SimDisk(), cap=20_000)
    spool.event(draft("fetch"))  # older than all others, and said once
    for i in range(300):
        spool.seal([window(i, start_ms=i * 60_000)], opened(1))
        for after in ("open", "closed"):
            spool.event(draft(after))
            assert spool.state.held_bytes <= 20_000
    windows = [report.decode_window(i.body) for i in spool.state.items if i.kind == "report"]
    events = [event.decode_event(i.body) for i in spool.state.items if i.kind == "event"]
    assert sum(w.n for w in windows) == sum(range(300))
    assert max(w.span for w in windows) == 60  # resolution is lost, counts are not
    assert (len(events), sum(w.span for w in windows)) == (601 - spool.state.dropped, 300)
    assert len(events) > 20
    assert [e.after for e in events[:1] + events[-2:]] == ["fetch", "open", "closed"]


def test_repeated_events_go_before_any_window_and_what_was_said_once_goes_last():
    spool = open_spool(SimDisk(), cap=3000)
    for after in ("open", "open", "open", "fetch"):
        spool.event(draft(after))
    for i in range(60):
        spool.seal([window(1, rollout=f"r{i}")], opened(1))  # distinct keys never merge
        events = [event.decode_event(item.body).after for item in spool.state.items if item.kind == "event"]
        lost = 1 + i - (len(spool.state.items) - len(events))
        assert events == (["open", "fetch"] if lost else ["open"] * (len(events) - 1) + ["fetch"])
    assert lost > 0
    assert spool.state.dropped == lost + 2


def test_a_restored_spool_takes_a_new_id_when_the_hub_is_ahead_of_it():
    disk = SimDisk()
    spool = open_spool(disk)
    spool.seal([window(1)], opened(1))
    spool.offer()
    old = spool.state.spool_id
    spool.ack(Ack(old, 40))
    assert spool.state.spool_id != old
    assert counts(spool.offer()) == [1]
    new = spool.state.spool_id
    spool.renumber(old)  # the hub's command comes late and names the old id
    assert spool.state.spool_id == new
    spool.renumber(new)
    assert spool.state.spool_id != new
    assert counts(open_spool(disk, 2).offer()) == [1]


def test_flash_writes_stay_near_the_windows_own_bytes():
    disk = SimDisk()
    spool = open_spool(disk)
    size = len(report.encode_window(window(1)))
    for i in range(2000):
        spool.seal([window(1, start_ms=i)], opened(1, i))
        for offer in spool.offer():
            spool.ack(Ack(spool.state.spool_id, offer.seq))
    assert disk.written < 2000 * (size + 400)
    assert len([p for p in disk.names if p.suffix == ".log"]) == 1


class Flawed(SimDisk):
    """Fails the calls that `fails` says, once."""

    def __init__(self, fails) -> None:
        super().__init__()
        self.fails = fails

    def fsync(self, path: Path) -> None:
        if self.fails and self.fails("fsync", path):
            self.fails = None
            raise OSError(errno.EIO, "input/output error")
        super().fsync(path)


def test_windows_that_are_sealed_are_not_refused_because_older_ones_could_not_shrink():
    disk = SimDisk()
    spool = open_spool(disk, cap=600)
    spool.seal([window(1, start_ms=0)], opened(1))
    write = spool._journal.write

    def full_after_sealing(records, after, *, durable):
        write(records, after, durable=durable)
        disk.full = isinstance(records[0], Sealed)

    spool._journal.write = full_after_sealing
    spool.seal([window(10, start_ms=i) for i in range(1, 9)], opened(1))  # raising here would seal them twice
    spool._journal.write, disk.full = write, False
    spool.seal([window(100, start_ms=10)], opened(1))
    assert sum(report.decode_window(i.body).n for i in spool.state.items) == 181


def test_windows_whose_sums_have_no_room_stay_apart_and_the_bound_holds():
    spool = open_spool(SimDisk(), cap=600)
    for i in range(8):
        spool.seal([window(2**40, start_ms=i)], opened(1))
    assert spool.state.held_bytes <= 600
    assert spool.state.dropped > 0


def test_nothing_is_appended_behind_a_generation_that_a_restart_would_not_read(monkeypatch):
    monkeypatch.setattr(journal, "REWRITE_BYTES", 300)
    disk = Flawed(None)
    spool = open_spool(disk)
    disk.fails = lambda call, path: path == ROOT  # the folder, behind the rename of a new generation
    for i in range(50):
        with contextlib.suppress(OSError):
            spool.seal([window(1, start_ms=i)], opened(1))
            spool.ack(Ack(spool.state.spool_id, spool.offer()[-1].seq))
        if disk.fails is None:
            break
    assert disk.fails is None
    spool.seal([window(100, start_ms=1000 + i) for i in range(30)], opened(1))
    kept = sum(report.decode_window(i.body).n for i in spool.state.items)
    assert sum(report.decode_window(i.body).n for i in open_spool(disk, 2).state.items) == kept >= 3000


def test_events_that_a_full_spool_drops_are_counted():
    spool = open_spool(SimDisk(), cap=3000)
    for _ in range(40):
        spool.event(draft("fetch"))
    spool.seal([], opened(1))
    assert spool.told().dropped + len(spool.state.items) == 40
    assert spool.told().dropped > 0


def test_a_disk_that_takes_nothing_at_the_start_delays_the_spool_and_loses_nothing_of_the_boot_before():
    disk = SimDisk()
    open_spool(disk).seal([window(1)], opened(1))
    disk.full = True
    spool = open_spool(disk, 2)
    assert spool.offer() == []
    with pytest.raises(OSError, match="space"):
        spool.seal([window(2)], opened(2))
    disk.full = False
    spool.seal([window(2)], opened(2))
    assert counts(spool.offer()) == [1, 2]
    assert [u.boot_id for u in open_spool(disk, 3).state.unclean] == [f"{b:016x}" for b in (1, 2)]


def test_a_spool_that_never_began_declares_nothing():
    disk = SimDisk()
    open_spool(disk).close()
    Spool(disk, ROOT, new_id=lambda: "f" * 16)
    assert open_spool(disk, 2).state.unclean == ()


def test_a_log_that_cannot_be_read_or_does_not_follow_starts_anew_and_stops_nobody():
    disk = SimDisk()
    spool = open_spool(disk)
    spool.seal([window(3)], opened(1))
    (log,) = disk.list(ROOT)
    disk.write(ROOT / "notes.log", b"somebody's")
    disk.append(ROOT / log, journal.frame(Merged((77,), b"")))  # whole, of no item that there is
    again = open_spool(disk, boot=2)
    assert [report.decode_window(i.body).n for i in again.state.items] == [3]
    read = disk.read

    def worn(path):
        if path.suffix == ".log":
            raise OSError(errno.EIO, "input/output error")
        return read(path)

    disk.read = worn
    fresh = open_spool(disk, boot=3)
    assert fresh.state.spool_id != again.state.spool_id
    fresh.seal([window(4)], opened(3))
    disk.read = read
    assert [report.decode_window(i.body).n for i in open_spool(disk, boot=4).state.items] == [4]


def test_windows_are_sealed_once_even_if_an_older_one_cannot_be_understood(monkeypatch):
    spool = open_spool(SimDisk(), cap=600)
    monkeypatch.setattr(spools.coarsening, "read_heading", lambda body: msgspec.msgpack.decode(b"\xc1"))
    spool.seal([window(1, start_ms=i) for i in range(6)], opened(1))
    assert len(spool.state.items) == 6
