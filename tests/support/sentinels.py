"""A real set: a primary, a replica and three sentinels, each server behind a proxy that can cut it off.

Sentinels, the other server and gateways reach a server at its proxy's address only; a test's own
publisher reaches it directly. A server that is cut off loses what its peers say to it and hears from it,
while gateways, which are known by their first command, go on hearing it: what a partition does that
leaves them on the wrong side.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import hiredis

from tests.support.gateway_process import poll
from tests.support.proxy import FaultProxy
from tests.support.valkey import Link, Valkey, binary, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SERVICE = "events"
COUNT = 3
_QUORUM = 2
_DOWN_AFTER_MS = 1_000
_NEVER_MS = 600_000
_FAILOVER_MS = 1_500  # and twice as long until the next may begin
# A replica whose INFO, which comes once a second then, is older than five pings is not promoted.
_QUICK = ("PING-PERIOD", 300, "INFO-PERIOD", 300, "PUBLISH-PERIOD", 200, "ASK-PERIOD", 200, "ELECTION-TIMEOUT", 1_000,
          "MIN-LINK-RECONNECT-PERIOD", 500, "SLAVE-RECONF-TIMEOUT", 500, "TILT-TRIGGER", 20_000)  # fmt: skip
_HEALTHY_S = 40.0  # on a busy machine


class Member:
    """One server of the set, and its proxy.

    Attributes:
        server: The process.
        proxy: Where sentinels, the other server and gateways reach it.
    """

    def __init__(self, directory: Path, kind: str, options: Sequence[str]) -> None:
        directory.mkdir()
        self.server = Valkey(directory, kind=kind)
        self.proxy = FaultProxy(("127.0.0.1", self.server.port), spares=b"HELLO")
        announced = ("--replica-announce-ip", "127.0.0.1", "--replica-announce-port", str(self.proxy.port))
        quick = ("--repl-ping-replica-period", "1", "--repl-diskless-sync-delay", "0", "--repl-timeout", "3")
        self.server._options = (*announced, *quick, *options)

    def follow(self, other: Member) -> None:
        """Make it a replica of the other one; a sentinel that does the same cuts connections meanwhile."""
        with contextlib.closing(Link(self.server.port)) as link, contextlib.suppress(ConnectionError):
            link.call("REPLICAOF", "127.0.0.1", other.proxy.port)

    def publish(self, channel: str, *payloads: str) -> None:
        """PUBLISH some messages, on a connection of its own: sentinels cut those that are there."""
        with contextlib.closing(Link(self.server.port)) as link:
            link.pipeline([("PUBLISH", channel, payload) for payload in payloads])

    def close(self) -> None:
        """End both."""
        self.proxy.close()
        self.server.stop()


class Sentinel:
    """One sentinel.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, directory: Path, kind: str, primary: Member, password: str) -> None:
        self.port = free_port()
        self._file = directory / f"sentinel-{self.port}.conf"
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {directory}",
            f"logfile {directory}/sentinel-{self.port}.log",
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.proxy.port} {_QUORUM}",
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} {_FAILOVER_MS}",
            *([f'requirepass "{password}"', f'sentinel sentinel-pass "{password}"'] if password else []),
        ]
        self._password = password
        self._file.write_text("\n".join(lines) + "\n")
        self._kind = kind
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, with what it knew."""
        command = [str(binary(self._kind)), str(self._file), "--sentinel"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        poll(self._hurry, timeout_s=_HEALTHY_S, what="sentinel")

    def _hurry(self) -> bool:
        """Shorten the times that make real sentinels slow."""
        with contextlib.suppress(OSError, hiredis.HiredisError):
            return self.call("SENTINEL", "DEBUG", *_QUICK) is not None
        return False

    def call(self, *words: str | int) -> object:
        """Ask it something."""
        with contextlib.closing(self.link()) as link:
            return link.call(*words)

    def link(self, *, timeout_s: float = 10.0) -> Link:
        """Connect to it."""
        link = Link(self.port, timeout_s=timeout_s)
        if self._password:
            link.call("AUTH", self._password)
        return link

    def knows(self) -> dict[str, str]:
        """What it says of the service."""
        return _pairs(self.call("SENTINEL", "MASTER", SERVICE))

    def is_content(self, port: int) -> bool:
        """Whether it sees the set whole, with the primary at that port."""
        with contextlib.suppress(OSError, hiredis.HiredisError):
            known = self.knows()
            replicas = self.call("SENTINEL", "REPLICAS", SERVICE)
            assert isinstance(replicas, list)
            return (
                (known["port"], known["flags"], known["num-other-sentinels"]) == (str(port), "master", str(COUNT - 1))
                and [(r["flags"], r["master-link-status"]) for r in map(_pairs, replicas)] == [("slave", "ok")]
                and self.call("SENTINEL", "CKQUORUM", SERVICE) is not None
            )
        return False

    def freeze(self) -> None:
        """SIGSTOP. It blames nobody for the time that it stood still itself."""
        assert self._process is not None
        self._blame_after(_NEVER_MS)
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT, and wait until it has heard the primary again."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)
        poll(
            lambda: int(self.knows()["last-ok-ping-reply"]) < _DOWN_AFTER_MS,
            timeout_s=_HEALTHY_S,
            what="answer of the primary",
        )
        self._blame_after(_DOWN_AFTER_MS)

    def _blame_after(self, silence_ms: int) -> None:
        self.call("SENTINEL", "SET", SERVICE, "down-after-milliseconds", silence_ms)

    def stop(self) -> None:
        """``kill -9``. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


class SentinelSet:
    """All of them, and who listens to what the sentinels announce.

    Attributes:
        primary: Who is it now.
        replica: The other one, or what is left of it.
        sentinels: The sentinels.
        announced: (when, port), monotonic, of each new primary: as the first sentinel said it.
    """

    def __init__(self, directory: Path, kind: str, *, options: Sequence[str], sentinel_password: str) -> None:
        self.primary = Member(directory / "a", kind, options)
        self.replica = Member(directory / "b", kind, options)
        self.sentinels = [Sentinel(directory, kind, self.primary, sentinel_password) for _ in range(COUNT)]
        self.announced: list[tuple[float, int]] = []
        self._listeners: list[tuple[Link, threading.Thread]] = []

    @property
    def url(self) -> str:
        """Where a gateway finds it."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    @property
    def port(self) -> int:
        """Where a publisher finds the primary."""
        return self.primary.server.port

    def start(self) -> None:
        """Start all, and wait until they know each other."""
        self.primary.server.start()
        self.replica.server.start()
        self.replica.follow(self.primary)
        for sentinel in self.sentinels:
            sentinel.start()
        self.wait_healthy()
        for sentinel in self.sentinels:
            self._listen(sentinel)

    def wait_healthy(self) -> None:
        """Wait until every sentinel sees the set whole."""
        poll(self._is_healthy, timeout_s=_HEALTHY_S, what="content sentinels")

    def _is_healthy(self) -> bool:
        if self.sentinels[0].is_content(self.replica.proxy.port):  # on a busy machine they change it for no reason
            self.primary, self.replica = self.replica, self.primary
        return all(sentinel.is_content(self.primary.proxy.port) for sentinel in self.sentinels)

    def fail(self, how: str) -> float:
        """Let the primary fail, and wait until another is announced.

        Args:
            how: ``kill``: it is gone. ``freeze``: it stands still. ``cut``: only gateways and publishers reach it.

        Returns:
            When that was, monotonic.
        """
        count = len(self.announced)
        old = self.primary
        match how:
            case "kill":
                old.server.kill()
            case "freeze":
                old.server.freeze()
            case _:
                old.proxy.swallow()
        poll(lambda: len(self.announced) > count, timeout_s=_HEALTHY_S, what="+switch-master")
        self.primary, self.replica = self.replica, self.primary
        at, port = self.announced[count]
        assert port == self.primary.proxy.port
        return at

    def mend(self) -> None:
        """Bring back what has failed, as a replica, and wait until all is well."""
        old = self.replica
        old.proxy.swallow(on=False)
        old.proxy.reset_all()
        if old.server._process is None:
            old.server.start()
        old.server.thaw()
        old.follow(self.primary)
        self.wait_healthy()

    def close(self) -> None:
        """End everything."""
        for link, thread in self._listeners:
            link.abort()
            thread.join(5)
        for sentinel in self.sentinels:
            sentinel.stop()
        for member in (self.primary, self.replica):
            member.close()

    def _listen(self, sentinel: Sentinel) -> None:
        link = sentinel.link(timeout_s=600)
        link.call("SUBSCRIBE", "+switch-master")
        thread = threading.Thread(target=self._hear, args=(link,), daemon=True)
        self._listeners.append((link, thread))
        thread.start()

    def _hear(self, link: Link) -> None:
        with contextlib.closing(link), contextlib.suppress(OSError):
            while True:
                reply = link.read()
                assert isinstance(reply, list)
                port = int(bytes(reply[2]).split()[-1])
                if not self.announced or self.announced[-1][1] != port:
                    self.announced.append((time.monotonic(), port))


def _pairs(reply: object) -> dict[str, str]:
    assert isinstance(reply, list)
    words = [bytes(word).decode() for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


@contextlib.contextmanager
def sentinel_set(
    directory: Path, *, kind: str = "valkey", options: Sequence[str] = (), sentinel_password: str = ""
) -> Iterator[SentinelSet]:
    """Run a set for the length of a ``with`` block.

    Args:
        directory: An empty one of its own.
        kind: ``valkey`` or ``redis``, servers and sentinels alike.
        options: More arguments of the servers.
        sentinel_password: Of the sentinels themselves.
    """
    found = SentinelSet(directory, kind, options=options, sentinel_password=sentinel_password)
    try:
        found.start()
        yield found
    finally:
        found.close()
