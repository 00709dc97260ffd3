"""A server that speaks just enough RESP3 to be taken for Redis, and says whatever the test wants.

Every command has an answer that a test may replace, leave out, or follow with the end of the
connection. It runs on the test's own event loop, on a real loopback socket.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import hiredis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence


RUN_ID = "1" * 40


def bulk(text: str | bytes) -> bytes:
    """Encode a bulk string."""
    data = text.encode() if isinstance(text, str) else text
    return b"$%d\r\n%b\r\n" % (len(data), data)


def push(*words: str | bytes | int) -> bytes:
    """Encode a push."""
    parts = [b":%d\r\n" % word if isinstance(word, int) else bulk(word) for word in words]
    return b">%d\r\n" % len(parts) + b"".join(parts)


def message(pattern: str, channel: str, payload: str | bytes) -> bytes:
    """Encode one message."""
    return push("pmessage", pattern, channel, payload)


def hello(server: str = "redis", version: str = "7.0.0", mode: str = "standalone") -> bytes:
    """Encode the answer to HELLO 3."""
    fields = {"server": server, "version": version, "mode": mode, "role": "master"}
    return b"%%%d\r\n" % len(fields) + b"".join(bulk(key) + bulk(value) for key, value in fields.items())


def info(run_id: str) -> bytes:
    """Encode the answer to INFO server."""
    return bulk(f"# Server\r\nredis_version:7.0.0\r\nrun_id:{run_id}\r\ntcp_port:6379\r\n")


PRIMARY = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
REPLICA = b"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:1\r\n$7\r\nconnect\r\n:0\r\n"


def _subscribed(words: Sequence[bytes]) -> bytes:
    return b"".join(push("psubscribe", pattern, number) for number, pattern in enumerate(words[1:], 1))


def _published(words: Sequence[bytes]) -> bytes:
    return message(words[1].decode(), words[1].decode(), words[2]) + b":1\r\n"


ANSWERS: dict[str, bytes | Callable[[Sequence[bytes]], bytes]] = {
    "HELLO": hello(),
    "PING": b"+PONG\r\n",
    "ROLE": PRIMARY,
    "INFO": info(RUN_ID),
    "PSUBSCRIBE": _subscribed,
    "PUBLISH": _published,
}


class Resp3Server:
    """The server.

    Attributes:
        answers: Bytes, or what makes them of a command's words, by command; missing means silence.
        closes_after: Commands behind whose answer the connection is closed.
        is_one_by_one: Send every byte alone.
        commands: All commands so far, in the order they came.
        accepted_at: When each connection came, seconds.
    """

    def __init__(self) -> None:
        self.answers = dict(ANSWERS)
        self.closes_after: set[str] = set()
        self.is_one_by_one = False
        self.commands: list[list[bytes]] = []
        self.accepted_at: list[float] = []
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._conversations: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()

    @property
    def url(self) -> str:
        """Where a source finds it."""
        return f"redis://127.0.0.1:{self.port}"

    def names(self) -> list[str]:
        """The names of all commands so far."""
        return [words[0].decode() for words in self.commands]

    async def until(self, predicate: Callable[[Resp3Server], bool], *, timeout_s: float = 20.0) -> None:
        """Wait until something about what came is true."""
        async with asyncio.timeout(timeout_s):
            while not predicate(self):
                self._news.clear()
                await self._news.wait()

    async def send(self, data: bytes) -> None:
        """Send bytes on every connection."""
        for writer in list(self._writers):
            await self._write(writer, data)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        pieces = [bytes([byte]) for byte in data] if self.is_one_by_one else [data]
        with suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if self.is_one_by_one:
                    await asyncio.sleep(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        conversation = asyncio.current_task()
        assert conversation is not None
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)
        self.accepted_at.append(time.monotonic())
        self._news.set()
        self._writers.add(writer)
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65_536):
                parser.feed(data)
                while (words := parser.gets()) is not False:
                    await self._answer(words, writer)
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, words: list[bytes], writer: asyncio.StreamWriter) -> None:
        self.commands.append(words)
        self._news.set()
        name = words[0].decode()
        answer = self.answers.get(name, b"")
        await self._write(writer, answer(words) if callable(answer) else answer)
        if name in self.closes_after:
            raise ConnectionResetError


@asynccontextmanager
async def resp3_server() -> AsyncIterator[Resp3Server]:
    """Run a server for the length of an ``async with`` block."""
    server = Resp3Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in list(server._writers):
            writer.close()
        if server._conversations:
            await asyncio.wait(server._conversations)  # the loop would cancel them, and complain


class Recorder:
    """A listener that writes down what the source brings.

    Attributes:
        calls: What happened, in order: ``began``, ``flush``, ``lost``, ``failed``, or a message's payload.
        messages: (pattern, channel, payload) of every message.
        failures: What was reported as failed.
        round_trips: Seconds of every marker.
        poison: A payload that makes the handler fail.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.messages: list[tuple[bytes, bytes, bytes]] = []
        self.failures: list[BaseException] = []
        self.round_trips: list[float] = []
        self.poison: bytes | None = None
        self._news = asyncio.Event()

    async def until(self, predicate: Callable[[Recorder], bool], *, timeout_s: float = 20.0) -> None:
        """Wait until something about what came is true."""
        async with asyncio.timeout(timeout_s):
            while not predicate(self):
                self._news.clear()
                await self._news.wait()

    async def until_call(self, name: str, count: int = 1, *, timeout_s: float = 20.0) -> None:
        """Wait until this has happened so often."""
        await self.until(lambda r: r.calls.count(name) >= count, timeout_s=timeout_s)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._news.set()

    def source_began(self) -> None:
        """Note it."""
        self._note("began")

    def source_message(self, pattern: bytes, channel: bytes, payload: bytes, now: float) -> None:  # noqa: ARG002
        """Note it, or fail."""
        if payload == self.poison:
            raise ZeroDivisionError("poison")
        self.messages.append((pattern, channel, payload))
        self._note(payload.decode(errors="replace"))

    def source_control(self, payload: bytes, now: float) -> None:  # noqa: ARG002
        """Note it."""
        self._note(payload.decode(errors="replace"))

    def source_flush(self) -> None:
        """Note it."""
        self._note("flush")

    def source_lost(self) -> None:
        """Note it."""
        self._note("lost")

    def source_round_trip(self, seconds: float) -> None:
        """Note it."""
        self.round_trips.append(seconds)
        self._note("round trip")

    def source_failed(self, error: BaseException) -> None:
        """Note it."""
        self.failures.append(error)
        self._note("failed")
