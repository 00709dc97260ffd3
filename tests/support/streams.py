"""What tests do with streams, in one line each: follow, resume, stall, publish, pour, wait, check."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from tests.support.raw_client import Stream, position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import Connect
    from tests.support.checker import Ledger
    from tests.support.gateway_process import GatewayProcess
    from tests.support.valkey import Valkey

KIB = 1_024

BATCH = 20
"""Events that `pour` publishes at once; a queue is judged when the next batch comes."""


def resume(connect: Connect, gateway: GatewayProcess, target: str, cursor: str | None) -> Stream:
    """Open a stream with a cursor; nothing is read yet."""
    return connect(gateway, f"/events{target}", headers={"Last-Event-ID": cursor or ""})


def follow(connect: Connect, gateway: GatewayProcess, target: str, cursor: str | None = None) -> Stream:
    """Open a stream, with a cursor or without, and read its first block."""
    stream = resume(connect, gateway, target, cursor)
    stream.wait_open()
    return stream


def stall(
    connect: Connect, gateway: GatewayProcess, target: str, cursor: str | None = None, version: str = "1.1"
) -> Stream:
    """Open a stream with little room in the kernel that nobody reads any more."""
    headers = {"Last-Event-ID": cursor or ""}
    stream = connect(gateway, f"/events{target}", headers=headers, receive_buffer=4 * KIB, version=version)
    if cursor is None:
        stream.wait_open()
    else:
        stream.wait_head()
    return stream


def head(connect: Connect, gateway: GatewayProcess, channel: str) -> str:
    """Return a cursor that stands at the log's head now."""
    stream = follow(connect, gateway, f"/{channel}")
    stream.close()
    assert stream.last_id is not None
    return stream.last_id


def kinds(stream: Stream) -> list[str]:
    """Return the data of events and the type of the gateway's own blocks but heartbeats, as they came."""
    return [block.type if block.own else block.data for block in stream.blocks if block.type != "gateway.heartbeat"]


def publish(server: Valkey, messages: Sequence[tuple[str, str]]) -> str:
    """Publish messages of a ledger to their Redis channels, and return the data of the last."""
    server.publish_many([(f"sse:{name}", data) for name, data in messages])
    return messages[-1][1] if messages else ""


def deliver(server: Valkey, stream: Stream, name: str, *payloads: str | bytes) -> list[str]:
    """Publish payloads and then a marker; return the data of the events before the marker."""
    marker = f"marker {time.monotonic_ns()}"
    envelope = json.dumps({"data": marker}) if name.startswith("json:") else marker
    before = len(stream.events)
    server.publish_many([*((f"sse:{name}", payload) for payload in payloads), (f"sse:{name}", envelope)])
    stream.wait_data(marker)
    assert not stream.gaps
    return stream.data[before:-1]


def settle(server: Valkey, gateway: GatewayProcess, channel: str = "settled") -> None:
    """Wait until the gateway has taken everything that has been published on our connection to Redis."""
    marker = f"marker {time.monotonic_ns()}"
    stream = Stream(gateway.address, f"/events/{channel}")
    stream.wait_open()
    server.publish(f"sse:{channel}", marker)
    stream.wait_data(marker)
    stream.close()


def pour(server: Valkey, ledger: Ledger, healthy: Stream, names: Sequence[str], rounds: int = 40) -> None:
    """Publish batch after batch, each when the healthy client has all of the one before."""
    for number in range(rounds):
        batch = [ledger.message(names[(number + n) % len(names)], padding=KIB) for n in range(BATCH)]
        healthy.wait_data(publish(server, batch))


def finish(server: Valkey, ledger: Ledger, stream: Stream, names: Sequence[str]) -> None:
    """Read again until everything has come, up to one more event."""
    stream.wait_data(publish(server, [ledger.message(names[0])]))
    stream.wait_next("gateway.heartbeat")


def wait_live(stream: Stream, *, live: bool) -> None:
    """Read until a heartbeat says this of the source."""
    stream.wait_for(
        lambda s: [block for block in s.of_type("gateway.heartbeat")[-1:] if block.json()["live"] is live],
        what=f"heartbeat with live: {live}",
    )


def check_source_gap(stream: Stream, channels: list[str]) -> None:
    """Hold a stream to exactly one gap for the lost link, in a new epoch, on all its channels."""
    (gap,) = stream.gaps
    told = gap.json()
    assert told["reason"] == "source"
    assert sorted(told["channels"]) == sorted(channels)
    assert told["missed"] is None
    assert stream.blocks[0].id is not None
    assert gap.id is not None
    assert position(gap.id)[0] != position(stream.blocks[0].id)[0]
