"""Limits per client: one node's, whichever of its workers takes the connection, and whoever of them dies."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from tests.support.access import jwt_auth, token
from tests.support.gateway_process import CONNECTIONS, MARKER, configuration, poll, rule
from tests.support.streams import follow

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Connect
    from tests.support.gateway_process import Config, GatewayProcess, Gateways
    from tests.support.raw_client import Stream
    from tests.support.valkey import Valkey

REFUSED = MARKER + "streams_refused_total"
HERE, THERE, SAME_64 = "203.0.113.7", "2001:db8:1:2::3", "2001:db8:1:2:ffff::4"


def limited(valkey: Valkey, workers: int = 1, **limits: object) -> Config:
    """A configuration with limits."""
    return configuration(valkey.url, limits=dict(limits), shutdown={"drain": "300ms"}) | {"workers": workers}


def ask(connect: Connect, gateway: GatewayProcess, address: str | None, **headers: str) -> Stream:
    """Ask for a stream for an address, as a proxy on this host would."""
    forwarded = {} if address is None else {"X-Forwarded-For": address}
    stream = connect(gateway, "/events/a", headers={"Accept": "text/event-stream", **forwarded, **headers})
    stream.wait_for(lambda s: s.blocks or s.status not in {0, 200}, what="answer")
    return stream


def is_let_in(stream: Stream) -> bool:
    """Whether it is a stream; what else it may be is a refusal for now."""
    first = stream.blocks[0]
    if first.type == "gateway.open":
        return True
    assert (first.type, first.json(), first.id) == ("gateway.unavailable", {"reason": "full"}, None)
    assert first.retry
    stream.wait_end()
    assert stream.ended
    return False


def test_an_address_has_so_many_streams(gateways: Gateways, valkey: Valkey, connect: Connect) -> None:
    """On the node and not on each worker; others are not affected, and a place that is left is given again."""
    gateway = gateways.start(limited(valkey, 2, connections_per_address=4))
    streams = [ask(connect, gateway, HERE) for _ in range(12)]
    let_in = [stream for stream in streams if is_let_in(stream)]
    assert len(let_in) == 4
    assert len([1 for _ in range(8) if is_let_in(ask(connect, gateway, THERE if _ % 2 else SAME_64))]) == 4
    assert all(is_let_in(ask(connect, gateway, None)) for _ in range(8))
    assert not is_let_in(ask(connect, gateway, f"{THERE}, {HERE}:4711, 127.0.0.1"))
    assert gateway.metric(REFUSED, reason="address") == 13
    let_in[0].close()
    gateway.wait_metric(CONNECTIONS, 15)
    assert is_let_in(ask(connect, gateway, HERE))
    assert not is_let_in(ask(connect, gateway, HERE))
    lines = gateway.records("stream.refused", reason="address")
    assert {line["address"] for line in lines} <= {HERE, "2001:db8:1:2::/64"}
    assert 0 < sum(line["count"] for line in lines) <= 14
    assert len(lines) < 14


def test_a_subject_has_so_many_streams(gateways: Gateways, valkey: Valkey, connect: Connect) -> None:
    """From however many addresses, with however many tokens; who has another subject, or none, is not affected."""
    config = limited(valkey, 2, connections_per_subject=3, connections_per_address=5)
    gateway = gateways.start(config | {"auth": jwt_auth()})

    def let_in(subject: str | None, address: str) -> bool:
        bearer = f"Bearer {token('a', sub=subject, jti=f'{time.monotonic_ns()}')}"
        return is_let_in(ask(connect, gateway, address, Authorization=bearer))

    assert [let_in("alice", f"198.51.100.{number}") for number in range(6)] == [True] * 3 + [False] * 3
    assert [let_in("bob", HERE) for _ in range(4)] == [True] * 3 + [False]
    assert [let_in(None, HERE) for _ in range(3)] == [True] * 2 + [False]
    assert gateway.metric(REFUSED, reason="subject") == 4
    assert gateway.metric(REFUSED, reason="address") == 1
    assert "alice" not in str(gateway.logs)


def test_who_is_no_event_source_is_told_with_a_status(gateways: Gateways, valkey: Valkey, connect: Connect) -> None:
    """503, and when to come again."""
    gateway = gateways.start(limited(valkey, connections_per_address=1))
    assert is_let_in(ask(connect, gateway, HERE))
    refused = ask(connect, gateway, HERE, Accept="*/*")
    assert (refused.status, refused.headers.get("Retry-After")) == (503, "5")


def test_a_proxy_on_a_unix_socket_is_believed(
    gateways: Gateways, valkey: Valkey, connect: Connect, tmp_path: Path
) -> None:
    """As one on this host is; a client that writes the header itself, where nobody is believed, is not."""
    config = limited(valkey, connections_per_address=1)
    gateway = gateways.start(config | {"listen": {"unix": str(tmp_path / "gw")}})
    assert [is_let_in(ask(connect, gateway, HERE)) for _ in range(2)] == [True, False]
    assert is_let_in(ask(connect, gateway, THERE))
    config = limited(valkey, connections_per_address=1, trusted_proxies=[])
    liar = gateways.start(config)
    assert [is_let_in(ask(connect, liar, address)) for address in (HERE, THERE)] == [True, False]


def test_a_node_takes_so_many_new_streams_a_second(gateways: Gateways, valkey: Valkey, connect: Connect) -> None:
    """Whoever they are, and whichever worker takes them; in the next second it takes as many again."""
    gateway = gateways.start(limited(valkey, 2, connections_per_second=10))
    begun = time.monotonic()
    let_in = [is_let_in(ask(connect, gateway, f"198.51.100.{number}")) for number in range(40)]
    seconds = time.monotonic() - begun
    assert 10 <= sum(let_in) <= 10 * (1 + seconds / 0.9)
    assert let_in[:10] == [True] * 10
    assert gateway.metric(REFUSED, reason="rate") == let_in.count(False)
    poll(lambda: is_let_in(ask(connect, gateway, HERE)), timeout_s=20, what="next second")


def test_a_killed_worker_leaves_no_count_behind(gateways: Gateways, valkey: Valkey, connect: Connect) -> None:
    """With `kill -9` its streams are gone, and so are their places: exactly as many are to be had as it had."""
    gateway = gateways.start(limited(valkey, 2, connections_per_address=40, connections=60))
    streams = [ask(connect, gateway, HERE) for _ in range(40)]
    assert all(map(is_let_in, streams))
    assert not is_let_in(ask(connect, gateway, HERE))
    os.kill(gateway.worker_pids()[0], signal.SIGKILL)
    gateway.wait_log("worker.died")
    gateway.wait_log("worker.started", count=3, timeout_s=40)
    gateway.wait_ready()
    lost = [stream for stream in streams if has_ended(stream)]
    assert lost
    poll(lambda: gateway.metric(CONNECTIONS) == 40 - len(lost), timeout_s=5, what="streams that are left")
    again = [is_let_in(ask(connect, gateway, HERE)) for _ in range(len(lost) + 3)]
    assert again == [True] * len(lost) + [False] * 3


def has_ended(stream: Stream) -> bool:
    """Whether the connection has ended."""
    stream.read_available()
    return stream.eof


def test_the_limit_of_all_streams_is_the_nodes(gateways: Gateways, valkey: Valkey, connect: Connect) -> None:
    """Which worker takes a connection makes no difference: the node takes exactly as many as it may."""
    gateway = gateways.start(limited(valkey, 2, connections=20))
    assert [is_let_in(ask(connect, gateway, None)) for _ in range(25)] == [True] * 20 + [False] * 5
    assert gateway.metric(REFUSED, reason="full") == 5


def test_a_reload_counts_the_streams_that_still_drain(gateways: Gateways, valkey: Valkey, connect: Connect) -> None:
    """The old workers' streams and the new ones' are the node's; when the old have gone, so have their places."""
    config = limited(valkey, 2, connections_per_address=6, connections=6)  # a full node can be reloaded
    config["shutdown"] = {"drain": "3s"}
    gateway = gateways.start(config)
    streams = [ask(connect, gateway, HERE) for _ in range(6)]
    assert all(map(is_let_in, streams))
    gateway.reload()
    gateway.wait_log("reload.done", timeout_s=60)
    last = ask(connect, gateway, HERE)
    assert not is_let_in(last) or any(map(has_ended, streams))
    for stream in streams:
        stream.wait_end()
        stream.close()
    last.close()
    gateway.wait_log("worker.stopped", count=2)
    gateway.wait_metric(CONNECTIONS, 0)
    assert [is_let_in(ask(connect, gateway, HERE)) for _ in range(7)] == [True] * 6 + [False]


def test_a_reset_at_any_moment_gives_the_place_back(gateways: Gateways, valkey: Valkey) -> None:
    """I8: connect, ask, reset, as fast as it goes; afterwards there are as many places as before."""
    gateway = gateways.start(limited(valkey, 2, connections_per_address=5, connections_per_second=0))
    request = f"GET /events/a HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {HERE}\r\n\r\n".encode()
    assert isinstance(gateway.address, tuple)
    for number in range(400):
        with socket.create_connection(gateway.address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(request[: len(request) - number % 3])
    gateway.wait_metric(CONNECTIONS, 0)
    gateway.wait_metric(MARKER + "connections_waiting", 0)
    assert gateway.stop() == 0


def test_replay_has_a_budget(gateways: Gateways, valkey: Valkey, connect: Connect) -> None:
    """Who has been sent more than its share of what was is told to come later, and only if it asks for that."""
    config = limited(valkey, 2, replay_per_subject="64KiB")
    gateway = gateways.start(config | {"channels": [rule("sse:*")]})
    listener = follow(connect, gateway, "/a")
    valkey.publish_many([("sse:a", "x" * 1000)] * 50)
    listener.wait_events(50)

    def replayed(address: str) -> Stream:
        headers = {"Accept": "text/event-stream", "X-Forwarded-For": address}
        return connect(gateway, "/events/a?replay=all", headers=headers)

    first, second = replayed(HERE), replayed(HERE)
    for stream in (first, second):
        stream.wait_events(50)
    third = replayed(HERE)
    third.wait_for(lambda s: s.blocks, what="answer")
    assert not is_let_in(third)
    assert gateway.metric(REFUSED, reason="replay") == 1
    assert is_let_in(ask(connect, gateway, HERE))
    replayed(THERE).wait_events(50)
