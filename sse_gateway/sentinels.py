"""The sentinels of one service: whom they name as its primary, and at once if they name another.

Rules:
    1. A sentinel's word counts while it says that it sees a majority of its peers. One that is cut
       off together with an old primary would name that one for as long as it is cut off.
    2. Of several words the one with the newest configuration is right: a sentinel gets a new one
       only by the votes of a majority. An older one than we have heard counts only if most of the
       sentinels we know of say so: then they were set up anew.
    3. Each sentinel is listened to (`+switch-master`) and asked twice a second: who only listens
       misses what was said while he was not connected, who only asks is late.
    4. Whom they named stays named until they name another. That they are away, or cannot agree, is
       no reason to leave a primary that serves; but it is one not to begin with it.

Each has one connection of ours, a `Link` as the source's: questions, answers and news on the same one.
redis-py needs two, loads slowly, and its `get_message` swallows a cancellation now and then.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sse_gateway.errors import SourceError
from sse_gateway.link import Link, text_of
from sse_gateway.logs import log_event
from sse_gateway.place import Address, Place, connect
from sse_gateway.redis_login import log_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sse_gateway.place import Watch

POLL_S = 0.5
"""Between two questions to one sentinel, ±25 %."""

ANSWER_S = 2.0
"""What a sentinel has for an answer, at most; `redis.connect_timeout` if that is shorter."""

GRACE_S = 0.1
"""What the others have to answer once the first has: it may know less than they."""

_NEWS = b"+switch-master"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Word:
    """What a sentinel says of the service.

    Attributes:
        primary: Whom it names.
        epoch: How new its configuration is.
        is_down: Most of them say that this primary is down.
    """

    primary: Address
    epoch: int
    is_down: bool


@dataclass(slots=True)
class _Sentinel:
    """One of them.

    Attributes:
        address: Where.
        word: What it said last; None while it says nothing that counts.
        why: Why it does not.
        is_known: It has answered, or was found not to.
    """

    address: Address
    word: Word | None = None
    why: str = ""
    is_known: bool = False


class Sentinels:
    """Follows all sentinels of a service.

    Attributes:
        primary: Whom they named last; None before the first word.
        moves: How often they named another.
    """

    def __init__(self, watch: Watch, *, timeout_s: float, moved: Callable[[Address], None]) -> None:
        """Prepare; `followed` connects.

        Args:
            watch: The service, and where the sentinels are.
            timeout_s: What `locate` and a connection after it may take together, and a sentinel for an answer at most.
            moved: Called when they name another primary.
        """
        self.primary: Address | None = None
        self.moves = 0
        self._watch = watch
        self._timeout_s = min(timeout_s, ANSWER_S)
        self._patience_s = timeout_s / 2
        self._moved = moved
        self._sentinels = [_Sentinel(address) for address in watch.sentinels]
        self._epoch = -1
        self._were_heard = False
        self._news = asyncio.Event()

    @property
    def heard(self) -> int:
        """How many have a word that counts."""
        return sum(sentinel.word is not None for sentinel in self._sentinels)

    @asynccontextmanager
    async def followed(self, failed: Callable[[BaseException], None]) -> AsyncIterator[None]:
        """Follow them for the length of an ``async with`` block.

        Args:
            failed: Gets what failed for no foreseen reason.
        """

        def end(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                failed(error)

        tasks = [asyncio.create_task(self._follow(sentinel, failed)) for sentinel in self._sentinels]
        for task in tasks:
            task.add_done_callback(end)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def locate(self) -> Address:
        """Say who is the primary, once there is enough to say it.

        Raises:
            SourceError: Nobody whose word counts names one that is up.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._until(lambda: self._choose() is not None)
            async with asyncio.timeout(GRACE_S):
                await self._until(lambda: False)
        word = self._choose()
        if word is None:
            raise SourceError(f"no primary of {self._watch.service!r}: {self._complaints()}")
        if word.is_down:
            raise SourceError(f"the sentinels say that the primary of {self._watch.service!r}, {word.primary}, is down")
        return word.primary

    async def _until(self, is_enough: Callable[[], bool]) -> None:
        """Wait until there is enough, or nobody is left to wait for."""
        while not is_enough() and not all(sentinel.is_known for sentinel in self._sentinels):
            self._news.clear()
            await self._news.wait()

    # What they say.

    def _choose(self) -> Word | None:
        """The word that is right (rule 2)."""
        words = [sentinel.word for sentinel in self._sentinels if sentinel.word is not None]
        if not words:
            return None
        named = [word.primary for word in words]
        best = max(words, key=lambda word: (word.epoch, named.count(word.primary)))
        is_set_up_anew = 2 * named.count(best.primary) > len(self._sentinels)
        return best if best.epoch >= self._epoch or is_set_up_anew else None

    def _take(self, sentinel: _Sentinel, word: Word | None, why: str = "") -> None:
        """Note what one says."""
        sentinel.word, sentinel.why, sentinel.is_known = word, why, True
        self._news.set()
        chosen = self._choose()
        if chosen is not None:
            self._epoch = chosen.epoch
            self._name(chosen.primary)
        elif self._were_heard:
            self._were_heard = False
            log_event(_log, logging.WARNING, "sentinels.lost", reason=self._complaints())

    def _name(self, primary: Address) -> None:
        """They name this one."""
        former, self.primary = self.primary, primary
        if primary != former or not self._were_heard:
            log_event(_log, logging.INFO, "sentinels.named", primary=str(primary), epoch=self._epoch)
        self._were_heard = True
        if former not in {None, primary}:
            self.moves += 1
            self._moved(primary)

    def _complaints(self) -> str:
        return "; ".join(f"{sentinel.address}: {_complaint(sentinel)}" for sentinel in self._sentinels)

    # Each of them.

    async def _follow(self, sentinel: _Sentinel, failed: Callable[[BaseException], None]) -> None:
        """Ask one again and again, at once when it has news; until cancelled."""
        while True:
            try:
                await self._converse(sentinel, failed)
            except TimeoutError:
                self._take(sentinel, None, f"no answer within {self._timeout_s:g} s")
            except (OSError, SourceError) as error:
                self._take(sentinel, None, str(error))
            await asyncio.sleep(POLL_S * random.uniform(0.5, 1.5))

    async def _converse(self, sentinel: _Sentinel, failed: Callable[[BaseException], None]) -> None:
        """Ask one until it fails.

        Raises:
            OSError: Nobody is there, or there is no answer in time.
            SourceError: It refuses, says what no sentinel says, or the connection is lost.
        """
        news = asyncio.Event()
        place = Place(sentinel.address, user=self._watch.user, password=self._watch.password)
        async with asyncio.timeout(self._timeout_s):
            link = await connect(place, lambda: Link(_Ear(news, failed), _NEWS, b""))
        try:
            async with asyncio.timeout(self._timeout_s):
                await log_in(link)
                await link.call(b"PSUBSCRIBE", _NEWS, pushes=1)
            link.began.set()  # markers are for primaries
            while True:
                news.clear()
                async with asyncio.timeout(self._timeout_s):
                    self._take(sentinel, await self._ask(link))
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S * random.uniform(0.75, 1.25)):
                        await news.wait()
        finally:
            link.close()

    async def _ask(self, link: Link) -> Word:
        service = self._watch.service.encode()
        await link.call(b"SENTINEL", b"CKQUORUM", service)  # an error if it sees no majority
        said = await link.call(b"SENTINEL", b"MASTER", service)
        try:
            assert isinstance(said, dict)  # noqa: S101 - as any other lack
            address = Address(text_of(said[b"ip"]), int(said[b"port"]))
            return Word(address, int(said[b"config-epoch"]), b"o_down" in said[b"flags"].split(b","))
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
            raise SourceError("does not speak as a sentinel does") from None


class _Ear:
    """Listens to what a sentinel announces."""

    def __init__(self, news: asyncio.Event, failed: Callable[[BaseException], None]) -> None:
        self._news = news
        self.source_failed = failed

    def source_began(self) -> None: ...

    def source_message(self, pattern: bytes, channel: bytes, payload: bytes, now: float) -> None: ...

    def source_control(self, _payload: bytes, _now: float) -> None:
        self._news.set()

    def source_flush(self) -> None: ...

    def source_lost(self) -> None: ...

    def source_round_trip(self, seconds: float) -> None: ...


def _complaint(sentinel: _Sentinel) -> str:
    """Why one does not help; nothing of this is a secret."""
    if sentinel.word is not None:
        return f"names {sentinel.word.primary}, which is older than what was heard"
    return sentinel.why or "no answer yet"
