"""aiohttp-sse on uvloop: `sse_response` and a queue, as its README shows."""

from __future__ import annotations

import asyncio
import socket

import uvloop
from aiohttp import web
from aiohttp_sse import sse_response

from benchmarks.peers.broadcast import Broadcast
from benchmarks.peers.serving import arguments, listening


def make_app(broadcast: Broadcast) -> web.Application:
    """Return the application with its one route."""

    async def follow(request: web.Request) -> web.StreamResponse:
        async with sse_response(request) as response:
            response.ping_interval = 15
            # aiohttp sends the head with the first bytes: without this a quiet stream would open after a ping.
            await response.write(b": open\r\n\r\n")
            async for number, data in broadcast.events(request.match_info["channel"]):
                await response.send(data, id=number)
        return response

    app = web.Application()
    app.router.add_get("/events/{channel}", follow)
    return app


async def serve(redis_port: int) -> None:
    """Serve until cancelled."""
    broadcast = Broadcast(redis_port)
    await broadcast.start()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    runner = web.AppRunner(make_app(broadcast), access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=4096).start()
    listening(listener)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(arguments(__doc__).redis_port))
