"""Listening sockets: who may bind, who accepts what, and that none is lost."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from sse_gateway.errors import ConfigError
from sse_gateway.listeners import Listener, Sockets, address_of
from sse_gateway.settings import ListenSettings
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


SOON_S = 0.2
"""How long a client waits that is perhaps not served at all."""


def tcp(host: str = "127.0.0.1") -> Sockets:
    """Sockets for a free port."""
    return Sockets(ListenSettings.model_validate({"host": host, "port": free_port()}), "listen")


def unix(path: Path) -> Sockets:
    """Sockets for a path."""
    return Sockets(ListenSettings.model_validate({"unix": str(path)}), "listen")


async def test_every_worker_has_a_socket_for_each_address() -> None:
    """In one group, on the same port."""
    with closing(tcp("localhost")) as sockets:
        await sockets.bind(3)
        assert len(sockets.rows) == 3
        assert len({len(row) for row in sockets.rows}) == 1
        assert {sock.getsockname()[1] for row in sockets.rows for sock in row} == {sockets.place.port}


async def test_rows_are_dealt_out_among_fewer_workers() -> None:
    """None is without somebody who accepts from it: what waits in its backlog would be lost."""
    with closing(tcp()) as sockets:
        await sockets.bind(5)
        before = list(sockets.rows)
        assert sockets.deal(5) == [[0], [1], [2], [3], [4]]
        assert sockets.deal(2) == [[0, 2, 4], [1, 3]]
        await sockets.bind(2)
        assert list(sockets.rows) == before
        await sockets.bind(7)
        assert list(sockets.rows)[:5] == before
        assert len(sockets.rows) == 7


async def test_bound_is_not_yet_listening() -> None:
    """Nobody can connect before `listen`."""
    with closing(tcp()) as sockets:
        await sockets.bind(2)
        where = (sockets.place.host, sockets.place.port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where, 1)
        sockets.listen()
        socket.create_connection(where, 1).close()


async def test_a_taken_port_is_refused() -> None:
    """Also where it would let us in, as another gateway's group does: half of its connections would be ours."""
    with closing(tcp()) as sockets:
        await sockets.bind(2)
        sockets.listen()
        with closing(Sockets(sockets.place, "listen")) as second:
            with pytest.raises(
                ConfigError, match=rf"^listen: cannot listen on {address_of(sockets.place)}: Address"
            ) as told:
                await second.bind()
            assert str(told.value).endswith("choose another with listen.port")
            await second.bind(own_ports={sockets.place.port})  # by a process that knows what it does


async def test_an_address_of_another_host_is_refused() -> None:
    """With a sentence; nothing stays bound."""
    with closing(tcp("192.0.2.1")) as sockets:
        with pytest.raises(ConfigError, match=r"Cannot assign requested address; choose another with listen\.host"):
            await sockets.bind(2)
        assert list(sockets.rows) == []
    with closing(tcp("nowhere.invalid")) as sockets, pytest.raises(ConfigError, match="cannot listen on nowhere"):
        await sockets.bind()


async def test_a_unix_socket_is_shared(tmp_path: Path) -> None:
    """All workers accept from one, and it goes with the last."""
    path = tmp_path / "s"
    with closing(unix(path)) as sockets:
        await sockets.bind(2)
        await sockets.bind(3)
        sockets.listen()
        assert sockets.deal(3) == [[0], [0], [0]]
        assert len(sockets.rows) == 1
        assert path.is_socket()
    assert not path.exists()


async def test_a_unix_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    """As a process leaves it that was killed; somebody else's, and a file, are left alone."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with closing(unix(path)) as sockets:
        await sockets.bind()
        sockets.listen()
        with pytest.raises(ConfigError, match="another process listens there"):
            await unix(path).bind()
        path.unlink()
        path.write_text("mine", encoding="ascii")
    assert path.read_text(encoding="ascii") == "mine"
    with pytest.raises(ConfigError, match="no socket"):
        await unix(path).bind()


@pytest.fixture(params=["tcp", "unix"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Sockets]:
    """Two rows that are listened on, or the one of a Unix socket."""
    with closing(tcp() if request.param == "tcp" else unix(tmp_path / "s")) as sockets:
        await sockets.bind(2)
        sockets.listen()
        yield sockets


async def hello(_request: web.BaseRequest) -> web.StreamResponse:
    """Answer."""
    return web.Response(text="hello")


async def asked(sockets: Sockets, patience_s: float = 10.0) -> str:
    """What a client is answered; one that waits for longer is not served."""
    where = sockets.place
    opening = (
        asyncio.open_unix_connection(where.unix) if where.unix else asyncio.open_connection(where.host, where.port)
    )
    reader, writer = await opening
    with closing(writer):
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        try:
            async with asyncio.timeout(patience_s):
                return (await reader.read()).decode().rpartition("\n")[2]
        except TimeoutError:
            return "waits"


async def test_a_listener_accepts_from_the_rows_it_is_told(place: Sockets) -> None:
    """One after another, all, none: what nobody accepts from waits, and is served when somebody does."""
    rows = [[sock.dup() for sock in row] for row in place.rows]
    listener = Listener(web.ServerRunner(web.Server(hello)), rows)
    every = range(len(rows))
    for wanted in ([0], every, [0]):
        await listener.accept(wanted)
        assert "hello" in [await asked(place, SOON_S) for _ in range(20)]
    await listener.accept(every)
    assert {await asked(place) for _ in range(20)} == {"hello"}
    await listener.accept([])
    assert await asked(place, SOON_S) == "waits"
    await listener.accept(every)
    assert {await asked(place) for _ in range(20)} == {"hello"}
    listener.close()
    assert await asked(place, SOON_S) == "waits"
    await listener.cleanup()
    await listener.cleanup()
