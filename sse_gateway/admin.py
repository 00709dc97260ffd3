"""The admin listener: metrics, liveness, readiness. Never the public one.

`/healthz` fails slow: it answers as long as the loop turns. `/readyz` fails fast: 200 only while a
new stream would be served from a live log. Both tell nothing else, and ask for no token: whoever
checks health has none. Everything else asks for `admin.token`, where there is one.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, TypeVar

from aiohttp import hdrs, web
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiohttp.typedefs import Handler, Middleware
    from prometheus_client import CollectorRegistry

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Answered without a token."""

T = TypeVar("T")


def admin_app(
    registry: Callable[[], Awaitable[CollectorRegistry]],
    reasons: Callable[[], Awaitable[Sequence[str]]],
    token: Callable[[], str],
    *,
    unordered: Callable[[], bool],
) -> web.Application:
    """Make the admin application.

    Args:
        registry: What `/metrics` shows; asked for each time.
        reasons: Why the gateway is not ready; empty if it is.
        token: Who knows it may read everything; empty: everybody may. Asked for each time: a reload may change it.
        unordered: Whether it follows a server whose log cannot be shared; `/readyz` says so.
    """

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(await registry()), headers={"Content-Type": content_type})

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        why = list(await reasons())
        said = {"ready": not why, "reasons": why} | ({"unordered": True} if unordered() else {})
        return web.json_response(said, status=503 if why else 200)

    app = web.Application(middlewares=[_guard(token)])
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app


def _guard(token: Callable[[], str]) -> Middleware:
    """Let in who knows the token; what is compared takes the same time whatever was sent."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        expected = token()
        scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        is_known = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), expected.encode())
        if not expected or request.path in OPEN_PATHS or (is_known and scheme.lower() == "bearer"):
            return await handler(request)
        return web.json_response(
            {"title": "Unauthorized", "status": 401, "detail": "the admin listener asks for its token"},
            status=401,
            content_type="application/problem+json",
            headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
        )

    return guard


def at_once(read: Callable[[], T]) -> Callable[[], Awaitable[T]]:
    """What can be read at any time, as something to be awaited."""

    async def answer() -> T:
        return read()

    return answer
