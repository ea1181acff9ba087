"""The rules of the spool, tried in every order: no count is lost or doubled, and nothing gets stuck.

The model: three windows of one key with counts 1, 10 and 100, a link that loses, repeats and reorders, a hub that keeps
a high-water mark, a crash that loses what was not synced. Counts show in the sum which windows were added how often.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import pytest

from edgewright_agent.delivery import ledger
from edgewright_agent.delivery.ledger import Acked, Merged, Numbered, Renumbered, RuleBroken, Sealed, State
from edgewright_contracts.birth import Unclean
from edgewright_contracts.desired import Ack

COUNTS = (1, 10, 100)
SPOOL = "a" * 16
ROOM = 2  # numbered and unacknowledged; 16 in production


class World(NamedTuple):
    state: State
    durable: State  # what a crash leaves
    sealed: int
    wire: frozenset[tuple[int, int]]  # (seq, count) that may still arrive, any number of times
    counted: int
    high: int
    mask: int
    acks: frozenset[tuple[int, int]]


START = World(State(SPOOL), State(SPOOL), 0, frozenset(), 0, 0, 0, frozenset())


def body(count: int) -> bytes:
    return str(count).encode()


def steps(w: World, apply):
    """Every world that may come next. Acknowledgements are the only records that are not synced."""

    def record(one, *, durable=True):
        state = apply(w.state, one)
        return w._replace(state=state, durable=state if durable else w.durable)

    if w.sealed < len(COUNTS):
        yield record(Sealed((("report", body(COUNTS[w.sealed])),)))._replace(sealed=w.sealed + 1)
    waiting = w.state.unnumbered
    if waiting and len(w.state.numbered) < ROOM:
        yield record(Numbered((waiting[0].id,)))
    mergeable = waiting if apply is ledger.apply else w.state.items
    for i, a in enumerate(mergeable):
        for b in mergeable[i + 1 :]:
            yield record(Merged((a.id, b.id), body(int(a.body) + int(b.body))))
    for item in w.state.numbered:
        yield w._replace(wire=w.wire | {(item.seq, int(item.body))})  # offered, whether or not it arrives
    for seq, count in w.wire:
        yield w._replace(wire=w.wire - {(seq, count)})  # lost
        if seq not in Ack(SPOOL, w.high, w.mask):
            mask, high = w.mask | 1 << (seq - w.high - 1), w.high
            while mask & 1:
                mask, high = mask >> 1, high + 1
            yield w._replace(counted=w.counted + count, high=high, mask=mask)  # and may arrive again
    yield w._replace(acks=w.acks | {(w.high, w.mask)})  # some are late, and overtake one another
    for high, mask in w.acks:
        yield w._replace(acks=w.acks - {(high, mask)})
        state = apply(w.state, Acked(Ack(SPOOL, high, mask)))
        yield w._replace(state=state)
        yield w._replace(state=state, durable=state)
    yield w._replace(state=w.durable)  # crash


def search(apply) -> tuple[dict[World, set[World]], World | None]:
    """(graph, first world in which a window was counted twice or is nowhere any more)."""
    graph: dict[World, set[World]] = {}
    frontier = deque([START])
    while frontier:
        w = frontier.popleft()
        if w in graph:
            continue
        graph[w] = {one for one in steps(w, apply) if len(one.acks) <= 2}
        for one in graph[w] - graph.keys():
            if wrong(one):
                return graph, one
            frontier.append(one)
    return graph, None


def wrong(w: World) -> bool:
    """A digit of the hub's sum above 1, or a window that neither the hub has nor the device still holds."""
    held = sum(int(i.body) for i in w.durable.items)
    for i in range(w.sealed):
        times = w.counted // COUNTS[i] % 10
        if times > 1 or (times == 0 and not held // COUNTS[i] % 10):
            return True
    return w.counted > sum(COUNTS)


def test_no_order_of_events_loses_or_doubles_a_count_and_none_is_a_dead_end():
    graph, found = search(ledger.apply)
    assert found is None
    assert len(graph) > 4_000
    done = {w for w in graph if w.counted == sum(COUNTS) and not w.state.items}
    behind: dict[World, set[World]] = {}
    for w, nexts in graph.items():
        for one in nexts:
            behind.setdefault(one, set()).add(w)
    reached, frontier = set(done), deque(done)
    while frontier:
        for w in behind.get(frontier.popleft(), set()) - reached:
            reached.add(w)
            frontier.append(w)
    assert reached == set(graph)


def test_the_same_search_finds_the_double_count_if_numbered_windows_may_merge():
    def careless(state: State, record):
        if not isinstance(record, Merged):
            return ledger.apply(state, record)
        merged = [i for i in state.items if i.id in record.ids]
        first = merged[0]
        keep = tuple(i for i in state.items if i.id not in record.ids)
        return State(
            state.spool_id,
            state.next_seq,
            state.next_id,
            (*keep, ledger.Item(first.id, "report", record.body, first.seq)),
        )

    graph, found = search(careless)
    assert found is not None
    assert len(graph) < 5_000


def test_numbered_items_never_merge_change_or_drop():
    state = ledger.apply(State(SPOOL), Sealed((("report", b"1"), ("report", b"2"), ("event", b"e"))))
    state = ledger.apply(state, Numbered((1,)))
    for record in (
        Merged((1, 2), b"3"),
        ledger.Dropped((1,), 1),
        Numbered((1,)),
        Merged((2, 3), b"3"),
        Merged((), b""),
    ):
        with pytest.raises(RuleBroken):
            ledger.apply(state, record)


def test_at_most_16_are_numbered_and_unacknowledged():
    state = ledger.apply(State(SPOOL), Sealed(tuple(("report", b"1") for _ in range(20))))
    state = ledger.apply(state, Numbered(ledger.to_number(state)))
    assert [i.seq for i in state.numbered] == list(range(1, 17))
    assert ledger.to_number(state) == ()
    with pytest.raises(RuleBroken):
        ledger.apply(state, Numbered((17,)))
    state = ledger.apply(state, Acked(Ack(SPOOL, 3, 0b10)))  # 1..3 and 5
    assert [i.seq for i in state.numbered] == [4, *range(6, 17)]
    assert ledger.to_number(state) == (17, 18, 19, 20)


def test_one_that_is_lost_on_the_way_is_never_64_numbers_behind_the_newest():
    """The hub counts a number 64 ahead of a gap as proof that it was restored, and gives up what is in the gap."""
    state = ledger.apply(State(SPOOL), Sealed(tuple(("report", body(1)) for _ in range(200))))
    while ids := ledger.to_number(state):
        state = ledger.apply(state, Numbered(ids))
        mask = sum(1 << seq - 1 for seq in range(2, state.next_seq))  # all but the first
        state = ledger.apply(state, Acked(Ack(SPOOL, 0, mask)))
    assert [item.seq for item in state.numbered] == [1]
    assert state.next_seq == 1 + 64
    state = ledger.apply(state, Acked(Ack(SPOOL, 64, 0)))
    assert len(ledger.to_number(state)) == 16


def test_an_ack_of_another_spool_or_of_numbers_never_given_frees_nothing():
    state = ledger.apply(ledger.apply(State(SPOOL), Sealed((("report", b"1"),))), Numbered((1,)))
    assert ledger.apply(state, Acked(Ack("b" * 16, 9))) == state
    ahead = Ack(SPOOL, 50)
    assert ledger.rewound(state, ahead)
    with pytest.raises(RuleBroken):
        ledger.apply(state, Acked(ahead))


def test_a_new_spool_id_renumbers_what_is_held_densely_from_1():
    state = ledger.apply(State(SPOOL, next_seq=7), Sealed((("report", b"1"), ("event", b"2"), ("report", b"3"))))
    state = ledger.apply(state, Numbered((1, 2)))
    assert [i.seq for i in state.numbered] == [7, 8]
    state = ledger.apply(state, Renumbered("b" * 16))
    assert state.spool_id == "b" * 16
    assert [(i.seq, i.body) for i in state.numbered] == [(1, b"1"), (2, b"2")]
    assert state.next_seq == 3
    assert ledger.apply(state, Numbered((3,))).numbered[-1].seq == 3


def test_a_boot_declares_the_window_that_the_last_one_left_open():
    first = Unclean(boot_id="1" * 16, open_since_mono_ms=10)
    second = Unclean(boot_id="2" * 16, open_since_mono_ms=0)
    state = ledger.apply(State(SPOOL), ledger.Booted(first))
    later = msgspec_replace(first, 500)
    state = ledger.apply(state, Sealed((), later))
    assert ledger.apply(state, ledger.Booted(second)).unclean == (later,)
    clean = ledger.apply(state, ledger.Closed())
    assert ledger.apply(clean, ledger.Booted(second)).unclean == ()
    told = ledger.apply(ledger.apply(state, ledger.Booted(second)), ledger.Declared(("1" * 16,)))
    assert told.unclean == ()
    assert told.open == second


def msgspec_replace(opened: Unclean, since: int) -> Unclean:
    return Unclean(boot_id=opened.boot_id, open_since_mono_ms=since)
