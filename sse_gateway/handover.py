"""Hand-over of a snapshot: its blocks, from the node that serves it to the one that joins.

Two ways. ``unix``: every worker of a host listens on a socket in a directory that only they can
enter, and the server of the snapshot connects to the joiner's. ``list``: the server pushes to a
Redis list that the joiner pops, each through a second connection that is opened for it.

Rules:
    1. Blocks arrive in order and once, or the hand-over ends early. What they hold, which is the
       last, and whether they are whole, they say themselves.
    2. The loop is never held: a block travels in parts of at most 512 KiB, there is a turn of the
       loop between two of them, and the server rests as long as it took to make them.
    3. All that waits is bounded (I5): 16 parts in the list, three in a socket's buffer, 8
       connections at a joiner. Who takes nothing for 5 s is given up.
    4. Nothing is left behind: the list has a time to live with every part that is pushed, and goes
       at once when its server gives up.
    5. What fails ends one hand-over, with one line in the log; that nothing comes any more is for
       the receiver of the blocks to notice. What fails for no foreseen reason is reported (I9).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from hiredis import HiredisError

from sse_gateway.errors import GatewayError
from sse_gateway.logs import log_event
from sse_gateway.parts import PART_BYTES, Frames, ListWay, SocketWay, parts_of
from sse_gateway.side_link import side_link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from sse_gateway.link import Link
    from sse_gateway.parts import Way

MAX_INBOUND = 8
"""Connections to our socket at once; one more is closed."""

PATIENCE_S = 5.0
"""Seconds in which the joiner takes nothing; then the server gives up. A joiner waits twice as long."""

_MAX_REST_S = 0.02  # a process that stood still did not work all that time
_HEADER = re.compile(rb"([0-9a-z]{12})\n")
_HEADER_BYTES = 13

_FORESEEN = (OSError, EOFError, GatewayError, HiredisError)

_log = logging.getLogger(__name__)


class Handover:
    """Serves and fetches snapshots, several at a time.

    Attributes:
        sent_bytes: Bytes handed on so far.
        received_bytes: Bytes received so far.
        failures: Hand-overs that have failed, on this side, so far.
    """

    def __init__(
        self,
        open_link: Callable[[Callable[[], Link]], Awaitable[Link]],
        cluster: str,
        node: str,
        directory: Path | None,
        receive: Callable[[str, bytes], bool],
        *,
        connect_timeout_s: float,
        failed: Callable[[BaseException], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Prepare; `start` listens.

        Args:
            open_link: Opens a connection to the source's Redis.
            cluster: Name of the log.
            node: This node: its socket is ``<node>.sock``.
            directory: Of the host's sockets, private to its workers; None for no way but the list.
            receive: Called with token and block, on the loop; says whether more of this token is wanted.
            connect_timeout_s: For connecting to Redis, and for logging in.
            failed: Gets what failed for no foreseen reason: the process has to end.
            patience_s: See `PATIENCE_S`.
        """
        self.sent_bytes = 0
        self.received_bytes = 0
        self.failures = 0
        self._open_link = open_link
        self._prefix = f"__sse_gateway:{cluster}:snapshot:"
        self._node = node
        self._directory = directory
        self._receive = receive
        self._connect_timeout_s = connect_timeout_s
        self._failed = failed
        self._patience_s = patience_s
        self._server: asyncio.Server | None = None
        self._by_token: dict[str, asyncio.Task[None]] = {}
        self._inbound = 0
        self._running: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def start(self) -> None:
        """Listen on our socket, if there is a directory. Without a socket others take the list."""
        if self._directory is None:
            return
        try:
            # A backlog above MAX_INBOUND: a Unix socket with a full one refuses in a way asyncio takes for success.
            self._server = await asyncio.start_unix_server(
                self._accept, _socket(self._directory, self._node), limit=PART_BYTES, backlog=64
            )
        except OSError as error:
            self._fail("listen", error)

    async def close(self) -> None:
        """End every hand-over and stop listening. Idempotent."""
        self._is_closed = True
        if self._server is not None and self._directory is not None:
            self._server.close()
            _socket(self._directory, self._node).unlink(missing_ok=True)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        if self._server is not None:
            await self._server.wait_closed()

    def is_local(self, node: str) -> bool:
        """Whether a node's socket is in our directory."""
        return self._directory is not None and _socket(self._directory, node).is_socket()

    def serve(self, token: str, joiner: str, via: str, blocks: Iterator[bytes], done: Callable[[], None]) -> None:
        """Begin to hand over a snapshot.

        Args:
            token: Of the joiner's request; only one hand-over has it at a time.
            joiner: Its node.
            via: ``unix`` or ``list``.
            blocks: An empty one gives the loop a turn; the last one ends the snapshot.
            done: Called once, when the blocks are no longer read.
        """
        if self._is_closed or token in self._by_token:
            asyncio.get_running_loop().call_soon(done)
            return
        work = partial(self._serve_socket, joiner) if via == "unix" else self._serve_list
        self._begin("serve", partial(work, token, blocks), token, done)

    def fetch(self, token: str, via: str) -> None:
        """Begin to take the blocks of our own request; a local server brings them by itself."""
        if via == "list" and not self._is_closed and token not in self._by_token:
            self._begin("fetch", partial(self._fetch_list, token), token)

    def stop(self, token: str) -> None:
        """Stop serving or fetching. Idempotent."""
        if task := self._by_token.pop(token, None):
            task.cancel()

    # Tasks.

    def _begin(
        self,
        what: str,
        work: Callable[[], Awaitable[None]],
        token: str = "",
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        task = asyncio.create_task(self._guard(what, work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: ended())  # also of a task that is cancelled before it begins
        if token:
            self._own(token, task)

    def _own(self, token: str, task: asyncio.Task[None]) -> None:
        def disown(_: object) -> None:
            if self._by_token.get(token) is task:
                del self._by_token[token]

        self._by_token[token] = task
        task.add_done_callback(disown)

    async def _guard(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except _FORESEEN as error:
            self._fail(what, error)
        except Exception as error:  # noqa: BLE001 - I9: reported, and the process ends
            self.failures += 1
            self._failed(error)

    def _fail(self, what: str, error: Exception) -> None:
        self.failures += 1
        reason = str(error) or type(error).__name__
        if "NOPERM" in reason:
            reason += f"; the user needs +rpush +blpop +pexpire +llen +del ~{self._prefix}*"
        log_event(_log, logging.WARNING, "handover.failed", what=what, reason=reason)

    # Parts, whatever the way.

    async def _send(self, way: Way, blocks: Iterator[bytes]) -> None:
        parts = parts_of(blocks)
        worked_s = 0.0
        while True:
            began = time.monotonic()
            part = next(parts, None)
            worked_s += time.monotonic() - began
            if part is None:
                return
            if part:
                async with _within(self._patience_s, "nothing was taken"):
                    await way.put(part)
                self.sent_bytes += len(part)
            else:
                worked_s = max(worked_s, 0.001)
            rest_s = min(worked_s, _MAX_REST_S) if worked_s >= 0.001 else 0.0  # uvloop's timers know milliseconds
            worked_s = 0.0 if rest_s else worked_s
            await asyncio.sleep(rest_s)

    async def _take(self, way: Way, token: str) -> None:
        """Receive until no more is wanted.

        Raises:
            ConnectionError: The other side has ended before.
        """
        frames = Frames()
        while True:
            async with _within(2 * self._patience_s, "nothing came"):
                part = await way.get()
            if not part:
                raise ConnectionError("the snapshot broke off")
            self.received_bytes += len(part)
            for block in frames.feed(part):
                if not self._receive(token, block):
                    return
                await asyncio.sleep(0)

    # Sockets.

    async def _serve_socket(self, joiner: str, token: str, blocks: Iterator[bytes]) -> None:
        if self._directory is None:
            raise FileNotFoundError("no directory of sockets")
        reader, writer = await asyncio.open_unix_connection(_socket(self._directory, joiner))
        writer.transport.set_write_buffer_limits(2 * PART_BYTES)  # both sides work, though their turns are far apart
        try:
            writer.write(token.encode() + b"\n")
            await self._send(SocketWay(reader, writer), blocks)
            writer.close()
            async with _within(self._patience_s, "nothing was taken"):
                await writer.wait_closed()
        finally:
            await _abort(writer)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_closed or self._inbound >= MAX_INBOUND:
            writer.transport.abort()
            self._fail("receive", ConnectionError("too many connections"))
            return

        def left() -> None:
            writer.transport.abort()  # also of a task that is cancelled before it begins
            self._inbound -= 1

        self._inbound += 1
        self._begin("receive", partial(self._greet, reader, writer), ended=left)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read the header, and the blocks.

        Raises:
            ConnectionError: No header, or a token whose blocks come already.
        """
        try:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - we are a task
            async with _within(self._patience_s, "nothing came"):
                match = _HEADER.fullmatch(await reader.readexactly(_HEADER_BYTES))
            token = match[1].decode() if match is not None else ""
            if not token or token in self._by_token:
                raise ConnectionError("not a hand-over of ours")
            self._own(token, task)
            await self._take(SocketWay(reader, writer), token)
        finally:
            await _abort(writer)

    # Lists.

    async def _serve_list(self, token: str, blocks: Iterator[bytes]) -> None:
        async with self._list(token) as way:
            try:
                await self._send(way, blocks)
            except BaseException:
                await way.delete(self._connect_timeout_s)
                raise

    async def _fetch_list(self, token: str) -> None:
        async with self._list(token) as way:
            await self._take(way, token)

    @asynccontextmanager
    async def _list(self, token: str) -> AsyncIterator[ListWay]:
        async with AsyncExitStack() as stack:
            async with _within(2 * self._connect_timeout_s, "Redis did not answer"):
                link = await stack.enter_async_context(side_link(self._open_link, self._failed))
            yield ListWay(link, f"{self._prefix}{token}".encode())


@asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[None]:
    """Bound a wait.

    Raises:
        TimeoutError: In a sentence.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeoutError(f"{what} for {seconds:g} s") from None


async def _abort(writer: asyncio.StreamWriter) -> None:
    """Break a connection off, and take notice of what has broken it before: else the loop may report that."""
    writer.transport.abort()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)  # noqa: TID251 - one, whose end is all


def _socket(directory: Path, node: str) -> Path:
    return directory / f"{node}.sock"
