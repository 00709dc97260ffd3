"""The public listener: requests to streams, refusals, and the temporary refusal.

Rules:
    1. Refusals in this order: 404 of the path, 405, 414, 431, 400, 404 of the channel; then what is
       only temporary. A native `EventSource` closes for ever on any status but 200, so to whoever
       accepts ``text/event-stream`` a temporary refusal is a 200 with one block and a clean end.
    2. A stream's request is answered by nobody but the stream: the socket is taken from the
       server, and the response that the server wants is never written.
    3. An unexpected exception in a request ends that request (I9). Nothing of a request's target
       or headers reaches the log: either may hold a token.
"""

from __future__ import annotations

import json
import logging
import re
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from sse_gateway.admission import Caller
from sse_gateway.errors import ConfigError, RequestError
from sse_gateway.frames import unavailable_frame
from sse_gateway.logs import log_event
from sse_gateway.subscription import Subscription, parse_subscription

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from sse_gateway.addresses import TrustedProxies
    from sse_gateway.channels import RuleTable
    from sse_gateway.reasons import Unavailable

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

MAX_TARGET = 32 * 1024
"""Bytes of a request line: room for 64 channels of 256 bytes, half of them escaped. Beyond: 414."""

MAX_FIELD = 16 * 1024
"""Bytes of one header field. Beyond: 431."""

RETRY_AFTER_S = 5
"""What a client that is no EventSource is told with a 503."""

METHODS = "GET, HEAD, OPTIONS"

SERVER = "sse-gateway"
"""Instead of the library's, which tells its versions to everybody."""

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
    "Connection": "close",
}

_AUTHORITY = re.compile(r"^https?://[^/?]*", re.IGNORECASE)

# The parser knows some methods by name, and says of all others that they are invalid.
_METHOD_UNKNOWN = re.compile(r"b'[A-Za-z]+ \S+ HTTP/1\.")

_log = logging.getLogger(__name__)


def check_parser() -> None:
    """Refuse to serve with aiohttp's parser in Python: it is slower, and other requests pass it.

    Raises:
        ConfigError: The parser in C is not in use.
    """
    if HttpRequestParser is HttpRequestParserPy:
        problem = (
            "aiohttp's HTTP parser in C is not in use: unset AIOHTTP_NO_EXTENSIONS, "
            "or install a wheel of aiohttp that has it"
        )
        raise ConfigError([problem])


class Streams(Protocol):
    """Who opens streams."""

    async def refusal(self, caller: Caller) -> Unavailable | None:
        """Why no stream can be opened now; counts a refusal."""

    def retry_ms(self) -> int:
        """Draw a reconnection time."""

    def open(
        self, transport: asyncio.Transport, head: bytes, subscription: Subscription, *, chunked: bool, caller: Caller
    ) -> Unavailable | None:
        """Take the socket and begin a stream on it; or say why that cannot be now, and leave the socket."""


class Front:
    """Answers the requests of the public listener."""

    def __init__(
        self,
        streams: Streams,
        rules: RuleTable,
        *,
        max_channels: int,
        origins: tuple[str, ...],
        proxies: TrustedProxies,
        fallback: Handler | None = None,
    ) -> None:
        """Prepare.

        Args:
            streams: Opens streams.
            rules: Who owns which channel.
            max_channels: Per stream.
            origins: Origins of other pages that may read.
            proxies: Who is believed about a client's address.
            fallback: Answers what is not under ``/events``.
        """
        self._streams = streams
        self._rules = rules
        self._max_channels = max_channels
        self._origins = frozenset(origins)
        self._proxies = proxies
        self._fallback = fallback

    def server(self) -> web.Server:
        """The protocol factory to listen with; needs a running loop."""
        return _Server(
            self.handle,
            access_log=None,
            keepalive_timeout=3630.0,  # above any proxy's own, so that the proxy closes first
            max_line_size=MAX_TARGET,
            max_field_size=MAX_FIELD,
            lingering_time=0.0,
        )

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            path, _, query = _target(request).partition("?")
            if path != "/events" and not path.startswith("/events/"):
                return await self._other(request)
            return await self._events(request, None if path == "/events" else path.removeprefix("/events/"), query)
        except RequestError as error:
            return _problem(error.status, error.detail, self._cors(request))
        except ConnectionError:  # the client has left; the server knows what to do
            raise
        except Exception as error:  # noqa: BLE001 - rule 3
            log_event(_log, logging.ERROR, "request.failed", exc=error)
            return _problem(500, "the gateway failed to answer this request", {})

    async def _other(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._fallback is not None:
            return await self._fallback(request)
        raise RequestError(404, "streams are under /events")

    async def _events(self, request: web.BaseRequest, name: str | None, query: str) -> web.StreamResponse:
        if name is not None and "/" in name:
            raise RequestError(404, "a channel is one path segment: write '/' as %2F")
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204, headers={"Server": SERVER, "Allow": METHODS, **self._preflight(request)})
        if request.method not in {hdrs.METH_GET, hdrs.METH_HEAD}:
            raise RequestError(405, f"streams are read with {METHODS}")
        if request.body_exists:
            raise RequestError(400, "a request for a stream has no body")
        last_event_id = request.headers.get("Last-Event-ID")
        subscription = parse_subscription(name, query, last_event_id, self._rules, self._max_channels)
        caller = self._caller(request)
        refusal = await self._streams.refusal(caller)
        if refusal is not None:
            return await self._refuse(request, refusal)
        if request.method == hdrs.METH_HEAD:
            return await self._empty(request)
        return await self._open(request, subscription, caller)

    def _caller(self, request: web.BaseRequest) -> Caller:
        """Who asks, as far as limits are concerned."""
        transport = request.transport
        peer = None if transport is None else transport.get_extra_info("peername")
        host = str(peer[0]) if isinstance(peer, tuple) else None
        return Caller(self._proxies.client(host, request.headers.getall("X-Forwarded-For", ())))

    async def _open(self, request: web.BaseRequest, subscription: Subscription, caller: Caller) -> web.StreamResponse:
        transport = request.transport
        if transport is not None and not transport.is_closing():
            chunked = request.version >= (1, 1)
            head = _head({**_STREAM_HEADERS, **self._cors(request)}, chunked=chunked)
            refusal = self._streams.open(transport, head, subscription, chunked=chunked, caller=caller)
            if refusal is not None:
                return await self._refuse(request, refusal)
        return web.Response()  # to the server the client has just left: this is not written

    async def _refuse(self, request: web.BaseRequest, reason: Unavailable) -> web.StreamResponse:
        """Refuse for now, in the form that makes the client come back."""
        if not _accepts_stream(request):
            headers = {"Retry-After": str(RETRY_AFTER_S), **self._cors(request)}
            return _problem(503, f"no new streams now: {reason}", headers)
        response = await self._begin(request)
        if request.method != hdrs.METH_HEAD:
            await response.write(unavailable_frame(reason, 5 * self._streams.retry_ms()))
        await response.write_eof()
        return response

    async def _empty(self, request: web.BaseRequest) -> web.StreamResponse:
        response = await self._begin(request)
        await response.write_eof()
        return response

    async def _begin(self, request: web.BaseRequest) -> web.StreamResponse:
        """Send a stream's headers through the server, for a response that ends by itself."""
        response = web.StreamResponse(headers={"Server": SERVER, **_STREAM_HEADERS, **self._cors(request)})
        response.force_close()
        if request.version >= (1, 1):
            response.enable_chunked_encoding()
        await response.prepare(request)
        return response

    def _cors(self, request: web.BaseRequest) -> dict[str, str]:
        if not self._origins:
            return {}
        origin = request.headers.get("Origin", "")
        allowed = {"Access-Control-Allow-Origin": origin} if origin in self._origins else {}
        return {"Vary": "Origin", **allowed}

    def _preflight(self, request: web.BaseRequest) -> dict[str, str]:
        cors = self._cors(request)
        if "Access-Control-Allow-Origin" in cors:
            cors["Access-Control-Allow-Methods"] = METHODS
            cors["Access-Control-Allow-Headers"] = "authorization, cache-control, last-event-id"
            cors["Access-Control-Max-Age"] = "86400"
        return cors


class _Connection(web.RequestHandler):
    """The server's protocol, answering what it could not parse in our way."""

    __slots__ = ()

    async def start(self) -> None:
        """Serve the connection; what not even the library foresaw ends it alone (I9).

        A host that no decoder takes raises before there is a request: unanswered, the connection
        would stay, and its task's exception would come up as the process's own.
        """
        try:
            await super().start()
        except Exception as error:  # noqa: BLE001 - rule 3
            log_event(_log, logging.ERROR, "request.failed", error=type(error).__name__)  # its text quotes the request
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - quotes the request
    ) -> web.StreamResponse:
        """Answer a request that is not HTTP, or is too long; the connection ends."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun")
        if isinstance(exc, LineTooLong):
            is_target = str(exc.args[1]) == str(MAX_TARGET)
            status, detail = (414, "the request line is too long") if is_target else (431, "a header is too long")
        elif exc is not None and "Too many" in str(exc):
            status, detail = 431, "too many headers"
        elif isinstance(exc, BadHttpMethod) and _METHOD_UNKNOWN.search(str(exc)):
            status, detail = 405, f"streams are read with {METHODS}"
        else:
            status, detail = (status, "the request is not HTTP/1.1") if status < 500 else (500, "internal error")
        response = _problem(status, detail, {})
        response.force_close()
        return response


class _Server(web.Server):
    """Makes our protocol instead of the server's own."""

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


def _target(request: web.BaseRequest) -> str:
    """The target without the scheme and the host that a request to a proxy carries.

    Raises:
        RequestError: The parser lets other versions of HTTP pass.

    Source: RFC 9112 section 3.2.2: a server must accept both forms.
    """
    if request.version[0] != 1:
        raise RequestError(400, "the request is not HTTP/1.1")
    return _AUTHORITY.sub("", request.raw_path, count=1)


def _problem(status: int, detail: str, headers: dict[str, str]) -> web.Response:
    """Source: RFC 9457."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if status == 405:
        headers = {"Allow": METHODS, **headers}
    return web.Response(
        status=status,
        body=json.dumps(body).encode() + b"\n",
        content_type="application/problem+json",
        headers={"Server": SERVER, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **headers},
    )


def _head(headers: dict[str, str], *, chunked: bool) -> bytes:
    version = "HTTP/1.1" if chunked else "HTTP/1.0"
    lines = [f"{version} 200 OK", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    return "\r\n".join([*lines, "", ""]).encode()


def _accepts_stream(request: web.BaseRequest) -> bool:
    accepted = ",".join(request.headers.getall("Accept", ()))
    return any(part.partition(";")[0].strip().lower() == "text/event-stream" for part in accepted.split(","))
