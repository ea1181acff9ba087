"""Bytes of a day on the wire and onto the flash, from shortened windows of a real device, hub and broker.

A proxy between agent and broker counts every MQTT packet, the TLS bytes and the TCP segments of real windows, whose
length is shortened to `WINDOW_S` while the number of inferences in each stays that of 60 s, 300 s or 15 min. A day is
then: one connection (handshake, subscription, birth, the first `desired`); 86400 / length reports with the broker's
answers; one acknowledgement for as many windows as the hub waits for (the constants of `contracts.desired`), of the
size seen; and pings. What TLS and TCP add to a packet is what was seen over the same windows.

Pings: in profile `normal` as many as the true length asks for by the keep-alive in the agent's CONNECT. 15 minutes are
the windows of profile `metered`, which the hub sets at the end, to see what such a device says in CONNECT; its pings
are those of its first day on a link that bears any silence, by the agent's own policy. It packs reports alike.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Final

from counting_proxy import HEADERS, CountingProxy, Link

from edgewright.demo.fleet import LocalFleet
from edgewright_agent.delivery import keepalive
from edgewright_contracts import desired, report

from .device import Device, roll_out

LENGTHS: Final = {"60s": 60, "300s": 300, "15min": 900}  # seconds, and inferences, of a window
METERED: Final = "15min"
WINDOW_S: Final = 1.0  # of the shortened ones
DAY_S: Final = 86400
ONCE: Final = ("connect", "connack", "subscribe", "suback", "status", "desired", "birth", "ack")  # of a connection


def windows_of(
    fleet: LocalFleet, digest: str, home: Path, runtime: str, proxy: CountingProxy, inputs: Path, windows: int
) -> dict[str, Any]:
    """For each of `LENGTHS` a day of windows with as many inferences as it has at 1 a second, from `windows` seen."""
    proxy.links.clear()
    device = Device(home, inputs, runtime, 0.1)
    device.answered()
    roll_out(fleet, digest, home, lambda: time.sleep(0.1))  # only a new wish tells the device of shorter windows
    time.sleep(WINDOW_S)
    seen, pages = {}, {}
    for label, n in LENGTHS.items():
        device.pace(WINDOW_S / n)
        time.sleep(2 * WINDOW_S)  # windows of two paces, and what was on its way
        link = proxy.links[-1]
        at, tls, segments, written = len(link.passed), link.tls, link.segments, device.written()
        began = time.monotonic()
        time.sleep(windows * WINDOW_S)
        passed = (time.monotonic() - began) / WINDOW_S
        seen[label] = Link(link.passed[at:], link.tls - tls, link.handshake, link.segments - segments, link.keepalive_s)
        pages[label] = round(DAY_S / n * (device.written() - written) / passed)
    metered = metered_link(fleet, home, proxy)
    device.end()
    return {
        label: a_day(n, seen[label], metered if label == METERED else link, metered=label == METERED)
        | {"pages": pages[label]}
        for label, n in LENGTHS.items()
    }


def metered_link(fleet: LocalFleet, home: Path, proxy: CountingProxy) -> Link:
    """The device's next connection, in profile `metered`, once it has told its birth and followed."""
    before = len(proxy.links)
    fleet.client.post("/api/v1/config", {"devices": [home.name], "settings": {"profile": "metered"}})
    deadline = time.monotonic() + 30
    while len(proxy.links) == before or not any(p.kind == "birth" for p in proxy.links[-1].passed):
        if time.monotonic() > deadline:
            raise SystemExit("the device did not connect again in profile metered")
        time.sleep(0.1)
    time.sleep(WINDOW_S)  # for the answers
    return proxy.links[-1]


def pings(length: int, *, metered: bool, keepalive_s: int) -> int:
    """Of a day: between two reports the link is silent for `length` seconds."""
    windows = DAY_S // length
    if not metered:
        return windows * max(0, -(-length // keepalive_s) - 1) if keepalive_s else 0
    pace, asked = keepalive.KeepAlive(), 0
    for _ in range(windows):
        left = float(length)
        while left > pace.interval_s:
            left, asked, pace = left - pace.interval_s, asked + 1, keepalive.answered(pace, pace.interval_s)
        pace = keepalive.answered(pace, left)
    return asked


def a_day(length: int, part: Link, link: Link, *, metered: bool) -> dict[str, Any]:
    """86400 s of windows of `length` seconds, from `part`, which passed over shortened ones; made as `link` was."""
    sizes: dict[str, list[int]] = {}
    for p in part.passed:
        sizes.setdefault(p.kind, []).append(p.size)
    mean = {kind: statistics.mean(of) for kind, of in sizes.items()}
    rows = [report.decode_report(p.payload).window.n for p in part.passed if p.kind == "report"]
    if not rows:
        raise SystemExit(f"expected reports, got {[(p.kind, p.size) for p in part.passed]}")
    windows = DAY_S / length
    acks = windows / min(desired.ACK_AFTER, -(-desired.ACK_S // length))
    asked = pings(length, metered=metered, keepalive_s=link.keepalive_s)
    first = {p.kind: p.size for p in reversed([*link.passed, *part.passed]) if p.kind in ONCE}
    packets = 2 * (windows + acks + asked) + len(first) + 4  # each has an answer; four of a connection are published
    mqtt = sum(first.values()) + 4 * 4 + windows * (mean["report"] + 4) + acks * (first["ack"] + 4) + asked * 4
    in_tls = link.handshake + mqtt + packets * (part.tls - sum(p.size for p in part.passed)) / len(part.passed)
    return {
        "mqtt": round(mqtt),
        "tls": round(in_tls),
        "tcp_ip": round(in_tls + packets * HEADERS * part.segments / len(part.passed)),
        "n": statistics.median(rows),
        "report": round(mean["report"], 1),
        "ack": first["ack"],
        "acks": round(acks),
        "pings": asked,
        "keepalive_s": link.keepalive_s,
    }
