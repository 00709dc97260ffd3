"""Serves an ASGI application as its users do in production: uvicorn, uvloop, httptools, no access log."""

from __future__ import annotations

import argparse
import json
import signal
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from benchmarks.peers.broadcast import Broadcast

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


def arguments(description: str | None) -> argparse.Namespace:
    """Parse what every peer is given."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--redis-port", type=int, required=True)
    parser.add_argument("--max-seconds", type=int, default=300)
    args = parser.parse_args()
    signal.alarm(args.max_seconds)
    return args


def listening(listener: socket.socket) -> None:
    """Tell the driver that streams may come."""
    print(json.dumps({"what": "listening", "port": listener.getsockname()[1]}), flush=True)


def serve(description: str | None, make_app: Callable[[Broadcast, Any], Any]) -> None:
    """Serve what `make_app` makes of a broadcast and a lifespan, until SIGTERM."""
    args = arguments(description)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    broadcast = Broadcast(args.redis_port)

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        await broadcast.start()
        listening(listener)
        yield
        await broadcast.stop()

    config = uvicorn.Config(
        make_app(broadcast, lifespan),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])
