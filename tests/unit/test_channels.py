from __future__ import annotations

import time

import pytest

from sse_gateway.channels import (
    QueueBounds,
    Rule,
    RuleTable,
    WindowBounds,
    glob_match,
    globs_intersect,
    is_channel_name,
    is_prefix,
    literal_head,
)
from sse_gateway.reasons import Format, Policy


def rule(index: int, pattern: str, strip_prefix: str = "", *, prefix: bool = True, public: bool = False) -> Rule:
    """A rule of which only the names matter."""
    window = WindowBounds(max_events=1, max_age_s=1.0, max_bytes=1)
    queue = QueueBounds(max_events=1, max_bytes=1, policy=Policy.DROP_OLDEST)
    return Rule(index, pattern, strip_prefix, Format.TEXT, prefix, window, queue, 0, public)


AUDIT = rule(0, "sse:audit:*", "sse:", prefix=False)
SSE = rule(1, "sse:*", "sse:")
NEWS = rule(2, "news.?")
TABLE = RuleTable([AUDIT, SSE, NEWS])


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (b"", b"", True),
        (b"", b"a", False),
        (b"a", b"", False),
        (b"abc", b"abc", True),
        (b"abc", b"abC", False),
        (b"abc", b"abcd", False),
        (b"a?c", b"a\nc", True),
        (b"?", b"", False),
        (b"*", b"any\nthing\xff", True),
        (b"*", b"", False),
        (b"**", b"", False),
        (b"a*", b"a", True),
        (b"a**", b"a", True),
        (b"*a", b"aa", True),
        (b"*a*b*", b"xxaxxbxx", True),
        (b"*a*b", b"ab.", False),
        (b"a*b*c", b"abcbc", True),
        (b"[abc]", b"b", True),
        (b"[abc]", b"d", False),
        (b"[^abc]", b"d", True),
        (b"[^abc]", b"a", False),
        (b"[a-c]x", b"bx", True),
        (b"[c-a]x", b"bx", True),
        (b"[]x", b"x", False),
        (b"[]", b"]", False),
        (b"[^]", b"]", True),
        (b"[^]x", b"\x00x", True),
        (b"[a", b"a", True),
        (b"[a", b"b", False),
        (b"[", b"[", False),
        (b"[^", b"a", True),
        (b"[\\]]", b"]", True),
        (b"[\\]", b"]", True),
        (b"[\\", b"\\", True),
        (b"[\\^a]", b"^", True),
        (b"[a-]b]", b"`", True),
        (b"[a-]b]", b"b", True),
        (b"[a-", b"-", True),
        (b"[-a]", b"-", True),
        (b"[a\\-z]", b"m", False),
        (b"[\\a-z]", b"m", False),
        (b"[!a]", b"!", True),
        (b"\\*", b"*", True),
        (b"\\*", b"x", False),
        (b"\\a", b"a", True),
        (b"a\\", b"a\\", True),
        (b"a\\", b"a", False),
        (b"\\\\*", b"\\x", True),
        (b"[a-\xff]", b"b", False),
        (b"[a-\xff]", b"\xff", True),
        (b"[a-\xff]", b"\x00", True),
        (b"[\x80-\xbf]", b"\xa0", True),
    ],
)
def test_a_pattern_matches_as_the_server_would(pattern: bytes, text: bytes, expected: bool) -> None:
    """Every corner of the server's globs: classes, ranges, escapes, what is left open, the empty text (N7)."""
    assert glob_match(pattern, text) is expected


@pytest.mark.parametrize("pattern", [b"a*" * 40 + b"b", b"*a" * 40 + b"*b", b"*[ab]?" * 100 + b"c", b"*" * 5000 + b"b"])
def test_a_hostile_pattern_costs_no_more_than_its_size(pattern: bytes) -> None:
    """Nested stars are no way to stop the loop (N7)."""
    started = time.thread_time()
    assert not glob_match(pattern, b"a" * 4096)
    assert time.thread_time() - started < 1.0


def test_a_pattern_of_more_stars_than_the_server_follows_matches_nothing() -> None:
    """The server gives up below 1,000 nested stars; a trailing star does not nest."""
    assert glob_match(b"*a" * 1000 + b"*", b"a" * 1001)
    assert not glob_match(b"*a" * 1001, b"a" * 1001)


@pytest.mark.parametrize(
    ("pattern", "head"),
    [
        (b"sse:*", b"sse:"),
        (b"a\\*b?c", b"a*b"),
        (b"a[b]c", b"a"),
        (b"*", b""),
        (b"a\\", b"a\\"),
        (b"plain", b"plain"),
        (b"", b""),
    ],
)
def test_the_literal_head_ends_at_the_first_wildcard(pattern: bytes, head: bytes) -> None:
    """Escapes are resolved; ``*``, ``?`` and ``[`` end it."""
    assert literal_head(pattern) == head


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (b"sse:*", b"sse:audit:*", True),
        (b"sse:*", b"news:*", False),
        (b"*a", b"b*", True),
        (b"*a", b"*b", False),
        (b"a?c", b"ab?", True),
        (b"[a-c]", b"[c-e]", True),
        (b"[a-c]", b"[d-e]", False),
        (b"[^a]", b"a", False),
        (b"a*", b"a", True),
        (b"*", b"*", True),
        (b"*", b"", False),
        (b"", b"", True),
        (b"[]", b"*", False),
        (b"*a*b*", b"*b*a*", True),
        (b"abc", b"ab", False),
    ],
)
def test_two_patterns_intersect_where_one_text_matches_both(a: bytes, b: bytes, expected: bool) -> None:
    """Whether two rules can ever meet is known from their patterns alone, either way round."""
    assert globs_intersect(a, b) is expected
    assert globs_intersect(b, a) is expected


def test_patterns_without_end_are_compared_in_polynomial_time() -> None:
    """Each pair of places is looked at once."""
    started = time.thread_time()
    assert not globs_intersect(b"*a" * 60 + b"x", b"*b" * 60 + b"y")
    assert time.thread_time() - started < 2.0


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "orders:42",
        "ä" * 128,
        "a/b",
        "..",
        "%2F",
        "\x7f",
        "a b",
        "*a",
        "a*b",
        "a?[b]\\",
        "\u2028",
        "e\u0301",
        "x" * 256,
    ],
)
def test_a_name_of_up_to_256_bytes_without_controls_may_be_asked_for(name: str) -> None:
    """Wildcards inside a name are ordinary characters (N1, N2)."""
    assert is_channel_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "*", "a*", "a\x00", "a\n", "a\r", "\x1f", "\x80", "\x9f", "x" * 257, "ä" * 129, "a\ud800", "\udcff"],
)
def test_a_name_that_is_empty_too_long_or_has_controls_may_not(name: str) -> None:
    """Nor one that ends in a star, which would ask for a prefix, nor bytes that were not UTF-8 (N1)."""
    assert not is_channel_name(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("*", True),
        ("a*", True),
        ("a**", True),
        ("a", False),
        ("a\n*", False),
        ("x" * 255 + "*", True),
        ("x" * 256 + "*", False),
    ],
)
def test_a_prefix_is_a_name_with_a_star_at_its_end(name: str, expected: bool) -> None:
    """Length and characters are judged as for a name; the star alone asks for everything."""
    assert is_prefix(name) is expected


def test_the_first_rule_that_matches_owns_the_channel() -> None:
    """Rules may overlap; order decides."""
    assert TABLE.rules == (AUDIT, SSE, NEWS)
    assert TABLE.owner(b"sse:audit:1") is AUDIT
    assert TABLE.owner(b"sse:orders") is SSE
    assert TABLE.owner(b"news.1") is NEWS


@pytest.mark.parametrize("channel", [b"__keyspace@0__:x", b"__sse_gateway:default", b"__", b"__sentinel__:hello"])
def test_a_reserved_channel_has_no_owner(channel: bytes) -> None:
    """What begins with two underscores belongs to nobody, under any pattern (N4)."""
    assert RuleTable([rule(0, "*"), rule(1, "__*")]).owner(channel) is None


@pytest.mark.parametrize("channel", [b"other", b"news.12", b""])
def test_a_channel_that_no_rule_matches_has_no_owner(channel: bytes) -> None:
    """Nor has the channel without a name."""
    assert TABLE.owner(channel) is None


def test_a_client_does_not_see_what_its_rule_strips() -> None:
    """The client's name is the Redis channel without the rule's prefix, and back."""
    assert TABLE.client_name(SSE, b"sse:orders:42") == "orders:42"
    assert TABLE.client_name(NEWS, b"news.1") == "news.1"
    assert TABLE.redis_channel(SSE, "orders:42") == b"sse:orders:42"


@pytest.mark.parametrize("channel", [b"sse:", b"sse:\xff", b"sse:a*", b"sse:a\nb", b"sse:" + b"x" * 257, b"news"])
def test_a_channel_that_no_client_could_ask_for_has_no_name(channel: bytes) -> None:
    """Empty, not UTF-8, ending in a star, with controls, too long, or not under the prefix."""
    assert TABLE.client_name(SSE, channel) is None


def test_a_name_leads_to_the_rule_that_owns_its_channel() -> None:
    """The way back is the rule for which prefix and name belong to that very rule."""
    assert TABLE.rule_of("audit:1") is AUDIT
    assert TABLE.rule_of("orders") is SSE
    assert TABLE.rule_of("news.1") is SSE, "strip_prefix + name is tried rule by rule, first match first"
    assert RuleTable([AUDIT, NEWS]).rule_of("news.1") is NEWS


@pytest.mark.parametrize("name", ["news.12", "", "a\x00", "a*", "\ud800", "__keyspace@0__:x"])
def test_a_name_that_nothing_owns_leads_to_no_rule(name: str) -> None:
    """Unknown, ill-formed and reserved names alike (N1, N4)."""
    assert RuleTable([AUDIT, NEWS, rule(2, "__*")]).rule_of(name) is None


def test_names_are_compared_byte_for_byte() -> None:
    """Composed and decomposed letters are different channels (N3)."""
    table = RuleTable([rule(0, "caf\u00e9")])
    assert table.rule_of("caf\u00e9") is table.rules[0]
    assert table.rule_of("cafe\u0301") is None


def test_wildcards_in_a_client_name_are_literal() -> None:
    """A name is looked up, never matched against channels (N2)."""
    table = RuleTable([rule(0, "news")])
    assert table.rule_of("n?ws") is None
    assert table.rule_of("[n]ews") is None


def test_a_prefix_reaches_every_rule_that_could_own_such_a_channel() -> None:
    """Only rules that allow prefixes; a longer or a shorter prefix than the literal head alike."""
    assert TABLE.rules_of_prefix("news.") == (SSE, NEWS)
    assert TABLE.rules_of_prefix("") == (SSE, NEWS)
    assert TABLE.rules_of_prefix("other") == (SSE,)
    assert RuleTable([NEWS]).rules_of_prefix("other") == ()


def test_a_rule_that_owns_a_whole_prefix_hides_the_rules_below_it() -> None:
    """Whatever they allow or do to a slow client, they can own no such channel."""
    assert TABLE.rules_of_prefix("audit:") == ()
    latest = rule(0, "sse:lat:*", "sse:")
    table = RuleTable([latest, rule(1, "sse:*", "sse:")])
    assert table.rules_of_prefix("lat:") == table.rules_of_prefix("lat:x") == (latest,)
    assert table.rules_of_prefix("la") == table.rules
    assert table.rules_of_prefix("lax") == table.rules[1:]


def test_a_prefix_of_reserved_channels_reaches_no_rule() -> None:
    """One underscore is still a prefix like any other (N4)."""
    table = RuleTable([rule(0, "*")])
    assert table.rules_of_prefix("__") == table.rules_of_prefix("__keyspace@0__:") == ()
    assert table.rules_of_prefix("_") == table.rules


def test_copies() -> None:
    """Every pattern that matches brings a copy, also of what no rule owns."""
    table = RuleTable([AUDIT, SSE, rule(2, "*"), rule(3, "__sse*")])

    assert [table.matching(name) for name in (b"sse:audit:x", b"news", b"__sse_gateway:x")] == [3, 1, 2]


@pytest.mark.parametrize(
    ("asked", "is_public"),
    [
        ("open.a", True),
        ("secret.a", False),
        ("open.*", True),
        ("op*", True),
        ("o*", False),  # "o.…" would be the last rule's
        ("*", False),
        ("secret.*", False),
        ("closed.*", False),  # nobody owns such a prefix
        ("closed.a", True),
        ("__open", False),
        ("nowhere", False),
    ],
)
def test_what_is_public_needs_no_token(asked: str, is_public: bool) -> None:
    """A prefix is public if all of it is; what no rule owns is not (I11)."""
    rules = [
        rule(0, "open.*", public=True),
        rule(1, "secret.*"),
        rule(2, "closed.*", prefix=False, public=True),
        rule(3, "o.*"),
    ]
    assert RuleTable(rules).is_public(asked) is is_public
