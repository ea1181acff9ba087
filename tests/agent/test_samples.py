"""Sampled inputs: none without two words for it, few, small, redacted, and gone in time."""

from __future__ import annotations

import io
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import urllib3

from edgewright.main import run
from edgewright_agent.disk import RealDisk
from edgewright_agent.samples import consent, sampling
from edgewright_agent.samples.sending import Sender
from edgewright_contracts.desired import Command, Config, Desired, DesiredModel, Samples
from edgewright_contracts.errors import Refused, Unavailable
from sim import packages
from sim.clock import SimClock

ASKED = Samples(per_day=24, ttl_s=3600.0)


class Place:
    """Sampling in virtual time; `sent` are (id, bytes)."""

    def __init__(self, home, *, agreed=True, clock=None, down=False):
        self.home, self.disk, self.clock, self.sent, self.down = home, RealDisk(), clock or SimClock(), [], down
        self.disk.mkdir(home)
        ids = itertools.count()
        self.lost, self.refuses = 0, False
        self.one = sampling.Sampling(self.disk, home, self.clock, lambda: f"{next(ids):016x}", self.send, self.lose)
        if agreed:
            consent.write(self.disk, home, consent.Consent(samples=True))
        self.turn()

    def lose(self):
        self.lost += 1

    def send(self, identifier, data):
        if self.refuses:
            raise Refused("no such thing")
        if self.down:
            raise Unavailable("the hub is away")
        self.sent.append((identifier, data))

    def turn(self, asked=ASKED, *, room=True):
        self.one.turn(asked, room=room)

    def look(self, x, model="digits"):
        active = SimpleNamespace(subject=SimpleNamespace(model=model), digest="d" * 64, variant="fp32")
        self.one.look(active, 7, {"image": x[None]})

    @property
    def kept(self):
        return sorted((self.home / "samples").glob("*")) if (self.home / "samples").exists() else []


X = np.arange(64, dtype=np.uint8).reshape(8, 8)


def test_an_input_is_kept_once_in_a_while_and_sent_with_what_it_is(tmp_path):
    place = Place(tmp_path)
    for _ in range(10):
        place.look(X)
    place.turn()
    assert len(place.sent) == 1
    with np.load(io.BytesIO(place.sent[0][1]), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["image"], X)
        about = json.loads(arrays["about.json"])
    assert (about["model"], about["prediction"]) == ("digits", 7)
    assert place.kept == []
    place.clock.advance(3600.0)  # 24 a day
    place.look(X)
    place.look(X, "words")
    place.turn()
    assert place.one.counted == {"kept": 3, "sent": 3}
    place.one.again()
    place.look(X)
    place.turn()
    assert len(place.sent) == 4


def test_without_consent_or_wish_or_room_nothing_is_copied_kept_or_sent(tmp_path):
    for name, agreed, asked, room in (("a", False, ASKED, True), ("b", True, None, True), ("c", True, ASKED, False)):
        place = Place(tmp_path / name, agreed=agreed)
        place.turn(asked, room=room)
        place.look(X)
        place.turn(asked, room=room)
        assert not place.one.on
        assert (place.kept, place.sent) == ([], [])
    (tmp_path / "c" / "consent.json").write_bytes(b"{")
    assert consent.read(RealDisk(), tmp_path / "c") == consent.Consent()


def test_taking_consent_back_removes_what_was_kept(tmp_path, capsys):
    (tmp_path / "sideload").mkdir()  # it is a device
    place = Place(tmp_path)
    place.down = True
    place.look(X)
    place.turn()
    assert len(place.kept) == 1
    assert run(["agent", "consent", "--home", str(tmp_path), "--samples", "no"]) == 0
    assert "removed" in capsys.readouterr().out
    assert place.kept == []
    place.turn()
    assert not place.one.on
    assert run(["agent", "consent", "--home", str(tmp_path), "--samples", "yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"samples": True}
    place.turn()
    assert place.one.on


def test_the_application_redacts_and_in_doubt_nothing_leaves(tmp_path):
    place = Place(tmp_path)

    def broken(model, inputs):
        raise ValueError("no face found")

    for change, counted in ((lambda _, x: {"image": x["image"] * 0}, "sent"), (lambda *_: None, "redacted"),
                            (broken, "redaction failed")):  # fmt: skip
        place.one.redact = change
        place.one.again()
        place.look(X)
        place.turn()
        assert place.one.counted[counted] == 1
    (one,) = place.sent
    with np.load(io.BytesIO(one[1])) as arrays:
        assert not arrays["image"].any()


def test_samples_are_bounded_and_their_time_ends(tmp_path):
    place = Place(tmp_path)
    place.down = True
    place.look(np.zeros((300, 1024), np.uint8))
    assert place.one.counted == {"too large": 1}
    noise = np.random.default_rng(1).integers(0, 255, (250, 1024), dtype=np.uint8)
    for _ in range(20):
        place.one.again()
        place.look(noise)
        place.turn()
    assert sum(p.stat().st_size for p in place.kept) <= sampling.KEPT_BYTES
    assert place.one.counted["no room"] == 4
    (tmp_path / "samples" / "1-x.npz.new").write_bytes(b"torn")
    place.clock.advance(3599.0)
    later = Place(tmp_path, clock=place.clock, down=True)  # a restart
    assert len(later.kept) == 16
    place.clock.advance(2.0)
    later.turn()
    assert later.kept == []


def test_a_hub_that_is_away_is_asked_again_later(tmp_path):
    place = Place(tmp_path)
    place.down = True
    place.look(X)
    place.turn()
    place.down = False
    place.turn()
    assert place.sent == []
    place.clock.advance(sampling.AGAIN_S)
    place.turn()
    assert len(place.sent) == 1


@pytest.mark.parametrize(("status", "kind"), [(204, None), (403, Unavailable), (503, Unavailable), (400, Refused)])
def test_a_sample_is_put_under_the_devices_own_name(status, kind):
    asked = []

    class Pool:
        def __init__(self, **options):
            assert options["retries"] is False

        def request(self, method, url, *, body, headers, preload_content):
            asked.append((method, url, body))
            answer = b"" if status == 204 else b'{"error": "no room"}'
            return urllib3.HTTPResponse(io.BytesIO(answer), status=status, preload_content=preload_content)

    send = Sender(Pool, "https://hub:8443/", "dev-1")
    if kind is None:
        send("0" * 16, b"x")
    else:
        with pytest.raises(kind, match=f"{status} no room"):
            send("0" * 16, b"x")
    assert asked == [("PUT", f"https://hub:8443/samples/dev-1/{'0' * 16}", b"x")]
    assert send.traffic == (1, 0 if kind is None else 20)


def test_after_a_connection_failed_the_certificate_is_read_anew():
    made = []

    class Pool:
        def __init__(self, **options):
            made.append(self)

        def request(self, *_, **__):
            if self is made[0]:
                raise urllib3.exceptions.ProtocolError("the certificate has expired")
            return urllib3.HTTPResponse(io.BytesIO(), status=204, preload_content=False)

    send = Sender(Pool, "https://hub:8443/", "dev-1")
    with pytest.raises(Unavailable, match="has expired"):
        send("0" * 16, b"x")
    send("0" * 16, b"x")
    send("1" * 16, b"x")
    assert len(made) == 2


def test_a_sample_that_the_hub_will_never_take_does_not_keep_the_others_back(tmp_path):
    place = Place(tmp_path)
    place.refuses = True
    place.look(X)
    place.turn()
    assert place.kept == []
    assert (place.one.counted["refused"], place.lost) == (1, 1)


def test_an_agent_samples_when_both_have_said_so_and_tells_the_hub_what_it_counted(world):
    package, home = world.package("v1"), world.home("dev-1")
    consent.write(RealDisk(), home, consent.Consent(samples=True))
    with world.agent() as agent:
        config = Config(window_s=0.5, rollout_window_s=0.5, samples=Samples(per_day=1))
        models = (DesiredModel(name="digits", digest=package.digest),)
        world.hub.want("dev-1", Desired(rev=1, config=config, models=models))
        assert agent.model("digits").wait(60)
        agent.redact(lambda model, inputs: {"mean": inputs["image"].mean(keepdims=True)})
        agent._errands.turn()
        x, _ = packages.draw(3, seed=5)
        for image in x:
            agent.model("digits").predict({"image": image})
        agent._errands.turn()
        (file,) = (home / "samples").iterdir()
        with np.load(file) as arrays:
            assert arrays["mean"].item() == pytest.approx(x[0].mean())
        world.hub.command("dev-1", Command(id="0" * 16, verb="resample", expires_at=2**45))
        assert world.hub.wait(lambda: any(e.before == "resample" for e in world.hub.events["dev-1"]))
        told = next(e for e in world.hub.events["dev-1"] if e.before == "resample")
        assert json.loads(told.log) == {"on": True, "counted": {"kept": 1}}
