"""HTTP at its edges: other origins, odd targets, broken requests, and none of it in the log."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gateway_process import CONNECTIONS, configuration
from tests.support.lateness import lateness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Stream
    from tests.support.valkey import Valkey

KIB = 1_024
CANARY = "canary"
"""A secret in every broken request; must never be in the log or in an answer."""

ORIGIN = "https://app.example.com"
PROBLEM = {"application/problem+json", "application/problem+json; charset=utf-8"}


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run one gateway without other origins, that logs all it can."""
    return module_gateways.start(configuration(valkey.url, log={"level": "debug"}))


@pytest.fixture(scope="module")
def open_gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway that other origins may read."""
    return module_gateways.start(configuration(valkey.url, cors={"origins": [ORIGIN, "http://localhost:3000"]}))


@pytest.fixture
def discreet(gateway: GatewayProcess) -> Iterator[GatewayProcess]:
    """Hold a test to leaving nothing of its request in the log, and no stream behind."""
    yield gateway
    gateway.wait_metric(CONNECTIONS, 0)
    written = "".join(map(str, gateway.logs)) + "".join(gateway.stray_output)
    assert CANARY not in written
    assert not gateway.records("process.failed")
    assert not gateway.records("request.failed")
    assert [r for r in gateway.logs if str(r.get("level")).lower() in {"warning", "error", "critical"}] == []


def ask(connect: Connect, gateway: GatewayProcess, raw: bytes) -> Stream:
    """Send bytes as they are."""
    return connect(gateway, "", raw=raw)


def request(target: bytes = b"/events/a", *fields: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    """Build a request with a secret in it."""
    lines = [method + b" " + target + b" HTTP/" + version, b"Host: x", b"Cookie: " + CANARY.encode(), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def problem(stream: Stream, status: int) -> Any:
    """Hold a refusal to its form and return its document."""
    stream.wait_for(lambda s: s.ended, what="whole refusal")
    assert stream.status == status, stream.body
    assert stream.headers.get("Content-Type") in PROBLEM
    assert stream.headers.get("X-Content-Type-Options") == "nosniff"
    assert stream.headers.get("Cache-Control") == "no-store"
    document = json.loads(stream.body)
    assert document["status"] == status
    assert set(document) == {"type", "title", "status", "detail"}
    assert CANARY not in stream.body.decode()
    return document


# -- other origins


@pytest.mark.parametrize("target", ["/events/a", "/events", "/nothing"])
@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
def test_a_page_of_a_named_origin_may_read(
    open_gateway: GatewayProcess, connect: Connect, target: str, origin: str
) -> None:
    """Streams and refusals alike tell the browser that exactly this origin may read them, and caches that it varies."""
    stream = connect(open_gateway, target, headers={"Origin": origin}).wait_head()

    assert stream.headers.get("Access-Control-Allow-Origin") == origin
    assert stream.headers.get("Vary") == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com",
        "https://app.example.com.evil.com",
        "https://APP.example.com",
        "http://app.example.com",
        "https://app.example.com:443",
        "https://app.example.com/",
        "null",
        "*",
        "",
    ],
)
def test_a_page_of_another_origin_may_not(open_gateway: GatewayProcess, connect: Connect, origin: str) -> None:
    """An origin is compared as a whole; what is not named gets the answer, and the browser keeps it from the page."""
    stream = connect(open_gateway, "/events/a", headers={"Origin": origin}).wait_head()

    assert stream.status == 200
    assert stream.headers.get("Access-Control-Allow-Origin") is None
    assert stream.headers.get("Vary") == "Origin"


def test_a_request_without_an_origin_varies_too(open_gateway: GatewayProcess, connect: Connect) -> None:
    """A cache must not hand the answer for one origin to another."""
    assert connect(open_gateway, "/events/a").wait_head().headers.get("Vary") == "Origin"


def test_credentials_are_never_allowed(open_gateway: GatewayProcess, connect: Connect) -> None:
    """No answer lets a page of another origin use the user's cookies."""
    for method in ("GET", "OPTIONS"):
        stream = connect(open_gateway, "/events/a", method=method, headers={"Origin": ORIGIN}).wait_head()
        assert stream.headers.get("Access-Control-Allow-Credentials") is None


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
    ],
)
def test_what_the_browser_says_of_the_page_counts(
    open_gateway: GatewayProcess, connect: Connect, fields: dict[str, str], status: int
) -> None:
    """A page that could not read the answer gets none, and takes no place; nor does a page that is the stream itself."""
    for method in ("GET", "HEAD"):
        stream = connect(open_gateway, "/events/a", method=method, headers=fields).wait_head()
        assert stream.status == status
    stream = connect(open_gateway, "/events/a", headers=fields)
    if status == 403:
        assert "evil" not in str(problem(stream, 403))


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ("/events/a", "GET"),
        ("/events/a", "HEAD"),
        ("/events/a", "OPTIONS"),
        ("/events/a", "POST"),
        ("/events", "GET"),
        ("/nothing", "GET"),
        ("/events/a/b", "GET"),
        ("/events/" + "a" * 40000, "GET"),
    ],
)
def test_every_answer_is_safe_in_a_browser(
    open_gateway: GatewayProcess, connect: Connect, target: str, method: str
) -> None:
    """It depends on the origin, is what it says, is no part of other pages, and is not compressed (BREACH)."""
    fields = {"Accept-Encoding": "gzip, deflate, br, zstd", "Accept": "text/event-stream"}
    stream = connect(open_gateway, target, method=method, headers=fields).wait_head()

    assert stream.headers.get("Vary") == "Origin"
    assert stream.headers.get("X-Content-Type-Options") == "nosniff"
    assert stream.headers.get("Cross-Origin-Resource-Policy") == "same-origin"
    assert stream.headers.get("Content-Encoding") is None
    assert stream.headers.get("Set-Cookie") is None


def preflight(connect: Connect, gateway: GatewayProcess, origin: str) -> Stream:
    """Ask as a browser asks before a request with a header of its own."""
    fields = {
        "Origin": origin,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization,last-event-id",
    }
    return connect(gateway, "/events/a", method="OPTIONS", headers=fields).wait_head()


def test_a_preflight_is_answered(open_gateway: GatewayProcess, connect: Connect) -> None:
    """A page of a named origin may send the headers that a stream's client needs."""
    stream = preflight(connect, open_gateway, ORIGIN)

    assert (stream.status, stream.body) == (204, b"")
    assert stream.headers.get("Access-Control-Allow-Origin") == ORIGIN
    assert "GET" in (stream.headers.get("Access-Control-Allow-Methods") or "")
    allowed = {name.strip() for name in (stream.headers.get("Access-Control-Allow-Headers") or "").split(",")}
    assert allowed >= {"authorization", "last-event-id", "cache-control"}
    assert int(stream.headers.get("Access-Control-Max-Age") or 0) > 0


def test_a_preflight_of_another_origin_is_not_allowed(open_gateway: GatewayProcess, connect: Connect) -> None:
    """The answer has nothing that a browser would take for leave."""
    stream = preflight(connect, open_gateway, "https://evil.example.com")

    assert stream.status == 204
    assert [name for name in stream.headers.names() if name.startswith("access-control-")] == []


def test_without_origins_no_page_is_let_in(gateway: GatewayProcess, connect: Connect) -> None:
    """By default no answer lets a page of another origin read; that it depends on the origin is said all the same."""
    for stream in (
        connect(gateway, "/events/a", headers={"Origin": ORIGIN}).wait_head(),
        preflight(connect, gateway, ORIGIN),
    ):
        assert stream.headers.get("Vary") == "Origin"
        assert not any(name.startswith("access-control-") for name in stream.headers.names())


# -- targets


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (b"http://gateway.test/events/a", "a"),
        (b"http://gateway.test:8080/events?channel=a", "a"),
        (b"HTTPS://gateway.test/events/a%20b?x=1", "a b"),
        (b"/events?channel=a%2fb", "a/b"),
        (b"/events/%61", "a"),
        (b"/events/a?", "a"),
        (b"/events/a?channel", None),
        (b"/events?=&channel=a", "a"),
        (b"/events?channel=a=b", "a=b"),
        (b"/events?channel=a?b", "a?b"),
        (b"/events?channel=a;b", "a;b"),
        (b"/events/a;b=c", "a;b=c"),
        (b"/events/a&b", "a&b"),
        (b"/events/%E2%82%AC", "\u20ac"),
        (b"/events/.", "."),
        (b"/events/..", ".."),
    ],
)
def test_targets_that_name_a_channel(
    discreet: GatewayProcess, connect: Connect, target: bytes, name: str | None
) -> None:
    """Names are read from the bytes of the target, of either form, decoded once and otherwise as they are."""
    stream = ask(connect, discreet, request(target))
    if name is None:
        problem(stream, 400)
    else:
        assert stream.wait_open().json()["channels"] == [name]
        stream.close()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://gateway.test", 404),
        (b"http://gateway.test?channel=a", 404),
        (b"http://gateway.test/", 404),
        (b"*", 400),
        ("/events/\u20ac".encode(), 400),
        (b"//events/a", 404),
        (b"/events//a", 404),
        (b"/events/a/", 404),
        (b"/./events/a", 404),
        (b"/x/../events/a", 404),
        (b"/%65vents/a", 404),
        (b"/events%2Fa", 404),
        (b"/events/%", 400),
        (b"/events/%4", 400),
        (b"/events/%zz", 400),
        (b"/events/a%", 400),
        (b"/events?channel=%", 400),
        (b"/events/%00", 400),
        (b"/events/\xff", 400),
        (b"/events?channel=\xc3", 400),
    ],
)
def test_targets_that_name_none(discreet: GatewayProcess, connect: Connect, target: bytes, status: int) -> None:
    """What is nobody's path is 404, and what is no name is 400; nothing is normalised first."""
    problem(ask(connect, discreet, request(target)), status)


# -- requests that are none


BROKEN = {
    "no version number": b"GET /events/canary HTTP/x\r\nHost: x\r\n\r\n",
    "another protocol": b"GET /events/canary ICY/1.1\r\nHost: x\r\n\r\n",
    "a space in the target": b"GET /events/can ary HTTP/1.1\r\nHost: canary\r\n\r\n",
    "a NUL in the target": b"GET /events/canary\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bad method": b"G@T /events/canary HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03canary\r\n\r\n",
    "SSH": b"SSH-2.0-canary\r\n\r\n",
    "a space before the colon": request(b"/events/a", b"X-A : canary"),
    "no colon": request(b"/events/a", b"canary"),
    "no name": request(b"/events/a", b": canary"),
    "a NUL in a value": request(b"/events/a", b"X-A: can\0canary"),
    "a bare CR in a value": request(b"/events/a", b"X-A: x\rcanary: y"),
    "a control in a name": request(b"/events/a", b"X-\x01: canary"),
    "two hosts": request(b"/events/a", b"Host: canary"),
    "two lengths": request(b"/events/a", b"Content-Length: 0", b"Content-Length: 5"),
    "a length that is none": request(b"/events/a", b"Content-Length: canary"),
    "a negative length": request(b"/events/a", b"Content-Length: -1"),
    "length and coding": request(b"/events/a", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "a bad chunk": request(b"/events/a", b"Transfer-Encoding: chunked") + b"canary\r\n",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_http_gets_400(discreet: GatewayProcess, connect: Connect, raw: bytes) -> None:
    """A broken request is refused with a problem document and the end of the connection; none of it is quoted."""
    stream = ask(connect, discreet, raw)

    problem(stream, 400)
    if raw.endswith(b"\r\n\r\n"):
        stream.wait_end()


def test_a_method_that_the_parser_does_not_know_gets_405(discreet: GatewayProcess, connect: Connect) -> None:
    """It is a method like any other that streams are not read with."""
    stream = ask(connect, discreet, b"FOO /events/canary HTTP/1.1\r\nHost: x\r\n\r\n")

    problem(stream, 405)
    assert stream.headers.get("Allow") == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("line_end", [b"", b" HTTP/0.9", b" HTTP/2.0"])
def test_other_versions_of_http_get_400(discreet: GatewayProcess, line_end: bytes) -> None:
    """What the parser lets pass is refused all the same: a stream is HTTP/1."""
    assert isinstance(discreet.address, tuple)
    with socket.create_connection(discreet.address, 5) as connection:
        connection.sendall(b"GET /events/canary" + line_end + b"\r\nHost: x\r\n\r\n")

        assert b" 400 Bad Request\r\n" in connection.recv(4 * KIB)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (request(b"/events/" + CANARY.encode() * 6 * KIB), 414),
        (request(b"/events?token=" + CANARY.encode() * 6 * KIB), 414),
        (request(b"/events/a", b"X-A: " + CANARY.encode() * 3 * KIB), 431),
        (request(b"/events/a", b"Authorization: Bearer " + CANARY.encode() * 3 * KIB), 431),
        (request(b"/events/a", b"X-" + CANARY.encode() * 3 * KIB + b": x"), 431),
        (request(b"/events/a", *(b"X-%d: canary" % number for number in range(200))), 431),
    ],
    ids=["a path", "a query", "a value", "a token", "a name", "many"],
)
def test_what_is_too_long_is_told_apart(discreet: GatewayProcess, connect: Connect, raw: bytes, status: int) -> None:
    """A target is too long at 32 KiB, a header at 16 KiB, headers at 128; each with its own status, none quoted."""
    problem(ask(connect, discreet, raw), status)


def test_what_is_long_but_allowed(discreet: GatewayProcess, connect: Connect) -> None:
    """64 channels of 256 bytes, a token of 12 KiB and 100 headers are no trouble."""
    names = [f"{number:02}" + "a" * 254 for number in range(64)]
    target = b"/events?" + b"&".join(b"channel=" + name.encode() for name in names)
    fields = [b"Authorization: Bearer " + b"x" * 12 * KIB, *(b"X-%d: y" % number for number in range(100))]
    stream = ask(connect, discreet, request(target, *fields))

    assert sorted(stream.wait_open().json()["channels"]) == sorted(names)
    stream.close()


# -- headers


@pytest.mark.parametrize(
    "fields",
    [
        (b"X-A: \xff\xfe\x80",),
        (b"X-A:",),
        (b"X-A:\t x \t",),
        (b"X-A: 1", b"X-A: 2"),
        (b"Accept: text/event-stream", b"Accept: */*"),
        (b"Origin: x", b"Origin: y"),
        (b"Connection: upgrade", b"Upgrade: websocket"),
        (b"Connection: upgrade, http2-settings", b"Upgrade: h2c", b"HTTP2-Settings: x"),
        (b"Expect: 100-continue",),
        (b"Expect: canary",),
        (b"Range: bytes=0-1", b"If-Modified-Since: x", b"If-None-Match: *", b"TE: trailers"),
        (b"Content-Length: 0",),
        (b"Content-Type: canary/\x80",),
        (b"Accept-Encoding: gzip, br", b"Accept-Charset: x"),
        (b"Forwarded: for=canary", b"X-Forwarded-Proto: gopher"),
    ],
)
def test_odd_headers_do_no_harm(discreet: GatewayProcess, connect: Connect, fields: tuple[bytes, ...]) -> None:
    """Headers that mean nothing to a stream change nothing about it."""
    stream = ask(connect, discreet, request(b"/events/a", *fields))

    assert stream.wait_open().json()["channels"] == ["a"]
    assert stream.headers.get("Content-Encoding") is None
    stream.close()


def test_of_two_cursors_in_the_headers_the_first_counts(
    discreet: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A header that came twice is read once, and whichever it is, it is no error."""
    valkey.publish_many([(f"sse:{channel}", str(number)) for number in range(5)])
    seen = connect(discreet, f"/events/{channel}?replay=all")
    seen.wait_data("4")
    seen.close()
    first, second = (b"Last-Event-ID: " + (seen.events[place].id or "").encode() for place in (1, 3))
    stream = ask(connect, discreet, request(f"/events/{channel}".encode(), first, second))
    stream.wait_data("4")

    assert stream.data == ["2", "3", "4"]
    stream.close()


@pytest.mark.parametrize(
    "raw",
    [
        request(b"/events/a", b"Content-Length: 6") + CANARY.encode(),
        request(b"/events/a", b"Transfer-Encoding: chunked") + b"6\r\ncanary\r\n0\r\n\r\n",
        request(b"/events/a", b"Content-Length: 6", b"Expect: 100-continue"),
        request(b"/events/a", b"Content-Length: 1000000"),
        request(b"/events/a", b"Content-Length: 6", method=b"HEAD") + CANARY.encode(),
    ],
    ids=["with a length", "chunked", "not yet sent", "never sent", "HEAD"],
)
def test_a_request_for_a_stream_has_no_body(discreet: GatewayProcess, connect: Connect, raw: bytes) -> None:
    """A body is refused at once, without being waited for."""
    stream = ask(connect, discreet, raw)
    stream.method = raw.partition(b" ")[0].decode()
    stream.wait_head()  # to a client that goes on waiting: a connection that is waited for ends without an answer

    assert stream.status == 400
    stream.close()


# -- the process


def test_the_parser_in_python_is_refused(gateways: Gateways, valkey: Valkey) -> None:
    """Without aiohttp's parser in C the gateway does not start: it ends with 78 and says what to do."""
    gateway = gateways.start(configuration(valkey.url), alive=False, environment={"AIOHTTP_NO_EXTENSIONS": "1"})

    assert gateway.wait_exit() == 78
    assert "AIOHTTP_NO_EXTENSIONS" in gateway.output_tail()


def test_unfinished_requests_do_not_hold_the_end_up(gateways: Gateways, valkey: Valkey) -> None:
    """Connections that are idle, or in the middle of a request, do not delay the end of the process."""
    gateway = gateways.start(configuration(valkey.url))
    assert isinstance(gateway.address, tuple)
    whole = b"OPTIONS /events/a HTTP/1.1\r\nHost: x\r\n\r\n"
    connections = [socket.create_connection(gateway.address, 5) for _ in range(4)]
    try:
        for connection, sent in zip(connections, [b"", whole[:20], whole, whole + whole[:20]], strict=True):
            connection.sendall(sent)
        assert connections[3].recv(KIB)
        with lateness() as late:
            began = time.monotonic()
            assert gateway.stop() == 0
            assert time.monotonic() - began < 3 + late.total_s
    finally:
        for connection in connections:
            connection.close()
