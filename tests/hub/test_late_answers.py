"""A hub that takes its time: the command line waits, and then says what may have happened meanwhile."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewright import rollouts
from edgewright.hub_client import HubClient
from edgewright.main import run
from edgewright_contracts.errors import Unavailable
from edgewright_hub.fleet.ca import Authority


@pytest.fixture
def silent(authority: Authority) -> Iterator[str]:
    """The address of a hub that reads what it is told and answers nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)
    context = authority.server_context()
    over = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as told:
            told.recv(65536)
            over.wait(60)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    over.set()
    thread.join()
    listener.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [("create", "the rollout may still begin; see `edgewright rollout status`"), ("plan", "nothing was begun")],
)
def test_a_rollout_that_is_not_answered_in_time_may_have_begun(
    silent: str,
    authority: Authority,
    command: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert rollouts.PATIENCE_S >= 120
    monkeypatch.setattr(rollouts, "PATIENCE_S", 0.2)
    hub = ["--hub", silent, "--ca", str(authority.folder / "ca.pem")]
    assert run(["rollout", command, "digits", "--version", "1.0.0", *hub]) == 3
    error = " ".join(capsys.readouterr().err.split())
    assert f"no answer from the hub at {silent} within 0.2 s" in error
    assert said in error
    assert "Traceback" not in error


def test_any_change_that_is_not_answered_in_time_may_have_happened(silent: str, authority: Authority) -> None:
    client = HubClient(silent, ca=Path(authority.folder / "ca.pem"))
    with pytest.raises(Unavailable, match="it may still do what it was told"):
        client.post("/api/v1/fleet/hold", patience_s=0.2)
