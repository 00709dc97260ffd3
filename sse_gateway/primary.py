"""The server whose order is the log: at the place that the URL names, or wherever its sentinels say.

Rule: a connection goes to the primary or ends. When the sentinels name another, all that were opened to
the former one are dropped, whatever they are for and even if it still answers.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet

from sse_gateway.errors import SourceError
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
        self.sentinels = None if watch is None else Sentinels(watch, timeout_s=timeout_s, moved=self._move)
        self._place = place_of(url)
        self._moved = moved
        self._links: WeakSet[Link] = WeakSet()

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
        if self.sentinels is None:
            return await connect(self._place, make)
        address = await self.sentinels.locate()
        try:
            link = await connect(self._place.at(address), make)
        except OSError as error:  # its text does not always say where
            raise SourceError(f"{address}, which the sentinels name: {error}") from error
        self._links.add(link)
        if self.sentinels.primary != address:
            link.drop(_named(self.sentinels.primary))
        return link

    def _move(self, primary: Address) -> None:
        self._moved(primary)
        for link in list(self._links):
            link.drop(_named(primary))
        self._links.clear()


def _named(primary: Address | None) -> str:
    return f"the sentinels name another primary: {primary}"


async def open_link(url: str, make: Callable[[], Link], *, timeout_s: float) -> Link:
    """Open one connection to what a URL names; its sentinels are asked just for this.

    Raises:
        OSError: Nobody is there.
        SourceError: It cannot be found, or a file of the URL cannot be used.
    """
    failures: list[BaseException] = []
    primary = Primary(url, timeout_s=timeout_s)
    try:
        async with primary.followed(failures.append):
            return await primary.open(make)
    finally:
        if failures:
            raise failures[0]
