from __future__ import annotations

import gc

import pytest

from sse_gateway.channels import RuleTable
from sse_gateway.errors import MessageError
from sse_gateway.history import History
from sse_gateway.intake import MAX_TS_OFF_S, Intake
from sse_gateway.log import Log
from sse_gateway.reasons import Format, GapReason, RejectReason
from sse_gateway.tally import Tally
from sse_gateway.window import Event
from tests.support.core import rule

NOW = 100.0
WALL = 1_800_000_000.0
MAX_BYTES = 200


class Place:
    """An intake with its log, history and counters."""

    def __init__(self) -> None:
        rules = RuleTable([rule("s:audit:*", 0), rule("s:*", 1, format_=Format.JSON), rule("t:*", 2)])
        self.log = Log(b"key")
        self.log.begin_epoch("epoch0000001", GapReason.SOURCE)
        self.history = History(rules.rules, 100, 1 << 20)
        self.tally = Tally(3)
        self.intake = Intake(rules, self.log, self.history, self.tally, max_bytes=MAX_BYTES, max_routes=2)

    def take(self, pattern: str, channel: str | bytes, payload: str | bytes) -> Event | RejectReason | None:
        """Take a message; what became of it, a rejection by its reason."""
        name = channel.encode() if isinstance(channel, str) else channel
        data = payload.encode() if isinstance(payload, str) else payload
        taken = self.intake.take(pattern.encode(), name, data, NOW, WALL)
        if isinstance(taken, tuple):
            assert isinstance(taken[1], MessageError)
            return taken[1].reason
        return taken


def test_event() -> None:
    """A message becomes an event at the log's new head, held in its channel's window, and counted."""
    place = Place()

    event = place.take("s:*", "s:a", '{"data":"x\\ry","event":"note"}')

    assert isinstance(event, Event)
    assert (event.position, event.type, event.is_text, event.raw) == (1, "note", True, b"x\ry")
    assert event.frame == b"id: %b\nevent: note\ndata: x\ndata: y\n\n" % place.log.cursor(1).encode()
    assert place.history.windows["s:a"].newest is event
    assert (place.tally.messages, place.tally.events) == ([0, 1, 0], [0, 1, 0])


def test_copies_are_not_counted() -> None:
    """A message counts once, under the first pattern that matches; channels of nobody not at all (I1)."""
    place = Place()

    taken = [place.take(*message, "1") for message in [("s:*", "s:audit:1"), ("s:*", "other"), ("t:*", "__t")]]
    counted = place.take("s:audit:*", "s:audit:1", "1")

    assert taken == [None, None, None]
    assert isinstance(counted, Event)
    assert place.log.head == 1


@pytest.mark.parametrize(
    ("channel", "payload", "reason"),
    [
        ("t:a*", b"1", RejectReason.CHANNEL),
        (b"t:\xff", b"1", RejectReason.CHANNEL),
        ("t:a", b"\xff", RejectReason.ENCODING),
        ("t:a", b"x" * (MAX_BYTES + 1), RejectReason.SIZE),
        ("t:a", b"\n" * (MAX_BYTES // 4), RejectReason.SIZE),
    ],
)
def test_rejected(channel: str | bytes, payload: bytes, reason: RejectReason) -> None:
    """A message that is rejected has its place in the log all the same, and leaves nothing else (I1)."""
    place = Place()

    assert place.take("t:*", channel, payload) is reason
    assert place.log.head == 1
    assert not place.history.windows
    assert (place.tally.messages, place.tally.events, place.tally.rejected[reason]) == ([0, 0, 1], [0, 0, 0], 1)


@pytest.mark.parametrize("payload", [b"{", b"\xff", b"x" * (MAX_BYTES + 1)])
def test_rejected_leaves_nothing(payload: bytes) -> None:
    """A rejected payload goes with its message: nothing leads in a circle that only the collector would find."""
    place = Place()

    def publish() -> None:
        taken = place.intake.take(b"s:*", b"s:a", payload, NOW, WALL)
        assert isinstance(taken, tuple)

    def left() -> int:
        while gc.collect():  # what other tests have left, and what that leaves in its turn
            pass
        publish()
        return gc.collect()

    publish()
    gc.disable()
    try:
        found = [left() for _ in range(3)]
    finally:
        gc.enable()
    assert min(found) == 0  # other threads of the test's own process may have left something as well


def test_duplicate() -> None:
    """A known idempotency key makes no second event on its channel; on another it is another's key."""
    place = Place()
    message = '{"data":1,"id":"k"}'

    taken = [place.take("s:*", channel, message) for channel in ("s:a", "s:a", "s:b")]

    assert [event is not None for event in taken] == [True, False, True]
    assert (place.log.head, place.tally.duplicates, place.tally.events) == (3, [0, 1, 0], [0, 2, 0])


def test_publishers_clock() -> None:
    """A publisher's time is kept on our clock, unless it is missing or more than a day off."""
    place = Place()

    times = [
        event.ts
        for off in (-2.0, MAX_TS_OFF_S, MAX_TS_OFF_S + 1.0, -MAX_TS_OFF_S - 1.0)
        if isinstance(event := place.take("s:*", "s:a", f'{{"data":1,"ts":{WALL + off}}}'), Event)
    ]

    assert times == [NOW - 2.0, NOW + MAX_TS_OFF_S, None, None]
    silent = place.take("t:*", "t:a", "1")
    assert isinstance(silent, Event)
    assert silent.ts is None


def test_more_channels_than_are_remembered() -> None:
    """However many channels there are, each message finds its rule."""
    place = Place()

    taken = [place.take("t:*", f"t:{number % 5}", "1") for number in range(20)]

    assert all(isinstance(event, Event) for event in taken)
    assert len(place.intake._routes) <= 2
