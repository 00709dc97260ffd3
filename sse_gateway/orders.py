"""What supervisor and worker say to each other, on the socket between them.

A frame is its length, four bytes, big-endian, and a JSON object with the kind of message and the
version. Both ends are ours, but not always of one version: after an upgrade the supervisor in
memory starts workers from disk. A kind that an end does not know is passed over, and so is a field.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from sse_gateway.aggregate import Family  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    import socket

VERSION = 1

MAX_FRAME_BYTES = 64 << 20
"""A longer one is none of ours."""

_CLOSE_S = 1.0
"""How long the other end may take for what was sent last."""


class Start(msgspec.Struct, frozen=True, tag_field="kind", tag="start"):
    """To a worker, first: what it is.

    Attributes:
        settings: The document, with its secrets, already judged.
        slot: Its place among the workers.
        listeners: Descriptors of all listening sockets, row by row.
        rows: Those that it accepts from.
        hold_s: Accept when ready, or after so long; None: only when told.
        handover_dir: Directory of its host's workers, for their sockets.
        beat_s: Report at least so often.
        connections: Streams of the node; of an older supervisor none is known, and the share in the settings counts.
        census: Descriptor of the memory in which the workers count; -1: each for itself.
        beside: Likewise, of the generation that this one takes over from.
    """

    settings: dict[str, Any]
    slot: int
    listeners: list[list[int]]
    rows: list[int]
    hold_s: float | None
    handover_dir: str
    beat_s: float
    version: int = VERSION
    connections: int = 0
    census: int = -1
    beside: int = -1


class Accept(msgspec.Struct, frozen=True, tag_field="kind", tag="accept"):
    """To a worker: accept connections from these rows from now on, and from no others."""

    rows: list[int]
    version: int = VERSION


class Deafen(msgspec.Struct, frozen=True, tag_field="kind", tag="deafen"):
    """To a worker: accept no more connections; another accepts from now on."""

    version: int = VERSION


class Ask(msgspec.Struct, frozen=True, tag_field="kind", tag="ask"):
    """To a worker: report, with this number, and with all metrics if wanted."""

    number: int
    metrics: bool
    version: int = VERSION


class Drain(msgspec.Struct, frozen=True, tag_field="kind", tag="drain"):
    """To a worker: end the streams, spread, and then yourself.

    Attributes:
        refuse: Go on accepting, to refuse new streams for now. Else another accepts from now on, and what is
            already inside is served.
    """

    refuse: bool
    version: int = VERSION


class Stop(msgspec.Struct, frozen=True, tag_field="kind", tag="stop"):
    """To a worker: end at once."""

    version: int = VERSION


class Up(msgspec.Struct, frozen=True, tag_field="kind", tag="up"):
    """From a worker: everything is in place.

    Attributes:
        max_connections: Streams it takes.
    """

    max_connections: int
    version: int = VERSION


class Report(msgspec.Struct, frozen=True, tag_field="kind", tag="report"):
    """From a worker: how it is; when asked, when that has changed, and in any case every so often.

    Attributes:
        reasons: Why new streams would not be served.
        families: Metrics; of those left out the former word stands.
        accepts: Whether connections are accepted.
        answers: Number of the question; 0 if there was none.
    """

    reasons: list[str]
    families: list[Family]
    accepts: bool
    answers: int = 0
    version: int = VERSION


class Refused(msgspec.Struct, frozen=True, tag_field="kind", tag="refused"):
    """From a worker, last: the configuration proved bad at run time."""

    problems: list[str]
    version: int = VERSION


Message = Start | Accept | Deafen | Ask | Drain | Stop | Up | Report | Refused

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class Wire:
    """One end of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Wire:
        """Take over a connected socket."""
        return cls(*await asyncio.open_unix_connection(sock=sock))

    @property
    def waiting(self) -> int:
        """Bytes that the other end has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    def send(self, message: Message) -> None:
        """Send, or keep until the other end takes it; never waits. Nothing happens once that is gone."""
        if self._writer.is_closing():
            return
        frame = _encoder.encode(message)
        self._writer.write(len(frame).to_bytes(4) + frame)

    async def receive(self) -> Message | None:
        """The next message of a kind that is known here; None at the end."""
        while True:
            try:
                size = int.from_bytes(await self._reader.readexactly(4))
                if size > MAX_FRAME_BYTES:
                    return None
                frame = await self._reader.readexactly(size)
            except (asyncio.IncompleteReadError, OSError):
                return None
            with suppress(msgspec.ValidationError):
                return _decoder.decode(frame)

    async def close(self) -> None:
        """Send what waits, if the other end takes it soon, and close. Idempotent."""
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                # Also of one that has broken: what broke it is reported by the loop if nobody takes it.
                await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)  # noqa: TID251 - one, whose end is all
        except TimeoutError:
            self._writer.transport.abort()
