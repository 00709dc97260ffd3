"""The public listener: requests to streams, refusals, and the temporary refusal.

Rules:
    1. Refusals in this order: 404 of the path, 405, 414, 431, 400, 403 of the page's origin, 401, 403, 404 of the
       channel; then what is only temporary. A foreign page does not even learn whether there are credentials. A native `EventSource` closes for ever on any status but 200, so to whoever
       accepts ``text/event-stream`` a temporary refusal is a 200 with one block and a clean end.
    2. A stream's request is answered by nobody but the stream: the socket is taken from the
       server, and the response that the server wants is never written.
    3. An unexpected exception in a request ends that request (I9). Nothing of a request's target
       or headers reaches the log: either may hold a token.
"""

from __future__ import annotations

import logging
import re
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol

from aiohttp import hdrs, web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from sse_gateway.admission import Caller
from sse_gateway.errors import ConfigError, RequestError, TemporaryError
from sse_gateway.frames import unavailable_frame
from sse_gateway.logs import log_event
from sse_gateway.origins import METHODS, SAFE_HEADERS
from sse_gateway.problems import SERVER, problem
from sse_gateway.subscription import Subscription, read_wish

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from sse_gateway.addresses import TrustedProxies
    from sse_gateway.authority import Authority
    from sse_gateway.channels import RuleTable
    from sse_gateway.grants import Identity
    from sse_gateway.origins import Origins
    from sse_gateway.reasons import Unavailable

    Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

RETRY_AFTER_S = 5
"""What a client that is no EventSource is told with a 503."""

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "Connection": "close",
    **SAFE_HEADERS,
}

_AUTHORITY = re.compile(r"^https?://[^/?]*", re.IGNORECASE)

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
        self,
        transport: asyncio.Transport,
        head: bytes,
        subscription: Subscription,
        *,
        chunked: bool,
        caller: Caller,
        identity: Identity | None = None,
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
        origins: Origins,
        proxies: TrustedProxies,
        authority: Authority | None = None,
        fallback: Handler | None = None,
    ) -> None:
        """Prepare.

        Args:
            streams: Opens streams.
            rules: Who owns which channel.
            max_channels: Per stream.
            origins: Which pages may read.
            proxies: Who is believed about a client's address.
            authority: Lets requests in; None where everybody may read everything.
            fallback: Answers what is not under ``/events``.
        """
        self._streams = streams
        self._rules = rules
        self._max_channels = max_channels
        self._origins = origins
        self._proxies = proxies
        self._authority = authority
        self._fallback = fallback

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            path, _, query = _target(request).partition("?")
            if path != "/events" and not path.startswith("/events/"):
                return await self._other(request)
            return await self._events(request, None if path == "/events" else path.removeprefix("/events/"), query)
        except RequestError as error:
            response = problem(error.status, error.detail, {**self._cors(request), **error.headers})
            if request.body_exists:  # not read, and nothing behind it is a request
                response.force_close()
            return response
        except TemporaryError as error:
            return await self._refuse(request, error.reason)
        except ConnectionError:  # the client has left; the server knows what to do
            raise
        except Exception as error:  # noqa: BLE001 - rule 3
            log_event(_log, logging.ERROR, "request.failed", exc=error)
            return problem(500, "the gateway failed to answer this request", {})

    async def _other(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._fallback is not None:
            return await self._fallback(request)
        raise RequestError(404, "streams are under /events")

    async def _events(self, request: web.BaseRequest, name: str | None, query: str) -> web.StreamResponse:
        if name is not None and "/" in name:
            raise RequestError(404, "a channel is one path segment: write '/' as %2F")
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204, headers=self._preflight(request))
        if request.method not in {hdrs.METH_GET, hdrs.METH_HEAD}:
            raise RequestError(405, f"streams are read with {METHODS}")
        if request.body_exists:
            raise RequestError(400, "a request for a stream has no body")
        last_event_id = request.headers.get("Last-Event-ID")
        wish = read_wish(name, query, last_event_id, self._max_channels)
        self._check_origin(request)
        authority, identity = self._authority, None
        if authority is not None:
            access = await authority.admit(wish.names, request.headers, query)
            identity = None if access is None else access.identity
        subscription = wish.subscription(self._rules)
        caller = self._caller(request, identity)
        refusal = await self._streams.refusal(caller)
        if refusal is not None:
            return await self._refuse(request, refusal)
        if request.method == hdrs.METH_HEAD:
            return await self._empty(request)
        if authority is not None and identity is not None:
            authority.recheck(identity)  # the log may have been waited for
        return await self._open(request, subscription, caller, identity)

    def _caller(self, request: web.BaseRequest, identity: Identity | None) -> Caller:
        """Who asks, as far as limits are concerned."""
        transport = request.transport
        peer = None if transport is None else transport.get_extra_info("peername")
        host = str(peer[0]) if isinstance(peer, tuple) else None
        address = self._proxies.client(host, request.headers.getall("X-Forwarded-For", ()))
        return Caller(address, identity.subject or None if identity is not None else None)

    async def _open(
        self, request: web.BaseRequest, subscription: Subscription, caller: Caller, identity: Identity | None
    ) -> web.StreamResponse:
        transport = request.transport
        if transport is not None and not transport.is_closing():
            chunked = request.version >= (1, 1)
            head = _head({**_STREAM_HEADERS, **self._cors(request)}, chunked=chunked)
            refusal = self._streams.open(
                transport, head, subscription, chunked=chunked, caller=caller, identity=identity
            )
            if refusal is not None:
                return await self._refuse(request, refusal)
        return web.Response()  # to the server the client has just left: this is not written

    async def _refuse(self, request: web.BaseRequest, reason: Unavailable) -> web.StreamResponse:
        """Refuse for now, in the form that makes the client come back."""
        if not _accepts_stream(request):
            headers = {"Retry-After": str(RETRY_AFTER_S), **self._cors(request)}
            return problem(503, f"no new streams now: {reason}", headers)
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

    def _preflight(self, request: web.BaseRequest) -> dict[str, str]:
        cors = self._origins.preflight(request.headers.getall("Origin", ()))
        return {"Server": SERVER, "Allow": METHODS, **SAFE_HEADERS, **cors}

    def _check_origin(self, request: web.BaseRequest) -> None:
        """Refuse what a page asks for that may not.

        Raises:
            RequestError: 403.
        """
        headers = request.headers
        self._origins.check(
            headers.getall("Origin", ()),
            headers.get("Host"),
            site=headers.get("Sec-Fetch-Site"),
            mode=headers.get("Sec-Fetch-Mode"),
            dest=headers.get("Sec-Fetch-Dest"),
        )

    def _cors(self, request: web.BaseRequest) -> dict[str, str]:
        return self._origins.headers(request.headers.getall("Origin", ()))


def _target(request: web.BaseRequest) -> str:
    """The target without the scheme and the host that a request to a proxy carries.

    Raises:
        RequestError: The parser lets other versions of HTTP pass.

    Source: RFC 9112 section 3.2.2: a server must accept both forms.
    """
    if request.version[0] != 1:
        raise RequestError(400, "the request is not HTTP/1.1")
    return _AUTHORITY.sub("", request.raw_path, count=1)


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
