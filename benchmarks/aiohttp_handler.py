"""The baseline: what a good engineer writes with aiohttp in an afternoon, and no more.

A handler per stream with a StreamResponse and a bounded asyncio.Queue, on uvloop. It is given every advantage
that this shape allows: Redis is read with hiredis under an asyncio.Protocol, a frame is encoded once for all
streams, a handler writes all that is queued in one go, one task for all streams sends the heartbeats, and
there is no access log. It keeps no window, resumes nobody, and drops silently what a full queue cannot take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from typing import cast

import hiredis
import uvloop
from aiohttp import web

QUEUE_EVENTS = 2000
"""As the gateway's default queue."""

HEARTBEAT_S = 15


class Channels:
    """The queues of the open streams, by channel."""

    def __init__(self) -> None:
        self._queues: dict[str, set[asyncio.Queue[bytes]]] = {}
        self.dropped = 0

    def add(self, channel: str) -> asyncio.Queue[bytes]:
        """Open a queue that follows `channel`."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_EVENTS)
        self._queues.setdefault(channel, set()).add(queue)
        return queue

    def discard(self, channel: str, queue: asyncio.Queue[bytes]) -> None:
        """Forget a queue."""
        self._queues[channel].discard(queue)

    def put(self, channel: str, frame: bytes) -> None:
        """Put a frame into every queue of `channel` that has room."""
        for queue in self._queues.get(channel, ()):
            try:
                queue.put_nowait(frame)
            except asyncio.QueueFull:
                self.dropped += 1

    async def beat(self) -> None:
        """Send a comment to every stream at intervals, for ever."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for channel in list(self._queues):
                self.put(channel, b":\n\n")


class Reader(asyncio.Protocol):
    """Subscribes to one pattern and encodes each message once."""

    def __init__(self, channels: Channels, pattern: str) -> None:
        self._channels = channels
        self._pattern = pattern.encode()
        self._strip = len(pattern) - 1
        self._parser = hiredis.Reader()
        self._number = 0
        self.subscribed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Subscribe."""
        pattern = self._pattern
        cast("asyncio.WriteTransport", transport).write(  # uvloop's does not inherit from it
            b"*2\r\n$10\r\nPSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(pattern), pattern)
        )

    def data_received(self, data: bytes) -> None:
        """Fan out every message of the read."""
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not False:
            if reply[0] == b"pmessage":
                self._number += 1
                frame = b"id: aiohttp00000-%d-%012x\ndata: %b\n\n" % (self._number, self._number, reply[3])
                self._channels.put(reply[2].decode()[self._strip :], frame)
            elif not self.subscribed.done():
                self.subscribed.set_result(None)


def make_app(channels: Channels) -> web.Application:
    """Return the application with its one route."""

    async def events(request: web.Request) -> web.StreamResponse:
        channel = request.match_info["channel"]
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-cache, no-transform",
                "X-Accel-Buffering": "no",
            }
        )
        queue = channels.add(channel)
        try:
            await response.prepare(request)
            await response.write(b"retry: 3000\n\n")
            while True:
                frames = [await queue.get()]
                while not queue.empty():
                    frames.append(queue.get_nowait())
                await response.write(b"".join(frames))
        except ConnectionResetError:
            return response
        finally:
            channels.discard(channel, queue)

    app = web.Application()
    app.router.add_get("/events/{channel}", events)
    return app


async def serve(redis_port: int, pattern: str) -> None:
    """Serve until cancelled."""
    channels = Channels()
    loop = asyncio.get_running_loop()
    _transport, reader = await loop.create_connection(lambda: Reader(channels, pattern), "127.0.0.1", redis_port)
    await reader.subscribed
    runner = web.AppRunner(make_app(channels), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    print(json.dumps({"what": "listening", "port": runner.addresses[0][1]}), flush=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(channels.beat())


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-port", type=int, required=True)
    parser.add_argument("--pattern", default="bench:*")
    parser.add_argument("--max-seconds", type=int, default=300)
    args = parser.parse_args()
    signal.alarm(args.max_seconds)
    uvloop.run(serve(args.redis_port, args.pattern))


if __name__ == "__main__":
    main()
