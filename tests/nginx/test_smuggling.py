"""Requests that no two servers may read differently, and requests of chance: directly, and through nginx."""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.corpus import AMBIGUOUS, HIDDEN
from tests.support.gateway_process import CONNECTIONS, configuration
from tests.support.nginx import nginxes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Address
    from tests.support.valkey import Valkey

ROUNDS = int(os.environ.get("SSE_GATEWAY_TEST_ROUNDS", "1"))
SILENCE_S = 1.5
"""How long nothing may come before an answer is taken for complete."""

LONG_S = 10.0
"""The same where the answer is known not to be complete."""

CANARY = "c4n4ry-" + "x" * 20
STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """A gateway that says all it has to say."""
    return module_gateways.start(configuration(valkey.url, log={"level": "debug"}, stream={"heartbeat": "15s"}))


@pytest.fixture(scope="module", params=["direct", "nginx"])
def way(request: pytest.FixtureRequest, gateway: GatewayProcess) -> Iterator[Address]:
    """The gateway's own port, and nginx in front of it."""
    if request.param == "direct":
        yield gateway.address
        return
    with nginxes() as start:
        edits = {"rate=20r/s": "rate=10000r/s", "burst=100": "burst=10000", "streams 100": "streams 10000"}
        yield start(gateway.address, edits=edits).address


def exchange(
    way: Address, requests: Sequence[bytes], is_whole: Callable[[bytes], bool] = lambda _: True
) -> list[tuple[bytes, bool]]:
    """Send each on a connection of its own, all at once; what came back, and whether the other end closed.

    Args:
        way: Where.
        requests: Of each connection.
        is_whole: Whether an answer, as far as it has come, is complete though the other end does not close.
    """
    assert isinstance(way, tuple)
    connections = []
    for sent in requests:
        connection = socket.create_connection(way, 5)
        with contextlib.suppress(OSError):  # refused before it was sent whole
            connection.sendall(sent)
        connections.append(connection)
    got = dict.fromkeys(connections, b"")
    waiting = set(connections)
    heard = time.monotonic()
    while waiting:
        is_complete = all(is_whole(got[connection]) for connection in waiting)
        if time.monotonic() - heard > (SILENCE_S if is_complete else LONG_S):
            break
        for connection in select.select(waiting, [], [], 0.1)[0]:
            heard = time.monotonic()
            try:
                data = connection.recv(65_536)
            except OSError:
                data = b""
            got[connection] += data
            if not data:
                waiting.discard(connection)
    answers = [(got[connection], connection not in waiting) for connection in connections]
    for connection in connections:
        connection.close()
    return answers


def test_nobody_reads_a_second_request(way: Address, gateway: GatewayProcess, connect: Connect) -> None:
    """What is not sound is refused with 400 and the end of the connection; what is hidden in it is never answered."""
    is_nginx = way != gateway.address
    answers = exchange(way, list(AMBIGUOUS.values()), lambda got: is_nginx or STATUS.findall(got) == [b"200"])
    for what, (got, has_closed) in zip(AMBIGUOUS, answers, strict=True):
        statuses = [int(status) for status in STATUS.findall(got)]
        if is_nginx and "bare LF" in what:  # to nginx that is the end of a line; it passes on what it has read itself
            assert set(statuses) <= {200, 204, 400, 405}, f"{what}: {got!r}"
            continue
        assert 204 not in statuses, f"{what}: smuggled"
        assert len(statuses) <= 1, f"{what}: {got!r}"
        if statuses == [200]:  # an offer that need not be taken; nginx leaves out lines that are no fields
            assert is_nginx or what == "h2c", f"{what}: {got!r}"
            continue
        assert set(statuses) <= {400, 405, 414, 501, 505}, f"{what}: {got!r}"
        assert has_closed or is_nginx, f"{what}: {got!r}"  # nginx has read the body, and may go on
    gateway.wait_metric(CONNECTIONS, 0)
    assert connect(way, "/events/a").wait_open().type == "gateway.open"


def test_the_hidden_request_would_be_answered(way: Address) -> None:
    """Where it stands behind a sound one it is: so the other test could fail."""
    sound = b"OPTIONS /events/a HTTP/1.1\r\nHost: x\r\n\r\n"
    ((got, _),) = exchange(way, [sound + HIDDEN], lambda got: len(STATUS.findall(got)) == 2)

    assert STATUS.findall(got) == [b"204", b"204"]


# -- by chance

METHODS = [b"GET", b"HEAD", b"OPTIONS", b"POST", b"get", b"CONNECT", b"TRACE", b"G\xc3\x89T", b"", b"X" * 300]
TARGETS = [
    *(b"/events/a", b"/events", b"/events?channel=a", b"*", b"//events/a", b"/events/%00", b"/events/%ff", b"?", b"#"),
    *(
        b"/events/" + b"%2a" * 90,
        b"http://x/events/a",
        b"http://[::1",
        b"http://xn--a/events/a",
        b"/events/a?replay=-1",
    ),
    *(b"/events/a?wrap=1&wrap=1", b"/events/a?token=" + CANARY.encode(), b"/events/a?last_event_id=%00"),
    *(b"/events/..;/", b"/events/" + b"A" * 40_000),
]
FIELDS = [
    *(b"Host: \xff\r\n", b"Last-Event-ID: 0-0-0\r\n", b"Last-Event-ID: \xf0\x9f\x98\x80\r\n", b"X: " + b"A" * 20_000),
    *(
        b"Authorization: Bearer " + CANARY.encode() + b"\r\n",
        b'Cookie: a="\\"; ;;=\r\n',
        b"Accept: text/event-stream\r\n",
    ),
    *(
        b"Origin: null\r\n",
        b"Sec-Fetch-Dest: \x80\r\n",
        b"X-Forwarded-For: ,,\x01,[::\r\n",
        b"Connection: keep-alive\r\n",
    ),
    *(
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: websocket\r\n",
    ),
]
JUNK = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"\0",
    b":",
    b"\xe2\x80\xae",
    b"\x1b[31m",
    b"%s%n",
    b"HTTP/9.9",
    b"HTTP/1.0",
]


def request_of_chance(dice: random.Random) -> bytes:
    """Something like a request, most of it sound."""
    method = dice.choice(METHODS) if dice.random() < 0.3 else b"GET"
    version = dice.choice(JUNK) if dice.random() < 0.1 else b"HTTP/1.1"
    fields = b"".join(dice.choice(FIELDS) for _ in range(dice.randrange(5)))
    sent = b" ".join([method, dice.choice(TARGETS), version]) + b"\r\nHost: x\r\n" + fields + b"\r\n"
    for _ in range(dice.randrange(3)):
        at = dice.randrange(len(sent))
        sent = sent[:at] + dice.choice([b"", dice.choice(JUNK), dice.randbytes(3)]) + sent[at + dice.randrange(3) :]
    return sent


def test_whatever_is_sent_has_an_answer_or_a_refusal(way: Address, gateway: GatewayProcess, connect: Connect) -> None:
    """Never a 500, never a traceback; and nothing of it is in the log."""
    known = {0, 100, 200, 204, 400, 403, 404, 405, 414, 417, 431, 501, 503, 505}
    for number in range(ROUNDS):
        dice = random.Random(f"requests {number}")
        requests = [request_of_chance(dice) for _ in range(150)]
        for sent, (got, _) in zip(requests, exchange(way, requests), strict=True):
            statuses = {int(status) for status in STATUS.findall(got)} or {0}
            assert statuses <= known | ({301, 411, 413} if way != gateway.address else set()), (sent, got)
    gateway.wait_metric(CONNECTIONS, 0)

    assert connect(way, "/events/a").wait_open().type == "gateway.open"
    assert not gateway.records("request.failed")
    assert CANARY not in str(gateway.logs) + gateway.admin("/metrics")[2]
    gateway.check_clean()
