"""The admin listener: metrics, liveness, readiness. Never the public one.

`/healthz` fails slow: it answers as long as the loop turns. `/readyz` fails fast: 200 only while a
new stream would be served from a live log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from aiohttp import web
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from prometheus_client import CollectorRegistry

T = TypeVar("T")


def admin_app(
    registry: Callable[[], Awaitable[CollectorRegistry]], reasons: Callable[[], Awaitable[Sequence[str]]]
) -> web.Application:
    """Make the admin application.

    Args:
        registry: What `/metrics` shows; asked for each time.
        reasons: Why the gateway is not ready; empty if it is.
    """

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(await registry()), headers={"Content-Type": content_type})

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        why = list(await reasons())
        return web.json_response({"ready": not why, "reasons": why}, status=503 if why else 200)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app


def at_once(read: Callable[[], T]) -> Callable[[], Awaitable[T]]:
    """What can be read at any time, as something to be awaited."""

    async def answer() -> T:
        return read()

    return answer
