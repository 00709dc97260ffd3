"""Telling systemd: the datagram, and silence everywhere else."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from sse_gateway.systemd import Watchdog, notify, watchdog_interval_s

if TYPE_CHECKING:
    from pathlib import Path


def test_state_reaches_a_path_socket(tmp_path: Path) -> None:
    """A state is one datagram on the socket systemd names."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        notify("READY=1\nSTATUS=serving", {"NOTIFY_SOCKET": path})
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"


def test_state_reaches_an_abstract_socket() -> None:
    """A leading @ names a socket of Linux's abstract namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel picks an abstract name
        name = manager.getsockname().decode().replace("\0", "@", 1)
        notify("STOPPING=1", {"NOTIFY_SOCKET": name})
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize(
    "address", ["", "/nowhere/notify", "@sse-gateway-nobody", "vsock:2:1", "/a\0b", "/" + "x" * 200]
)
def test_nobody_to_tell_is_no_error(address: str) -> None:
    """Without a manager, or with a wrong address, nothing is raised."""
    notify("READY=1", {"NOTIFY_SOCKET": address})
    notify("READY=1", {})


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval(env: dict[str, str], expected: float | None) -> None:
    """Half the watchdog's time, and only for the process it is meant for."""
    assert watchdog_interval_s(env, 42) == expected


def test_watchdog_is_fed_when_it_is_time(tmp_path: Path) -> None:
    """At once, and then once in each half of its time."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        watchdog = Watchdog({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000000"}, 42)
        fed = []
        for now in (0.0, 0.9, 1.0, 1.9, 2.0):
            watchdog.feed(now)
            with contextlib.suppress(BlockingIOError):
                fed.append((now, manager.recv(100)))

    assert fed == [(0.0, b"WATCHDOG=1"), (1.0, b"WATCHDOG=1"), (2.0, b"WATCHDOG=1")]


def test_nobody_is_fed(tmp_path: Path) -> None:
    """Where there is no watchdog nothing is sent."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        Watchdog({"NOTIFY_SOCKET": path}, 42).feed(0.0)
        with pytest.raises(BlockingIOError):
            manager.recv(100)
