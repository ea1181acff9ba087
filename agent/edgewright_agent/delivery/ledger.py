"""What a spool holds, as a fold of records: the pure half of store-and-forward. `spool.py` keeps the records on disk.

Rules, which the search in tests/agent/test_ledger.py tries in every order:
1. A window is sealed without a number. Only unnumbered windows merge.
2. On its first offer an item gets the next number of the spool id. Its bytes never change again.
3. At most 16 numbered items are unacknowledged.
4. Only an acknowledgement of this spool id frees an item, and never one that acknowledges numbers not yet given: such
   a one proves that this spool was restored from an older copy, and calls for a new id.
5. State = fold(apply, records): what a crash leaves behind is the fold of a prefix.

Events follow the same rules and are never merged. Cost: O(items held) per record, about 50 µs at 8,000 items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from edgewright_contracts.birth import Unclean
from edgewright_contracts.desired import IN_FLIGHT, MASK_BITS, Ack

UNCLEAN_KEPT: Final = 32

Kind = Literal["report", "event"]


class Item(msgspec.Struct, frozen=True, array_like=True):
    id: int
    kind: Kind
    body: bytes
    seq: int = 0  # 0: not numbered yet
    compress: bool = False  # fixed with the number: the bytes on the wire never change


class State(msgspec.Struct, frozen=True, array_like=True, tag="state"):
    spool_id: str
    next_seq: int = 1
    next_id: int = 1
    items: tuple[Item, ...] = ()  # in order of sealing
    dropped: int = 0  # windows and events lost to a full or damaged disk
    open: Unclean | None = None  # the window that is being counted, lost if this process dies
    unclean: tuple[Unclean, ...] = ()  # boots that died so, not yet told

    @property
    def numbered(self) -> tuple[Item, ...]:
        return tuple(sorted((i for i in self.items if i.seq), key=lambda i: i.seq))

    @property
    def unnumbered(self) -> tuple[Item, ...]:
        return tuple(i for i in self.items if not i.seq)

    @property
    def held_bytes(self) -> int:
        return sum(len(i.body) for i in self.items)


class Sealed(msgspec.Struct, frozen=True, array_like=True, tag="sealed"):
    """New items, and the window that is open from now on."""

    items: tuple[tuple[Kind, bytes], ...]
    open: Unclean | None = None


class Numbered(msgspec.Struct, frozen=True, array_like=True, tag="numbered"):
    ids: tuple[int, ...]
    compress: bool = False


class Merged(msgspec.Struct, frozen=True, array_like=True, tag="merged"):
    ids: tuple[int, ...]
    body: bytes


class Acked(msgspec.Struct, frozen=True, array_like=True, tag="acked"):
    ack: Ack


class Dropped(msgspec.Struct, frozen=True, array_like=True, tag="dropped"):
    ids: tuple[int, ...]  # none for windows that could not be sealed
    windows: int  # how many sealed windows, or events, that is


class Renumbered(msgspec.Struct, frozen=True, array_like=True, tag="renumbered"):
    spool_id: str


class Booted(msgspec.Struct, frozen=True, array_like=True, tag="booted"):
    """A new boot begins: a window that an earlier one left open is lost, and will be declared."""

    open: Unclean


class Closed(msgspec.Struct, frozen=True, array_like=True, tag="closed"):
    """The last window was sealed and nothing more will be counted by this boot."""


class Declared(msgspec.Struct, frozen=True, array_like=True, tag="declared"):
    """The hub has answered a birth that told of these boots."""

    boot_ids: tuple[str, ...]


Record = Sealed | Numbered | Merged | Acked | Dropped | Renumbered | Booted | Closed | Declared


class RuleBroken(RuntimeError):
    """A record that would lose or double a count: a bug of the writer, never a fact about the world."""


def apply(state: State, record: Record) -> State:
    """The state after `record`. Raises RuleBroken."""
    match record:
        case Sealed(sealed, opened):
            new = tuple(Item(state.next_id + i, kind, body) for i, (kind, body) in enumerate(sealed))
            return _with(state, items=state.items + new, next_id=state.next_id + len(new), open=opened or state.open)
        case Numbered(ids, compress):
            found = _unnumbered(state, ids)
            if len(state.numbered) + len(found) > IN_FLIGHT:
                raise RuleBroken(f"at most {IN_FLIGHT} numbered items may be unacknowledged")
            seqs = {item.id: state.next_seq + i for i, item in enumerate(found)}
            items = tuple(
                msgspec.structs.replace(i, seq=seqs[i.id], compress=compress) if i.id in seqs else i
                for i in state.items
            )
            return _with(state, items=items, next_seq=state.next_seq + len(found))
        case Merged(ids, body):
            found = _unnumbered(state, ids)
            if any(item.kind != "report" for item in found):
                raise RuleBroken("events never merge")
            first = found[0].id
            items = tuple(
                msgspec.structs.replace(i, body=body) if i.id == first else i
                for i in state.items
                if i.id == first or i.id not in ids
            )
            return _with(state, items=items)
        case Acked(ack):
            if ack.spool_id != state.spool_id:
                return state
            if rewound(state, ack):
                raise RuleBroken("an acknowledgement of numbers never given frees nothing")
            return _with(state, items=tuple(i for i in state.items if not (i.seq and i.seq in ack)))
        case Dropped(ids, windows):
            gone = {item.id for item in _unnumbered(state, ids)} if ids else set()
            return _with(
                state, items=tuple(i for i in state.items if i.id not in gone), dropped=state.dropped + windows
            )
        case Renumbered(spool_id):
            seqs = {item.id: n for n, item in enumerate(state.numbered, 1)}
            items = tuple(msgspec.structs.replace(i, seq=seqs.get(i.id, 0)) for i in state.items)
            return _with(state, spool_id=spool_id, items=items, next_seq=len(seqs) + 1)
        case Booted(opened):
            unclean = (*state.unclean, state.open)[-UNCLEAN_KEPT:] if state.open is not None else state.unclean
            return _with(state, open=opened, unclean=unclean)
        case Closed():
            return _with(state, open=None)
        case Declared(boot_ids):
            return _with(state, unclean=tuple(u for u in state.unclean if u.boot_id not in boot_ids))


def rewound(state: State, ack: Ack) -> bool:
    """Whether the hub has counted numbers of this spool id that this spool has not given."""
    return ack.spool_id == state.spool_id and ack.high_water + ack.mask.bit_length() >= state.next_seq


def to_number(state: State) -> tuple[int, ...]:
    """Ids of the items that may be numbered now, oldest first.

    Never MASK_BITS above one that waits, however many are acknowledged behind it: the hub would take it for a sign that
    it was restored, and count that one as lost.
    """
    given = [i.seq for i in state.items if i.seq]
    room = min(IN_FLIGHT - len(given), min(given, default=state.next_seq) + MASK_BITS - state.next_seq)
    return tuple(i.id for i in state.unnumbered[: max(0, room)])


def to_merge(state: State, groups: Sequence[object | None]) -> list[tuple[Item, ...]]:
    """Unnumbered windows that share a group, two or more each; `groups` is parallel to `state.unnumbered`."""
    found: dict[object, list[Item]] = {}
    for item, group in zip(state.unnumbered, groups, strict=True):
        if group is not None:
            found.setdefault(group, []).append(item)
    return [tuple(items) for items in found.values() if len(items) > 1]


def _unnumbered(state: State, ids: tuple[int, ...]) -> list[Item]:
    wanted = set(ids)
    found = [i for i in state.items if i.id in wanted]
    if len(found) != len(ids) or not found:
        raise RuleBroken(f"expected items {ids}, found {[i.id for i in found]}")
    if any(i.seq for i in found):
        raise RuleBroken("a numbered item never changes, merges or is dropped: it may have been counted already")
    return found


def _with(state: State, **changes: object) -> State:
    return msgspec.structs.replace(state, **changes)
