"""Tell systemd how the service is: ready, alive, stopping. Silent where systemd is not.

Source: sd_notify(3), sd_watchdog_enabled(3). The protocol is one datagram of ``NAME=value``
lines; a library for it would be larger than the code.
"""

from __future__ import annotations

import contextlib
import math
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_SEND_TIMEOUT_S = 0.5
"""Longest wait for a full socket: the loop must go on, yet READY=1 should not be lost to a burst."""


def notify(state: str, env: Mapping[str, str]) -> None:
    """Send one state to the service manager; never raises.

    Args:
        state: Lines such as ``READY=1``, ``STOPPING=1``, ``WATCHDOG=1``, ``STATUS=…``.
        env: The process's environment; without ``NOTIFY_SOCKET`` nothing happens.
    """
    address = env.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError, ValueError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        sender.settimeout(_SEND_TIMEOUT_S)
        sender.connect(address)
        sender.sendall(state.encode())


def watchdog_interval_s(env: Mapping[str, str], pid: int) -> float | None:
    """Say how often ``WATCHDOG=1`` is due: half of what the unit allows, in seconds.

    Args:
        env: The process's environment.
        pid: The process's own id; the watchdog may be meant for another.

    Returns:
        None where no watchdog runs for this process.
    """
    if env.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    limit = env.get("WATCHDOG_USEC", "")
    if not (limit.isascii() and limit.isdigit()) or int(limit) == 0:
        return None
    return int(limit) / 2_000_000


class Watchdog:
    """Feeds systemd's watchdog, where there is one."""

    def __init__(self, env: Mapping[str, str], pid: int) -> None:
        self._env = env
        self._interval_s = watchdog_interval_s(env, pid)
        self._fed_at = -math.inf

    def feed(self, now: float) -> None:
        """Tell it that the loop turns, if it is time to; to be called more often than that."""
        if self._interval_s is not None and now - self._fed_at >= self._interval_s:
            self._fed_at = now
            notify("WATCHDOG=1", self._env)
