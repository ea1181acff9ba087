"""Sampling: a few inputs of each model a day, kept on the device for a while, and sent to the hub.

    samples/<wall ms>-<id>.npz    the inputs by name, and about.json: model, digest, variant, prediction, time

Order: an inference that is due leaves a copy (`look`); the errands' thread asks the owner's consent again, lets the
application redact it, writes it, sends it, and removes it once it was sent or its time is over (`turn`).

Guarantee: nothing is copied, kept or sent without consent on the device and `Config.samples` of the hub. Bounds: 256
KiB each, 4 MiB in all, four copies waiting in memory. What is not taken is counted by reason. Cost: 0.1 µs an
inference; 1 µs for 8 kB that are copied.
"""

from __future__ import annotations

import io
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from edgewright_contracts.desired import Samples
from edgewright_contracts.errors import Refused, Unavailable
from edgewright_runtime.runtime import Array

from ..clock import Clock
from ..disk import Disk, atomic_write
from ..inference.model import Active
from . import consent

SAMPLE_BYTES: Final = 256 << 10
KEPT_BYTES: Final = 4 << 20
WAITING: Final = 4
DAY_S: Final = 86400.0
AGAIN_S: Final = 300.0  # after a sending that failed

Redact = Callable[[str, dict[str, Array]], dict[str, Array] | None]  # model, one sample → what may leave, None: nothing
Send = Callable[[str, bytes], None]  # id, file; raises Unavailable, and Refused for what will never be taken

log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """A copy of what a model was given."""

    model: str
    digest: str
    variant: str
    prediction: int
    inputs: dict[str, Array]


class Sampling:
    """`look` is called by any thread that infers; all else on the errands' thread."""

    def __init__(
        self, disk: Disk, home: Path, clock: Clock, new_id: Callable[[], str], send: Send | None,
        lost: Callable[[], object],
    ) -> None:  # fmt: skip
        """`send` is None where there is no hub: then samples stay until their time is over. `lost` hears of each that
        was due and is not kept or not sent; it may be called by a thread that infers."""
        self._disk, self._home, self._folder, self._clock = disk, home, home / "samples", clock
        self._new_id, self._send, self._lost = new_id, send, lost
        self._waiting: deque[Seen] = deque()
        self._due_s: dict[str, float] = {}  # model → when its next input is taken
        self._asked: Samples | None = None
        self._born_s: dict[str, float] = {}  # file → when it was first seen, by the monotonic clock
        self._retry_s = 0.0
        self.redact: Redact | None = None
        self.counted: Counter[str] = Counter()  # kept, sent, and why others were not

    @property
    def on(self) -> bool:
        return self._asked is not None

    def look(self, active: Active, identifier: int, batch: Mapping[str, Array]) -> None:
        """One inference was made. Copies at most one input in a while, and waits for nothing."""
        asked, name, now_s = self._asked, active.subject.model, self._now_s()
        if asked is None or now_s < self._due_s.get(name, 0.0):
            return
        self._due_s[name] = now_s + DAY_S / asked.per_day
        if sum(x.nbytes for x in batch.values()) > SAMPLE_BYTES:
            self._lose("too large")
        elif len(self._waiting) >= WAITING:
            self._lose("no room")
        else:
            inputs = {key: x[0].copy() for key, x in batch.items()}
            self._waiting.append(Seen(name, active.digest, active.variant, identifier, inputs))

    def again(self) -> None:
        """The next input of each model is taken, whatever the hour: the hub's `resample`."""
        self._due_s.clear()

    def turn(self, asked: Samples | None, *, room: bool) -> None:
        """One round. `asked` is what the hub wants now, `room` whether the device has any to spare. Raises OSError."""
        agreed = asked is not None and consent.read(self._disk, self._home).samples
        self._asked = asked if agreed and room else None
        if not agreed:
            self._waiting.clear()
            if self._disk.list(self._folder):
                self._disk.remove_tree(self._folder)
            return
        assert asked is not None
        self._expire(asked.ttl_s)
        while self._waiting:
            self._keep(self._waiting.popleft())
        self._deliver()

    def _keep(self, seen: Seen) -> None:
        inputs: dict[str, Array] | None = seen.inputs
        if self.redact is not None:
            try:
                inputs = self.redact(seen.model, seen.inputs)
            except Exception as error:  # the application's; in doubt nothing leaves
                log.warning("the application's redaction failed, so the sample is dropped: %r", error)
                self._lose("redaction failed")
                return
        if inputs is None:
            self.counted["redacted"] += 1
            return
        data = packed(seen, inputs, self._clock.wall_ms())
        held = sum(self._disk.size(self._folder / name) or 0 for name in self._disk.list(self._folder))
        if len(data) > SAMPLE_BYTES or held + len(data) > KEPT_BYTES:
            self._lose("too large" if len(data) > SAMPLE_BYTES else "no room")
            return
        self._disk.mkdir(self._folder)
        atomic_write(self._disk, self._folder / f"{self._clock.wall_ms() or 0}-{self._new_id()}.npz", data)
        self.counted["kept"] += 1

    def _expire(self, ttl_s: float) -> None:
        """By the monotonic clock since this boot first saw a file, or by the wall clock that is in its name."""
        now_s, wall_ms = self._now_s(), self._clock.wall_ms() or 0
        self._born_s = {name: self._born_s.get(name, now_s) for name in self._disk.list(self._folder)}
        for name, born_s in self._born_s.items():
            written = name.partition("-")[0]
            age_s = (wall_ms - int(written)) / 1000 if written.isdigit() and int(written) else 0.0
            if max(age_s, now_s - born_s) >= ttl_s or not name.endswith(".npz"):
                self._disk.unlink(self._folder / name)
                self.counted["expired"] += 1

    def _deliver(self) -> None:
        if self._send is None or self._now_s() < self._retry_s:
            return
        for name in self._disk.list(self._folder):
            try:
                self._send(name.removesuffix(".npz").rpartition("-")[2], self._disk.read(self._folder / name))
                self.counted["sent"] += 1
            except Unavailable as error:
                log.info("a sample waits: %s", error)
                self._retry_s = self._now_s() + AGAIN_S
                return
            except Refused as error:  # asking again would only keep the others from being sent
                log.warning("a sample is dropped: %s", error)
                self._lose("refused")
            self._disk.unlink(self._folder / name)

    def _lose(self, why: str) -> None:
        self.counted[why] += 1
        self._lost()

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9


def packed(seen: Seen, inputs: Mapping[str, Array], wall_ms: int | None) -> bytes:
    """The file of one sample; equal samples give equal bytes."""
    import zipfile  # takes 0.4 MB, and most devices send no samples

    about = {"model": seen.model, "digest": seen.digest, "variant": seen.variant, "prediction": seen.prediction}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("about.json"), json.dumps({**about, "wall_ms": wall_ms}))
        for name, x in sorted(inputs.items()):
            array = io.BytesIO()
            np.save(array, x, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), array.getvalue())
    return out.getvalue()
