"""A connection to Redis beside the one that brings messages: for commands, and soon closed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sse_gateway.link import Link
from sse_gateway.redis_login import log_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@asynccontextmanager
async def side_link(
    open_link: Callable[[Callable[[], Link]], Awaitable[Link]], failed: Callable[[BaseException], None]
) -> AsyncIterator[Link]:
    """Connect and log in; closed at the end. The caller bounds the wait.

    Args:
        open_link: Opens a connection.
        failed: Called with what must not happen.

    Raises:
        OSError: There is no connection.
        SourceError: Redis refuses.
    """
    link = await open_link(lambda: Link(_Deaf(failed), b"", b""))
    try:
        await log_in(link)
        yield link
    finally:
        link.close()


class _Deaf:
    """A listener to a connection that brings no messages."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self.source_failed = failed

    def source_began(self) -> None: ...

    def source_message(self, pattern: bytes, channel: bytes, payload: bytes, now: float) -> None: ...

    def source_control(self, payload: bytes, now: float) -> None: ...

    def source_flush(self) -> None: ...

    def source_lost(self) -> None: ...

    def source_round_trip(self, seconds: float) -> None: ...
