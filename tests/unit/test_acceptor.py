"""Connections are accepted a few in each turn of the loop, and none is lost."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING

from sse_gateway.acceptor import PER_TURN, Acceptor

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class Party:
    """A bound socket, those who call, and the protocols that were made for them."""

    def __init__(self) -> None:
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.address = self.sock.getsockname()
        self.arrived: list[asyncio.Protocol] = []
        self.callers: list[socket.socket] = []

    def begin(self) -> Acceptor:
        """Accept."""
        return Acceptor(self.sock, self.make)

    def make(self) -> asyncio.Protocol:
        """A protocol for whoever has been accepted."""
        self.arrived.append(asyncio.Protocol())
        return self.arrived[-1]

    def call(self, count: int) -> None:
        """Connect."""
        self.callers += [socket.create_connection(self.address, 1) for _ in range(count)]

    def close(self) -> None:
        """Hang up."""
        for caller in self.callers:
            caller.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something is so."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - it is the loop's turns that are watched
            await asyncio.sleep(0.001)


async def test_a_crowd_is_let_in_a_few_a_turn() -> None:
    """Others have their turn in between, and everybody gets in."""
    with closing(Party()) as party, closing(party.begin()):
        party.call(3 * PER_TURN)
        steps = [0]
        while len(party.arrived) < 3 * PER_TURN:
            await asyncio.sleep(0)
            steps.append(len(party.arrived))

        assert max(after - before for before, after in pairwise(steps)) <= PER_TURN


async def test_without_descriptors_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not spin: nobody is accepted for a while, and whoever waits in the kernel comes in afterwards."""
    tries = 0

    class Short(socket.socket):
        """A socket that finds no descriptor the first time."""

        def accept(self) -> tuple[socket.socket, object]:
            """See `socket`."""
            nonlocal tries
            tries += 1
            if tries == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr("sse_gateway.acceptor.PAUSE_S", 0.05)
    with closing(Party()) as party:
        party.sock = Short(fileno=party.sock.detach())
        with closing(party.begin()):
            party.call(1)
            await until(lambda: tries == 1)
            seen = len(party.arrived)
            await until(lambda: len(party.arrived) == 1)

    assert seen == 0
    assert tries <= 3


async def test_closed_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing ends it in either state, once."""

    def fail(_self: socket.socket) -> None:
        raise OSError(errno.ENOBUFS, "no buffers")

    with closing(Party()) as party:
        acceptor = party.begin()
        monkeypatch.setattr(Acceptor, "_resume", lambda _self: None)
        monkeypatch.setattr(socket.socket, "accept", fail)
        party.call(1)
        await until(lambda: acceptor._pause is not None)

        for _ in range(2):
            acceptor.close()

        assert party.sock.fileno() < 0
        assert acceptor._pause is not None
        assert acceptor._pause.cancelled()
