"""Gateways that share a log: starting several at once, their workers, their links, what they say of the log."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Protocol

from tests.support.gateway_process import configuration, poll, rule

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.gateway_process import Config, GatewayProcess, Gateways
    from tests.support.valkey import Valkey

START_S = 40.0
"""Several processes load at the same time, on a busy machine."""

STORED = "sse_gateway_persistence_events_total"
EVENTS = "sse_gateway_events_total"

WIDE: Config = {"max_events": 100_000, "max_age": "5m", "max_bytes": "64MiB"}
"""A window that loses nothing in a test."""


class HasUrl(Protocol):
    """What a gateway can be configured for."""

    @property
    def url(self) -> str:
        """Where the gateway finds it."""


def node(server: HasUrl, *, workers: int = 1, **sections: Any) -> Config:
    """Configure a node of a cluster, with windows that lose nothing.

    Args:
        server: Its Redis.
        workers: Its processes.
        sections: As for `configuration`.
    """
    queue = {"max_events": 100_000, "max_bytes": "64MiB"}
    sections = {
        "cluster": {"name": "faults"},
        "redis": {"liveness_timeout": "5s"},
        "shutdown": {"drain": "500ms"},
    } | sections
    config = configuration(server.url, rule("sse:*", prefix=True, window=WIDE, queue=queue), **sections)
    return config | {"workers": workers}


def start_nodes(gateways: Gateways, *configs: Config, patch: Path | None = None) -> list[GatewayProcess]:
    """Start nodes at the same moment, and wait until all are ready.

    Args:
        gateways: Keeps them.
        configs: One for each.
        patch: A directory that holds a `sitecustomize` module, which Python runs first in all their processes.
    """
    environment = {} if patch is None else {"PYTHONPATH": str(patch)}
    nodes = [gateways.start(config, alive=False, environment=environment) for config in configs]
    for started in nodes:
        await_node(started)
    return nodes


def await_node(started: GatewayProcess, before: int = 0) -> None:
    """Wait until a node that is being started is ready.

    Args:
        started: The node.
        before: Log lines that it had written before.
    """

    def has_log() -> bool:
        # Asked only when it can be true: many questions would keep it from its work.
        synced = {record["worker"] for record in started.logs[before:] if record.get("event") == "log.synced"}
        return len(synced) >= int(started.config["workers"])

    started.wait_until(has_log, START_S, "log")
    started.wait_ready(START_S)


def kill_node(gateway: GatewayProcess) -> None:
    """``kill -9`` of a node, all its processes; then start it again, and wait until it is ready."""
    gateway.kill()
    start_again(gateway)


def start_again(ended: GatewayProcess) -> None:
    """Start a node that has ended, and wait until it is ready."""
    before = len(ended.logs)
    ended.start(alive=False)
    await_node(ended, before)


def kill_worker(gateway: GatewayProcess, dice: random.Random) -> None:
    """``kill -9`` of one worker, and wait until the node is whole again."""
    victim = dice.choice(gateway.worker_pids())
    died = len(gateway.records("worker.died"))
    os.kill(victim, signal.SIGKILL)
    gateway.wait_log("worker.died", count=died + 1)
    gateway.wait_until(lambda: len(gateway.worker_pids()) == gateway.config["workers"], START_S, "new worker")
    gateway.wait_ready(START_S)


def links(server: Valkey) -> list[int]:
    """The ids of all subscribed connections, oldest first."""
    listing = server.link.call("CLIENT", "LIST", "TYPE", "pubsub")
    assert isinstance(listing, bytes)
    fields = [dict(field.partition("=")[::2] for field in line.split()) for line in listing.decode().splitlines()]
    return sorted(int(client["id"]) for client in fields)


def wait_links(server: Valkey, count: int) -> list[int]:
    """Wait until so many connections are subscribed, and return their ids."""
    poll(lambda: len(links(server)) == count, timeout_s=START_S, what=f"{count} links")
    return links(server)


def epochs(nodes: Sequence[GatewayProcess]) -> set[str]:
    """The epochs that the workers of these nodes entered last."""
    newest: dict[tuple[int, Any], str] = {}
    for number, gateway in enumerate(nodes):
        for record in gateway.records("log.synced"):
            newest[number, record.get("worker")] = record["epoch"]
    return set(newest.values())


def wait_stored(gateway: GatewayProcess) -> None:
    """Wait until all events are stored that it has seen since it was started."""
    poll(lambda: gateway.metric(STORED) == gateway.metric(EVENTS), timeout_s=30, what="events that are stored")
