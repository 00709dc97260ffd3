"""The node's clock: it sleeps from one checkpoint to the next, and is awake at once where somebody waits for it."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

from sse_gateway.checkpoints import CHECKPOINT_S
from sse_gateway.control import Control, Kind
from sse_gateway.gateway import Gateway
from sse_gateway.member import TICK_S, control_channel, draw_name
from sse_gateway.offers import OFFER_S
from sse_gateway.settings import Settings
from tests.support.gateway_process import configuration
from tests.support.valkey import Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from tests.support.valkey import Valkey

LATE_S = OFFER_S[1] + 2 * TICK_S + 0.15
"""An offer that comes later than this has waited for the next checkpoint; the rest is for a busy machine."""

TRIES = (2, 10)
"""At least, and on a busy machine at most, until one is in time."""
WATCH_S = 2.0


@asynccontextmanager
async def a_node(settings: Settings) -> AsyncIterator[Gateway]:
    """Run what a node consists of, but for its listeners."""
    gateway = Gateway(settings)
    await gateway.member.start()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in (gateway.source.run(), gateway.member.run())]
        yield gateway
        for task in tasks:
            task.cancel()


class Stranger:
    """A node of another host, of which there is only the voice."""

    def __init__(self, valkey: Valkey, channel: str) -> None:
        self._ear, self._mouth = Link(valkey.port), Link(valkey.port)
        self._channel = channel
        self._ear.call("SUBSCRIBE", channel)

    def hear(self, kind: Kind) -> list[str]:
        """Wait for such a message; returns its words."""
        while True:
            reply = self._ear.read()
            assert isinstance(reply, list)
            words: list[str] = reply[2].decode().split()
            if words[1:2] == [kind]:
                return words

    def wait_for_offer(self, due: Callable[[], float]) -> float | None:
        """Ask for the log right after a checkpoint; returns how long the offer takes, seconds.

        Args:
            due: When the next checkpoint is; if we were so slow that it comes too soon to be told from news, returns None.
        """
        mark = self.hear(Kind.CHECKPOINT)[2]
        joiner, token = draw_name(), draw_name()
        began = time.monotonic()
        is_too_late = due() - began < LATE_S
        self._mouth.call("PUBLISH", self._channel, Control(joiner, mark).write(Kind.JOIN, token, "-"))
        while self.hear(Kind.OFFER)[5] != token:
            pass
        return None if is_too_late else time.monotonic() - began

    def close(self) -> None:
        """Fall silent."""
        self._ear.close()
        self._mouth.close()


async def offer_s(valkey: Valkey, *, is_stirred: bool) -> float:
    """How long a node that sleeps takes to offer its log, with its alarm or without, seconds; the best of some."""
    settings = Settings.model_validate(configuration(valkey.url))
    with closing(Stranger(valkey, control_channel(settings))) as stranger:
        async with a_node(settings) as gateway:
            if not is_stirred:
                gateway.member._stir.set = lambda: None  # type: ignore[method-assign]
            times: list[float] = []
            for _ in range(TRIES[1]):
                took = await asyncio.to_thread(stranger.wait_for_offer, lambda: gateway.member.replica.checkpoints.due)
                times += [] if took is None else [took]
                if len(times) >= TRIES[0] and (min(times) < LATE_S or not is_stirred):
                    break
            return min(times)


async def test_who_joins_wakes_a_node_that_sleeps(valkey: Valkey) -> None:
    """Its offer does not wait for the next checkpoint."""
    assert await offer_s(valkey, is_stirred=True) < LATE_S


async def test_without_the_alarm_an_offer_is_late(valkey: Valkey) -> None:
    """So that the test above would notice: nothing else wakes the node before it has to send a checkpoint."""
    assert LATE_S < await offer_s(valkey, is_stirred=False) < CHECKPOINT_S * 1.25 + 1.0


async def test_a_node_that_is_quiet_looks_at_its_clock_for_checkpoints_only(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice a second, not twenty times."""
    looks: list[float] = []
    async with a_node(Settings.model_validate(configuration(valkey.url))) as gateway:
        async with asyncio.timeout(20):
            await gateway.news.wait()
        replica = gateway.member.replica
        assert replica.is_synced
        tick = replica.tick

        def look(now: float) -> None:
            looks.append(now)
            tick(now)

        monkeypatch.setattr(replica, "tick", look)
        await asyncio.sleep(WATCH_S)
    assert WATCH_S / CHECKPOINT_S / 2 <= len(looks) <= 2 * WATCH_S / CHECKPOINT_S + 1
