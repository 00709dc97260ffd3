"""Listening sockets: who may bind, who accepts what, and that none is lost."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from sse_gateway.errors import ConfigError
from sse_gateway.listeners import Sockets, address_of
from sse_gateway.settings import ListenSettings
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from pathlib import Path


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
        rows = [sockets.of(slot, 3) for slot in range(3)]
        assert len({len(row) for row in rows}) == 1
        assert {sock.getsockname()[1] for row in rows for sock in row} == {sockets.place.port}


async def test_sockets_are_dealt_out_among_fewer_workers() -> None:
    """None is without somebody who accepts from it: what waits in its backlog would be lost."""
    with closing(tcp()) as sockets:
        await sockets.bind(5)
        before = [sockets.of(slot, 5)[0] for slot in range(5)]
        assert [sockets.of(0, 2), sockets.of(1, 2)] == [before[0::2], before[1::2]]
        await sockets.bind(2)
        assert [sockets.of(slot, 5) for slot in range(5)] == [[sock] for sock in before]
        await sockets.bind(7)
        assert len({sockets.of(slot, 7)[0] for slot in range(7)} | set(before)) == 7


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
            with pytest.raises(ConfigError, match=rf"^listen: cannot listen on {address_of(sockets.place)}: Address"):
                await second.bind()
            await second.bind(own_ports={sockets.place.port})  # by a process that knows what it does


async def test_an_address_of_another_host_is_refused() -> None:
    """With a sentence; nothing stays bound."""
    with closing(tcp("192.0.2.1")) as sockets:
        with pytest.raises(ConfigError, match="Cannot assign requested address"):
            await sockets.bind(2)
        assert sockets.of(0, 1) == []
    with closing(tcp("nowhere.invalid")) as sockets, pytest.raises(ConfigError, match="cannot listen on nowhere"):
        await sockets.bind()


async def test_a_unix_socket_is_shared(tmp_path: Path) -> None:
    """All workers accept from one, and it goes with the last."""
    path = tmp_path / "s"
    with closing(unix(path)) as sockets:
        await sockets.bind(2)
        await sockets.bind(3)
        sockets.listen()
        assert sockets.of(0, 3) == sockets.of(2, 3)
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
