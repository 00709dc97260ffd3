"""What it costs to accept a stream: with nobody asked, with a token that is new, with one that is known."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.errors import BenchmarkError
from benchmarks.measure import running
from benchmarks.observe import Others
from benchmarks.report import Column, ratio, target, trusted
from benchmarks.scenario import Scenario, kind, note_disturbance, undisturbed
from benchmarks.servers import Load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cores import Patience
    from benchmarks.measure import Row
    from benchmarks.report import Target
    from benchmarks.scenario import Say
    from benchmarks.servers import Stage

ANONYMOUS = "gateway (no authentication)"
HS256 = "gateway (HS256)"
RS256 = "gateway (RS256)"
KNOWN = "gateway (HS256, tokens known)"

COLUMNS = (
    Column("cpu_us_per_stream", "server CPU, us per stream", digits=1),
    Column("opened_s", "all open after, s", digits=2),
    Column("server_core_busy", "server core, %", 100, 0),
    Column("load_core_busy", "load core, %", 100, 0),
)

LOAD = Load(streams=10_000, rate=0, payload_bytes=0, max_seconds=180)
WARMUP = 500
"""Streams opened before, and not counted: what is done once is done."""

AT_ONCE = 100
"""Connections that wait for their answer at once."""

SECRET = "of the benchmark, and long enough: 0123456789"  # noqa: S105 - of nobody's


class Tokens:
    """Tokens for all streams, made before anything is measured; the RSA key is one for all runs."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(65537, 2048)

    def pem(self) -> str:
        """The public key."""
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def make(self, server: str, first: int, count: int) -> list[str]:
        """Make distinct tokens; none for a gateway that asks for none."""
        key, algorithm = (self.key, "RS256") if server == RS256 else (SECRET, "HS256")
        end = int(time.time()) + 3600  # noqa: TID251 - tokens end by the wall clock
        return [
            ""
            if server == ANONYMOUS
            else jwt.encode(
                {"sub": f"user-{n}", "exp": end, "jti": f"{n:016}", "channels": ["load", "news:*"]}, key, algorithm
            )
            for n in range(first, first + count)
        ]


_tokens = Tokens()


def measure_accept(stage: Stage, scenario: Scenario, server: str, patience: Patience, say: Say) -> Row:
    """Measure one way to be let in."""
    row = undisturbed(stage, lambda: accept(stage, server, scenario.load_of(server)), 10, patience, say)
    say(f"{row['cpu_us_per_stream']:.1f} us per stream, all open after {row['opened_s']:.2f} s")
    return row


def accept(stage: Stage, server: str, load: Load) -> Row:
    """Open all streams, some at a time, and return the server's CPU for each."""
    if server == RS256:
        file = stage.directory / "issuer.pem"
        file.write_text(_tokens.pem())
        load = replace(load, config={"auth": {"mode": "jwt", "public_key_file": str(file), "algorithms": ["RS256"]}})
    elif server != ANONYMOUS:
        load = replace(load, config={"auth": {"mode": "jwt", "secret": SECRET}})
    tokens = _tokens.make(server, 0, load.streams)
    with running(stage, kind(server), load) as started:
        with opened(started.port, tokens if server == KNOWN else _tokens.make(server, load.streams, WARMUP)):
            pass
        time.sleep(1)
        others = Others(stage, (started.part, stage.redis))
        cpu_s, client_s, begun = started.part.cpu_s(), time.process_time(), time.monotonic()
        with opened(started.port, tokens):
            opened_s = time.monotonic() - begun
            time.sleep(0.2)  # a tick of the kernel's account
            spent_s = started.part.cpu_s() - cpu_s
        shares = others.shares()
        shares["others_share"] -= (time.process_time() - client_s) / (time.monotonic() - begun)  # we are the client
    return shares | {
        "cpu_us_per_stream": spent_s / load.streams * 1e6,
        "opened_s": opened_s,
        "is_right": True,
    }


@contextlib.contextmanager
def opened(port: int, tokens: list[str]) -> Iterator[None]:
    """Hold a stream for each token.

    Raises:
        BenchmarkError: One was refused.
    """
    waiting: dict[int, socket.socket] = {}
    done: list[socket.socket] = []
    poll = select.epoll()
    try:
        for text in tokens:
            header = f"Authorization: Bearer {text}\r\n" if text else ""
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(f"GET /events/load HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{header}\r\n".encode())
            waiting[sock.fileno()] = sock
            poll.register(sock.fileno(), select.EPOLLIN)
            while len(waiting) >= AT_ONCE:
                _collect(poll, waiting, done)
        while waiting:
            _collect(poll, waiting, done)
        yield
    finally:
        poll.close()
        for sock in (*done, *waiting.values()):
            sock.close()


def _collect(poll: select.epoll, waiting: dict[int, socket.socket], done: list[socket.socket]) -> None:
    found = poll.poll(10)
    if not found:
        raise BenchmarkError("a stream was not opened within 10 s")
    for descriptor, _ in found:
        poll.unregister(descriptor)
        sock = waiting.pop(descriptor)
        if not (head := sock.recv(4096)).startswith(b"HTTP/1.1 200"):
            raise BenchmarkError(f"a stream was refused: {head[:40]!r}")
        done.append(sock)


def judge_accept(rows: list[Row]) -> list[Target]:
    """Judge tokens against their absence."""
    targets = ((HS256, 1.5), (RS256, 2.5))
    return [
        target(
            f"{server} / {ANONYMOUS}, server CPU per stream, at most {most}",
            ratio(trusted(rows), "cpu_us_per_stream", server, ANONYMOUS),
            at_most=most,
        )
        for server, most in targets
    ]


SCENARIOS = {
    "accept": Scenario(
        "10,000 new streams, each with a token of its own",
        LOAD,
        (ANONYMOUS, HS256, RS256, KNOWN),
        measure_accept,
        judge_accept,
        note_disturbance,
        columns=COLUMNS,
    ),
}
