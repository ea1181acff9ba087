"""What a day of telemetry costs the flash: the spool's log, beside append-only segments and SQLite.

    python benchmarks/spool_wear.py [--quick] [--json]

One model, a window of real size in every 60 s, 300 s and 15 min, acknowledged as the hub does; and a day offline at
60 s with the backlog delivered behind it. `handed` are the bytes that the process gave to the kernel (wchar of
/proc/self/io), `pages` those that it made dirty (write_bytes): every fsync writes whole pages of 4 KiB, so they are
what wears flash; the file system's own journal comes on top. Both are of a day. All stores run on the real disk under
--folder, with every fsync. `log, numbered apart` is the log as it was before windows got their number in the write
that seals them. `--quick` runs an eighth of a day and multiplies.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

ROOT = Path(__file__).resolve().parent.parent

import numpy as np  # noqa: E402
from provenance import provenance  # noqa: E402

from edgewright_agent.delivery import journal, ledger  # noqa: E402
from edgewright_agent.delivery.spool import Spool, Terms  # noqa: E402
from edgewright_agent.disk import RealDisk  # noqa: E402
from edgewright_contracts import binning, report  # noqa: E402
from edgewright_contracts.birth import Unclean  # noqa: E402
from edgewright_contracts.desired import ACK_AFTER, IN_FLIGHT, Ack  # noqa: E402

DAY_S: Final = 86_400
WINDOWS_S: Final = {"60s": 60, "300s": 300, "15min": 900}
SEGMENT_BYTES: Final = 64 << 10
SPOOL_ID: Final = "5" * 16


class Store(Protocol):
    def seal(self, window: report.Window, *, online: bool) -> None: ...
    def number(self) -> int:
        """Of what waits; the highest number given."""

    def ack(self, high: int) -> None: ...


class Log:
    """The agent's own spool."""

    def __init__(self, folder: Path, *, apart: bool = False) -> None:
        self._spool = Spool(RealDisk(), folder, new_id=lambda: SPOOL_ID)
        self._apart = apart
        self._spool.begin(Unclean(boot_id="1" * 16, open_since_mono_ms=0))

    def seal(self, window: report.Window, *, online: bool) -> None:
        opened = Unclean(boot_id="1" * 16, open_since_mono_ms=window.mono_end_ms)
        self._spool.seal([window], opened, Terms(compress=True) if online and not self._apart else None)

    def number(self) -> int:
        return max((offer.seq for offer in self._spool.offer(Terms(compress=True))), default=0)

    def ack(self, high: int) -> None:
        self._spool.ack(Ack(SPOOL_ID, high))


class Segments:
    """Append-only files of 64 KiB; one goes when nothing in it, or in any before it, is held any more."""

    def __init__(self, folder: Path) -> None:
        self._disk, self._folder = RealDisk(), folder
        self._state = ledger.State(SPOOL_ID)
        self._segment, self._size = 0, SEGMENT_BYTES
        self._last: list[tuple[Path, int]] = []  # segments, and the last item of each
        self._disk.mkdir(folder)

    def seal(self, window: report.Window, *, online: bool) -> None:
        opened = Unclean(boot_id="1" * 16, open_since_mono_ms=window.mono_end_ms)
        records: list[Any] = [ledger.Sealed((("report", report.encode_window(window)),), opened)]
        after = ledger.apply(self._state, records[0])
        if online:
            records.append(ledger.Numbered(ledger.to_number(after), True))
        self._append(records, durable=True)

    def number(self) -> int:
        ids = ledger.to_number(self._state)
        if ids:
            self._append([ledger.Numbered(ids, True)], durable=True)
        return max((item.seq for item in self._state.numbered), default=0)

    def ack(self, high: int) -> None:
        self._append([ledger.Acked(Ack(SPOOL_ID, high))], durable=False)
        oldest = min((item.id for item in self._state.items), default=self._state.next_id)
        while len(self._last) > 1 and self._last[0][1] < oldest:
            self._disk.unlink(self._last.pop(0)[0])

    def _append(self, records: list[Any], *, durable: bool) -> None:
        for record in records:
            self._state = ledger.apply(self._state, record)
        data = b"".join(map(journal.frame, records))
        path = self._folder / f"{self._segment:08d}.seg"
        if self._size + len(data) > SEGMENT_BYTES:
            self._segment += 1
            path = self._folder / f"{self._segment:08d}.seg"
            bare = ledger.State(SPOOL_ID, self._state.next_seq, self._state.next_id)  # items stay where they are
            data = journal.frame(bare) + data
            self._disk.write(path, b"")
            self._disk.fsync(self._folder)
            self._size = 0
            self._last.append((path, 0))
        self._disk.append(path, data)
        if durable:
            self._disk.fsync(path)
        self._size += len(data)
        self._last[-1] = (path, self._state.next_id - 1)


class Sqlite:
    """One table, write-ahead log."""

    def __init__(self, folder: Path, *, synchronous: str) -> None:
        folder.mkdir(parents=True)
        self._db = sqlite3.connect(folder / "spool.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={synchronous}")
        self._db.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, body BLOB NOT NULL)")
        self._db.execute("CREATE TABLE counter (next_seq INTEGER, open_ms INTEGER)")
        self._db.execute("INSERT INTO counter VALUES (1, 0)")

    def seal(self, window: report.Window, *, online: bool) -> None:
        self._db.execute("BEGIN")
        (seq,) = self._db.execute("SELECT next_seq FROM counter").fetchone() if online else (0,)
        self._db.execute("INSERT INTO item (seq, body) VALUES (?, ?)", (seq, report.encode_window(window)))
        self._db.execute("UPDATE counter SET open_ms = ?, next_seq = next_seq + ?", (window.mono_end_ms, online))
        self._db.execute("COMMIT")

    def number(self) -> int:
        numbered, high = self._db.execute("SELECT count(*), max(seq) FROM item WHERE seq > 0").fetchone()
        rows = self._db.execute("SELECT id FROM item WHERE seq = 0 ORDER BY id LIMIT ?", (IN_FLIGHT - numbered,))
        ids = rows.fetchall()
        if not ids:
            return high or 0
        self._db.execute("BEGIN")
        (seq,) = self._db.execute("SELECT next_seq FROM counter").fetchone()
        for at, (one,) in enumerate(ids):
            self._db.execute("UPDATE item SET seq = ? WHERE id = ?", (seq + at, one))
        self._db.execute("UPDATE counter SET next_seq = ?", (seq + len(ids),))
        self._db.execute("COMMIT")
        return int(seq) + len(ids) - 1

    def ack(self, high: int) -> None:
        self._db.execute("DELETE FROM item WHERE seq > 0 AND seq <= ?", (high,))


STORES: Final[dict[str, Callable[[Path], Store]]] = {
    "log": Log,
    "log, numbered apart": lambda folder: Log(folder, apart=True),
    "segments": Segments,
    "sqlite full": lambda folder: Sqlite(folder, synchronous="FULL"),
    "sqlite normal": lambda folder: Sqlite(folder, synchronous="NORMAL"),
}


def windows(window_s: int, count: int) -> list[report.Window]:
    """22 channels, as large as real ones."""
    rng = np.random.default_rng(1)
    out = []
    for i in range(count):
        grid = np.zeros(401, np.int64)
        np.add.at(grid, np.clip(rng.normal(200, 4, window_s).astype(int), 0, 400), 1)
        out.append(
            report.Window(
                boot_id="1" * 16, mono_start_ms=i * window_s * 1000, mono_end_ms=(i + 1) * window_s * 1000,
                wall_start_ms=1_800_000_000_000 + i * window_s * 1000, clock="synced", next_due_s=2 * window_s,
                digest="d" * 16, variant="onnx-int8", edge_hash="e" * 16, n=window_s, n_monitored=window_s,
                latency_queue=binning.pack_grid(grid), latency_run=binning.pack_grid(grid),
                latency_total=binning.pack_grid(grid), cells=binning.pack(rng.poisson(window_s / 10, 240)),
            )
        )  # fmt: skip
    return out


def day(store: Store, made: list[report.Window], *, online: bool) -> None:
    if online:
        acked = 0
        for window in made:
            store.seal(window, online=True)
            high = store.number()
            if high - acked >= ACK_AFTER:
                store.ack(high)
                acked = high
        return
    for window in made:
        store.seal(window, online=False)
    acked = -1
    while (high := store.number()) > acked:
        store.ack(high)
        acked = high


def io() -> tuple[int, int]:
    """(bytes handed to the kernel, bytes of pages made dirty) since this process began."""
    said = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(said["wchar"]), int(said["write_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of a day; results are not written")
    parser.add_argument("--json", action="store_true", help="last line: one object")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one by default")
    arguments = parser.parse_args()
    share = 8 if arguments.quick else 1
    cases = [*((name, s, True) for name, s in WINDOWS_S.items()), ("60s offline", 60, False)]
    per_day: dict[str, dict[str, dict[str, int]]] = {}
    print(f"{'':22}" + "".join(f"{case:>20}" for case, _, _ in cases) + "   kB a day, handed / pages")
    for name, make in STORES.items():
        for case, window_s, online in cases:
            made = windows(window_s, DAY_S // window_s // share)
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                store = make(Path(folder) / "spool")
                before, began = io(), time.perf_counter()
                day(store, made, online=online)
                handed, pages = (share * (b - a) for a, b in zip(before, io(), strict=True))
            took = share * (time.perf_counter() - began)
            per_day.setdefault(name, {})[case] = {"handed": handed, "pages": pages, "ms": round(1000 * took)}
        row = per_day[name]
        print(f"{name:22}" + "".join(f"{v['handed'] / 1e3:10.0f} /{v['pages'] / 1e3:8.0f}" for v in row.values()))
    if not any(v["pages"] for row in per_day.values() for v in row.values()):
        print("this folder is in memory: no pages were counted; name one on a disk with --folder", file=sys.stderr)
    size = len(report.encode_window(windows(60, 1)[0]))
    result = {"window_bytes": size, "per_day": per_day}
    if not arguments.quick:
        target = ROOT / "benchmarks" / "results" / "spool_wear.json"
        target.write_text(json.dumps({**result, **provenance()}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
