"""The shipped nginx file at work: real nginx, real gateway, over TLS."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.gateway_process import CONNECTIONS, STREAM_CLOSED, configuration, poll, rule
from tests.support.nginx import DEBIAN, HOSTILE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.nginx import Nginx, StartNginx
    from tests.support.raw_client import Address, Stream
    from tests.support.valkey import Valkey

SOON_S = 0.1
STREAM = {"Accept": "text/event-stream"}
API = {"Accept": "application/json"}
VERSIONS = ["--http1.1", "--http2"]


@pytest.fixture
def gateway(gateways: Gateways, valkey: Valkey) -> GatewayProcess:
    """A gateway for the test alone, with heartbeats that do not hurry events along: none comes while a test waits."""
    return gateways.start(configuration(valkey.url, stream={"heartbeat": "50s"}))


@pytest.fixture
def silent_upstream() -> Iterator[Address]:
    """Something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()


def curl(nginx: Nginx, target: str, *options: str, scheme: str = "https") -> tuple[int, str]:
    """Ask for what has an end: the status, and what came."""
    command = nginx.curl(target, "--max-time", "10", "--write-out", "\n%{http_code}", *options, scheme=scheme)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def accept(kind: str) -> tuple[str, str]:
    """An Accept header, for curl."""
    return "--header", f"Accept: {kind}"


def latency_s(stream: Stream, valkey: Valkey, channel: str) -> float:
    """How long a small event takes: the median, since what holds back one by its nature holds back all."""
    taken = []
    for number in range(11):
        begun = time.monotonic()
        valkey.publish(f"sse:{channel}", f"{number}")
        stream.wait_data(f"{number}")
        taken.append(time.monotonic() - begun)
    return statistics.median(taken)


@pytest.mark.parametrize("outer", [DEBIAN, HOSTILE], ids=["debian", "hostile"])
def test_events_arrive_at_once_whatever_stands_around_the_file(
    gateway: GatewayProcess, valkey: Valkey, start_nginx: StartNginx, connect: Connect, channel: str, outer: str
) -> None:
    """The headers come before any event, and each event within 100 ms, uncompressed, uncached, unlimited."""
    nginx = start_nginx(gateway.address, outer=outer)
    stream = connect(nginx.address, f"/events/{channel}", headers={**STREAM, "Accept-Encoding": "gzip"})
    stream.wait_open()

    assert latency_s(stream, valkey, channel) < SOON_S
    assert stream.headers.get("Content-Encoding") is None
    assert stream.headers.all("Cache-Control") == ["no-cache, no-transform"]

    large = "x" * 100_000  # at the hostile 1 kB/s this would take minutes
    valkey.publish(f"sse:{channel}", large)
    stream.wait_data(large)


def test_the_hostile_context_is_hostile(
    gateway: GatewayProcess, valkey: Valkey, start_nginx: StartNginx, connect: Connect, channel: str
) -> None:
    """Without the file's own line an event does not come: the test above would notice."""
    nginx = start_nginx(gateway.address, outer=HOSTILE, edits={"proxy_buffering off;": ""})
    stream = connect(nginx.address, f"/events/{channel}", headers=STREAM)
    gateway.wait_metric(CONNECTIONS, 1)
    valkey.publish(f"sse:{channel}", "held back")
    with pytest.raises(AssertionError, match="no event"):
        stream.wait_data("held back", timeout_s=0.5)


def test_the_gateways_own_headers_are_enough(
    gateway: GatewayProcess, valkey: Valkey, start_nginx: StartNginx, connect: Connect, channel: str
) -> None:
    """A site that copied the location and forgot `proxy_buffering off` still gets events at once."""
    nginx = start_nginx(gateway.address, edits={"proxy_buffering off;": "proxy_buffering on;"})
    stream = connect(nginx.address, f"/events/{channel}", headers=STREAM)
    stream.wait_open()

    assert latency_s(stream, valkey, channel) < SOON_S


def test_a_resume_brings_the_rest(
    gateway: GatewayProcess, valkey: Valkey, start_nginx: StartNginx, connect: Connect, channel: str
) -> None:
    """The cursor passes in the header and in the query; nothing is lost or comes twice."""
    nginx = start_nginx(gateway.address)
    first = connect(nginx.address, f"/events/{channel}", headers=STREAM)
    first.wait_open()
    valkey.publish(f"sse:{channel}", "one")
    first.wait_data("one")
    first.close()
    valkey.publish(f"sse:{channel}", "two")
    by_header = connect(nginx.address, f"/events/{channel}", headers={**STREAM, "Last-Event-ID": str(first.last_id)})
    by_query = connect(nginx.address, f"/events/{channel}?last_event_id={first.last_id}", headers=STREAM)
    by_header.wait_data("two")
    by_query.wait_data("two")

    assert by_header.data == by_query.data == ["two"]


@pytest.mark.parametrize(
    ("path", "name"), [("a%2Fb", "a/b"), ("50%25", "50%"), ("a+b", "a+b"), ("a%2B%C3%A4", "a+ä"), ("a%2F%2Fb", "a//b")]
)
def test_a_path_passes_as_it_is(
    gateway: GatewayProcess,
    valkey: Valkey,
    start_nginx: StartNginx,
    connect: Connect,
    channel: str,
    path: str,
    name: str,
) -> None:
    """What the client encoded, the gateway decodes: nginx neither decodes nor encodes."""
    stream = connect(start_nginx(gateway.address).address, f"/events/{channel}{path}", headers=STREAM)
    stream.wait_open()
    valkey.publish(f"sse:{channel}{name}", "here")
    stream.wait_data("here")


def test_what_the_gateway_is_sent(start_nginx: StartNginx) -> None:
    """The request as the client wrote it; its address as nginx saw it, whatever the client claims."""
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        nginx = start_nginx(upstream.getsockname())
        command = nginx.curl("/events/a%2Fb%25+c?x=%2F+&y", "--header", "X-Forwarded-For: 192.0.2.1", "--max-time", "9")
        with subprocess.Popen(command) as client:
            connection, _ = upstream.accept()
            request = ""
            with connection:
                while not request.endswith("\r\n\r\n"):
                    request += connection.recv(65_536).decode()
            client.kill()

    line, *fields = request.split("\r\n")
    assert line == "GET /events/a%2Fb%25+c?x=%2F+&y HTTP/1.1"
    assert [field for field in fields if field.lower().startswith("x-forwarded-for")] == ["X-Forwarded-For: 127.0.0.1"]
    assert not [field for field in fields if field.lower().startswith("connection")]


def test_no_log_holds_a_query(gateway: GatewayProcess, start_nginx: StartNginx, connect: Connect) -> None:
    """Neither a stream, nor a redirect, nor a gateway that goes away leaves a token in a log; `upstream=` is there."""
    nginx = start_nginx(gateway.address)
    stream = connect(nginx.address, "/events/a?token=secret", headers={**STREAM, "Last-Event-ID": "secret"})
    stream.wait_open()
    curl(nginx, "/events/a?token=secret", scheme="http")
    curl(nginx, "/events?token=secret")
    gateway.kill()  # cuts the stream
    stream.wait_end()
    curl(nginx, "/events/a?token=secret", *accept("text/event-stream"))
    lines = poll(lambda: (lines := nginx.read_log().splitlines())[3:] and lines, timeout_s=5, what="four lines")
    logs = lines + [nginx.read_log(name) for name in ("access.log", "error.log", "sse-gateway-error.log")]

    assert sorted(line.partition("] ")[2].partition(" bytes=")[0] for line in lines) == [
        '"GET /events HTTP/2.0" 400 upstream=400',
        '"GET /events/a HTTP/1.1" 200 upstream=200',
        '"GET /events/a HTTP/1.1" 301 upstream=-',
        '"GET /events/a HTTP/2.0" 200 upstream=502',
    ]
    assert not [text for text in logs if "secret" in text]


@pytest.mark.parametrize("outer", [DEBIAN, HOSTILE], ids=["debian", "hostile"])
def test_a_gateway_that_is_away_is_no_error_for_a_stream(
    gateway: GatewayProcess, start_nginx: StartNginx, connect: Connect, outer: str
) -> None:
    """Whoever accepts a stream gets 200 and one block of the gateway's kind; whoever does not, the 502."""
    nginx = start_nginx(gateway.address, outer=outer)
    gateway.stop()
    stream = connect(nginx.address, "/events/a", headers=STREAM)
    stream.wait_for(lambda it: it.ended or None, what="the end of the response")
    other = connect(nginx.address, "/events/a", headers=API).wait_head()

    assert stream.status == 200
    assert stream.headers.get("Content-Type") == "text/event-stream"
    assert stream.headers.all("Cache-Control") == ["no-cache, no-transform"]
    (block,) = stream.blocks
    assert (block.type, block.json(), block.id) == ("gateway.unavailable", {"reason": "draining"}, None)
    assert block.retry is not None
    assert other.status == 502


def test_refusals_are_spread(gateway: GatewayProcess, start_nginx: StartNginx) -> None:
    """Clients that lost their gateway at once are not all told the same `retry:`."""
    nginx = start_nginx(gateway.address)
    gateway.stop()
    told = {curl(nginx, "/events/a", *accept("text/event-stream"))[1].split("\n")[1] for _ in range(40)}

    assert len(told) >= 4


def test_a_gateway_that_does_not_answer_is_no_error_for_a_stream(
    silent_upstream: Address, start_nginx: StartNginx
) -> None:
    """The same for 504, which API clients are told as such."""
    nginx = start_nginx(silent_upstream, edits={"proxy_read_timeout 60s": "proxy_read_timeout 200ms"})

    status, body = curl(nginx, "/events/a", *accept("text/event-stream"))
    assert status == 200
    assert body.startswith("event: gateway.unavailable\n")
    assert curl(nginx, "/events/a")[0] == 504


def test_nginx_without_connections_is_no_error_for_a_stream(
    gateway: GatewayProcess, start_nginx: StartNginx, connect: Connect
) -> None:
    """When `worker_connections` are used up, nginx's own 500 becomes a later, too."""
    nginx = start_nginx(gateway.address, connections=16)
    types = []
    for _ in range(8):
        stream = connect(nginx.address, "/events/a", headers=STREAM)
        stream.wait_for(lambda it: it.blocks, what="first block")
        types.append((stream.status, stream.blocks[0].type))
        if types[-1][1] != "gateway.open":
            break

    assert types[0] == (200, "gateway.open")
    assert types[-1] == (200, "gateway.unavailable")


def test_a_page_of_another_origin_may_read_the_refusal(gateway: GatewayProcess, start_nginx: StartNginx) -> None:
    """An origin that is listed is answered, so that its EventSource comes back; another is not."""
    nginx = start_nginx(
        gateway.address, edits={'# "https://app.example" $http_origin;': '"https://app.example" $http_origin;'}
    )
    gateway.stop()

    def answered(origin: str) -> bool:
        options = ("--include", "--header", f"Origin: {origin}", *accept("text/event-stream"))
        said = curl(nginx, "/events/a", *options)[1]
        assert "vary: Origin" in said
        named = {f"access-control-allow-origin: {origin}", "access-control-allow-credentials: true"}
        assert named <= set(said.splitlines()) or "access-control-" not in said
        return "access-control-" in said

    assert answered("https://app.example")
    assert not answered("https://evil.example")


def test_the_gateways_own_answers_pass_untouched(
    gateways: Gateways, own_valkey: Valkey, start_nginx: StartNginx, connect: Connect
) -> None:
    """400, 404, 405, 503 with Retry-After, and the refusal with its own reason, also in a hostile context."""
    gateway = gateways.start(configuration(own_valkey.url, rule("sse:news:*")))
    nginx = start_nginx(gateway.address, outer=HOSTILE)

    def ask(target: str, headers: dict[str, str], method: str = "GET") -> Stream:
        stream = connect(nginx.address, target, headers=headers, method=method)
        return stream.wait_for(lambda it: it if it.ended else None, what="the end of the response")

    for target, method, status in (("/events", "GET", 400), ("/events/a", "GET", 404), ("/events/a", "POST", 405)):
        answer = ask(target, STREAM, method)
        assert (answer.status, answer.headers.get("Content-Type")) == (status, "application/problem+json")
        assert f'"status": {status}'.encode() in answer.body

    own_valkey.kill()
    gateway.wait_not_ready()
    refused = ask("/events/news:a", STREAM)
    assert (refused.status, [block.json() for block in refused.blocks]) == (200, [{"reason": "source"}])
    problem = ask("/events/news:a", API)
    assert (problem.status, problem.headers.get("Retry-After")) == (503, "5")
    assert b"no new streams now: source" in problem.body


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/api/streams", "/", "/events/../metrics"])
def test_admin_paths_are_closed(gateway: GatewayProcess, start_nginx: StartNginx, path: str) -> None:
    """Nothing of the admin listener is reachable, whichever way the path is written."""
    nginx = start_nginx(gateway.address)
    assert curl(nginx, path)[0] == curl(nginx, path.replace("m", "%6d"))[0] == 404
    poll(lambda: nginx.read_log().count("upstream=-") == 2, timeout_s=5, what="two lines")


def test_too_many_streams_of_an_address_are_told_later(
    gateway: GatewayProcess, start_nginx: StartNginx, connect: Connect
) -> None:
    """Beyond `limit_conn` a stream is refused as full, an API client with 429; a stream that ends makes room."""
    nginx = start_nginx(
        gateway.address, edits={"limit_conn sse_gateway_streams 100": "limit_conn sse_gateway_streams 2"}
    )
    kept = [connect(nginx.address, "/events/a", headers=STREAM) for _ in range(2)]
    for stream in kept:
        stream.wait_open()
    status, body = curl(nginx, "/events/a", *accept("text/event-stream"))

    assert status == 200
    assert body.startswith("event: gateway.unavailable\nretry: ")
    assert body.endswith('data: {"reason":"full"}\n\n')
    assert curl(nginx, "/events/a")[0] == 429

    kept[0].close()
    gateway.wait_metric(CONNECTIONS, 1)
    connect(nginx.address, "/events/a", headers=STREAM).wait_open()


def test_too_many_requests_of_an_address_are_told_later(gateway: GatewayProcess, start_nginx: StartNginx) -> None:
    """Beyond `limit_req` the same."""
    nginx = start_nginx(gateway.address, edits={"rate=20r/s": "rate=1r/m", "burst=100": "burst=2"})
    assert [curl(nginx, "/events")[0] for _ in range(4)] == [400, 400, 400, 429]
    status, body = curl(nginx, "/events/a", *accept("text/event-stream"))

    assert (status, body.endswith('data: {"reason":"full"}\n\n')) == (200, True)


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_are_bounded(gateway: GatewayProcess, start_nginx: StartNginx, version: str) -> None:
    """A line or a header of unusual size ends at nginx or at the gateway, with the status that says so."""
    nginx = start_nginx(gateway.address)

    def status(*options: str, query: str = "") -> int:
        return curl(nginx, f"/events/a{query}", version, "--head", *options)[0]

    assert status(query="?" + "x" * 30_000) == 200
    assert status(query="?" + "x" * 33_000) == 414
    assert status("--header", "X-Large: " + "x" * 15_000) == 200
    assert status("--header", "X-Large: " + "x" * 17_000) == 431
    many = [word for number in range(12) for word in ("--header", f"X-{number}: {'x' * 15_000}")]
    assert status(*many) in ({400} if version == "--http1.1" else {0, 400})  # over HTTP/2 curl itself gives up
    assert curl(nginx, "/events/a", version, "--data", "x" * 2000)[0] == 413


def test_a_client_that_leaves_is_left_upstream_too(
    gateway: GatewayProcess, start_nginx: StartNginx, connect: Connect
) -> None:
    """The gateway's connection ends before anything is sent, also in a context that ignores clients that leave."""
    nginx = start_nginx(gateway.address, outer=HOSTILE)
    plain = connect(nginx.address, "/events/a", headers=STREAM)
    plain.wait_open()
    with subprocess.Popen(nginx.curl("/events/a", "--http2"), stdout=subprocess.DEVNULL) as second:
        gateway.wait_metric(CONNECTIONS, 2)
        plain.close()
        gateway.wait_metric(CONNECTIONS, 1)
        second.kill()
    gateway.wait_metric(CONNECTIONS, 0)


def test_a_reload_keeps_streams_until_the_old_workers_time_is_up(
    gateway: GatewayProcess, valkey: Valkey, start_nginx: StartNginx, connect: Connect, channel: str
) -> None:
    """New streams go to the new worker; the old one serves its own until `worker_shutdown_timeout`, then is gone."""
    nginx = start_nginx(gateway.address, main="worker_shutdown_timeout 4s;")
    old = connect(nginx.address, f"/events/{channel}", headers=STREAM)
    old.wait_open()
    (old_worker,) = nginx.workers()
    nginx.reload()
    new = connect(nginx.address, f"/events/{channel}", headers=STREAM)
    new.wait_open()
    valkey.publish(f"sse:{channel}", "both")
    old.wait_data("both")
    new.wait_data("both")
    old.wait_end()
    poll(lambda: old_worker not in nginx.workers(), timeout_s=5, what="end of the old worker")
    valkey.publish(f"sse:{channel}", "after")
    resumed = connect(nginx.address, f"/events/{channel}", headers={**STREAM, "Last-Event-ID": str(old.last_id)})
    resumed.wait_data("after")
    new.wait_data("after")

    assert resumed.data == ["after"]
    assert not old.ended  # cut, not ended: no last chunk


def test_with_a_max_age_old_workers_empty_themselves(
    gateways: Gateways, valkey: Valkey, start_nginx: StartNginx, connect: Connect
) -> None:
    """Where streams end by themselves, an old worker goes without cutting anything."""
    gateway = gateways.start(configuration(valkey.url, stream={"max_age": "2s"}))
    nginx = start_nginx(gateway.address, main="worker_shutdown_timeout 60s;")
    stream = connect(nginx.address, "/events/a", headers=STREAM)
    stream.wait_open()
    (old_worker,) = nginx.workers()
    nginx.reload()
    stream.wait_type("gateway.close")
    stream.wait_for(lambda it: it.ended or None, what="clean end")
    poll(lambda: old_worker not in nginx.workers(), timeout_s=5, what="end of the old worker")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_does_not_read_is_dropped(
    gateway: GatewayProcess, valkey: Valkey, start_nginx: StartNginx, connect: Connect, channel: str, version: str
) -> None:
    """After `send_timeout` nginx lets it go, long before the gateway would; a reader beside it misses nothing."""
    nginx = start_nginx(gateway.address, edits={"send_timeout 30s": "send_timeout 1s"})
    reader = connect(nginx.address, f"/events/{channel}small", headers=STREAM)
    reader.wait_open()
    with subprocess.Popen(nginx.curl(f"/events/{channel}large", version), stdout=subprocess.DEVNULL) as stalled:
        gateway.wait_metric(CONNECTIONS, 2)
        os.kill(stalled.pid, signal.SIGSTOP)
        valkey.publish_many([(f"sse:{channel}large", "x" * 100_000)] * 300)  # more than every buffer between
        valkey.publish(f"sse:{channel}small", "still here")
        reader.wait_data("still here")
        (line,) = gateway.wait_log(STREAM_CLOSED, timeout_s=10)
        stalled.kill()

    assert line["reason"] == "client"
    assert line["duration_s"] < 10


def test_a_unix_socket_upstream(
    gateways: Gateways, valkey: Valkey, start_nginx: StartNginx, connect: Connect, channel: str
) -> None:
    """The upstream may be a Unix socket: streams, refusals of the gateway, and its absence."""
    with tempfile.TemporaryDirectory(prefix="gw-") as directory:
        Path(directory).chmod(0o755)
        path = f"{directory}/gw.sock"
        gateway = gateways.start(configuration(valkey.url, listen={"unix": path}))
        Path(path).chmod(0o777)
        nginx = start_nginx(path)
        stream = connect(nginx.address, f"/events/{channel}", headers=STREAM)
        stream.wait_open()
        valkey.publish(f"sse:{channel}", "here")
        stream.wait_data("here")
        assert curl(nginx, "/events")[0] == 400
        gateway.stop()
        assert curl(nginx, "/events/a", *accept("text/event-stream"))[0] == 200


def test_plain_http_goes_to_https(gateway: GatewayProcess, start_nginx: StartNginx) -> None:
    """A stream asked for over HTTP is sent to HTTPS, with its path and query."""
    nginx = start_nginx(gateway.address)
    status, body = curl(nginx, "/events/a%2Fb?x=1", "--include", scheme="http")

    assert status == 301
    assert "Location: https://127.0.0.1/events/a%2Fb?x=1\r\n" in body.replace("\n", "\r\n")
