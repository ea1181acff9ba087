"""The link's choices, as tables: how long it may be silent, by which way it goes, and when a certificate is renewed."""

from __future__ import annotations

import itertools

import pytest

from edgewright_agent.delivery import keepalive, routes, tunnel
from edgewright_agent.delivery.keepalive import AGAIN, LONGEST_S, SHORTEST_S, KeepAlive, answered, unanswered
from edgewright_agent.delivery.wire import Wire
from edgewright_agent.identity import Endpoint, Hub, Validity, Websocket
from edgewright_agent.renewal import RETRY_S, TELL_S, Outcome, Renewal, due_s
from edgewright_contracts.errors import RequestError
from sim.clock import SimClock

TCP = routes.Route("tcp", "hub", 8883)
WEB = routes.Route("websockets", "hub", 443, "/mqtt")
HUB = Hub("d1", Endpoint("hub", 8883), "https://hub/repo/", websocket=Websocket("hub", 443))


def learned(bears_s: float, silences: int) -> tuple[list[float], KeepAlive]:
    """What is tried on a link that forgets after `bears_s`, and what is known in the end."""
    pace, tried = KeepAlive(), []
    for _ in range(silences):
        tried.append(pace.interval_s)
        judge = answered if pace.interval_s < bears_s else unanswered
        pace = judge(pace, pace.interval_s)
    return tried, pace


@pytest.mark.parametrize(
    ("bears_s", "tried"),
    [
        (5000, [120, 180, 270, 405, 607.5, 911.25, 1200, 1200]),  # as long as it goes
        (500, [120, 180, 270, 405, 607.5, 303.75, 455.625, 455.625]),  # one break, then the longest below it
        (100, [120, 60, 90, 90, 90]),
    ],
)
def test_the_longest_silence_that_a_link_bears_is_found_with_one_break(bears_s, tried):
    assert learned(bears_s, len(tried))[0] == tried


def test_a_link_that_changed_is_tried_again_and_not_often():
    breaks, pace, bears_s = 0, KeepAlive(), 300.0
    for turn in range(400):
        if turn == 200:
            bears_s = 5000.0
        if pace.interval_s < bears_s:
            pace = answered(pace, pace.interval_s)
        else:
            breaks, pace = breaks + 1, unanswered(pace, pace.interval_s)
    assert breaks <= 3
    assert pace.interval_s == LONGEST_S


def test_short_silences_teach_nothing_and_no_answer_ever_leads_below_the_shortest():
    now = KeepAlive(600.0, held=3)
    assert answered(now, 100.0) == now
    assert unanswered(now, 5.0) == now
    for _ in range(10):
        now = unanswered(now, now.interval_s)
    assert now.interval_s == SHORTEST_S
    assert answered(KeepAlive(LONGEST_S), LONGEST_S) == KeepAlive(LONGEST_S, held=1)
    assert AGAIN > 50


class Silent(Wire):
    """A connection that counts its pings, on a clock that is moved."""

    def __init__(self, *, learning: bool) -> None:
        self.now, self.pings = 0.0, 0
        super().__init__(
            "d1", TCP, None, proxy=None, pace=KeepAlive(), learning=lambda: learning, monotonic=lambda: self.now
        )

    def tls_set_context(self, context=None) -> None:
        pass

    def _ping(self) -> None:
        self._pinged, self.pings = True, self.pings + 1
        self._silence_s = self.now - max(self._spoke_s, self._heard_s) if self._asked_s is None else self._silence_s
        self._spoke_s = self._asked_s = self.now

    def answer(self) -> None:
        self._heard_s, self._asked_s, self._pinged = self.now, None, False
        if self._learning():
            self.pace = keepalive.answered(self.pace, self._silence_s)

    def pass_time(self, seconds: int, *, answering: bool) -> None:
        for _ in range(seconds):
            self.now += 1
            self.watch()
            if answering and self._asked_s is not None:
                self.answer()


def test_a_metered_link_pings_a_fifth_as_often_and_gives_up_a_dead_one_within_a_minute():
    plain, metered = Silent(learning=False), Silent(learning=True)
    for link in (plain, metered):
        link.pass_time(86400, answering=True)
    assert plain.pings == 720
    assert metered.pings <= 80
    metered._tls_socket = shut = Shut()
    metered.pass_time(1200 + 65, answering=False)
    assert shut.times == 1
    assert metered.pace.interval_s == LONGEST_S / 2


class Shut:
    times = 0

    def shutdown(self, how) -> None:
        self.times += 1

    def getsockopt(self, *_):
        return b""


def test_the_way_is_tcp_first_then_websocket_and_what_worked_last_comes_first():
    known = routes.routes(HUB)
    assert known == (TCP, WEB)
    assert [routes.choose(known, None, failures) for failures in range(6)] == [TCP, TCP, WEB, WEB, TCP, TCP]
    assert [routes.choose(known, WEB, failures) for failures in range(4)] == [WEB, WEB, TCP, TCP]


def test_where_enrolment_said_so_there_is_one_way_and_a_proxy_turns_the_order():
    from msgspec.structs import replace

    assert routes.routes(replace(HUB, link="websocket")) == (WEB,)
    assert routes.routes(replace(HUB, websocket=None)) == (TCP,)
    assert routes.routes(replace(HUB, proxy="http://proxy:3128")) == (WEB, TCP)


@pytest.mark.parametrize("url", ["", "proxy:3128", "https://proxy", "http://", "http://p:x", "http://p/path"])
def test_a_proxy_that_is_not_one_is_refused_before_anything_is_asked(url):
    with pytest.raises(RequestError, match="proxy"):
        tunnel.parse(url)


def test_a_proxys_user_is_told_to_it_as_it_was_meant():
    assert tunnel.parse("http://[::1]:3128") == ("::1", 3128, "")
    assert tunnel.parse("http://a%40b:p%3Aw@proxy").authorization == "Basic YUBiOnA6dw=="


class Someone:
    def __init__(self, validity) -> None:
        self.valid = validity

    def validity(self):
        return self.valid


DAY = 86400.0
BEGIN = 1_800_000_000.0
LIFE = Validity(BEGIN, BEGIN + 900 * DAY)


def renewal(clock, answers):
    said, asked = [], []

    def ask(_):
        asked.append(clock.monotonic_ns() / 1e9)
        return answers(len(asked))

    who = Someone(LIFE)
    return Renewal(who, clock, lambda *what: said.append(what), 0.5, ask), who, said, asked


def test_a_certificate_is_renewed_after_two_thirds_of_its_life_and_not_by_all_devices_at_once():
    assert due_s(LIFE, 0.0) == BEGIN + 600 * DAY
    assert due_s(LIFE, 1.0) == BEGIN + 660 * DAY
    clock = SimClock(int(BEGIN * 1000))
    one, who, said, asked = renewal(clock, lambda n: Outcome(BEGIN + 1500 * DAY))
    for _ in range(640):
        clock.advance(DAY)
        one.look()
        if asked and who.valid == LIFE:
            assert clock.wall_ms() / 1000 == BEGIN + 630 * DAY
            who.valid = Validity(BEGIN + 630 * DAY, BEGIN + 1500 * DAY)
    assert len(asked) == 1
    assert [what[0] for what in said] == ["renewed"]


def test_a_renewal_that_fails_is_tried_again_ever_more_rarely_and_told_once_a_day():
    clock = SimClock(int((BEGIN + 700 * DAY) * 1000))
    one, _, said, asked = renewal(clock, lambda n: Outcome(None, "no connection"))
    for _ in range(int(10 * DAY / 600)):
        one.look()
        clock.advance(600)
    waits = [b - a for a, b in itertools.pairwise(asked)]
    assert waits[0] == RETRY_S[0]
    assert waits[-1] == RETRY_S[1]
    assert waits == sorted(waits)
    assert 9 <= len(said) <= 10 * DAY / TELL_S
    assert said[0] == ("due", "the certificate ends in 200 days and could not be renewed: no connection")


def test_an_ended_certificate_is_not_asked_for_and_the_way_back_is_told_and_no_clock_decides_nothing():
    clock = SimClock(int((BEGIN + 903 * DAY) * 1000))
    one, who, said, asked = renewal(clock, lambda n: Outcome(None, "never"))
    one.look()
    assert not asked
    assert said == [
        ("ended", "the certificate ended 3 days ago: run `edgewright agent enroll --again` on it with a new token")
    ]
    clock.set_wall(None)
    one, who, said, asked = renewal(clock, lambda n: Outcome(None, "never"))
    one.look()
    who.valid = None  # unreadable: the link says so
    clock.set_wall(int(BEGIN * 1000))
    one.look()
    assert not said
    assert not asked
