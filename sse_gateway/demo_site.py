"""The demo's page, and what its buttons do.

Rules:
    1. A control acts only for the demo's own page: the request's Host is the loopback's, so that no
       foreign name can be pointed at it, and the browser says that the page is of the same origin.
    2. A visitor's streams and slow readers carry a name of their own: two tabs do not disturb each
       other. Only stopping Redis is for everyone.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import redis.exceptions
from aiohttp import web

from sse_gateway.demo_samples import PREFIX, Burst, publish_burst
from sse_gateway.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from redis.asyncio import Redis

    from sse_gateway.demo_relay import Relay

    Control = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

AWAY_S = 5.0
"""How long the demo's Valkey is away."""

_PARTS = {
    "index.html": "text/html",
    "icon.svg": "image/svg+xml",
    "page.css": "text/css",
    "controls.js": "text/javascript",
    "journal.js": "text/javascript",
    "page.js": "text/javascript",
    "plot.js": "text/javascript",
    "sequence.js": "text/javascript",
    "slow.js": "text/javascript",
    "stream.js": "text/javascript",
}

_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_MAX_BODY = 4096
_MAX_TEXT = 500
_PAGE_NAME = re.compile(r"[a-z0-9]{8,32}")
_PUBLIC_CHANNEL = re.compile(r"hello|room:[a-z]{1,16}")
_RELAYED = re.compile(r"/relay/([a-z0-9]{8,32})/(main|slow)(/events[/?].*)", re.DOTALL)
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Stoppable(Protocol):
    """A Redis that can be made to go away."""

    @property
    def is_away(self) -> bool:
        """It has been stopped and does not answer yet."""

    async def away(self, seconds: float) -> None:
        """Stop it, and start it again after so long."""


@dataclass(frozen=True, slots=True)
class Site:
    """Answers what is not under ``/events``.

    Attributes:
        client: Publishes.
        relay: Where the page's streams pass.
        own_redis: The demo's own Valkey, or None where the person gave a Redis.
        redis_url: What to show, without secrets.
        spawn: Runs what goes on after the answer; it ends with the demo.
        parts: Path to body and type of the page's files.
    """

    client: Redis
    relay: Relay
    own_redis: Stoppable | None
    redis_url: str
    spawn: Callable[[Coroutine[Any, Any, None]], object]
    parts: dict[str, tuple[bytes, str]]

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request.

        Raises:
            RequestError: It is refused.
        """
        if relayed := _RELAYED.fullmatch(request.raw_path):
            _check_method(request, "GET")
            page, reader, target = relayed.groups()
            return await self.relay.answer(request, f"{page}/{reader}", target, is_slow=reader == "slow")
        controls: dict[str, Control] = {
            "/demo/publish": self._publish,
            "/demo/cut": self._cut,
            "/demo/stall": self._stall,
            "/demo/stop-redis": self._stop_redis,
        }
        if control := controls.get(request.path):
            _check_method(request, "POST")
            return _json(await control(*await _instruction(request)))
        _check_method(request, "GET", "HEAD")
        if request.path == "/demo/info":
            return _json({"redis": self.redis_url, "stoppable": self.own_redis is not None, "burst": asdict(Burst())})
        if request.path not in self.parts:
            raise RequestError(404, "nothing here")
        body, type_ = self.parts[request.path]
        return web.Response(body=body, content_type=type_, charset="utf-8", headers=_HEADERS)

    async def _publish(self, _page: str, told: dict[str, Any]) -> dict[str, Any]:
        channel, text = told.get("channel"), told.get("text")
        if not isinstance(channel, str) or not _PUBLIC_CHANNEL.fullmatch(channel):
            raise RequestError(400, "publish to hello or to room:NAME")
        if not isinstance(text, str) or not 1 <= len(text) <= _MAX_TEXT:
            raise RequestError(400, f"the text has 1 to {_MAX_TEXT} characters")
        try:
            await self.client.publish(PREFIX + channel, text)
        except redis.exceptions.RedisError:
            return {"published": False}
        return {"published": True}

    async def _cut(self, page: str, _told: dict[str, Any]) -> dict[str, Any]:
        return {"cut": self.relay.cut(f"{page}/main")}

    async def _stall(self, page: str, _told: dict[str, Any]) -> dict[str, Any]:
        place = f"{page}/slow"
        self.spawn(
            publish_burst(
                self.client,
                Burst(),
                page,
                stall=lambda: self.relay.stall(place),
                release=lambda: self.relay.release(place),
            )
        )
        return {}

    async def _stop_redis(self, _page: str, _told: dict[str, Any]) -> dict[str, Any]:
        if self.own_redis is None:
            raise RequestError(409, "this Redis is not the demo's own")
        if self.own_redis.is_away:
            raise RequestError(409, "Redis is away already")
        self.spawn(self.own_redis.away(AWAY_S))
        return {"seconds": AWAY_S}


def page_parts() -> dict[str, tuple[bytes, str]]:
    """Read the page's files, once."""
    folder = resources.files("sse_gateway") / "demo_page"
    parts = {f"/{name}": ((folder / name).read_bytes(), type_) for name, type_ in _PARTS.items()}
    return {"/": parts["/index.html"], **parts}


def _check_method(request: web.BaseRequest, *allowed: str) -> None:
    if request.method not in allowed:
        raise RequestError(405, f"this is asked for with {' or '.join(allowed)}")


async def _instruction(request: web.BaseRequest) -> tuple[str, dict[str, Any]]:
    """Check where an instruction comes from, and read it.

    Returns:
        The name of the visitor's page, and the whole instruction.
    """
    _check_same_origin(request)
    if request.content_length is None or request.content_length > _MAX_BODY:
        raise RequestError(400, f"the body has a Content-Length of at most {_MAX_BODY}")
    try:
        told = json.loads(await request.read())
        page = told["page"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RequestError(400, "the body is a JSON object with a page") from None
    if not isinstance(page, str) or not _PAGE_NAME.fullmatch(page):
        raise RequestError(400, "the page's name is 8 to 32 of a-z 0-9")
    return page, told


def _check_same_origin(request: web.BaseRequest) -> None:
    """Source: Fetch Metadata; browsers that do not send it send Origin with every POST."""
    host = request.headers.get("Host", "")
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if urlsplit(f"//{host}").hostname not in _LOOPBACK:
        raise RequestError(403, "the demo is controlled from this machine only")
    is_same = site == "same-origin" if site is not None else origin is not None
    if not is_same or (origin is not None and origin != f"http://{host}"):
        raise RequestError(403, "the demo is controlled from its own page only")


def _json(value: dict[str, Any]) -> web.Response:
    return web.json_response(value, headers=_HEADERS)
