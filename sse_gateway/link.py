"""One connection to Redis: bytes to replies and messages.

RESP3, so that markers and checks travel on the same connection, in order with the messages. The
connection ends once, with one reason (`why`); nothing here reconnects.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

import hiredis

from sse_gateway.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_MARK = b"1 MARK "


class Listener(Protocol):
    """Who gets what the source brings."""

    def source_began(self) -> None:
        """A new run of messages begins here."""

    def source_message(self, pattern: bytes, channel: bytes, payload: bytes, now: float) -> None:
        """One message, in the order in which Redis executed the PUBLISHes; `now` is when its bytes came."""

    def source_control(self, payload: bytes, now: float) -> None:
        """One message on the control channel but for our markers, in its place among the others."""

    def source_flush(self) -> None:
        """What was read at once has been handed over."""

    def source_lost(self) -> None:
        """The run of messages has ended."""

    def source_round_trip(self, seconds: float) -> None:
        """A marker came back."""

    def source_failed(self, error: BaseException) -> None:
        """Something failed that must not: the process has to end (I9)."""


class Link(asyncio.Protocol):
    """One connection: bytes to replies and messages.

    Attributes:
        began: Our first marker has come back.
        settled: It has begun, or is lost.
        lost: The connection has ended; `why` says so.
        heard_at: When the last bytes came, seconds of the loop's clock.
        marked_at: When our last marker came.
        credentials: User and password, bytes.
        database: Where the keys of commands are.
        paused_s: Seconds in which we have not read.
    """

    def __init__(self, listener: Listener, control: bytes, token: bytes) -> None:
        self.loop = asyncio.get_running_loop()
        self.began = asyncio.Event()
        self.settled = asyncio.Event()
        self.lost = asyncio.Event()
        self.why = ""
        self.heard_at = self.marked_at = time.monotonic()
        self.credentials: tuple[bytes, bytes] = (b"", b"")
        self.database = 0
        self._listener = listener
        self._control = control
        self._token = token
        self._reader = hiredis.Reader()
        self._waiting: deque[Callable[[object], None]] = deque()
        self._pushes: tuple[int, asyncio.Future[object]] | None = None
        self._transport: asyncio.Transport | None = None
        self._sent_at: dict[bytes, float] = {}
        self._marks = 0
        self._paused_at: float | None = None
        self._paused_s = 0.0

    @property
    def is_paused(self) -> bool:
        """Whether we do not read."""
        return self._paused_at is not None

    @property
    def is_waiting(self) -> bool:
        """Whether answers are outstanding."""
        return bool(self._waiting)

    @property
    def paused_s(self) -> float:
        """Seconds in which we have not read."""
        return self._paused_s + (time.monotonic() - self._paused_at if self._paused_at is not None else 0.0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        """Called by the loop: hand over what has come complete."""
        self.heard_at = time.monotonic()
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
            self._listener.source_flush()
        except hiredis.HiredisError as error:
            self.drop(f"not RESP: {error}")
        except Exception as error:  # noqa: BLE001 - I9: the loop would only log it
            self.drop("internal error")
            self._listener.source_failed(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.drop(str(exc) if exc else "the server closed the connection")

    def drop(self, why: str) -> None:
        """Note the end of the link. Idempotent: the first reason counts."""
        if self.lost.is_set():
            return
        self.why = why
        self.lost.set()
        self.settled.set()
        if self._pushes is not None and not self._pushes[1].done():
            _fail(self._pushes[1], why)
        while self._waiting:
            self._waiting.popleft()(SourceError(why))
        self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading. Idempotent."""
        if self._paused_at is None and self._transport is not None and not self._transport.is_closing():
            self._paused_at = time.monotonic()
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again. Idempotent."""
        if self._paused_at is not None and self._transport is not None:
            self._paused_s += time.monotonic() - self._paused_at
            self._paused_at = None
            self.touch()
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def touch(self) -> None:
        """Begin to judge anew."""
        self.heard_at = self.marked_at = time.monotonic()

    async def call(self, *words: bytes, pushes: int = 0) -> object:
        """Send a command and wait for its answer, or for so many confirmations.

        Raises:
            SourceError: The server refused, or the link is lost.
        """
        if self.lost.is_set():  # between two calls: nobody would settle this one
            raise SourceError(self.why)
        answer: asyncio.Future[object] = self.loop.create_future()

        def settle(reply: object) -> None:
            if answer.done():
                return
            if isinstance(reply, Exception):
                _fail(answer, str(reply))
            else:
                answer.set_result(reply)

        if pushes:
            self._pushes = pushes, answer
        else:
            self._waiting.append(settle)
        self._send(words)
        return await answer

    async def call_all(self, commands: Sequence[tuple[bytes, ...]]) -> list[object]:
        """Send commands at once and wait for all answers; an error is an answer, also that the link is lost."""
        if self.lost.is_set():
            return [SourceError(self.why)] * len(commands)
        answers: list[object] = []
        done = self.loop.create_future()

        def settle(reply: object) -> None:
            answers.append(reply)
            if len(answers) == len(commands) and not done.done():
                done.set_result(None)

        self._waiting.extend([settle] * len(commands))
        self._send(*commands)
        await done
        return answers

    async def begin(self) -> None:
        """Publish our first marker, and wait until it comes back.

        Raises:
            SourceError: The server refused, or the link is lost.
        """
        try:
            await self.call(*self._marker())
        except SourceError as error:
            if self.lost.is_set():
                raise
            raise SourceError(self._unpublished(error)) from None
        await self.settled.wait()
        if self.lost.is_set():
            raise SourceError(self.why)

    def publish(self, payload: bytes, answer: Callable[[int], None]) -> None:
        """Publish on the control channel.

        Args:
            payload: The message.
            answer: Gets the number of its receivers; our own copy comes after it, before Redis 7.2 in front of it.
        """

        def judge(reply: object) -> None:
            if isinstance(reply, int):
                answer(reply)
            else:
                self.drop(self._unpublished(reply))

        if not self.lost.is_set():
            self._waiting.append(judge)
            self._send((b"PUBLISH", self._control, payload))

    def check(self, run_id: str) -> None:
        """Send a marker, and ask for role and run id; a wrong answer drops the link."""

        def judge_published(reply: object) -> None:
            if isinstance(reply, Exception):
                self.drop(self._unpublished(reply))

        def judge_role(reply: object) -> None:
            if isinstance(reply, list) and reply[:1] != [b"master"]:
                self.drop("the server was demoted to a replica")

        def judge_server(reply: object) -> None:
            if not isinstance(reply, Exception) and run_id and f"run_id:{run_id}" not in text_of(reply):
                self.drop("another server answers: its run id differs")

        self._waiting.extend((judge_published, judge_role, judge_server))
        self._send(self._marker(), (b"ROLE",), (b"INFO", b"server"))

    def _unpublished(self, error: object) -> str:
        return f"cannot publish to {self._control.decode()}: {error}"

    def _marker(self) -> tuple[bytes, ...]:
        self._marks += 1
        mark = b"%b:%d" % (self._token, self._marks)
        self._sent_at[mark] = time.monotonic()
        if len(self._sent_at) > 64:  # markers that never came back
            del self._sent_at[next(iter(self._sent_at))]
        return b"PUBLISH", self._control, _MARK + mark

    def _send(self, *commands: tuple[bytes, ...]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(map(hiredis.pack_command, commands)))  # type: ignore[arg-type] # its stub knows only 1-tuples

    def _take(self, reply: object) -> None:
        if not isinstance(reply, hiredis.PushNotification):
            if self._pushes is not None and isinstance(reply, Exception):
                self._fail_pushes(reply)
            elif self._waiting:
                self._waiting.popleft()(reply)
            return
        if reply[0] == b"pmessage":
            if reply[1] == self._control:
                self._take_control(reply[2], reply[3])
            elif self.began.is_set():
                self._listener.source_message(reply[1], reply[2], reply[3], self.heard_at)
        elif reply[0] == b"psubscribe":
            self._count_push()

    def _fail_pushes(self, reply: object) -> None:
        if self._pushes is not None:
            _, answer = self._pushes
            self._pushes = None
            if not answer.done():
                _fail(answer, f"cannot subscribe: {reply}")

    def _count_push(self) -> None:
        if self._pushes is None:
            return
        left, answer = self._pushes
        self._pushes = (left - 1, answer) if left > 1 else None
        if left == 1 and not answer.done():
            answer.set_result(None)

    def _take_control(self, channel: bytes, payload: bytes) -> None:
        if channel != self._control:
            return
        if not payload.startswith(_MARK):
            if self.began.is_set():
                self._listener.source_control(payload, self.heard_at)
            return
        sent_at = self._sent_at.pop(payload.removeprefix(_MARK), None)
        if sent_at is None:
            return
        self.marked_at = time.monotonic()
        self._listener.source_round_trip(self.marked_at - sent_at)
        if not self.began.is_set():
            self.began.set()
            self.settled.set()
            self._listener.source_began()


def _fail(answer: asyncio.Future[object], why: str) -> None:
    answer.set_exception(SourceError(why))
    answer.exception()  # seen: whoever waited may have run out of time in this very turn, and asyncio would complain


def text_of(value: object) -> str:
    """Read a reply that should be text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
