"""What the demo publishes: a report job, prices, a ticking count, and bursts for slow readers.

Every event of these carries, in its data, when it was published (``at``, Unix seconds): the page
shows how long it took, and knows which events it missed while it was cut off.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final

import redis.exceptions

from sse_gateway.reasons import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from redis.asyncio import Redis

PREFIX: Final = "demo:"
"""What clients do not see of the demo's Redis channels."""

_PRICES = {"ACME": 128.0, "GLOBEX": 54.2, "INITECH": 9.75}
_STEPS = ("reading accounts", "joining ledgers", "summing up", "drawing charts", "writing pages")
_TICK_S = 0.2

_LONGEST_BURST_S = 15.0
"""A burst ends after this long, finished or not, where Redis does not answer."""


@dataclass(frozen=True, slots=True)
class Burst:
    """How many events go to each of the slow readers' channels, and when nobody reads.

    Attributes:
        total: Events, numbered from 1.
        stalled_from: Number of the first that is published while nobody reads.
        stalled_to: Number of the last such.
        interval_s: Between two events.
        padding: Bytes that make an event large enough for the kernel's buffers to be full soon.
    """

    total: int = 200
    stalled_from: int = 31
    stalled_to: int = 170
    interval_s: float = 0.03
    padding: int = 3000


@dataclass(frozen=True, slots=True)
class _Sample:
    """One event to come.

    Attributes:
        wait_s: How long after the one before.
        channel: As clients know it.
        type: Event type.
        data: Without the time.
        key: Idempotency key, or None.
    """

    wait_s: float
    channel: str
    type: str
    data: Mapping[str, object]
    key: str | None = None


async def publish_samples(client: Redis) -> None:
    """Publish for ever."""
    run_id = secrets.token_hex(4)  # numbers and idempotency keys are not those of another demo
    async with asyncio.TaskGroup() as group:
        for samples in (_jobs(run_id), _prices(), _ticks(run_id)):
            group.create_task(_publish_all(client, samples))


async def publish_burst(
    client: Redis, burst: Burst, reader: str, stall: Callable[[], None], release: Callable[[], None]
) -> None:
    """Publish a burst to one reader's channel of each policy, and stall it for the middle part.

    Args:
        client: Redis.
        burst: How many, and when.
        reader: The end of the channels' names.
        stall: Called when nothing should be read any more.
        release: Called when reading may go on; also if publishing fails.
    """
    with suppress(TimeoutError):
        try:
            async with asyncio.timeout(_LONGEST_BURST_S):
                await _send_burst(client, burst, reader, stall, release)
        finally:
            release()


async def _send_burst(
    client: Redis, burst: Burst, reader: str, stall: Callable[[], None], release: Callable[[], None]
) -> None:
    padding = "." * burst.padding
    for number in range(1, burst.total + 1):
        if number == burst.stalled_from:
            stall()
        if number == burst.stalled_to + 1:
            release()
        data = {"n": number, "padding": padding}
        for policy in Policy:
            await _publish(client, _Sample(0.0, slow_channel(policy, reader), "message", data))
        await asyncio.sleep(burst.interval_s)


def slow_channel(policy: Policy, reader: str) -> str:
    """Name the channel of one reader under one policy, as clients know it."""
    return f"slow:{policy}:{reader}"


async def _publish_all(client: Redis, samples: Iterator[_Sample]) -> None:
    for sample in samples:
        await asyncio.sleep(sample.wait_s)
        await _publish(client, sample)


async def _publish(client: Redis, sample: _Sample) -> None:
    """Publish; while Redis is away the message is lost, as anyone's is."""
    at = time.time()  # noqa: TID251 - a publisher reads the clock that its readers share
    envelope = {"event": sample.type, "ts": at, "data": {**sample.data, "at": at}}
    if sample.key is not None:
        envelope["id"] = sample.key
    with suppress(redis.exceptions.RedisError):
        await client.publish(PREFIX + sample.channel, json.dumps(envelope))


def _jobs(run_id: str) -> Iterator[_Sample]:
    """A long-running report, again and again: queued, 0 to 100 %, done."""
    channel = "job:report"
    for job in count(1):
        key = f"{run_id}-{job}"
        yield _Sample(2.0, channel, "job.queued", {"job": job, "percent": 0}, f"{key}-queued")
        for percent in range(0, 101, 4):
            step = _STEPS[min(percent * len(_STEPS) // 100, len(_STEPS) - 1)]
            told = {"job": job, "percent": percent, "step": step}
            yield _Sample(0.4, channel, "job.progress", told, f"{key}-{percent}")
        yield _Sample(0.4, channel, "job.done", {"job": job, "percent": 100}, f"{key}-done")


def _prices() -> Iterator[_Sample]:
    """Prices on a random walk, one symbol at a time."""
    prices = dict(_PRICES)
    while True:
        symbol = random.choice(list(prices))
        prices[symbol] = max(0.01, prices[symbol] * random.gauss(1, 0.004))
        yield _Sample(0.5, f"price:{symbol}", "message", {"symbol": symbol, "price": round(prices[symbol], 2)})


def _ticks(run_id: str) -> Iterator[_Sample]:
    """Numbers without a hole, so that a reader can check by itself what it is told."""
    for number in count(1):
        yield _Sample(_TICK_S, "tick", "message", {"run": run_id, "n": number})
