"""The service manager's side of sd_notify: a socket that writes down what it is told, and when."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.gateway_process import poll

if TYPE_CHECKING:
    from collections.abc import Iterator


class Manager:
    """Receives states until it is closed.

    Attributes:
        told: (seconds of the monotonic clock, line), in order; a datagram may have several lines.
    """

    def __init__(self, path: Path) -> None:
        self.told: list[tuple[float, str]] = []
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def environment(self, *, watchdog_s: float = 0.0) -> dict[str, str]:
        """What systemd sets for the service."""
        watchdog = {"WATCHDOG_USEC": str(int(watchdog_s * 1_000_000))} if watchdog_s else {}
        return {"NOTIFY_SOCKET": str(self.path), **watchdog}

    def _read(self) -> None:
        while datagram := self._socket.recv(4096):
            now = time.monotonic()
            self.told += [(now, line) for line in datagram.decode().split("\n")]

    @property
    def lines(self) -> list[str]:
        """What was told, but for the watchdog."""
        return [line for _, line in self.told if line != "WATCHDOG=1"]

    def pings(self, since: float = 0.0) -> list[float]:
        """When the watchdog was fed."""
        return [when for when, line in list(self.told) if line == "WATCHDOG=1" and when >= since]

    def wait(self, *lines: str, timeout_s: float = 40.0) -> None:
        """Wait until these have been told, in this order, with others between them perhaps."""

        def told() -> bool:
            rest = iter(list(self.lines))
            return all(line in rest for line in lines)

        try:
            poll(told, timeout_s=timeout_s, what=f"{lines}")
        except AssertionError as error:
            raise AssertionError(f"{error}: told {self.lines}") from None

    def wait_pings(self, count: int, *, since: float, timeout_s: float = 40.0) -> list[float]:
        """Wait until the watchdog has been fed so often since then; returns when."""
        poll(lambda: len(self.pings(since)) >= count, timeout_s=timeout_s, what=f"{count} pings")
        return self.pings(since)

    def catch_up(self) -> float:
        """Write down all that has been said so far; returns when."""
        mark = f"MARK={len(self.told)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(mark.encode(), str(self.path))
        self.wait(mark)
        return time.monotonic()

    def close(self) -> None:
        """Stop receiving."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.path))
        self._thread.join(5)
        self._socket.close()


@contextlib.contextmanager
def manager() -> Iterator[Manager]:
    """Play the service manager for the length of a ``with`` block."""
    with tempfile.TemporaryDirectory(prefix="notify-") as directory:  # short: a socket's path has 108 bytes
        played = Manager(Path(directory) / "s")
        try:
            yield played
        finally:
            played.close()
