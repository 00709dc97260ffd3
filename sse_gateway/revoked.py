"""The list of what was revoked, in Redis: it outlives every process of ours.

A sorted set by the revocations' ends, ``__sse_gateway:NAME:revoked``. Whoever revokes adds to it and then tells everybody on
the control channel; whoever connects subscribes first and then reads it. So nobody misses one, whenever it starts.

Rule: what the list has lost (a Redis without persistence that was restarted, a failover), the nodes put back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.errors import SourceError
from sse_gateway.revocations import MAX_HOLD_S, MAX_REVOCATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.authority import Authority
    from sse_gateway.link import Link

_SLICE = 1000  # members that one command reads or writes


def list_name(cluster: str) -> bytes:
    """The key of a cluster's list."""
    return f"__sse_gateway:{cluster}:revoked".encode()


async def synchronise(cluster: str, authority: Authority, link: Link) -> None:
    """Read the list, and put back what it has lost.

    Raises:
        SourceError: Redis refuses, or the link is lost.
    """
    key = list_name(cluster)
    try:
        await _synchronise(key, authority, link)
    except SourceError as error:
        needed = f"+zadd +zrevrange +expire ~{key.decode()}"
        raise SourceError(f"the list of what was revoked: {error} (needed: {needed})") from None


async def _synchronise(key: bytes, authority: Authority, link: Link) -> None:
    found: set[bytes] = set()
    for start in range(
        0, 2 * MAX_REVOCATIONS, _SLICE
    ):  # from the end: what is added or removed meanwhile hides nothing
        members = await link.call(b"ZREVRANGE", key, b"%d" % start, b"%d" % (start + _SLICE - 1))
        if not isinstance(members, list) or not members:
            break
        for member in members:
            authority.heard(member)
        found.update(members)
    lost = [(until, text) for until, text in authority.revocations.texts() if text not in found]
    for at in range(0, len(lost), _SLICE):
        await add(link, key, lost[at : at + _SLICE])


async def add(link: Link, key: bytes, members: Sequence[tuple[int, bytes]]) -> None:
    """Add revocations, each with its end.

    Raises:
        SourceError: Redis refuses, or the link is lost.
    """
    words = [word for until, text in members for word in (b"%d" % until, text)]
    await link.call(b"ZADD", key, *words)
    await link.call(b"EXPIRE", key, b"%d" % MAX_HOLD_S)


async def forget(link: Link, key: bytes, now: float) -> int:
    """Forget what has ended.

    Returns:
        Revocations that are left.

    Raises:
        SourceError: Redis refuses, or the link is lost.
    """
    await link.call(b"ZREMRANGEBYSCORE", key, b"-inf", b"%d" % int(now))
    count = await link.call(b"ZCARD", key)
    return count if isinstance(count, int) else 0
