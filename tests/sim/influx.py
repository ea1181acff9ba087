"""A server that speaks InfluxDB's write API strictly, and answers as a test tells it to; and VictoriaMetrics, a real
one that speaks the same API.

`Influx` reads line protocol by its specification, by other code than the hub's, and keeps points by series and time as
InfluxDB does: one that comes again writes over the first. Lines that cannot be read, or whose fields change their type,
are a partial write: 400, and the others are stored.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

Series = tuple[str, tuple[tuple[str, str], ...]]  # measurement, and tags in their order
Fields = dict[str, int | float]
Point = tuple[Series, int, Fields]

_TAG = re.compile(r"((?:[^,= \\]|\\.)+)=((?:[^,= \\]|\\.)+)")
_FIELD = re.compile(r"([a-z0-9_]+)=(-?\d+i|-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


def parse(line: str) -> Point:
    """Raises ValueError."""
    found = re.fullmatch(r"((?:[^, \\]|\\.)+)((?:,(?:[^ \\]|\\.)+)?) ([^ ]+) (\d{19})", line)
    if not found:
        raise ValueError(f"unable to parse '{line}'")
    measurement, tags, fields, at = found.groups()
    return (
        (measurement, tuple(sorted((_plain(k), _plain(v)) for k, v in _all(_TAG, tags.removeprefix(","))))),
        int(at),
        {k: int(v[:-1]) if v.endswith("i") else float(v) for k, v in _all(_FIELD, fields)},
    )


def _all(one: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    found = one.findall(text)
    if ",".join(f"{k}={v}" for k, v in found) != text or len({k for k, _ in found}) != len(found):
        raise ValueError(f"unable to parse '{text}'")
    return found


def _plain(text: str) -> str:
    return re.sub(r"\\([,= ])", r"\1", text)


class Asked(NamedTuple):
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes  # as it came


class Answer(NamedTuple):
    """`stores`: the points that came are stored all the same."""

    status: int
    message: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    stores: bool = False
    cut: bool = False  # the connection ends instead


class Influx:
    def __init__(self) -> None:
        self.points: dict[tuple[Series, int], Fields] = {}
        self.asked: list[Asked] = []
        self.answers: deque[Answer] = deque()  # to the next requests; then as a server does
        self.most_bytes = 10**9  # of a body, unpacked
        self.unfit: Callable[[Point], str] = lambda _: ""  # why a point is refused
        self.csv = b""  # what queries are answered with
        self.held = threading.Event()  # answers wait for it
        self.held.set()
        handler = type("Handler", (_Handler,), {"influx": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def answer(self, asked: Asked) -> Answer:
        text = gzip.decompress(asked.body) if asked.headers.get("Content-Encoding") == "gzip" else asked.body
        if len(text) > self.most_bytes:
            return Answer(413, "points batch is too large")
        scripted = self.answers.popleft() if self.answers else None
        dropped = ""
        if scripted is None or scripted.stores:
            for line in text.decode().split("\n"):
                dropped = self._store(line) or dropped
        return scripted or (Answer(400, f"partial write: {dropped}") if dropped else Answer(204))

    def _store(self, line: str) -> str:
        try:
            point = parse(line)
        except ValueError as error:
            return str(error)
        said = self.unfit(point)
        if not said:
            self.points[point[0], point[1]] = point[2]
        return said


class _Handler(BaseHTTPRequestHandler):
    influx: Influx
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = Asked(url.path, dict(urllib.parse.parse_qsl(url.query)), dict(self.headers), body)
        self.influx.asked.append(asked)
        if url.path == "/api/v2/query":
            self.send_response(200)
            self.send_header("Content-Type", "text/csv; charset=utf-8")
            self.send_header("Content-Length", str(len(self.influx.csv)))
            self.end_headers()
            self.wfile.write(self.influx.csv)
            return
        self.influx.held.wait(60)
        answer = self.influx.answer(asked)
        if answer.cut:
            self.close_connection = True
            return
        said = json.dumps({"code": "x", "message": answer.message}).encode() if answer.message else b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody waits for it any longer
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        pass


class Victoria:
    """Keeps milliseconds, and of equal ones the last; `stop()` and `start()` are an outage."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self.url = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        binary = shutil.which("victoria-metrics")
        assert binary, "no VictoriaMetrics: sh scripts/system-packages.sh victoria-metrics"
        options = {
            "storageDataPath": self._folder, "httpListenAddr": f"127.0.0.1:{self._port}", "retentionPeriod": "100y",
            "dedup.minScrapeInterval": "1ms", "search.latencyOffset": "0s", "memory.allowedBytes": "64MB",
        }  # fmt: skip
        command = [binary, *(f"-{name}={value}" for name, value in options.items())]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < end, "VictoriaMetrics does not answer"
            assert self._process.poll() is None, "VictoriaMetrics ended"
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _answers(self) -> bool:
        try:
            return bool(self._get("/health"))
        except OSError:
            return False

    def export(self, match: str = '{__name__!=""}') -> dict[Series, dict[int, float]]:
        """Value by millisecond, of each series: measurement and field are its name. All that it has taken."""
        self._get("/internal/force_flush")
        query = urllib.parse.urlencode({"match[]": match, "start": "0", "end": "4102444800"})
        out: dict[Series, dict[int, float]] = {}
        for line in self._get(f"/api/v1/export?{query}").splitlines():
            one = json.loads(line)
            name = one["metric"].pop("__name__")
            values = out.setdefault((name, tuple(sorted(one["metric"].items()))), {})
            for at, value in zip(one["timestamps"], one["values"], strict=True):
                assert at not in values, f"twice: {one['metric']} at {at}"
                values[at] = value
        return out

    def ask(self, query: str, at_ms: int) -> list[dict[str, Any]]:
        """PromQL."""
        given = urllib.parse.urlencode({"query": query, "time": at_ms / 1000})
        return list(json.loads(self._get(f"/api/v1/query?{given}"))["data"]["result"])

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as answer:
            return str(answer.read().decode())
