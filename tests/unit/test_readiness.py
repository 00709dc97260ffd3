"""When sockets can be read or written, on both event loops."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import uvloop

from sse_gateway.readiness import MAX_TOLD, Readiness
from tests.support.inprocess import descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Loop = asyncio.AbstractEventLoop


class Ear:
    """One end of a pair of sockets, and what it is told; what it hears it does not read unless a test says so."""

    def __init__(self, readiness: Readiness, heard: list[tuple[str, Ear]]) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.fd = self.near.fileno()
        self.on_readable: Callable[[], None] = lambda: None
        self._readiness = readiness
        self._heard = heard

    def readable(self) -> None:
        """Be told."""
        self._heard.append(("readable", self))
        self.on_readable()

    def writable(self) -> None:
        """Be told."""
        self._heard.append(("writable", self))

    def close(self) -> None:
        """Leave as a stream does. Idempotent."""
        if self.fd >= 0:
            self._readiness.forget(self.fd)
            self.fd = -1
        self.near.close()
        self.far.close()


class Room:
    """A loop, what it watches, and what was told."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.readiness = Readiness(loop)
        self.heard: list[tuple[str, Ear]] = []
        self.ears: list[Ear] = []
        self.complaints: list[str] = []
        loop.set_exception_handler(lambda _, context: self.complaints.append(str(context)))

    def ear(self, *, writes: bool = False) -> Ear:
        """Watch one more."""
        ear = Ear(self.readiness, self.heard)
        self.ears.append(ear)
        self.readiness.watch(ear, writes=writes)
        return ear

    def turn(self) -> list[tuple[str, Ear]]:
        """Let the loop look at its sockets once; returns what was told."""
        self.heard.clear()
        self.loop.call_soon(self.loop.call_soon, self.loop.stop)
        self.loop.run_forever()
        return list(self.heard)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def room(request: pytest.FixtureRequest) -> Iterator[Room]:
    """Make a loop, and watch that all descriptors come back."""
    loop = request.param()
    before = descriptors()
    room = Room(loop)
    yield room
    for ear in room.ears:
        ear.close()
    room.turn()
    after = descriptors()
    loop.close()
    assert after <= before
    assert room.complaints == []


def test_who_can_read_is_told_and_nobody_else(room: Room) -> None:
    """As long as it leaves something unread."""
    first, second = room.ear(), room.ear()
    assert room.turn() == []
    second.far.send(b"x")
    assert set(room.turn()) == {("readable", second)}
    assert set(room.turn()) == {("readable", second)}
    second.near.recv(1)
    first.far.send(b"x")
    assert set(room.turn()) == {("readable", first)}


def test_who_wants_to_write_is_told_until_it_no_longer_wants_to(room: Room) -> None:
    """Beside reading; asking twice is asking once."""
    ear = room.ear()
    room.readiness.watch(ear, writes=True)
    room.readiness.watch(ear, writes=True)
    ear.far.send(b"x")
    assert room.turn()[:2] == [("readable", ear), ("writable", ear)]
    room.readiness.watch(ear, writes=False)
    assert set(room.turn()) == {("readable", ear)}


def test_a_full_socket_is_not_writable(room: Room) -> None:
    """It is when its other end has read."""
    ear = room.ear(writes=True)
    with suppress(BlockingIOError):
        while True:
            ear.near.send(bytes(65_536))
    assert room.turn() == []
    ear.far.settimeout(5)
    while len(ear.far.recv(1 << 20)) == 1 << 20:
        pass
    assert set(room.turn()) == {("writable", ear)}


@pytest.mark.parametrize("writes", [False, True])
def test_who_is_left_can_read(room: Room, *, writes: bool) -> None:
    """So that it learns it, whatever it waits for."""
    ear = room.ear(writes=writes)
    ear.far.close()
    assert ("readable", ear) in room.turn()


def test_nobody_is_told_after_it_was_forgotten(room: Room) -> None:
    """Not in the same turn either, and nor is who has got its descriptor since (I11)."""
    ears = [room.ear(writes=True) for _ in range(3)]

    def leave() -> None:
        for ear in ears:
            ear.close()

    for ear in ears:
        ear.far.send(b"x")
        ear.on_readable = leave
    (told,) = room.turn()
    assert told[0] == "readable"
    heir = Ear(room.readiness, room.heard)
    room.ears.append(heir)
    heir.far.send(b"x")
    assert room.turn() == []


def test_forgetting_is_idempotent(room: Room) -> None:
    """Also where nothing was ever watched, with others there or without."""
    ear = Ear(room.readiness, room.heard)
    room.ears.append(ear)
    room.readiness.forget(ear.fd)
    other = room.ear()
    room.readiness.forget(ear.fd)
    room.readiness.forget(other.fd + 1000)
    other.far.send(b"x")
    assert set(room.turn()) == {("readable", other)}


def test_who_was_forgotten_may_come_back(room: Room) -> None:
    """With the same descriptor, which is still open."""
    ear, _other = room.ear(writes=True), room.ear()
    ear.far.send(b"x")
    room.readiness.forget(ear.fd)
    assert room.turn() == []
    room.readiness.watch(ear, writes=False)
    assert set(room.turn()) == {("readable", ear)}


def test_after_the_last_there_may_be_another(room: Room) -> None:
    """Nothing of the old is in its way."""
    room.ear().close()
    ear = room.ear()
    ear.far.send(b"x")
    assert set(room.turn()) == {("readable", ear)}


def test_a_crowd_has_its_turn_bit_by_bit(room: Room) -> None:
    """The loop goes on in between; nobody is passed over, though nobody has read (rule 1)."""
    ears = [room.ear() for _ in range(4 * MAX_TOLD)]
    for ear in ears:
        ear.far.send(b"x")
    turns = [{ear for _, ear in room.turn()} for _ in range(8)]
    assert 0 < len(turns[0]) < len(ears)
    assert set().union(*turns) == set(ears)


def test_who_cannot_be_watched_is_not_known(room: Room) -> None:
    """A descriptor that is closed raises, and leaves nothing behind."""
    other = room.ear()
    ear = Ear(room.readiness, room.heard)
    room.ears.append(ear)
    ear.near.close()
    with pytest.raises(OSError, match="Bad file"):
        room.readiness.watch(ear, writes=False)
    room.readiness.forget(ear.fd)
    other.far.send(b"x")
    assert set(room.turn()) == {("readable", other)}
