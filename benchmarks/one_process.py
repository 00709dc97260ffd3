"""A gateway in one process, without a supervisor: with the log that nodes share, or with one of its own.

`replicated` is the gateway as it is. `plain` is the same without the part that agrees with other nodes: it
begins an epoch by itself whenever the link is up, publishes straight into the hub, says nothing to others and does
not listen to them. What lies between the two is the price of the common log.
"""

from __future__ import annotations

import argparse
import asyncio
import os
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


async def serve(settings: Settings, *, is_plain: bool) -> None:
    """Serve until SIGTERM."""
    gateway = Gateway(settings)
    if is_plain:
        gateway.member = cast("Member", Alone(gateway))
    await gateway.run()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--log", choices=("plain", "replicated"), required=True)
    args = parser.parse_args()
    settings = load_settings(args.config, os.environ)
    configure_logging(settings.log.level, settings.log.format)
    uvloop.run(serve(settings, is_plain=args.log == "plain"))


if __name__ == "__main__":
    main()
