"""The commands by which a stored log is read and written, on a connection of its own.

Rules:
    1. A transaction is applied as a whole, and only while the lease is ours and the state is the one that we
       know (`WATCH`): so writers never mix, whatever their clocks and pauses.
    2. Whatever fails or takes too long ends the connection; nothing is sent twice here.
    3. Nothing is read without a bound: pages of members, groups of keys.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias

from hiredis import HiredisError

from sse_gateway.errors import SourceError, StoreError
from sse_gateway.side_link import side_link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

    from sse_gateway.link import Link
    from sse_gateway.stored import Keys

    Open: TypeAlias = Callable[[Callable[[], Link]], Awaitable[Link]]

LEASE_S = 3.0
"""A writer that is silent for this long is gone."""

GROUP = 16
"""Keys that are asked for at once."""

PAGE = 1000
"""Members of a sorted set, or fields of a hash, that are asked for at once."""


class Store:
    """One open connection."""

    def __init__(self, link: Link, keys: Keys, node: str, timeout_s: float) -> None:
        """Begin.

        Args:
            link: Logged in, and nobody else's.
            keys: Names of keys.
            node: Who we are, in the lease.
            timeout_s: For each answer.
        """
        self._link = link
        self._keys = keys
        self._node = node.encode()
        self._lease = b""
        self._timeout_s = timeout_s

    # Writing.

    async def take_lease(self, epoch: str) -> bool:
        """Become the writer of an epoch, or stay it; False if somebody else is.

        Who writes an older epoch has lost the log, and the lease with it.
        """
        self._lease = lease = b"%b %b" % (epoch.encode(), self._node)
        if await self._call(b"SET", self._keys.lease, lease, b"NX", b"PX", _LEASE) is not None:
            return True
        held = _bytes(await self._call(b"GET", self._keys.lease)) or b""
        if not held.endswith(b" " + self._node) and held.split(b" ")[0] >= epoch.encode():
            return False
        return await self._call(b"SET", self._keys.lease, lease, b"PX", _LEASE) is not None

    async def release(self) -> None:
        """Let others write at once."""
        replies = await self._together([(b"WATCH", self._keys.lease), (b"GET", self._keys.lease), (b"MULTI",)])
        _raise_errors(replies)
        delete = (b"DEL", self._keys.lease)
        await self._together([delete, (b"EXEC",)] if replies[1] == self._lease else [(b"DISCARD",)])

    async def transact(
        self, epoch: str, state: bytes | None, commands: Iterable[tuple[bytes, ...]], expected: Mapping[int, int]
    ) -> bool:
        """Write, and renew the lease.

        Args:
            epoch: Whose state is meant.
            state: Its value as we know it, None for none.
            commands: At once, or not at all.
            expected: What Redis has to answer to some of them, by their index.

        Returns:
            False if the lease or the state is not ours any more: nothing was written.

        Raises:
            SourceError: Redis refused all of it, or nobody knows.
            StoreError: It refused some of it, or answered something else: a key is not what it should be.
        """
        keys = (self._keys.lease, self._keys.state(epoch))
        # MULTI is answered before anything else is sent: were it refused, the rest would be carried out one by one.
        replies = await self._together([(b"WATCH", *keys), (b"MGET", *keys), (b"MULTI",)])
        _raise_errors(replies)
        if replies[1] != [self._lease, state]:
            await self._call(b"DISCARD")
            return False
        replies = await self._together([*commands, (b"PEXPIRE", self._keys.lease, _LEASE), (b"EXEC",)])
        _raise_errors(replies)
        done = replies[-1]
        if not isinstance(done, list):
            return False
        if failed := next((reply for reply in done if isinstance(reply, Exception)), None):
            raise StoreError(str(failed))
        if any(done[index] != answer for index, answer in expected.items()):
            raise StoreError("keys have gone: has Redis evicted them?")
        return True

    # Reading.

    async def newest(self) -> tuple[str, int]:
        """The name of the newest stored epoch, and its order; an empty name if there is none."""
        pairs = _pairs(await self._call(b"ZREVRANGE", self._keys.epochs, b"0", b"0", b"WITHSCORES"))
        if not pairs:
            return "", 0
        name, order = pairs[0]
        return name.decode(errors="replace"), order

    async def order(self, epoch: str) -> int | None:
        """The order of an epoch."""
        score = await self._call(b"ZSCORE", self._keys.epochs, epoch.encode())
        return None if score is None else _score(score)

    async def state(self, epoch: str) -> bytes | None:
        """The value of an epoch's state."""
        return _bytes(await self._call(b"GET", self._keys.state(epoch)))

    async def rows(self, epoch: str) -> AsyncIterator[dict[bytes, bytes]]:
        """The values of its rows, page by page."""
        cursor: object = b"0"
        while True:
            reply = await self._call(b"HSCAN", self._keys.channels(epoch), _bytes(cursor) or b"0", b"COUNT", _PAGE)
            cursor, fields = _list(reply, 2)
            words = [_bytes(word) or b"" for word in _list(fields)]
            yield dict(zip(words[::2], words[1::2], strict=False))
            if cursor in (b"0", "0"):
                return

    async def ring(self, epoch: str, blocks: Sequence[int]) -> list[bytes | None]:
        """The values of blocks of its ring."""
        found: list[bytes | None] = []
        for at in range(0, len(blocks), GROUP):
            group = [self._keys.ring(epoch, block) for block in blocks[at : at + GROUP]]
            found += map(_bytes, _list(await self._call(b"MGET", *group), len(group)))
        return found

    async def windows(
        self, epoch: str, names: Sequence[str], max_bytes: int
    ) -> AsyncIterator[tuple[str, list[tuple[bytes, int]]]]:
        """The members of its channels' windows, channel by channel.

        Raises:
            StoreError: One has more than `max_bytes`: it is not even read to its end.
        """
        for at in range(0, len(names), GROUP):
            group = names[at : at + GROUP]
            replies = await self._together([self._page(epoch, name, 0) for name in group])
            _raise_errors(replies)
            for name, reply in zip(group, replies, strict=True):
                members, size, page = [], 0, _pairs(reply)
                while page:
                    members += page
                    size += sum(len(member) for member, _ in page)
                    if size > max_bytes:
                        raise StoreError(f"too large: a channel of more than {max_bytes} bytes")
                    if len(page) < PAGE:
                        break
                    page = _pairs(await self._call(*self._page(epoch, name, len(members))))
                yield name, members

    def _page(self, epoch: str, name: str, start: int) -> tuple[bytes, ...]:
        key = self._keys.window(epoch, name)
        return b"ZRANGE", key, b"%d" % start, b"%d" % (start + PAGE - 1), b"WITHSCORES"

    # The connection.

    async def _call(self, *words: bytes) -> object:
        (reply,) = await self._together([words])
        _raise_errors([reply])
        return reply

    async def _together(self, commands: Sequence[tuple[bytes, ...]]) -> list[object]:
        """Send all, then wait for all answers; an error is an answer.

        Raises:
            SourceError: The connection has ended, or an answer did not come in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._link.call_all(commands)
        except TimeoutError:
            self._link.drop("Redis did not answer in time")
            raise SourceError(self._link.why) from None
        if self._link.lost.is_set():
            raise SourceError(self._link.why)
        return answers


@asynccontextmanager
async def opened(
    open_link: Open, keys: Keys, node: str, *, timeout_s: float, failed: Callable[[BaseException], None]
) -> AsyncIterator[Store]:
    """Open a connection for the length of an ``async with`` block.

    Args:
        open_link: Connects.
        keys: Names of keys.
        node: Who we are.
        timeout_s: For connecting, and for each answer.
        failed: Gets what failed for no foreseen reason.

    Raises:
        SourceError: Redis refused, or did not answer.
    """
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(timeout_s):
                link = await stack.enter_async_context(side_link(open_link, failed))
        except TimeoutError:
            raise SourceError("Redis did not answer in time") from None
        except (OSError, HiredisError) as error:
            raise SourceError(str(error)) from error
        yield Store(link, keys, node, timeout_s)


_LEASE = b"%d" % round(LEASE_S * 1000)
_PAGE = b"%d" % PAGE


def _raise_errors(replies: Iterable[object]) -> None:
    """Raise the first error among replies.

    Raises:
        StoreError: A key is of another type.
        SourceError: Anything else.
    """
    for reply in replies:
        if isinstance(reply, Exception):
            text = str(reply)
            raise (StoreError(f"damaged: {text}") if text.startswith("WRONGTYPE") else SourceError(text))


def _bytes(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _list(reply: object, length: int | None = None) -> list[object]:
    """Read an answer that has to be a list.

    Raises:
        StoreError: Another server answers than Redis or Valkey.
    """
    if not isinstance(reply, list) or (length is not None and len(reply) != length):
        raise StoreError("the server's answer has another form than that of Redis or Valkey")
    return reply


def _score(value: object) -> int:
    """Read a score: ours are whole numbers.

    Raises:
        StoreError: This one is none.
    """
    if isinstance(value, (int, float, bytes)):
        with suppress(ValueError):
            if (number := float(value)).is_integer():
                return int(number)
    raise StoreError("damaged: a score that is no whole number")


def _pairs(reply: object) -> list[tuple[bytes, int]]:
    """Members and scores: pairs in RESP3."""
    pairs = (_list(pair, 2) for pair in _list(reply))
    return [(_bytes(member) or b"", _score(score)) for member, score in pairs]
