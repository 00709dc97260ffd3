"""What is refused for good, what for now, and in which form: a browser closes for ever on any status but 200."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.support.gateway_process import CONNECTIONS, configuration, rule
from tests.support.lateness import lateness
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Stream
    from tests.support.valkey import Valkey

MAX_CHANNELS = 64
DROPPED_CONNECTIONS = "sse_gateway_connections_dropped_total"


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway that serves ``pub:*`` and nothing else."""
    return module_gateways.start(configuration(valkey.url, rule("sse:pub:*")))


@pytest.fixture(scope="module")
def catch_all(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway with the pattern ``*``."""
    return module_gateways.start(configuration(valkey.url, {"pattern": "*", "format": "text"}))


@pytest.fixture(scope="module")
def narrow(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway that takes two connections and waits 1 s for retries."""
    config = configuration(valkey.url, rule("sse:pub:*"), limits={"connections": 2}, stream={"retry": "1s"})
    return module_gateways.start(config)


@pytest.fixture(scope="module")
def sourceless(module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway whose Redis is not there."""
    config = configuration(f"redis://127.0.0.1:{free_port()}", rule("sse:pub:*"), stream={"retry": "2s"})
    return module_gateways.start(config, ready=False)


def problem(stream: Stream) -> Any:
    """Read a refusal to its end and return its problem document."""
    stream.wait_for(lambda s: s.ended, what="whole refusal")
    assert stream.headers.get("Content-Type") in {
        "application/problem+json",
        "application/problem+json; charset=utf-8",
    }
    document = json.loads(stream.body)
    assert document.get("status", stream.status) == stream.status
    assert set(document) <= {"type", "title", "status", "detail", "instance"}
    assert document.get("title") or document.get("detail")
    return document


def check_unavailable(stream: Stream, reason: str, *, retry_s: float) -> None:
    """Hold a stream to the form of a temporary refusal that a browser survives."""
    stream.wait_end()
    assert stream.status == 200
    assert stream.headers.get("Content-Type") == "text/event-stream"
    assert stream.ended
    assert not stream.was_reset
    (block,) = stream.blocks
    assert block.type == "gateway.unavailable"
    assert block.json() == {"reason": reason}
    assert block.id is None
    assert block.retry is not None
    assert retry_s * 5 * 500 <= block.retry <= retry_s * 5 * 1_500


def check_503(stream: Stream) -> None:
    """Hold an answer to the form of a temporary refusal for clients that are no EventSource."""
    stream.wait_head()
    assert stream.status == 503
    assert (stream.headers.get("Retry-After") or "").isdigit()


# -- for good


BAD_TARGETS = {
    "no channel": "/events",
    "no channel but parameters": "/events?replay=1",
    "an empty channel in the query": "/events?channel=",
    "an empty channel among others": "/events?channel=pub:a&channel=",
    "an empty channel in the path": "/events/",
    "path and query": "/events/pub:a?channel=pub:b",
    "the same channel in path and query": "/events/pub:a?channel=pub:a",
    "257 bytes": "/events/pub:" + "a" * 253,
    "257 bytes of UTF-8": "/events/pub:a" + quote("é") * 126,
    "too many channels": "/events?" + "&".join(f"channel=pub:{n}" for n in range(MAX_CHANNELS + 1)),
    "NUL": "/events/pub:%00",
    "LF": "/events/pub:a%0ab",
    "CR": "/events/pub:a%0Db",
    "TAB": "/events/pub:a%09b",
    "ESC": "/events/pub:%1b",
    "NEL, a C1 control": "/events/pub:%C2%85",
    "CSI, a C1 control": "/events/pub:%c2%9B",
    "LF in the query": "/events?channel=pub:a%0Ab",
    "a lone continuation byte": "/events/pub:%80",
    "Latin-1": "/events/pub:caf%E9",
    "an overlong slash": "/events/pub:%C0%AF",
    "a surrogate": "/events/pub:%ED%A0%80",
    "truncated UTF-8": "/events/pub:%E2%82",
    "no UTF-8 in the query": "/events?channel=pub:%ff",
    "two replays": "/events/pub:a?replay=1&replay=2",
    "two wraps": "/events/pub:a?wrap=1&wrap=1",
    "two cursors of one name": "/events/pub:a?last_event_id=1&last_event_id=2",
    "two cursors of the other name": "/events/pub:a?lastEventId=1&lastEventId=1",
}


@pytest.mark.parametrize("target", BAD_TARGETS.values(), ids=BAD_TARGETS.keys())
def test_a_bad_request_gets_400(gateway: GatewayProcess, connect: Connect, target: str) -> None:
    """What can never be right is refused with 400 and a problem document."""
    stream = connect(gateway, target).wait_head()

    assert stream.status == 400
    assert problem(stream)


def test_the_bounds_of_a_request_are_inclusive(gateway: GatewayProcess, connect: Connect) -> None:
    """256 bytes of name and 64 channels are allowed."""
    name = "pub:" + "é" * 126
    many = [f"pub:{number}" for number in range(MAX_CHANNELS)]

    assert connect(gateway, f"/events/{quote(name)}").wait_open().json()["channels"] == [name]
    block = connect(gateway, "/events?" + "&".join(f"channel={name}" for name in many)).wait_open()
    assert sorted(block.json()["channels"]) == sorted(many)


@pytest.mark.parametrize("name", ["nope", "pu", "pub", "sse:pub:a", "PUB:a", "x" * 256, "..%2fpub:a", "%2Fpub:a"])
def test_a_channel_without_a_rule_gets_404(gateway: GatewayProcess, connect: Connect, name: str) -> None:
    """A channel that no rule owns is refused with 404 and a problem document."""
    stream = connect(gateway, f"/events/{name}").wait_head()

    assert stream.status == 404
    assert problem(stream)


def test_one_channel_without_a_rule_refuses_all(gateway: GatewayProcess, connect: Connect) -> None:
    """A request is answered as a whole: one unknown channel among known ones is 404."""
    assert connect(gateway, "/events?channel=pub:a&channel=nope").wait_head().status == 404


@pytest.mark.parametrize("target", ["/events?channel=nope&channel=", "/events/nope?replay=1&replay=1"])
def test_400_goes_before_404(gateway: GatewayProcess, connect: Connect, target: str) -> None:
    """A request that is both bad and of an unknown channel is bad."""
    assert connect(gateway, target).wait_head().status == 400


@pytest.mark.parametrize("name", ["__x", "__keyspace@0__:x", "%5F_x", "__sse_gateway:default", "__", "__*", "___"])
def test_reserved_channels_get_404(catch_all: GatewayProcess, connect: Connect, name: str) -> None:
    """A client that asks for a channel that begins with two underscores gets 404 under any pattern."""
    assert connect(catch_all, f"/events/{name}").wait_head().status == 404


def test_reserved_channels_are_never_delivered(
    catch_all: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """What is published to reserved channels reaches nobody, not even by prefix."""
    stream = connect(catch_all, f"/events?channel=_*&channel={channel}")
    stream.wait_open()
    valkey.publish_many([("__x", "secret"), ("__sse_gateway:default", "secret"), ("_x", "mine"), (channel, "end")])
    stream.wait_data("end")

    assert stream.data == ["mine", "end"]


def test_unknown_parameters_are_ignored(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """Parameters that mean nothing here are no error, also when they repeat."""
    target = f"/events/pub:{channel}?utm=1&utm=2&_=123&Channel=x&x[]=%00&=&&flag"

    assert connect(gateway, target).wait_open().json()["channels"] == [f"pub:{channel}"]


@pytest.mark.parametrize(
    "target",
    ["/", "/metrics", "/healthz", "/readyz", "/api", "/event/pub:a", "/eventsx/pub:a", "/Events/pub:a", "/favicon.ico"],
)
def test_the_public_listener_serves_streams_only(gateway: GatewayProcess, connect: Connect, target: str) -> None:
    """What belongs to the admin listener, or to nobody, is 404 on the public one."""
    assert connect(gateway, target).wait_head().status == 404


def test_too_long_a_target_gets_414(gateway: GatewayProcess, connect: Connect) -> None:
    """A request target of a megabyte is refused with 414."""
    assert refused_head(connect, gateway, "/events/pub:" + "a" * 1_000_000, {}) == 414


def test_too_large_headers_get_431(gateway: GatewayProcess, connect: Connect) -> None:
    """A header field of a megabyte is refused with 431."""
    assert refused_head(connect, gateway, "/events/pub:a", {"X-Large": "a" * 1_000_000}) == 431


def test_a_huge_cursor_gets_431(gateway: GatewayProcess, connect: Connect) -> None:
    """A cursor larger than any header may be is refused as a header."""
    assert refused_head(connect, gateway, "/events/pub:a", {"Last-Event-ID": "a" * 1_000_000}) == 431


def test_too_many_headers_get_431(gateway: GatewayProcess, connect: Connect) -> None:
    """Ten thousand header fields are refused with 431."""
    assert refused_head(connect, gateway, "/events/pub:a", {f"X-{n}": "a" * 90 for n in range(10_000)}) == 431


def refused_head(connect: Connect, gateway: GatewayProcess, target: str, headers: dict[str, str]) -> int:
    """Send a request that is refused, perhaps before it has been sent whole, and return the status."""
    assert isinstance(gateway.address, tuple)
    lines = [f"GET {target} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    stream = connect(gateway, "", raw=b"")
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # refused before it was sent whole
        stream.send(("\r\n".join(lines) + "\r\n\r\n").encode())
    return stream.wait_head().status


def test_garbage_instead_of_http_harms_nobody(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """Bytes that are no request are answered with 400 or with the end of the connection."""
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET\r\n\r\n",
        b"\0" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        connect(gateway, "", raw=garbage).wait_for(lambda s: s.eof or s.status >= 400, what="refusal")

    assert connect(gateway, f"/events/pub:{channel}").wait_open().type == "gateway.open"


def test_a_host_that_nobody_can_decode_ends_its_connection_alone(
    gateway: GatewayProcess, connect: Connect, channel: str
) -> None:
    """A name that only looks like IDNA is refused, and ends the connection it came on and nothing else."""
    for _ in range(20):
        stream = connect(gateway, "", raw=b"GET http://xn--a/events/a HTTP/1.1\r\nHost: x\r\n\r\n")
        stream.wait_end()
        assert stream.status == 400

    assert connect(gateway, f"/events/pub:{channel}").wait_open().type == "gateway.open"


def test_a_refusal_leaves_no_connection_behind(gateway: GatewayProcess, connect: Connect) -> None:
    """Refused requests are no streams: the gauge of connections stays at zero."""
    for target in ("/events", "/events/nope", "/nowhere"):
        connect(gateway, target).wait_head()

    gateway.wait_metric(CONNECTIONS, 0)


def test_head_is_refused_as_get_is(gateway: GatewayProcess, connect: Connect) -> None:
    """HEAD has the status of GET and no body."""
    for target, status in (("/events", 400), ("/events/nope", 404)):
        stream = connect(gateway, target, method="HEAD").wait_head()

        assert (stream.status, stream.body) == (status, b"")


# -- for now: full


def fill(connect: Connect, narrow: GatewayProcess) -> list[Stream]:
    """Take all connections of the narrow gateway."""
    narrow.wait_metric(CONNECTIONS, 0)
    streams = [connect(narrow, "/events/pub:a") for _ in range(2)]
    for stream in streams:
        stream.wait_open()
    return streams


@pytest.mark.parametrize(
    "accept", ["text/event-stream", "text/html, text/event-stream;q=0.9, */*;q=0.1", "TEXT/Event-Stream"]
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_full_gateway_tells_an_event_source_in_the_stream(
    narrow: GatewayProcess, connect: Connect, accept: str, version: str
) -> None:
    """At the limit of connections an EventSource gets 200, one block without an id, and a clean end."""
    fill(connect, narrow)
    stream = connect(narrow, "/events/pub:a", headers={"Accept": accept}, version=version)

    check_unavailable(stream, "full", retry_s=1)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_refusal_for_now_ends_cleanly(narrow: GatewayProcess, connect: Connect, method: str) -> None:
    """As a stream does: behind its end the client may still say something and is not reset; a second later it is."""
    fill(connect, narrow)
    request = f"{method} /events/pub:a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
    with lateness() as late, socket.create_connection(("127.0.0.1", narrow.config["listen"]["port"])) as sock:
        asked = time.monotonic()
        sock.sendall(request.encode())
        answer = b"".join(iter(lambda: sock.recv(65_536), b""))
        assert answer.endswith(b"\r\n\r\n")
        broken = select.poll()
        broken.register(sock, 0)  # no more than whether it is reset
        with contextlib.suppress(ConnectionError):  # it may be reset just before
            while not broken.poll(50) and time.monotonic() < asked + 10:
                sock.send(b"x")
        assert 0.95 < time.monotonic() - asked < 3 + late.total_s


def test_what_follows_a_refusal_for_now_is_bounded(narrow: GatewayProcess, connect: Connect) -> None:
    """I5: who floods the end of its answer loses the connection for that, before the second is over."""
    fill(connect, narrow)
    dropped = narrow.metric(DROPPED_CONNECTIONS, reason="size")
    with lateness() as late, socket.create_connection(("127.0.0.1", narrow.config["listen"]["port"])) as sock:
        sock.sendall(b"HEAD /events/pub:a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        while sock.recv(65_536):
            pass
        ended = time.monotonic()
        with pytest.raises(ConnectionError):
            sock.sendall(b"x" * 16_000_000)
        assert time.monotonic() - ended < 0.8 + late.total_s
    assert narrow.metric(DROPPED_CONNECTIONS, reason="size") == dropped + 1


@pytest.mark.parametrize("accept", ["*/*", "text/*", "application/json", "text/html", "text/event-streams"])
def test_a_full_gateway_tells_others_503(narrow: GatewayProcess, connect: Connect, accept: str) -> None:
    """Where `Accept` does not name the type, a temporary refusal is a 503 with `Retry-After`."""
    fill(connect, narrow)

    check_503(connect(narrow, "/events/pub:a", headers={"Accept": accept}))


def test_a_client_that_accepts_nothing_by_name_gets_503(narrow: GatewayProcess, connect: Connect) -> None:
    """Without an `Accept` at all a temporary refusal is a 503."""
    fill(connect, narrow)

    check_503(connect(narrow, "", raw=b"GET /events/pub:a HTTP/1.1\r\nHost: x\r\n\r\n"))


def test_a_full_gateway_still_refuses_bad_requests_for_good(narrow: GatewayProcess, connect: Connect) -> None:
    """What can never be right is not told to come again."""
    fill(connect, narrow)

    assert connect(narrow, "/events").wait_head().status == 400
    assert connect(narrow, "/events/nope").wait_head().status == 404


def test_a_place_that_is_left_is_taken_again(narrow: GatewayProcess, connect: Connect) -> None:
    """The limit counts open streams, not streams ever opened."""
    streams = fill(connect, narrow)
    check_unavailable(connect(narrow, "/events/pub:a"), "full", retry_s=1)
    streams[0].close()
    narrow.wait_metric(CONNECTIONS, 1)

    assert connect(narrow, "/events/pub:a").wait_open().type == "gateway.open"


def test_a_full_gateway_stays_ready_to_be_asked(narrow: GatewayProcess, connect: Connect) -> None:
    """The streams that are open are not harmed by those that are refused."""
    streams = fill(connect, narrow)
    for _ in range(50):
        connect(narrow, "/events/pub:a").wait_end()
    for stream in streams:
        stream.wait_next("gateway.heartbeat")

    assert narrow.admin_status("/healthz") == 200
    narrow.wait_metric(CONNECTIONS, 2)


def test_the_limit_follows_the_descriptors(gateways: Gateways, valkey: Valkey, connect: Connect) -> None:
    """A limit above the process's descriptors less 128 is lowered to that, and said at the start."""
    gateway = gateways.start(configuration(valkey.url, rule("sse:pub:*")), open_files=132)
    for _ in range(4):
        connect(gateway, "/events/pub:a").wait_open()

    check_unavailable(connect(gateway, "/events/pub:a"), "full", retry_s=3)
    assert gateway.wait_log("worker.started", max_connections=4)


# -- for now: no source


def test_a_gateway_without_its_source_tells_an_event_source_in_the_stream(
    sourceless: GatewayProcess, connect: Connect
) -> None:
    """While Redis has not been reached, an EventSource is told to come again."""
    check_unavailable(connect(sourceless, "/events/pub:a"), "source", retry_s=2)


def test_a_gateway_without_its_source_tells_others_503(sourceless: GatewayProcess, connect: Connect) -> None:
    """While Redis has not been reached, other clients get 503."""
    check_503(connect(sourceless, "/events/pub:a", headers={"Accept": "*/*"}))


def test_a_gateway_without_its_source_is_alive_and_not_ready(sourceless: GatewayProcess) -> None:
    """Liveness does not hang on Redis; readiness does, and says so as JSON."""
    status, content_type, body = sourceless.admin("/readyz")

    assert sourceless.admin_status("/healthz") == 200
    assert status == 503
    assert content_type.startswith("application/json")
    assert json.loads(body)


def test_a_gateway_without_its_source_refuses_bad_requests_for_good(
    sourceless: GatewayProcess, connect: Connect
) -> None:
    """400 and 404 do not wait for Redis."""
    assert connect(sourceless, "/events").wait_head().status == 400
    assert connect(sourceless, "/events/nope").wait_head().status == 404


# -- hostile connections


def test_slow_requests_do_not_hold_others_up(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """Connections that never finish their request cost other clients nothing."""
    assert isinstance(gateway.address, tuple)
    dribbling = [socket.create_connection(gateway.address, 5) for _ in range(50)]
    try:
        for connection in dribbling:
            connection.sendall(b"GET /events/pub:a HTT")
        assert connect(gateway, f"/events/pub:{channel}").wait_open(timeout_s=5).type == "gateway.open"
    finally:
        for connection in dribbling:
            connection.close()


@pytest.mark.parametrize(
    "more",
    [
        b"GET /events/pub:b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /events/pub:b HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000,
        b"\0" * 100_000,
        b"\r\n",
    ],
    ids=["a pipelined request", "a thousand of them", "garbage", "an empty line"],
)
def test_a_client_that_goes_on_sending_harms_nobody(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, more: bytes
) -> None:
    """What follows a request is never answered as a second one; the stream goes on or ends, others go on."""
    request = f"GET /events/pub:{channel} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode()
    noisy = connect(gateway, "", raw=request)
    quiet = connect(gateway, f"/events/pub:{channel}")
    noisy.wait_open()
    quiet.wait_open()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        noisy.send(more)
    valkey.publish(f"sse:pub:{channel}", "hello")
    quiet.wait_data("hello")
    noisy.wait_for(lambda s: s.eof or s.data, what="event or end")

    assert noisy.data in ([], ["hello"])
    assert noisy.status == 200


@pytest.mark.parametrize("more", [b"GET /events/pub:b HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 1_000])
def test_what_comes_with_the_request_is_never_a_second_one(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, more: bytes
) -> None:
    """Bytes in the same segment as the request are not answered, and the stream is one stream."""
    request = f"GET /events/pub:{channel} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode()
    stream = connect(gateway, "", raw=request + more)
    stream.wait_for(lambda s: s.eof or s.blocks, what="first block or end")
    valkey.publish(f"sse:pub:{channel}", "hello")
    stream.wait_for(lambda s: s.eof or s.data, what="event or end")

    assert stream.data in ([], ["hello"])
    assert connect(gateway, f"/events/pub:{channel}").wait_open().type == "gateway.open"


def test_a_body_is_not_waited_for(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """A GET that announces a body and sends none is answered all the same, one way or the other."""
    stream = connect(gateway, f"/events/pub:{channel}", headers={"Content-Length": "1000000"})

    assert stream.wait_head().status in {200, 400, 413}


def test_a_reset_at_any_byte_of_the_request_leaves_nothing_behind(gateway: GatewayProcess, connect: Connect) -> None:
    """I8: a client that resets in the middle of its request, or right behind it, leaves no stream open."""
    request = b"GET /events/pub:a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
    for cut in range(1, len(request) + 1):
        connect(gateway, "", raw=request[:cut]).reset()

    gateway.wait_metric(CONNECTIONS, 0)
    assert gateway.admin_status("/readyz") == 200
