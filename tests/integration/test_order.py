"""What everything rests on: all subscribers of one server see all messages in one order.

Eight publishers at once, each in its own way; subscribers whose patterns overlap, each in its own
order; the server with and without I/O threads. Orders are compared message by message.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING

import pytest

from sse_gateway.log import Log, Verdict
from sse_gateway.reasons import GapReason
from tests.conftest import SERVER
from tests.support.order import (
    CONTROL,
    PATTERNS,
    Stalled,
    Witness,
    difference,
    encoded,
    following,
    judge,
    rotations,
    torn,
)
from tests.support.traffic import Message, Publisher, Traffic
from tests.support.valkey import Valkey, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sse_gateway.link import Link

GROUPS = 5_000  # of 1 to 12 messages
BUFFER = 4 << 20  # bytes; a dozen times what `LEAD` and the groups under way amount to
SENTENCES = 100  # of each link
LEAD = 100  # messages by which publishers may be ahead of the reader that must not be cut


@pytest.fixture(params=[1, 2], ids=["one thread", "io-threads"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Valkey]:
    """Run a server without and with I/O threads; it cuts no subscriber unless a test asks."""
    options = ["--io-threads", str(request.param), "--client-output-buffer-limit", "pubsub 0 0 0"]
    if SERVER == "redis":
        options += ["--io-threads-do-reads", "yes"]
    with running(tmp_path, kind=SERVER, options=options) as valkey:
        yield valkey


def has_io_threads(server: Valkey) -> bool:
    """Whether a server has threads besides its main one."""
    return server.link.call("CONFIG", "GET", "io-threads") != [b"io-threads", b"1"]


def threaded_writes(server: Valkey) -> int:
    """How often a server let a thread write."""
    info = server.link.call("INFO", "stats")
    assert isinstance(info, bytes)
    (line,) = (line for line in info.splitlines() if line.startswith(b"io_threaded_writes_processed:"))
    return int(line.partition(b":")[2])


def log_of(order: list[Message]) -> Log:
    """Count messages as a gateway does."""
    log = Log(b"key")
    log.begin_epoch("0" * 12, GapReason.EPOCH)
    for channel, payload in order:
        if channel != CONTROL:
            log.append(channel, payload)
    return log


async def speak(link: Link, name: int) -> Publisher:
    """Say something on the control channel, again and again, on the connection that carries the messages."""
    said = Publisher(name, len)
    for number in range(SENTENCES):
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        said.publish([(CONTROL, b"%d.%d" % (name, number))])
        link.publish(b"%d.%d" % (name, number), answer.set_result)
        await answer
    return said


async def test_all_subscribers_see_one_order(server: Valkey) -> None:
    """Four links and a self-publisher agree on every place; groups that are one command stay whole; so do the logs."""
    itself, witnesses = Witness(), [Witness() for _ in rotations()]
    async with AsyncExitStack() as stack:
        traffic = stack.enter_context(closing(Traffic(server, (*PATTERNS, CONTROL), itself)))
        links = [
            await stack.enter_async_context(following(server.url, patterns, witness))
            for patterns, witness in zip(rotations(), witnesses, strict=True)
        ]
        async with asyncio.timeout(40):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(traffic.run(GROUPS))
                nodes = [tasks.create_task(speak(link, name)) for name, link in enumerate(links, 100)]
            await traffic.end()
            for witness in witnesses:
                await witness.ended.wait()

    orders = [witness.order for witness in (*witnesses, itself)]
    judge(orders, [*traffic.said, *(node.result() for node in nodes)])
    assert len({log.cursor(log.head) for log in map(log_of, orders)}) == 1
    places = {message: place for place, message in enumerate(orders[0])}
    assert any(torn(one, places) for one in traffic.publishers), "nobody published at the same time"
    assert (threaded_writes(server) > 0) == has_io_threads(server)


async def test_a_subscriber_that_is_cut_has_a_prefix(server: Valkey) -> None:
    """Cut by its output buffer's limit, a subscriber has everything up to somewhere; its cursor there verifies."""
    server.config_set("client-output-buffer-limit", f"pubsub {BUFFER} 0 0")
    itself, reference = Witness(), Witness()
    published = 0

    def pace(count: int) -> None:
        nonlocal published
        with reference.news:
            published += count
            assert reference.news.wait_for(lambda: published - len(reference.order) < LEAD, timeout=30)

    async with AsyncExitStack() as stack:
        stalled = [
            stack.enter_context(closing(Stalled(server.port, patterns, 65_536 << number)))
            for number, patterns in enumerate(rotations())
        ]
        traffic = stack.enter_context(closing(Traffic(server, PATTERNS, itself)))
        await stack.enter_async_context(following(server.url, PATTERNS, reference))
        async with asyncio.timeout(60):
            await traffic.run(GROUPS // 2, pace, most_s=40)  # all of them, on a slow machine too: else nobody is cut
            await traffic.end()
            await reference.ended.wait()
        judge([reference.order, itself.order], traffic.said)
        for subscriber in stalled:
            assert_prefix(subscriber, reference.order)


def assert_prefix(subscriber: Stalled, order: list[Message]) -> None:
    """Hold what a subscriber got before it was cut against what there was."""
    cut = Witness()
    tail = subscriber.read_all(cut)
    place = len(cut.order)
    assert 0 < place < len(order)
    assert difference(cut.order, order) is None
    assert is_beginning(tail, order[place - 1 : place + 1])
    assert log_of(order).locate(log_of(cut.order).cursor(place)) == (Verdict.VERIFIED, place)


def is_beginning(tail: bytes, messages: list[Message]) -> bool:
    """Whether bytes are the beginning of one of these messages, under any pattern."""
    return any(encoded(pattern, *message).startswith(tail) for pattern in PATTERNS for message in messages)


# -- the judge itself

A, B, C, D = ((b"a:1", payload) for payload in (b"1", b"2", b"3", b"4"))
SAID = [Publisher(0, len, groups=[[A], [D]]), Publisher(1, len, is_atomic=True, groups=[[B, C]])]


def test_the_judge_accepts_one_order() -> None:
    """Publishers may take turns in any way that keeps each one's order and groups."""
    judge([[A, B, C, D]] * 4, SAID)
    judge([[B, C, A, D]] * 4, SAID)


@pytest.mark.parametrize(
    ("orders", "told"),
    [
        ([[A, B, C, D], [A, B, C, D], [A, B, D, C]], "0 and 2 differ at 2"),
        ([[A, B, C, D], [A, B, C]], "subscriber 1 has 3"),
        ([[A, B, C], [A, B, C]], "1 messages are missing"),
        ([[A, B, C, D, D]] * 2, "twice"),
        ([[D, A, B, C]] * 2, "publisher 0's own order"),
        ([[A, B, D, C]] * 2, "group of publisher 1 is torn"),
    ],
    ids=["swapped for one", "lost for one", "lost for all", "twice", "own order", "torn"],
)
def test_the_judge_notices(orders: list[list[Message]], told: str) -> None:
    """Whatever is wrong with the order is found, also if all subscribers agree on it."""
    with pytest.raises(AssertionError, match=told):
        judge(orders, SAID)
