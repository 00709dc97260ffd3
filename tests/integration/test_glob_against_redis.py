"""Our globs against the server's own, through ``PUBSUB CHANNELS pattern``."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from sse_gateway.channels import glob_match
from tests.support.valkey import Link, binary, running

if TYPE_CHECKING:
    from pathlib import Path

ALPHABET = b"aabbc*?[]^-\\z\x00\x7f\x80\xff`"
SEED = 20


def some_bytes(source: random.Random, longest: int) -> bytes:
    """A few bytes of the alphabet."""
    return bytes(source.choice(ALPHABET) for _ in range(source.randrange(longest + 1)))


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_patterns_match_just_the_channels_that_the_server_lists(kind: str, tmp_path: Path) -> None:
    """Every pair of 5,000 patterns and 60 channels, and some stars more than the server follows (N7)."""
    if binary(kind) is None:
        pytest.skip(f"no {kind} server on this machine")
    source = random.Random(SEED)
    channels = {b"", b"a" * 1001, *(some_bytes(source, 6) for _ in range(60))}
    patterns = [some_bytes(source, 9) for _ in range(5000)]
    patterns += [b"[", b"[^", b"[a", b"[^]", b"\\", b"[\\", b"**"]
    if kind == "valkey":  # a Redis without the fix of CVE-2024-31228 follows any number of stars
        patterns += [b"*a" * 1000, b"*a" * 1001, b"*a" * 1000 + b"*"]
    with running(tmp_path, kind=kind) as server:
        subscriber = Link(server.port)
        subscriber.pipeline([("SUBSCRIBE", channel) for channel in sorted(channels)])
        replies = server.link.pipeline([("PUBSUB", "CHANNELS", pattern) for pattern in patterns])
        subscriber.close()
    for pattern, reply in zip(patterns, replies, strict=True):
        assert isinstance(reply, list)
        assert set(reply) == {channel for channel in channels if glob_match(pattern, channel)}, pattern
