"""The same over TLS, from a real hub: a reset costs a part of one record. And a hub that is hostile from the start."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random

import pytest

from edgewright_agent import identity, tls
from edgewright_agent.clock import SystemClock
from edgewright_agent.disk import RealDisk
from edgewright_agent.enrolling.enroll import TOKEN_PREFIX, enroll
from edgewright_agent.updating.fetch import Link
from edgewright_agent.updating.refusals import Absent
from edgewright_contracts.errors import Refused
from sim.devicehub import DeviceHub
from sim.proxy import Proxy

pytestmark = pytest.mark.process

HANDSHAKE = 3000  # bytes towards the client, at most, for each connection: the hub's certificate and its tickets
SIZE = 100_000


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with DeviceHub(tmp_path_factory.mktemp("hub")) as one:
        yield one


def test_a_hundred_kilobytes_come_through_resets_over_tls_and_a_tenth_at_most_is_sent_twice(hub, tmp_path):
    enroll(RealDisk(), tmp_path, hub=hub.url, token=hub.token(), device="cam-1")
    data = random.Random(0).randbytes(SIZE)
    name = hashlib.sha256(data).hexdigest()
    (hub._config.data / "repo" / "blobs" / name).write_bytes(data)
    rng = random.Random(3)
    resets = (HANDSHAKE + rng.randrange(8_000, 32_000) for _ in itertools.count())
    with Proxy(("127.0.0.1", hub.port), bytes_per_s=200_000, resets=resets) as proxy:
        url = f"https://127.0.0.1:{proxy.port}/repo/"
        link = Link(tls.connections(identity.load(tmp_path), SystemClock(), url))
        link.blob(RealDisk(), f"{url}blobs/{name}", tmp_path / "part", SIZE, name)
    assert proxy.cuts >= 3
    assert proxy.down - (proxy.cuts + 1) * HANDSHAKE <= 1.1 * SIZE
    assert abs(link.received - proxy.down) < 0.02 * proxy.down  # counted as it came, TLS and all


def test_what_is_not_there_costs_no_second_handshake(hub, tmp_path):
    enroll(RealDisk(), tmp_path, hub=hub.url, token=hub.token(), device="cam-3")
    link = Link(tls.connections(identity.load(tmp_path), SystemClock(), hub.url))
    for _ in range(3):
        with pytest.raises(Absent, match="404"):
            link.unsigned(RealDisk(), hub.url + "/repo/deltas/a/b.zst", tmp_path / "part", 1000)
    assert link._pool.connection_from_url(hub.url).num_connections == 1


@pytest.mark.parametrize(("field", "reason"), [("ca_sha256", "CA"), ("root_sha256", "root metadata")])
def test_a_hub_that_is_hostile_at_enrolment_is_refused_and_nothing_of_it_is_kept(hub, tmp_path, field, reason):
    """The token says what the honest hub has; this one shows a CA or a root of its own."""
    token = hub.token()
    said = json.loads(base64.urlsafe_b64decode(token.removeprefix(TOKEN_PREFIX) + "=="))
    said[field] = hashlib.sha256(b"the owner's").hexdigest()
    pinned = TOKEN_PREFIX + base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")
    with pytest.raises(Refused, match=reason):
        enroll(RealDisk(), tmp_path, hub=hub.url, token=pinned, device="cam-2")
    assert not identity.is_enrolled(tmp_path)
    assert not [p for p in (tmp_path / "identity").glob("*") if p.name != "device.key"]
