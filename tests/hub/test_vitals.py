"""A hub that is not well says so; one that lost a part of itself ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import sqlalchemy as sa

from edgewright_contracts.errors import Unavailable
from edgewright_hub.ingest.consumer import Consumer
from edgewright_hub.mqtt.broker import EmbeddedBroker
from edgewright_hub.rollouts.conductor import Conductor
from edgewright_hub.serve import Config, serve
from edgewright_hub.storage import control
from edgewright_hub.vitals import LATE_S, Beat, Vitals
from edgewright_hub.web.listeners import Address

LOCAL = Address("127.0.0.1", 0)


def _dies(of: type, name: str, error: BaseException) -> Callable[[pytest.MonkeyPatch], None]:
    """Break a part so that its thread or task ends without a word: these two are not `Exception`s."""

    def act(*_: Any, **__: Any) -> None:
        raise error

    return lambda patch: patch.setattr(of, name, act)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (_dies(Consumer, "_gather", SystemExit()), "the thread of ingest"),
        (_dies(mqtt.Client, "loop_misc", SystemExit()), "the thread of the broker's connection"),
        (_dies(Conductor, "tick", asyncio.CancelledError()), "the tick"),
        (lambda patch: patch.setattr(EmbeddedBroker, "serving", False), "the embedded broker"),
    ],
    ids=["ingest", "network", "tick", "broker"],
)
def test_a_hub_that_lost_a_thread_or_a_task_ends_and_says_which(
    tmp_path: Path, owner: Path, monkeypatch: pytest.MonkeyPatch, breaks: Any, said: str,
) -> None:  # fmt: skip
    config = Config(tmp_path / "data", owner / "hub", https=LOCAL, page=LOCAL, mqtt=LOCAL, tick_s=0.05)
    ready = threading.Event()

    async def run() -> None:
        def told(_: object) -> None:
            ready.set()
            breaks(monkeypatch)

        await asyncio.wait_for(serve(config, stop=asyncio.Event(), ready=told), 20)

    with pytest.raises(Unavailable, match=f"{said} of the hub ended by itself"):
        asyncio.run(run())
    assert ready.is_set()
    assert not (tmp_path / "data" / "hub.json").exists()


def test_a_periodic_task_that_fails_is_told_and_tried_again(
    control_engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    vitals = Vitals({})
    turns: list[str] = []

    def act() -> bool:
        turns.append("; ".join(vitals.reasons()))
        if len(turns) == 1:
            raise RuntimeError("disk full")
        return len(turns) < 4

    async def run() -> None:
        async with vitals.every("the tick", 0.01, act):
            while len(turns) < 6:
                await asyncio.sleep(0.005)

    asyncio.run(run())
    assert turns[:3] == ["", "the tick failed and is tried again", ""]


def test_a_task_that_hangs_is_late() -> None:
    beat = Beat("the tick", every_s=1.0, ended_s=100.0)
    assert beat.said(101.0 + LATE_S) == ""
    assert beat.said(102.0 + LATE_S) == "the tick has not ended a turn for 62 s"


def test_a_database_that_cannot_be_read_is_named_and_nothing_more(control_engine: sa.Engine) -> None:
    vitals = Vitals({"hub.db": (control_engine, sa.select(control.cursors).limit(1))})
    vitals.ask(lambda: "")
    vitals.ask(lambda: "the broker is not connected")
    assert vitals.reasons() == ["the broker is not connected"]
    with control_engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE cursors")
    assert vitals.reasons() == ["hub.db cannot be read", "the broker is not connected"]
