"""A gateway in one process, without a supervisor: with the log that nodes share, or with one of its own.

`replicated` is the gateway as it is. `plain` is the same without the part that agrees with other nodes: it
begins an epoch by itself whenever the link is up, publishes straight into the hub, says nothing to others and does
not listen to them. What lies between the two is the price of the common log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvloop

from sse_gateway.config import load_settings
from sse_gateway.gateway import Gateway
from sse_gateway.logs import configure_logging
from sse_gateway.member import draw_name
from sse_gateway.reasons import GapReason

if TYPE_CHECKING:
    from sse_gateway.member import Member
    from sse_gateway.settings import Settings


TURN_S = 0.001
"""How often the loop's turns are watched."""


class Alone:
    """Stands in for `Member` and its `Replica`: there are no other nodes."""

    is_joining = False

    def __init__(self, gateway: Gateway) -> None:
        self.replica = self
        self.is_synced = False
        self.message = gateway.hub.publish
        self._gateway = gateway

    async def start(self) -> None:
        """Nobody hands over to us."""

    async def run(self) -> None:
        """There is no clock to keep."""
        await asyncio.Event().wait()

    async def finish(self) -> None:
        """There is nothing to store."""

    def connected(self) -> None:
        """Whatever came before this link, nobody knows."""
        self._gateway.hub.begin_epoch(draw_name(), GapReason.SOURCE, time.monotonic())
        self._change(is_synced=True)

    def lost(self) -> None:
        """The log ends here."""
        self._change(is_synced=False)

    def entry(self, payload: bytes, now: float) -> None:
        """Nobody else speaks here."""

    def _change(self, *, is_synced: bool) -> None:
        self.is_synced = is_synced
        self._gateway.streams.log_changed()
        self._gateway.kick()


class Watch:
    """Measures for how long the loop does not turn; tells the worst since the last time on SIGUSR1."""

    def __init__(self) -> None:
        self._worst = (0.0, 0.0)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._tell)

    async def run(self) -> None:
        """Ask for a turn every millisecond, until cancelled."""
        before = time.monotonic(), time.process_time()
        while True:
            await asyncio.sleep(TURN_S)
            now = time.monotonic(), time.process_time()
            held = now[0] - before[0] - TURN_S, now[1] - before[1]
            self._worst = max(self._worst[0], held[0]), max(self._worst[1], held[1])
            before = now

    def _tell(self) -> None:
        (wall_s, cpu_s), self._worst = self._worst, (0.0, 0.0)
        print(json.dumps({"what": "held", "held_ms": wall_s * 1000, "held_cpu_ms": cpu_s * 1000}), flush=True)


async def serve(settings: Settings, *, is_plain: bool, is_watched: bool) -> None:
    """Serve until SIGTERM."""
    gateway = Gateway(settings)
    if is_plain:
        gateway.member = cast("Member", Alone(gateway))
    watching = asyncio.create_task(Watch().run()) if is_watched else None
    await gateway.run()
    if watching is not None:
        watching.cancel()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--log", choices=("plain", "replicated"), required=True)
    parser.add_argument("--watch", action="store_true", help="tell on SIGUSR1 how long the loop was held")
    args = parser.parse_args()
    settings = load_settings(args.config, os.environ)
    configure_logging(settings.log.level, settings.log.format)
    uvloop.run(serve(settings, is_plain=args.log == "plain", is_watched=args.watch))


if __name__ == "__main__":
    main()
