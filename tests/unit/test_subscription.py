from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest

from sse_gateway.channels import QueueBounds, RuleTable
from sse_gateway.errors import RequestError
from sse_gateway.reasons import Policy
from sse_gateway.subscription import ALL, Subscription, parameter_values, parse_subscription, read_wish
from tests.support.core import rule

AUDIT = rule("audit.*", 0, prefix=False, queue=10, policy=Policy.DISCONNECT)
NEWS = rule("news.*", 1, queue=20, policy=Policy.LATEST)
REST = rule("*", 2, queue=30)
TABLE = RuleTable([AUDIT, NEWS, REST])
NARROW = RuleTable([AUDIT, NEWS])


def ask(
    query: str = "", path: str | None = None, header: str | None = None, *, rules: RuleTable = TABLE, most: int = 4
) -> Subscription:
    """Parse a request."""
    return parse_subscription(path, query, header, rules, most)


def refused(
    query: str = "", path: str | None = None, header: str | None = None, *, rules: RuleTable = TABLE, most: int = 4
) -> int:
    """The status that a request is refused with."""
    with pytest.raises(RequestError) as caught:
        ask(query, path, header, rules=rules, most=most)
    return caught.value.status


def names(subscription: Subscription) -> list[str]:
    """Channels followed by name."""
    return [name for name, _ in subscription.follow.exact]


def test_path() -> None:
    """One channel is asked for in the path."""
    subscription = ask(path="a")

    assert subscription.follow.asked == ("a",)
    assert subscription.follow.exact == (("a", REST),)
    assert subscription.follow.prefixes == ()
    assert (subscription.cursor, subscription.replay, subscription.wrap) == (None, None, False)


def test_query() -> None:
    """Several channels are asked for in the query; duplicates merge, and their order makes no difference."""
    one = ask("channel=b&channel=a&channel=b")

    assert one.follow.asked == ("a", "b")
    assert names(one) == ["a", "b"]
    assert one == ask("channel=a&channel=b")


@pytest.mark.parametrize(
    ("path", "query", "name"),
    [
        ("a%20b", None, "a b"),
        ("a+b", "a%2Bb", "a+b"),
        ("a%2fb", "a%2Fb", "a/b"),
        ("a/b", "a/b", "a/b"),
        ("%C3%A4", "%c3%a4", "ä"),
        ("ä", "ä", "ä"),
        ("%2541", "%2541", "%41"),
        ("a=b", "a=b", "a=b"),
        ("a;b", "a;b", "a;b"),
        ("a?b", "a?b", "a?b"),
        ("a%26channel%3Db", "a%26channel%3Db", "a&channel=b"),
        ("..%2F..", "..%2F..", "../.."),
        ("[a-z]?\\", "[a-z]?\\", "[a-z]?\\"),
        (None, "a+b", "a b"),
    ],
)
def test_decoded_once(path: str | None, query: str | None, name: str) -> None:
    """Names are percent-encoded once; in the query a plus is a space, in the path it is itself."""
    if path is not None:
        assert names(ask(path=path)) == [name]
    if query is not None:
        assert names(ask(f"channel={query}")) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "%00",
        "a%0Ab",
        "a%0D",
        "%1f",
        "%C2%85",
        "%C2%9f",
        "%FF",
        "%C3",
        "%ED%A0%80",
        "%C0%AF",
        "\udcff",
        "%",
        "%4",
        "%zz",
        "a%%41",
        "a" * 257,
        "a" * 256 + "*",
        quote("ä" * 129),
    ],
)
def test_bad_names(name: str) -> None:
    """A name that no channel can have is refused, in the path and in the query."""
    assert refused(path=name) == 400
    assert refused(f"channel={name}") == 400
    assert refused(f"channel=a&channel={name}") == 400


@pytest.mark.parametrize("name", ["a", "a" * 256, "a" * 255 + "*", quote("ä" * 128), "%7F", "\u2028"])
def test_good_names(name: str) -> None:
    """1 to 256 bytes of UTF-8 without C0 and C1 controls are a name."""
    assert len(ask(path=name).follow.asked) == 1


@pytest.mark.parametrize("query", ["", "&&", "channels=a", "replay=1", "Channel=a"])
def test_no_channel(query: str) -> None:
    """A request without a channel is refused."""
    assert refused(query) == 400


@pytest.mark.parametrize("query", ["channel=", "channel", "channel=a&channel="])
def test_empty_channel(query: str) -> None:
    """An empty channel is refused."""
    assert refused(query) == 400


def test_path_and_query() -> None:
    """Channels stand in the path or in the query, not in both."""
    assert refused("channel=a", "a") == 400


def test_max_channels() -> None:
    """More names than a stream may ask for are refused; duplicates do not count."""
    assert len(ask("channel=a&channel=b&channel=b&channel=c*", most=3).follow.asked) == 3
    assert refused("channel=a&channel=b&channel=c&channel=d", most=3) == 400
    assert refused("&".join(f"channel={number}" for number in range(10_000)), most=64) == 400


@pytest.mark.parametrize("name", ["replay", "wrap", "last_event_id", "lastEventId"])
def test_repeated_parameter(name: str) -> None:
    """A single-valued parameter that is repeated is refused, even with one value."""
    assert refused(f"channel=a&{name}=1&{name}=1") == 400


def test_unknown_parameters() -> None:
    """Parameters that mean nothing are ignored, however often and however badly they are written."""
    assert ask("channel=a&x=1&x=2&%zz&=&utm_source=%", None) == ask("channel=a")


@pytest.mark.parametrize(
    ("text", "replay"),
    [
        ("", None),
        ("0", 0),
        ("1", 1),
        ("007", 7),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, ALL),
        ("9" * 5000, ALL),
        ("0" * 5000 + "7", 7),
        ("all", ALL),
        ("a%6Cl", ALL),
    ],
)
def test_replay(text: str, replay: int | None) -> None:
    """A client says how many events it wants, or all, or nothing."""
    assert ask(f"channel=a&replay={text}").replay == replay


@pytest.mark.parametrize("text", ["-1", "+1", "1.0", "1e3", "ALL", "x", " 1", "%D9%A1"])
def test_bad_replay(text: str) -> None:
    """A number that is none is refused."""
    assert refused(f"channel=a&replay={text}") == 400


@pytest.mark.parametrize(("text", "wrap"), [("", False), ("0", False), ("1", True)])
def test_wrap(text: str, *, wrap: bool) -> None:
    """A client may want its events wrapped."""
    assert ask(f"channel=a&wrap={text}").wrap is wrap


def test_bad_wrap() -> None:
    """Wrapping is on or off."""
    assert refused("channel=a&wrap=true") == 400


@pytest.mark.parametrize(
    ("query", "header", "cursor"),
    [
        ("", None, None),
        ("", "", None),
        ("&last_event_id=", "", None),
        ("&last_event_id=&lastEventId=", None, None),
        ("", "h", "h"),
        ("&last_event_id=q&lastEventId=Q", "h", "h"),
        ("&last_event_id=q&lastEventId=Q", "", "q"),
        ("&last_event_id=q&lastEventId=Q", None, "q"),
        ("&last_event_id=&lastEventId=Q", None, "Q"),
        ("&lastEventId=a%2Db+c", None, "a-b c"),
        ("&lastEventId=%", None, "%"),
        ("&lastEventId=%FF%", None, "\ufffd%"),
        ("", "\x00\n\U0001f600", "\x00\n\U0001f600"),
        ("", "x" * 1_000_000, "x" * 1_000_000),
    ],
)
def test_cursor(query: str, header: str | None, cursor: str | None) -> None:
    """The cursor comes from the header, else from either parameter; none of it is a reason to refuse."""
    assert ask(f"channel=a{query}", header=header).cursor == cursor


def test_prefix() -> None:
    """A name that ends in a star follows every channel so named, under every rule that could own one."""
    follow = ask("channel=new*").follow

    assert follow.asked == ("new*",)
    assert follow.exact == ()
    assert follow.prefixes == (("new", (NEWS, REST)),)


@pytest.mark.parametrize("star", ["*", "%2A", "%2a"])
def test_encoded_star(star: str) -> None:
    """The star may be encoded."""
    assert ask(path=f"a{star}").follow.prefixes == (("a", (REST,)),)


def test_star_alone() -> None:
    """A star alone follows everything that may be followed."""
    assert ask(path="*").follow.prefixes == (("", (NEWS, REST)),)


def test_prefix_that_ends_in_a_star() -> None:
    """Channels may have a star within their names, so a prefix may end in one."""
    assert ask(path="a**").follow.prefixes == (("a*", (REST,)),)


def test_prefix_covers_prefix() -> None:
    """What a shorter prefix covers is not followed twice, but named and bounded by."""
    follow = ask("channel=news.a*&channel=news.*&channel=news.b*&channel=x*").follow

    assert [prefix for prefix, _ in follow.prefixes] == ["news.", "x"]
    assert follow.asked == ("news.*", "news.a*", "news.b*", "x*")


def test_prefix_covers_names() -> None:
    """A name that a prefix covers is not followed twice."""
    follow = ask("channel=a1&channel=a*&channel=b").follow

    assert names(ask("channel=a1&channel=a*&channel=b")) == ["b"]
    assert [prefix for prefix, _ in follow.prefixes] == ["a"]


def test_prefix_does_not_cover_what_it_may_not() -> None:
    """A name under a rule without prefixes is followed by name, whatever prefix is asked for besides (I11)."""
    follow = ask("channel=audit.x&channel=*").follow

    assert follow.exact == (("audit.x", AUDIT),)
    assert follow.prefixes == (("", (NEWS, REST)),)


def test_bounds() -> None:
    """A stream takes the smallest bounds of all its rules, for a prefix of all that could own a channel."""
    assert ask("channel=x").follow.bounds == REST.queue
    assert ask("channel=x&channel=audit.x").follow.bounds == QueueBounds(10, 1_000_000, Policy.DISCONNECT)
    assert ask("channel=n*").follow.bounds == QueueBounds(20, 1_000_000, Policy.DROP_OLDEST)
    assert ask("channel=news.x&channel=x*").follow.bounds == QueueBounds(20, 1_000_000, Policy.DROP_OLDEST)


@pytest.mark.parametrize("name", ["other", "oth*", "audit.*", "news", "__x", "__*", "__keyspace@0__:x"])
def test_no_rule(name: str) -> None:
    """What no rule owns or lets follow is not found, reserved channels above all (I11)."""
    assert refused(path=name, rules=NARROW) == 404


def test_reserved_under_any_rule() -> None:
    """Reserved channels are not found under a rule that would match them either (I11)."""
    assert refused(path="__x") == 404
    assert refused(path="__x*") == 404


def test_one_bad_name_is_enough() -> None:
    """One name that is not found refuses the request."""
    assert refused("channel=news.x&channel=other", rules=NARROW) == 404
    assert refused("channel=news.*&channel=other*", rules=NARROW) == 404


def test_400_comes_before_404() -> None:
    """All of a request is read before any name is looked up."""
    for wrong in ("channel=%00", "replay=x", "wrap=x", "wrap=1&wrap=1"):
        assert refused(f"channel=other&{wrong}", rules=NARROW) == 400


def test_the_names_of_parameters_are_decoded_too() -> None:
    """A client's library may escape any character of a query."""
    subscription = ask("%63hannel=news&last%5Fevent%5Fid=x")

    assert (names(subscription), subscription.cursor) == (["news"], "x")


def test_a_request_is_read_before_its_rules_are_found() -> None:
    """So that whoever may not read a channel does not learn whether a rule owns it."""
    wish = read_wish(None, "channel=b&channel=nowhere&channel=b&replay=3&wrap=1", "cursor", 4)

    assert (wish.names, wish.cursor, wish.replay, wish.wrap) == (("b", "nowhere"), "cursor", 3, True)
    with pytest.raises(RequestError) as caught:
        wish.subscription(NARROW)
    assert caught.value.status == 404


def test_the_values_of_any_parameter_can_be_asked_for() -> None:
    """All of them, names and values decoded once."""
    query = "token=a%2Eb&x=1&tok%65n=c+d&token&tokens=e"

    assert parameter_values(query, "token") == ["a.b", "c d", ""]
    assert parameter_values("", "token") == []


def test_who_may_be_sent_a_replay() -> None:
    """Whoever resumes, asks for events that were, or follows a rule that gives some to everybody."""
    eager = RuleTable([replace(REST, replay_on_connect=3)])
    assert ask("channel=a", header="x").wants_replay
    assert ask("channel=a&replay=1").wants_replay
    assert not ask("channel=a&channel=b*").wants_replay
    assert not ask("channel=a&replay=0", rules=eager).wants_replay
    assert ask("channel=a", rules=eager).wants_replay
    assert ask("channel=a*", rules=eager).wants_replay
