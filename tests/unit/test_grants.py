"""What a client may read."""

from __future__ import annotations

import pytest

from sse_gateway.channels import RuleTable
from sse_gateway.grants import ENTRY_BYTES, MAX_ENTRIES, NOTHING, read_grant
from tests.support.core import rule


@pytest.mark.parametrize(
    ("entries", "asked", "covered"),
    [
        (["a"], "a", True),
        (["a"], "ab", False),
        (["a"], "A", False),
        (["a*"], "a", True),
        (["a*"], "ab", True),
        (["a*"], "b", False),
        (["*"], "anything", True),
        (["*"], "*", True),
        (["a*b"], "a*b", True),  # a star in the middle is itself
        (["a*b"], "axb", False),
        (["a:*"], "a:*", True),
        (["a*"], "a:*", True),
        (["a:x*"], "a:*", False),
        (["a:b"], "a:b*", False),
        (["a:b", "a:c"], "a:*", False),
        (["a", "b*"], "b:c*", True),
        (["é"], "e\u0301", False),  # bytes are compared, not what they look like
        ([], "a", False),
        ([], "*", False),
    ],
)
def test_a_grant_covers_names_and_whole_prefixes(entries: list[str], asked: str, covered: bool) -> None:
    """A prefix is covered only by a prefix with room for all that it will ever show (I11)."""
    assert read_grant(entries).covers(asked) is covered


@pytest.mark.parametrize(
    "entries", [None, "a", {"a": 1}, 1, [1], [None], [["a"]], [""], ["a\n"], ["\ud800"], ["x" * 257]]
)
def test_what_is_no_grant_is_refused(entries: object) -> None:
    """Whoever wrote it meant something else."""
    with pytest.raises(ValueError, match="channel"):
        read_grant(entries)


def test_a_grant_is_bounded() -> None:
    """In its entries; their length is a name's."""
    names = [str(number) for number in range(MAX_ENTRIES)]
    assert read_grant(names).covers("1023")
    with pytest.raises(ValueError, match="at most 1024"):
        read_grant([*names, "more"])


@pytest.mark.parametrize(
    ("entries", "asked", "allowed"),
    [
        ([], ["open.a"], True),
        ([], ["open.*", "open.b"], True),
        ([], ["open.a", "secret.a"], False),
        (["secret.a"], ["open.a", "secret.a"], True),
        (["secret.a"], ["secret.a", "secret.b"], False),
        (["secret.a"], ["*"], False),
        (["*"], ["*", "nowhere"], True),
        (["o*"], ["o*"], True),
        ([], [], True),
    ],
)
def test_a_request_is_allowed_as_a_whole(entries: list[str], asked: list[str], allowed: bool) -> None:
    """Public channels need no grant, and one channel too many is one too many."""
    rules = RuleTable([rule("open.*", 0, public=True), rule("secret.*", 1), rule("o.*", 2)])
    assert read_grant(entries).allows(asked, rules) is allowed


def test_nothing_covers_nothing() -> None:
    """Not even everything's prefix."""
    assert not NOTHING.covers("a")
    assert not NOTHING.covers("*")


def test_a_grant_is_charged_for_each_of_its_entries() -> None:
    """So that a memory of grants is bounded by what they take (I5)."""
    assert NOTHING.charge == 0
    assert read_grant(["ab", "a*"]).charge == 2 * ENTRY_BYTES + 4 * 3
