"""What supervisor and worker say to each other, and what an end does with what it does not understand."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from sse_gateway.aggregate import Family
from sse_gateway.orders import MAX_FRAME_BYTES, Accept, Ask, Drain, Message, Refused, Report, Start, Stop, Up, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FAMILY = Family("sent", "counter", "Sent.", [("sent_total", {"rule": 'odd"'}, 3.0)])
START = Start(settings={"a": [1]}, slot=1, listeners=[[7, 8]], rows=[0], hold_s=None, handover_dir="/run/x", beat_s=0.5)


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Wire, socket.socket]]:
    """One end as a wire, the other as it is."""
    ours, theirs = socket.socketpair()
    wire = await Wire.open(ours)
    with theirs:
        yield wire, theirs
    await wire.close()


def frame(document: object) -> bytes:
    """A document as it travels."""
    text = json.dumps(document).encode()
    return len(text).to_bytes(4) + text


@pytest.mark.parametrize(
    "message",
    [
        START,
        Accept([0, 3]),
        Ask(5, metrics=True),
        Drain(refuse=False),
        Stop(),
        Up(100),
        Report(["source"], [FAMILY], accepts=True, answers=5),
        Refused(["no"]),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_what_is_sent_is_received(message: Message) -> None:
    """With its version, so that ends of different versions know of each other."""
    ours, theirs = socket.socketpair()
    sender, receiver = await Wire.open(ours), await Wire.open(theirs)
    sender.send(message)
    assert await receiver.receive() == message
    assert message.version == 1
    await sender.close()
    sender.send(message)
    assert await receiver.receive() is None
    await receiver.close()
    await receiver.close()


async def test_what_is_not_understood_is_passed_over() -> None:
    """A kind or a field of another version, and what is no message at all."""
    async with pair() as (wire, other):
        for document in ({"kind": "dance", "version": 2}, {"kind": "up"}, 5, {"kind": "stop", "version": 1, "how": 1}):
            other.sendall(frame(document))
        assert await wire.receive() == Stop()


@pytest.mark.parametrize("rest", [b"", b"\0\0", b"\0\0\0\5{", (MAX_FRAME_BYTES + 1).to_bytes(4)])
async def test_an_end_is_an_end(rest: bytes) -> None:
    """Also in the middle of a frame; and nobody waits for one that cannot be ours."""
    async with pair() as (wire, other):
        other.sendall(frame({"kind": "up", "max_connections": 3}) + rest)
        if len(rest) < 4 or rest[0] == 0:
            other.shutdown(socket.SHUT_WR)
        assert await wire.receive() == Up(3)
        assert await wire.receive() is None


async def test_an_end_that_does_not_read_holds_nobody_up() -> None:
    """What it has not taken is counted, and at the end given up."""
    async with pair() as (wire, _):
        message = Refused(["x" * 100_000] * 100)
        wire.send(message)
        assert wire.waiting > 1 << 20
        await wire.close()


async def test_what_broke_it_is_asked_for() -> None:
    """A socket that breaks under the reader leaves nothing that the loop would report once it is collected."""
    async with pair() as (wire, theirs):
        wire.send(Stop())
        await asyncio.sleep(0)
        theirs.close()  # it had not read what we sent
        assert await wire.receive() is None

        await wire.close()

        closed = wire._writer._protocol._closed  # type: ignore[attr-defined]
        assert not closed._log_traceback
        assert isinstance(closed.exception(), ConnectionResetError)
