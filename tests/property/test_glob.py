"""Globs against a second reading of the server's rules, as plain and as slow as can be."""

from __future__ import annotations

import itertools

from hypothesis import given, settings, strategies as st

from sse_gateway.channels import glob_match, globs_intersect, literal_head

PATTERNS = st.lists(st.sampled_from([bytes([byte]) for byte in b"aab*?[]^-\\z\xff"]), max_size=9).map(b"".join)
TEXTS = st.lists(st.sampled_from([bytes([byte]) for byte in b"aab*?[]^-\\z\xff`"]), max_size=8).map(b"".join)
FEW = st.lists(st.sampled_from([b"a", b"b", b"*", b"?", b"[ab]", b"[^a]"]), max_size=5).map(b"".join)
SHORT_TEXTS = [bytes(letters) for size in range(7) for letters in itertools.product(b"abc", repeat=size)]


def matches(pattern: bytes, text: bytes) -> bool:
    """Match by trying everything, exponentially; only an empty pattern matches an empty text."""
    return rest_matches(pattern, text) if text else not pattern


def rest_matches(pattern: bytes, text: bytes) -> bool:
    """Match the rest of a pattern with the rest of a text."""
    if not pattern:
        return not text
    if pattern[:1] == b"*":
        return any(rest_matches(pattern[1:], text[skip:]) for skip in range(len(text) + 1))
    if not text:
        return False
    if pattern[:1] == b"[":
        hit, rest = class_matches(pattern[1:], text[0])
        return hit and rest_matches(rest, text[1:])
    if pattern[:1] == b"\\" and len(pattern) > 1:
        pattern = pattern[1:]
    elif pattern[:1] == b"?":
        pattern = text[:1] + pattern[1:]
    return pattern[0] == text[0] and rest_matches(pattern[1:], text[1:])


def class_matches(pattern: bytes, byte: int) -> tuple[bool, bytes]:
    """Match one byte with the class that begins here; also what follows it."""
    negated = pattern[:1] == b"^"
    pattern = pattern[negated:]
    hit = False
    while pattern and pattern[:1] != b"]":
        if pattern[:1] == b"\\" and len(pattern) >= 2:
            hit |= pattern[1] == byte
            pattern = pattern[2:]
        elif len(pattern) >= 3 and pattern[1:2] == b"-":
            bounds = sorted(signed(end) for end in (pattern[0], pattern[2]))
            hit |= bounds[0] <= signed(byte) <= bounds[1]
            pattern = pattern[3:]
        else:
            hit |= pattern[0] == byte
            pattern = pattern[1:]
    return hit != negated, pattern[1:]


def signed(byte: int) -> int:
    """The value of a byte as a signed char."""
    return byte - 256 if byte > 127 else byte


@settings(max_examples=1000)
@given(pattern=PATTERNS, text=TEXTS)
def test_a_match_is_what_trying_everything_finds(pattern: bytes, text: bytes) -> None:
    """Taking the first place after each star loses no match (N7)."""
    assert glob_match(pattern, text) is matches(pattern, text)


@settings(max_examples=300)
@given(text=TEXTS.filter(bool), data=st.data())
def test_a_pattern_made_from_a_text_matches_it(text: bytes, data: st.DataObject) -> None:
    """Each byte told as itself, escaped, as a class, as a question mark or hidden in a star."""
    pieces = [data.draw(st.sampled_from([b"\\%c" % b, b"[\\%c]" % b, b"?", b"*", b"*\\%c*" % b])) for b in text]
    assert glob_match(b"".join(pieces), text)


@given(pattern=PATTERNS, text=TEXTS)
def test_what_a_pattern_matches_begins_with_its_literal_head(pattern: bytes, text: bytes) -> None:
    """And a head followed by anything is no narrower than the pattern."""
    if glob_match(pattern, text):
        assert text.startswith(literal_head(pattern))


@given(a=PATTERNS, b=PATTERNS, text=TEXTS)
def test_two_patterns_that_share_a_text_intersect(a: bytes, b: bytes, text: bytes) -> None:
    """A text both match is proof."""
    if glob_match(a, text) and glob_match(b, text):
        assert globs_intersect(a, b)
    assert globs_intersect(a, b) is globs_intersect(b, a)


@settings(max_examples=200, deadline=None)
@given(a=FEW, b=FEW)
def test_two_patterns_that_intersect_share_a_text(a: bytes, b: bytes) -> None:
    """Patterns this short have a common text of as few letters, or none."""
    shared = any(glob_match(a, text) and glob_match(b, text) for text in SHORT_TEXTS)
    assert globs_intersect(a, b) is shared or len(a) + len(b) > 12
