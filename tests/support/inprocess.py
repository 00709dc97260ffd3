"""A gateway's public side inside the test's own process, on an event loop of the test's choice.

The loop runs in a thread of its own, clients block in the test's thread; there is no Redis: the
test itself says what was published. Two hooks stop the loop at moments that no client can hit.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web

from sse_gateway.addresses import TrustedProxies
from sse_gateway.admission import NOBODY, Admission, Quotas
from sse_gateway.census import SECRET_BYTES, alone
from sse_gateway.channels import RuleTable
from sse_gateway.connections import Connections
from sse_gateway.gateway import Gateway
from sse_gateway.http import Front
from sse_gateway.member import draw_name
from sse_gateway.origins import Origins
from sse_gateway.reasons import CloseReason, GapReason
from sse_gateway.settings import Settings
from sse_gateway.streams import Streams
from tests.support.gateway_process import configuration, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sse_gateway.admission import Caller
    from sse_gateway.grants import Identity
    from sse_gateway.reasons import Unavailable
    from sse_gateway.subscription import Subscription
    from tests.support.gateway_process import Config
    from tests.support.raw_client import Address

T = TypeVar("T")


class Gate:
    """A place where the loop stops, once, for as long as the test holds it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._closed = False
        self._go = threading.Event()

    def close(self) -> None:
        """Stop the loop when it comes here next."""
        self._closed = True

    def open(self) -> None:
        """Let the loop go on."""
        self._go.set()

    def pass_through(self) -> None:
        """Called in the loop."""
        if self._closed:
            self._closed = False
            self.reached.set()
            assert self._go.wait(30), "the test forgot a gate"


class GatedStreams(Streams):
    """Streams with a gate before a socket is taken, and one between taking it and the first write.

    Attributes:
        before: The first gate.
        between: The second.
        descriptors: The descriptor of every stream so far.
    """

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        super().__init__(
            gateway.hub,
            settings.stream,
            settings.limits.connections,
            admission=Admission(Quotas(settings.limits.connections), alone(1, bytes(SECRET_BYTES))),
            descriptors=1 << 20,
            is_live=lambda: True,
            kick=gateway.kick,
        )
        self.before = Gate()
        self.between = Gate()
        self.descriptors: list[int] = []

    def open(
        self,
        transport: asyncio.Transport,
        head: bytes,
        subscription: Subscription,
        *,
        chunked: bool,
        caller: Caller = NOBODY,
        identity: Identity | None = None,
    ) -> Unavailable | None:
        """Pass the first gate, and open a stream."""
        self.before.pass_through()
        return super().open(transport, head, subscription, chunked=chunked, caller=caller, identity=identity)

    def retry_ms(self) -> int:
        """Pass the second gate: this is drawn once per stream, right after its socket has been taken, and for a refusal."""
        self.between.pass_through()
        self.descriptors += [stream.fd for stream in islice(reversed(self.open_streams), 1)]
        return super().retry_ms()


class InProcess:
    """One public listener.

    Attributes:
        gateway: Everything behind it; touch it through `call` only.
        streams: The open streams, likewise.
        server: The HTTP server, likewise.
        address: Where clients connect.
        complaints: What the loop's exception handler was told.
    """

    gateway: Gateway
    streams: GatedStreams
    server: web.Server
    address: Address

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._up = threading.Event()

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the loop and return what it returns."""
        assert self._loop is not None
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - raised again in the test
                future.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return future.result(30)

    def publish(self, channel: str, *payloads: bytes) -> None:
        """Have messages arrive in one read."""

        def arrive() -> None:
            for payload in payloads:
                now = self.streams.now()
                self.gateway.hub.publish(b"sse:*", f"sse:{channel}".encode(), payload, now, now)
            self.gateway.source_flush()

        self.call(arrive)

    def tasks(self) -> int:
        """Count the loop's tasks."""
        return self.call(lambda: len(asyncio.all_tasks(self._loop)))

    def closed(self) -> dict[str, int]:
        """Ends of streams so far, by reason, those that have happened only."""
        return self.call(lambda: {reason.value: n for reason, n in self.gateway.hub.tally.closed.items() if n})

    def wait_quiet(self) -> None:
        """Wait until no stream, no connection and no handler is left."""
        poll(lambda: self.call(self._is_quiet), timeout_s=20, what="quiet server")

    def _is_quiet(self) -> bool:
        hub = self.gateway.hub
        left = self.streams.open_streams or hub.readers or hub.lagging or self.server.connections
        return not left and len(asyncio.all_tasks()) == 1

    def run(self, new_loop: Callable[[], asyncio.AbstractEventLoop], config: Config) -> None:
        """Serve until `stop`; the thread's function."""
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(self._serve(config))

    async def _serve(self, config: Config) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self.complaints.append(str(context)))
        self._stop = asyncio.Event()
        settings = Settings.model_validate(config)
        self.gateway = Gateway(settings)
        self.gateway.streams = self.streams = GatedStreams(self.gateway, settings)
        self.gateway.hub.begin_epoch(draw_name(), GapReason.SOURCE, self.streams.now())
        front = Front(
            self.streams,
            RuleTable(settings.rules),
            max_channels=64,
            origins=Origins(settings.cors.origins, with_cookies=settings.auth.uses_cookies),
            proxies=TrustedProxies([]),
            authority=self.gateway.authority,
        )
        self.server = Connections(self.streams.now, self.streams.spare_descriptors).server(front.handle)
        runner = web.ServerRunner(self.server)
        await runner.setup()
        listen = settings.listen
        if listen.unix is not None:
            site: web.BaseSite = web.UnixSite(runner, listen.unix, backlog=4096)
        else:
            site = web.TCPSite(runner, listen.host, listen.port, backlog=4096)
        await site.start()
        self.address = str(listen.unix) if listen.unix else (listen.host, listen.port)
        self._up.set()
        await self._stop.wait()
        for stream in [*self.streams.open_streams, *self.streams._closing]:
            stream.abort(CloseReason.ERROR)  # their sockets must not outlive the loop
        await runner.cleanup()

    def wait_up(self) -> None:
        """Wait until it listens."""
        assert self._up.wait(30), "the server did not start"

    def stop(self) -> None:
        """End it."""
        assert self._stop is not None
        self.call(self._stop.set)


@contextmanager
def in_process(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    directory: Path,
    *,
    is_unix: bool = False,
    **sections: Config,
) -> Iterator[InProcess]:
    """Run a public listener for the length of a ``with`` block.

    Args:
        new_loop: Makes the event loop.
        directory: For a Unix socket.
        is_unix: Listen on one.
        sections: As for `configuration`.
    """
    listen: Config = {"listen": {"unix": str(directory / "gw.sock")}} if is_unix else {}
    config = configuration("redis://127.0.0.1:1", **{**sections, **listen})
    server = InProcess()
    thread = threading.Thread(target=server.run, args=(new_loop, config))
    thread.start()
    try:
        server.wait_up()
        yield server
    finally:
        server.stop()
        thread.join(10)


def descriptors() -> int:
    """Descriptors that this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
