"""A reload: new workers come, old ones go, and nobody notices more than one reconnection."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sse_gateway.generation import ANSWER_S
from tests.support.gate import Gate
from tests.support.gateway_process import CONNECTIONS, DELIVERIES, MARKER, configuration, poll, rule
from tests.support.raw_client import Stream
from tests.support.streams import follow, resume
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

RELOADS = MARKER + "reloads_total"
RELOAD_S = 60.0
"""How long a reload may take on a busy machine: new workers load, and old ones drain."""

# The command `serve`, with little patience.
IMPATIENT = """
import asyncio, os, pathlib, sys
from sse_gateway.config import load_settings
from sse_gateway.logs import configure_logging
from sse_gateway.supervisor import Supervisor

file = pathlib.Path(sys.argv[1])
logs = configure_logging("info", "json")
asyncio.run(Supervisor(file, load_settings(file, os.environ), os.environ, ready_s=3).run())
logs.close(1)
"""


def wait_reloads(gateway: GatewayProcess, ok: int = 0, failed: int = 0) -> None:
    """Wait until so many reloads have been done."""
    gateway.wait_log("reload.done", count=ok, timeout_s=RELOAD_S)
    gateway.wait_log("reload.failed", count=failed, timeout_s=RELOAD_S)
    assert [gateway.metric(RELOADS, outcome=outcome) for outcome in ("ok", "failed")] == [ok, failed]


def wait_workers(gateway: GatewayProcess, count: int) -> list[int]:
    """Wait until only so many workers are left; returns their ids."""
    gateway.wait_until(lambda: len(gateway.worker_pids()) == count, RELOAD_S, f"{count} workers")
    return gateway.worker_pids()


def test_a_reload_is_one_reconnection(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Ready all the while; a stream is ended in order and resumes without a gap; the counters go on."""
    gateway = gateways.start(configuration(valkey.url))
    stream = follow(connect, gateway, f"/{channel}")
    valkey.publish(f"sse:{channel}", "before")
    stream.wait_data("before")
    old = gateway.worker_pid
    gateway.config["stream"]["heartbeat"] = "200ms"
    gateway.reload()
    while not gateway.records("reload.done"):
        asked = time.monotonic()
        # Whom a busy machine keeps from its answer for so long is missing by right.
        assert gateway.unready_reasons() == [] or time.monotonic() - asked >= ANSWER_S
    stream.wait_end()
    valkey.publish(f"sse:{channel}", "meanwhile")
    resumed = resume(connect, gateway, f"/{channel}", stream.last_id)
    resumed.wait_data("meanwhile")
    (new,) = wait_workers(gateway, 1)
    wait_reloads(gateway, ok=1)

    assert new != old
    assert stream.blocks[-1].json() == {"reason": "drain"}
    assert [event.data for event in resumed.events] == ["meanwhile"]
    assert not resumed.gaps
    gateway.wait_metric(DELIVERIES, 2)
    assert gateway.metric(CONNECTIONS) == 1
    assert gateway.metric(MARKER + "worker_restarts_total") == 0
    gateway.check_clean()


def test_a_bad_configuration_changes_nothing(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Every problem is in the log, with its place; streams and workers stay."""
    gateway = gateways.start(configuration(valkey.url))
    stream = follow(connect, gateway, f"/{channel}")
    pids = gateway.worker_pids()
    gateway.reload("listne: {}\nworkers: 0\n")
    (failed,) = gateway.wait_log("reload.failed")
    valkey.publish(f"sse:{channel}", "hello")
    stream.wait_data("hello")

    assert len(failed["problems"]) == 3
    assert all(":" in problem for problem in failed["problems"])
    assert "yaml:2:1: workers: " in str(failed["problems"])
    assert gateway.worker_pids() == pids
    gateway.wait_ready()
    wait_reloads(gateway, failed=1)


def test_nobody_is_turned_away_meanwhile(gateways: Gateways, valkey: Valkey, channel: str) -> None:
    """Whoever connects while the workers change is served, by the old or by the new."""
    gateway = gateways.start(configuration(valkey.url) | {"workers": 2})
    over = threading.Event()
    opened: list[str] = []

    def keep_connecting() -> None:
        while not over.is_set():
            stream = Stream(gateway.address, f"/events/{channel}")
            stream.wait_for(lambda s: s.blocks or s.eof, what="answer")
            opened.append(stream.blocks[0].type if stream.blocks else "cut off")
            stream.close()

    client = threading.Thread(target=keep_connecting)
    client.start()
    try:
        gateway.reload()
        gateway.wait_log("reload.done", timeout_s=RELOAD_S)
        wait_workers(gateway, 2)
        poll(lambda: len(opened) > 50 or not client.is_alive(), timeout_s=RELOAD_S, what="so many that connect")
    finally:
        over.set()
        client.join(10)

    assert len(opened) > 50
    assert set(opened) == {"gateway.open"}


def test_a_request_that_is_inside_is_served(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """A connection that an old worker has taken is not cut: its request gets a stream, which ends with the others."""
    gateway = gateways.start(configuration(valkey.url))
    stays = follow(connect, gateway, f"/{channel}")
    assert isinstance(gateway.address, tuple)
    with socket.create_connection(gateway.address, 5) as early:
        request = b"GET /events/a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
        early.sendall(request[:10])
        gateway.wait_until(lambda: gateway.metric(MARKER + "open_descriptors") > 0, 5, "metrics")
        gateway.reload()
        gateway.wait_log("worker.draining", refuse=False, timeout_s=RELOAD_S)
        early.sendall(request[10:])
        answer = b""
        while part := early.recv(4096):
            answer += part
    stays.wait_end()

    assert b"event: gateway.open" in answer
    assert b"event: gateway.close" in answer
    assert b"gateway.unavailable" not in answer


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2)])
def test_the_number_of_workers_changes(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str, before: int, after: int
) -> None:
    """The sockets stay, and every connection finds a worker: none is lost in a backlog that nobody reads."""
    gateway = gateways.start(configuration(valkey.url) | {"workers": before}, ready=False)
    gateway.wait_ready(30)
    streams = [follow(connect, gateway, f"/{channel}") for _ in range(20)]
    gateway.wait_metric(MARKER + "streams_opened_total", 20)
    gateway.config["workers"] = after
    gateway.reload()
    wait_reloads(gateway, ok=1)
    for stream in streams:
        stream.wait_end(timeout_s=RELOAD_S)
    wait_workers(gateway, after)
    again = [follow(connect, gateway, f"/{channel}") for _ in range(60)]
    valkey.publish(f"sse:{channel}", "hello")
    for stream in again:
        stream.wait_data("hello")
    gateway.wait_metric(CONNECTIONS, 60)
    metrics = gateway.metrics()

    assert metrics.value(MARKER + "streams_opened_total") == 80
    assert metrics.value(MARKER + "workers") == after
    serving = [metrics.value(CONNECTIONS, worker=str(slot)) for slot in range(max(before, after))]
    assert [bool(share) for share in serving] == [slot < after for slot in range(len(serving))]


def test_the_addresses_change(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """The new ones are there before the old ones go; the former address is free afterwards."""
    gateway = gateways.start(configuration(valkey.url))
    former = dict(gateway.config["listen"])
    stream = follow(connect, gateway, f"/{channel}")
    gateway.config["listen"]["port"] = free_port()
    gateway.reload()
    stream.wait_end(timeout_s=RELOAD_S)
    resumed = resume(connect, gateway, f"/{channel}", stream.last_id)
    assert resumed.wait_open().json()["replay"] == "complete"
    wait_reloads(gateway, ok=1)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind((former["host"], former["port"]))
    old_admin = gateway.config["admin"]["port"]
    gateway.config["admin"]["port"] = free_port()
    gateway.reload()
    gateway.wait_log("reload.done", count=2, timeout_s=RELOAD_S)
    gateway.wait_ready()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old_admin), 1)


def test_the_same_port_of_another_host(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """From one address to all: our own group does not stand in its own way."""
    gateway = gateways.start(configuration(valkey.url))
    gateway.config["listen"]["host"] = "0.0.0.0"  # noqa: S104 - what is tested
    gateway.reload()
    wait_reloads(gateway, ok=1)
    wait_workers(gateway, 1)
    port = gateway.config["listen"]["port"]
    assert connect(("127.0.0.2", port), f"/events/{channel}").wait_open().type == "gateway.open"


def test_a_unix_socket_comes_and_goes(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str, tmp_path: Path
) -> None:
    """Its path is there while it is listened on, and no longer."""
    gateway = gateways.start(configuration(valkey.url))
    port = gateway.config["listen"]["port"]
    path = tmp_path / "gw.sock"
    gateway.config["listen"] = {"unix": str(path)}
    gateway.reload()
    gateway.wait_log("reload.done", timeout_s=RELOAD_S)
    assert follow(connect, gateway, f"/{channel}").status == 200
    wait_workers(gateway, 1)
    gateway.config["listen"] = {"host": "127.0.0.1", "port": port}
    gateway.reload()
    gateway.wait_log("reload.done", count=2, timeout_s=RELOAD_S)
    assert follow(connect, gateway, f"/{channel}").status == 200
    assert not path.exists()


@pytest.mark.parametrize("section", ["listen", "admin"])
def test_an_address_that_is_taken_changes_nothing(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str, section: str
) -> None:
    """The reload fails with the sentence that a start would fail with."""
    gateway = gateways.start(configuration(valkey.url))
    stream = follow(connect, gateway, f"/{channel}")
    former = gateway.config[section]
    gateway.config[section] = {"host": "127.0.0.1", "port": valkey.port}
    gateway.reload()
    (failed,) = gateway.wait_log("reload.failed")
    gateway.config[section] = former

    taken = f"cannot listen on 127.0.0.1:{valkey.port}: Address already in use"
    assert failed["problems"] == [f"{section}: {taken}; choose another with {section}.port"]
    valkey.publish(f"sse:{channel}", "hello")
    stream.wait_data("hello")
    wait_reloads(gateway, failed=1)


def test_reloads_come_one_after_another(gateways: Gateways, valkey: Valkey) -> None:
    """Signals during a reload ask for one more; there are never more than two generations."""
    gateway = gateways.start(configuration(valkey.url, shutdown={"drain": "200ms"}))
    most = 0
    gateway.reload()
    gateway.wait_log("reload.started")
    for _ in range(3):
        gateway.reload()

    def are_done() -> bool:
        nonlocal most
        most = max(most, len(gateway.worker_pids()))
        return len(gateway.records("reload.done")) >= 2

    gateway.wait_until(are_done, 60, "two reloads")
    wait_workers(gateway, 1)

    assert most <= 2
    assert len(gateway.records("reload.started")) == 2


@pytest.mark.parametrize("moment", ["reload.started", "reload.done"])
def test_a_stop_during_a_reload(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str, moment: str
) -> None:
    """Every worker ends, of both generations, and the exit is clean."""
    gateway = gateways.start(configuration(valkey.url))
    stream = follow(connect, gateway, f"/{channel}")
    gateway.reload()
    gateway.wait_log(moment, timeout_s=RELOAD_S)
    pids = gateway.worker_pids()
    assert gateway.stop() == 0
    stream.wait_end()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)  # noqa: PTH110 - no path of ours
    gateway.check_clean()


def test_workers_that_cannot_start_change_nothing(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str, tmp_path: Path
) -> None:
    """Killed again and again before they are ready: the old ones stay, and serve."""
    gate = Gate(tmp_path)
    gateway = gateways.start(configuration(valkey.url), environment=gate.environment)
    stream = follow(connect, gateway, f"/{channel}")
    old = gateway.worker_pid

    def kill_new() -> bool:
        for pid in gateway.worker_pids():
            if pid != old:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return bool(gateway.records("reload.failed"))

    with gate.closed():
        gateway.reload()
        gateway.wait_until(kill_new, RELOAD_S, "a reload that fails")
    (failed,) = gateway.records("reload.failed")
    assert failed["problems"] == ["the new workers did not get ready: worker"]
    valkey.publish(f"sse:{channel}", "hello")
    stream.wait_data("hello")
    assert wait_workers(gateway, 1) == [old]


@pytest.mark.slow
def test_workers_that_get_no_source_change_nothing(
    valkey: Valkey, connect: Connect, channel: str, tmp_path: Path
) -> None:
    """With a Redis that is not there the new ones do not get ready; the old ones go on, and a second try succeeds."""
    file = tmp_path / "sse-gateway.yaml"
    config = configuration(valkey.url, rule("sse:*"))
    log = tmp_path / "log"
    file.write_text(json.dumps(config), encoding="utf-8")
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", IMPATIENT, str(file)], stderr=output)
    try:
        address = (config["listen"]["host"], config["listen"]["port"])
        poll(is_open(address), timeout_s=RELOAD_S, what="listener")
        stream = connect(address, f"/events/{channel}")
        stream.wait_open(timeout_s=RELOAD_S)
        broken = {**config, "redis": {**config["redis"], "url": f"redis://127.0.0.1:{free_port()}"}}
        file.write_text(json.dumps(broken), encoding="utf-8")
        process.send_signal(signal.SIGHUP)
        poll(lambda: "did not get ready: " in log.read_text(encoding="utf-8"), timeout_s=RELOAD_S, what="failure")
        valkey.publish(f"sse:{channel}", "hello")
        stream.wait_data("hello")
        file.write_text(json.dumps(config), encoding="utf-8")
        tried = 0

        def has_succeeded() -> bool:
            nonlocal tried
            if log.read_text(encoding="utf-8").count("did not get ready: ") > tried:  # a busy machine may need several
                tried += 1
                process.send_signal(signal.SIGHUP)
            stream.read_available()
            return stream.eof

        poll(has_succeeded, timeout_s=RELOAD_S, what="a reload that succeeds")
    finally:
        process.terminate()
        assert process.wait(20) == 0


def is_open(address: tuple[str, int]) -> Callable[[], bool]:
    """Whether somebody listens there."""

    def probe() -> bool:
        try:
            socket.create_connection(address, 1).close()
        except OSError:
            return False
        return True

    return probe


def test_the_log_changes_too(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Level and format, of the workers and of the supervisor."""
    gateway = gateways.start(configuration(valkey.url))
    gateway.config["log"] = {"level": "warning", "format": "json"}
    gateway.reload()
    gateway.wait_metric(RELOADS, 1, outcome="ok", timeout_s=RELOAD_S)
    follow(connect, gateway, f"/{channel}").close()
    gateway.wait_metric(CONNECTIONS, 0)
    assert gateway.stop() == 0
    assert gateway.records("reload.done") == gateway.records("gateway.stopped") == []
    assert gateway.records("stream.closed") == []
