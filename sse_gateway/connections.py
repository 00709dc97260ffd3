"""Connections of the public listener that have no stream: how long they may take, how many, how large.

The HTTP library bounds none of that. A client that sends its request byte by byte, or none at all, would
otherwise keep a descriptor for as long as it likes.

Rules:
    1. A request is there within `REQUEST_S` of its first byte, the first one within that of the connection;
       else the connection ends. Between two requests it may be silent, as proxies' are.
    2. At the bound the newest is let in, and who has kept us waiting longest for its request goes; then who
       has been idle longest. Whose request is being answered stays: at worst the newest goes itself.
       So a crowd of those that dribble costs one that asks at once nothing.
    3. The bound leaves descriptors for streams, for Redis and for the log.
    4. A stream's connection leaves this place when its socket is taken.
    5. In one turn of the loop a few are read. What another has sent waits, and it is not read further, so
       that a crowd which comes at once does not keep everybody else waiting.
    6. Who does not take its answers keeps us waiting too, and has as long for them. What is ended is closed `LINGER_S`
       later at the latest, whatever it has not taken: else its descriptor would stay, and nobody would count it.
    7. A response that ends as a stream does ends cleanly: our side is shut, and the client's end awaited for `LINGER_S`.
       Closed at once, the connection would be reset by whatever the client still says, and the kernel throw away
       what it has not read yet.

            reading ──request──► answering ──answered──► idle
               ▲                     │ more came meanwhile │ a byte
               └─────────────────────┴─────────────────────┘
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong

from sse_gateway.logs import log_event
from sse_gateway.origins import METHODS
from sse_gateway.problems import problem, raw_problem
from sse_gateway.reasons import DropReason
from sse_gateway.stream import RESET
from sse_gateway.turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

MAX_TARGET = 32 * 1024
"""Bytes of a request line: room for 64 channels of 256 bytes, half of them escaped. Beyond: 414."""

MAX_FIELD = 16 * 1024
"""Bytes of one header field. Beyond: 431."""

MAX_REQUEST = 64 * 1024
"""Bytes of a request line and all header fields together. Beyond: 431."""

REQUEST_S = 10.0
"""How long a request may take to arrive; then its connection ends."""

MAX_WAITING = 4096
"""Connections without a stream, of one worker: as many as its backlog holds. Beyond: rule 2."""

MIN_WAITING = 64
"""So many there may be, however few descriptors there are."""

SPARE_DESCRIPTORS = 64
"""Neither for streams nor for connections without one: Redis, snapshots, log, sockets that are listened on."""

KEEPALIVE_S = 3630.0
"""How long a connection may be idle: above any proxy's own time, so that the proxy closes first."""

DROPPED_LOG_S = 1.0
"""At most one line a second and reason about connections that were ended."""

LINGER_S = 1.0
"""How long a connection that we end may take its last answer, and then to close."""

_END = b"\r\n\r\n"

# The parser knows some methods by name, and says of all others that they are invalid.
_METHOD_UNKNOWN = re.compile(r"b'[A-Za-z]+ \S+ HTTP/1\.")

_log = logging.getLogger(__name__)


class Connections:
    """All connections without a stream, of one process.

    Attributes:
        dropped: How many were ended, by reason.
        turnstile: Where they wait to be read.
    """

    def __init__(self, now: Callable[[], float], descriptors: Callable[[], int]) -> None:
        """Start empty.

        Args:
            now: The clock, seconds.
            descriptors: How many are neither in use by streams nor spoken for otherwise.
        """
        self.dropped = dict.fromkeys(DropReason, 0)
        self.turnstile = Turnstile()
        self._now = now
        self._descriptors = descriptors
        self._reading: dict[Connection, float] = {}  # since when, the longest first
        self._idle: dict[Connection, None] = {}
        self._answering: set[Connection] = set()
        self._told_at: dict[DropReason, float] = {}
        self._untold = dict.fromkeys(DropReason, 0)

    def __len__(self) -> int:
        return len(self._reading) + len(self._idle) + len(self._answering)

    @property
    def most(self) -> int:
        """How many there may be now."""
        return min(MAX_WAITING, max(MIN_WAITING, self._descriptors() - SPARE_DESCRIPTORS))

    def server(self, handle: Handler) -> web.Server:
        """The protocol factory to listen with; needs a running loop.

        Args:
            handle: Answers a request.
        """

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            connection = request.protocol
            assert isinstance(connection, Connection)  # noqa: S101 - the server makes no others
            if connection.transport is not None:  # it may have gone between its request and this moment
                self._move(connection, self._answering.add)
            connection.unanswered = 0
            try:
                response = await handle(request)
                if response.prepared and not response.keep_alive:  # it has been written, to its end
                    await connection.end_cleanly()
                return response
            finally:
                self.answered(connection)

        return _Server(
            self,
            answer,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            max_line_size=MAX_TARGET,
            max_field_size=MAX_FIELD,
            lingering_time=0.0,
        )

    def began(self, connection: Connection) -> None:
        """A connection is there; another may have to go."""
        if len(self) >= self.most:
            self.drop(next(iter(self._reading or self._idle), connection), DropReason.CROWD)
        if connection.transport is not None:
            self._reading[connection] = self._now()

    def heard(self, connection: Connection) -> None:
        """It sends something: if it was idle, a request begins."""
        if connection in self._idle:
            del self._idle[connection]
            self._reading[connection] = self._now()

    def is_answering(self, connection: Connection) -> bool:
        """Whether its request is being answered."""
        return connection in self._answering

    def answered(self, connection: Connection) -> None:
        """Its request has its answer, or was a stream's."""
        if connection in self._answering:  # else it has ended meanwhile, or is stalled
            self._settle(connection)

    def stalled(self, connection: Connection) -> None:
        """It does not take its answers."""
        self._move(connection, lambda it: self._reading.update({it: self._now()}))

    def resumed(self, connection: Connection) -> None:
        """It takes them again."""
        if connection in self._reading:
            self._settle(connection)

    def _settle(self, connection: Connection) -> None:
        if connection.has_begun:
            self._move(connection, lambda it: self._reading.update({it: self._now()}))
        else:
            self._move(connection, lambda it: self._idle.update({it: None}))

    def ended(self, connection: Connection) -> None:
        """It has gone, or has become a stream. Idempotent."""
        self._move(connection, lambda _: None)

    def expire(self, now: float) -> None:
        """End those whose request, or whose taking of answers, takes too long."""
        while self._reading:
            connection, since = next(iter(self._reading.items()))
            if now - since < REQUEST_S:
                break
            self.drop(connection, DropReason.DEADLINE)

    def drop(self, connection: Connection, reason: DropReason) -> None:
        """End a connection, count it, and tell the log now and then."""
        self.ended(connection)
        connection.end()
        self.dropped[reason] += 1
        self._untold[reason] += 1
        now = self._now()
        if now - self._told_at.get(reason, -DROPPED_LOG_S) >= DROPPED_LOG_S:
            self._told_at[reason] = now
            count, self._untold[reason] = self._untold[reason], 0
            log_event(_log, logging.WARNING, "connection.dropped", reason=reason, count=count, waiting=len(self))

    def _move(self, connection: Connection, put: Callable[[Connection], object]) -> None:
        self._reading.pop(connection, None)
        self._idle.pop(connection, None)
        self._answering.discard(connection)
        put(connection)


class Connection(web.RequestHandler):
    """The library's protocol, with our bounds, and answering what it could not parse in our way.

    Attributes:
        unanswered: Bytes that came since a request was last begun to be answered.
    """

    __slots__ = ("_connections", "_gone", "_tail", "unanswered")

    def __init__(self, connections: Connections, manager: web.Server, **settings: object) -> None:
        super().__init__(manager, **settings)  # type: ignore[arg-type]  # the server's own keywords, passed on
        self._connections = connections
        self._tail = b""
        self._gone: asyncio.Future[None] | None = None  # while its end is awaited
        self.unanswered = 0

    @property
    def has_begun(self) -> bool:
        """Whether more has come than whole requests: those end in an empty line."""
        return self._tail != _END

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, if there is room."""
        super().connection_made(transport)
        self._connections.began(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._connections.ended(self)
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """It leaves answers unread."""
        super().pause_writing()
        if self.transport is not None:
            self._connections.stalled(self)

    def resume_writing(self) -> None:
        """It reads them."""
        super().resume_writing()
        self._connections.resumed(self)

    def end(self) -> None:
        """End it, also if the client does not read: what is left to send would hold the descriptor."""
        if self.transport is not None:
            self._loop.call_later(LINGER_S, _reset, self.transport)
        self.force_close()

    async def end_cleanly(self) -> None:
        """Shut our side, and await the client's end. Meanwhile it may have to go, as whoever keeps us waiting."""
        if self.transport is None or self.transport.is_closing():
            return
        self._gone = self._loop.create_future()
        with suppress(OSError):  # it has gone meanwhile
            self.transport.write_eof()
        self._connections.stalled(self)
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._gone

    def data_received(self, data: bytes) -> None:
        """Read on, when it is our turn; what is too large is refused at once."""
        if self._gone is not None:
            self._ignore(data)
            return
        self._connections.heard(self)
        transport = self.transport
        if transport is None or len(data) > MAX_REQUEST or self._connections.turnstile.try_pass():
            self._read(data)
        else:
            transport.pause_reading()
            self._connections.turnstile.wait(partial(self._read_later, transport, data))

    def _read_later(self, transport: asyncio.Transport, data: bytes) -> None:
        if self.transport is transport and not transport.is_closing():
            transport.resume_reading()
            if self._gone is None:
                self._read(data)

    def _ignore(self, data: bytes) -> None:
        """What comes behind the end of the answer is no request."""
        self.unanswered += len(data)
        if self.unanswered > MAX_REQUEST:
            self._connections.drop(self, DropReason.SIZE)

    def _read(self, data: bytes) -> None:
        """Read on; what is too large without being a request is none."""
        before = self._request_count
        super().data_received(data)
        self.unanswered += len(data)
        self._tail = (self._tail + data)[-len(_END) :]
        is_request = self._request_count != before
        if self.unanswered > MAX_REQUEST and (not is_request or self._connections.is_answering(self)):
            if self.transport is not None and not self._connections.is_answering(self):
                self.transport.write(raw_problem(431, "the headers are too large together"))
            self._connections.drop(self, DropReason.SIZE)

    async def start(self) -> None:
        """Serve the connection; what not even the library foresaw ends it alone (I9).

        A host that no decoder takes raises before there is a request: unanswered, the connection
        would stay, and its task's exception would come up as the process's own. What fails in the answer
        to a request has been dealt with by whoever answers it.
        """
        try:
            await super().start()
        except ValueError:
            if self.transport is not None:
                self.transport.write(raw_problem(400, "the target is no address"))
            self.end()
        except Exception as error:  # noqa: BLE001 - its text quotes the request
            log_event(_log, logging.ERROR, "request.failed", error=type(error).__name__)
            self.end()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - quotes the request
    ) -> web.StreamResponse:
        """Answer a request that is not HTTP, or is too long; the connection ends."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun")
        if isinstance(exc, LineTooLong):
            is_target = str(exc.args[1]) == str(MAX_TARGET)
            status, detail = (414, "the request line is too long") if is_target else (431, "a header is too long")
        elif exc is not None and "Too many" in str(exc):
            status, detail = 431, "too many headers"
        elif isinstance(exc, BadHttpMethod) and _METHOD_UNKNOWN.search(str(exc)):
            status, detail = 405, f"streams are read with {METHODS}"
        else:
            status, detail = (status, "the request is not HTTP/1.1") if status < 500 else (500, "internal error")
        response = problem(status, detail, {})
        response.force_close()
        return response


def _reset(transport: asyncio.Transport) -> None:
    """End a connection, if it is still there, and have the kernel free what it holds for it."""
    sock = transport.get_extra_info("socket")
    if sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        transport.abort()


class _Server(web.Server):
    """Makes our protocol instead of the server's own."""

    def __init__(self, connections: Connections, handle: Handler, **settings: object) -> None:
        super().__init__(handle, **settings)  # type: ignore[arg-type]  # for the protocol, passed on
        self._all = connections

    def __call__(self) -> web.RequestHandler:
        return Connection(self._all, self, loop=self._loop, **self._kwargs)
