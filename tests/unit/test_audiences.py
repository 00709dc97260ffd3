from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.audiences import Audiences
from sse_gateway.batch import batch_of
from sse_gateway.channels import Rule, RuleTable
from sse_gateway.history import History
from sse_gateway.reader import Framing, Reader
from sse_gateway.subscription import parse_subscription
from sse_gateway.window import Event
from tests.support.core import rule
from tests.support.sockets import FakeSocket

if TYPE_CHECKING:
    from sse_gateway.audience import Audience

OPEN, CLOSED = rule("a*", 0), rule("b*", 1, prefix=False)
RULES = RuleTable([OPEN, CLOSED])


class Hall:
    """Audiences, and the history that they read."""

    def __init__(self) -> None:
        self.history = History(RULES.rules, 100, 1 << 20)
        self.audiences = Audiences(self.history)

    def admit(self, query: str, now: float = 0.0, *, chunked: bool = True) -> Audience:
        """A new reader's audience."""
        subscription = parse_subscription(None, query, None, RULES, 64)
        reader = Reader(FakeSocket(3, 0), subscription.follow, Framing(chunked, subscription.wrap), 3000)
        audience = self.audiences.admit(reader, now)
        assert reader.audience is audience
        assert (reader.follow, reader.framing) == (audience.follow, audience.framing)
        return audience

    def followers(self, name: str, owner: Rule = OPEN) -> list[Audience]:
        """Who follows a channel."""
        return list(self.audiences.followers(self.history.window(name, owner, 0.0)))

    def dissolve(self, audience: Audience) -> int:
        """The last reader of an audience leaves."""
        audience.waiting.clear()
        return self.audiences.dissolve_if_empty(audience)


def test_same_channels_same_audience() -> None:
    """Streams share an audience if they follow the same, framed in the same way."""
    hall = Hall()

    first = hall.admit("channel=a&channel=b")
    same = hall.admit("channel=b&channel=a&channel=a")
    others = [hall.admit("channel=a"), hall.admit("channel=a&wrap=1"), hall.admit("channel=a", chunked=False)]

    assert same is first
    assert len(first.waiting) == 2
    assert list(hall.audiences) == [first, *others]
    assert len(hall.audiences) == 4


def test_followers() -> None:
    """An event's audiences are those of its name and of its prefixes, each once."""
    hall = Hall()
    by_name, by_short, by_long = (hall.admit(f"channel={name}") for name in ("ab", "a*", "ab*"))
    both = hall.admit("channel=ab*&channel=b")
    hall.admit("channel=abc*")

    assert hall.followers("ab") == [by_name, by_short, by_long, both]
    assert hall.followers("ac") == [by_short]
    assert hall.followers("a") == [by_short]


def test_prefix_only_where_the_rule_allows() -> None:
    """A rule without prefixes is followed by name alone (I11)."""
    hall = Hall()
    hall.admit("channel=*")
    by_name = hall.admit("channel=b")

    assert hall.followers("b", CLOSED) == [by_name]


def test_dissolve() -> None:
    """An audience that nobody is left of is found no more, and its channels have lost a reader."""
    hall = Hall()
    first, second, third = (hall.admit(f"channel={name}&channel=ax*") for name in ("a", "ab", "a&channel=ay*"))

    assert [hall.dissolve(audience) for audience in (first, second)] == [0, 0]
    assert hall.followers("a") == [third]
    assert hall.followers("ax") == [third]
    assert hall.followers("ab") == []
    assert list(hall.audiences) == [third]
    assert hall.dissolve(third) == 0
    assert hall.followers("ax") == []
    assert (len(hall.audiences), hall.audiences.silent_since(1e9)) == (0, [])
    assert not hall.audiences._lengths


def test_dissolve_counts_what_waited() -> None:
    """What still waited in passes is dropped, and returned as bytes (I5)."""
    hall = Hall()
    audience = hall.admit("channel=a")
    audience.put(batch_of([Event(1, None, b"x" * 50, 0.0)]))

    assert hall.dissolve(audience) == 50
    assert not audience.passes


def test_an_audience_in_use_stays() -> None:
    """Members and readers that catch up keep their audience."""
    hall = Hall()
    audience = hall.admit("channel=a")

    assert hall.audiences.dissolve_if_empty(audience) == 0
    assert list(hall.audiences) == [audience]


def test_silent() -> None:
    """Those that got nothing since a moment are found, however often they are looked for; the others are not."""
    hall = Hall()
    first, second, third = (hall.admit(f"channel=a{now}", float(now)) for now in range(3))

    assert hall.audiences.silent_since(1.0) == [first, second]
    first.sent_at = 5.5
    assert hall.audiences.silent_since(2.0) == [second, third]
    assert hall.audiences.silent_since(5.0) == [second, third]
    assert hall.audiences.silent_since(5.5) == [second, third, first]


def test_nobody_is_watched_for_ever() -> None:
    """An audience is found under one second only, and under none once it is dissolved (I5)."""
    hall = Hall()
    first, second = (hall.admit(f"channel=a{now}") for now in range(2))
    first.sent_at = second.sent_at = 7.0
    hall.audiences.silent_since(6.0)

    for audience in (first, second):
        hall.dissolve(audience)

    assert hall.audiences._watched == {}


def test_waiting_in_order() -> None:
    """Readers that catch up wait in the order in which they came, each once, and leave in any."""
    hall = Hall()
    audience = hall.admit("channel=a")
    hall.admit("channel=a")
    hall.admit("channel=a")
    first, second, third = audience.waiting

    del audience.waiting[second]

    assert list(audience.waiting) == [first, third]
    assert hall.audiences.dissolve_if_empty(audience) == 0
