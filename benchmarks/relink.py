"""What a node's clients notice when its link to Redis is cut, while a peer goes on."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from benchmarks.measure import DRAIN_S, START_DELAY_S, Row, finish, publishing, sleep_until, streams, verdict
from benchmarks.observe import Lines, Others, at, cut, links
from benchmarks.servers import start_gateway

if TYPE_CHECKING:
    from benchmarks.parts import Part
    from benchmarks.scenario import Say
    from benchmarks.servers import Load, Server, Stage

CUTS = 6
INTERVAL_S = 4.0
WARMUP_S = 3.0

CHANGES = {"log": {"level": "info", "format": "json"}}


def relink(stage: Stage, load: Load, say: Say) -> Row:
    """Cut one node's link under load, several times."""
    with contextlib.ExitStack() as stack:
        peer = start_gateway(stage, "peer", load.max_seconds, CHANGES, core=stage.cores.load)
        stack.callback(peer.stop)
        spared = links(stage)
        node = start_gateway(stage, "node", load.max_seconds, CHANGES)
        stack.callback(node.stop)
        client = stack.enter_context(streams(stage, node, load))
        total_s = WARMUP_S + CUTS * INTERVAL_S
        count = round(load.rate * total_s)
        start_ns = time.monotonic_ns() + int(START_DELAY_S * 1e9)
        publisher = stack.enter_context(publishing(stage, node, load, start_ns, count))
        say(f"{load.streams} streams open, publishing {load.rate:g}/s for {total_s:.0f} s")
        sleep_until(start_ns, 1.0)
        others = Others(stage, (node.part, peer.part, client, stage.redis, publisher))
        sleep_until(start_ns, WARMUP_S)
        before = client.ask("mark")
        cuts = [_cut(stage, node, client, spared, start_ns + int((number + 1) * INTERVAL_S * 1e9))
                for number in range(CUTS)]  # fmt: skip
        shares = others.shares()
        publisher.hear(DRAIN_S)
        row: Row = {
            "current_s": max(one["max_ms"] for one in cuts) / 1000,
            "each_s": [one["max_ms"] / 1000 for one in cuts],
            "away_s": max(one["away_s"] for one in cuts),
            "max_ms_before": before["max_ms"],
        }
        return row | shares | verdict(finish(client, load, count), load, count)


def _cut(stage: Stage, node: Server, client: Part, spared: set[str], end_ns: int) -> Row:
    """Cut the node's link; returns the client's view of the time until `end_ns`, less the warm-up.

    The worst latency is the time until its clients are current again: it is that of the first event that was published
    without the link, at the moment at which a peer's log has brought it.
    """
    lines = Lines(node.part)
    client.ask("mark")
    (link,) = links(stage) - spared
    cut(stage, link)
    lost = at(lines.wait("source.lost", INTERVAL_S))
    synced = at(lines.wait("log.synced", INTERVAL_S))
    sleep_until(end_ns, WARMUP_S)
    return client.ask("mark") | {"away_s": synced - lost}
