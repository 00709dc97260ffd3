"""The server whose order is the log: at the place that the URL names, or wherever its sentinels say."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sse_gateway.place import connect, place_of, watch_of
from sse_gateway.sentinels import Sentinels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sse_gateway.link import Link
    from sse_gateway.place import Address


class Primary:
    """Finds the primary.

    Attributes:
        sentinels: Who name it; None if the URL does.
    """

    def __init__(self, url: str, *, timeout_s: float, moved: Callable[[Address], None] = lambda _: None) -> None:
        """Prepare; inside `followed` it can be found.

        Args:
            url: Of one of the forms in `redis_url`.
            timeout_s: What sentinels have for an answer, at most.
            moved: Called when the sentinels name another.
        """
        watch = watch_of(url)
        self.sentinels = None if watch is None else Sentinels(watch, timeout_s=timeout_s, moved=moved)
        self._place = place_of(url)

    @asynccontextmanager
    async def followed(self, failed: Callable[[BaseException], None]) -> AsyncIterator[None]:
        """Follow the sentinels, if there are any, for the length of an ``async with`` block.

        Args:
            failed: Gets what failed for no foreseen reason.
        """
        if self.sentinels is None:
            yield
            return
        async with self.sentinels.followed(failed):
            yield

    async def open(self, make: Callable[[], Link]) -> Link:
        """Open a connection to it.

        Raises:
            OSError: Nobody is there.
            SourceError: It cannot be found, or a file of the URL cannot be used.
        """
        place = self._place if self.sentinels is None else self._place.at(await self.sentinels.locate())
        return await connect(place, make)
