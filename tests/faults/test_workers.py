"""The supervisor keeps workers alive, speaks for them, and leaves none behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sse_gateway.generation import ANSWER_S
from tests.support.gate import Gate
from tests.support.gateway_process import (
    CONNECTIONS,
    DELIVERIES,
    MARKER,
    GatewayProcess,
    configuration,
    parse_metrics,
    poll,
)
from tests.support.lateness import lateness
from tests.support.streams import follow
from tests.support.valkey import free_port, running

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import Config, Gateways
    from tests.support.raw_client import Stream
    from tests.support.valkey import Valkey

LATENCY = MARKER + "delivery_latency_seconds"
RESTARTS = MARKER + "worker_restarts_total"
WORKERS = MARKER + "workers"


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Build a gate for workers."""
    return Gate(tmp_path)


def workers(count: int, valkey: Valkey, **sections: Config) -> Config:
    """A configuration with so many workers."""
    return configuration(valkey.url, **sections) | {"workers": count}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def wait_gone(*pids: int, timeout_s: float = 20.0) -> None:
    """Wait until processes have ended."""
    poll(lambda: not any(map(is_alive, pids)), timeout_s=timeout_s, what="end of the workers")


def open_files(pid: int) -> list[str]:
    """What a process has open; what it closes while we look is not."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return found


def shares(gateway: GatewayProcess) -> list[float]:
    """How many streams each of two workers has."""
    metrics = gateway.metrics()
    return [metrics.value(CONNECTIONS, worker=str(slot)) for slot in range(2)]


def kill_one(gateway: GatewayProcess, number: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal to the oldest worker; returns its id."""
    pid = gateway.worker_pids()[0]
    os.kill(pid, number)
    return pid


def test_a_killed_worker_is_started_again(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """At once, with a line in the log; the node serves again, and has forgotten nothing that it had counted."""
    gateway = gateways.start(configuration(valkey.url))
    stream = follow(connect, gateway, f"/{channel}")
    for number in range(10):
        valkey.publish(f"sse:{channel}", str(number))
    stream.wait_events(10)
    gateway.wait_metric(DELIVERIES, 10)
    before = gateway.metrics()
    pid = kill_one(gateway)
    (died,) = gateway.wait_log("worker.died")
    gateway.wait_metric(RESTARTS, 1)
    gateway.wait_ready()
    follow(connect, gateway, f"/{channel}")
    after = gateway.metrics()

    assert (died["worker"], died["pid"], died["signal"], died["exit_code"]) == (0, pid, "SIGKILL", None)
    assert died["restart_in_s"] == 0
    stream.wait_for(lambda s: s.eof)
    assert after.value(DELIVERIES) == 10
    assert after.value(f"{LATENCY}_count") >= before.value(f"{LATENCY}_count") > 0
    assert after.value(CONNECTIONS) == 1
    assert after.value(WORKERS) == 1
    counters = [sample for sample in before.samples if sample.name.endswith(("_total", "_bucket", "_count"))]
    assert [s for s in counters if after.value(s.name, **s.labels) < s.value] == []


def test_metrics_stand_whatever_dies(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Scrape after scrape while workers are killed: complete, valid to Prometheus' own tool, and no counter goes back."""
    gateway = gateways.start(workers(2, valkey))
    before: dict[tuple[str, ...], float] = {}
    scrapes = 0

    def look() -> bool:
        nonlocal scrapes
        scrapes += 1
        metrics = gateway.metrics()
        for sample in metrics.samples:
            if sample.name.endswith(("_total", "_bucket", "_count", "_sum")):
                series = (sample.name, *map(str, sorted(sample.labels.items())))
                assert sample.value >= before.get(series, 0.0), series
                before[series] = sample.value
        return metrics.value(WORKERS) == 2 and metrics.value(RESTARTS) == len(kills)

    kills: list[int] = []
    for victim in [0, 1] * 2:
        for _ in range(10):
            follow(connect, gateway, f"/{channel}")
        valkey.publish(f"sse:{channel}", "x")
        look()
        count = len(before)
        kills.append(gateway.worker_pids()[victim])
        os.kill(kills[-1], signal.SIGKILL)
        gateway.wait_until(look, 40, "both workers")
        assert len(before) == count
    assert gateway.metric(MARKER + "streams_opened_total") == 40
    assert scrapes > 8
    if shutil.which("promtool") is not None:
        body = gateway.admin("/metrics")[2]
        command = ["promtool", "check", "metrics"]
        checked = subprocess.run(command, input=body, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_clients_wait_while_the_worker_starts_again(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Nobody is refused, neither by the kernel nor by us: a connection made meanwhile is served."""
    gateway = gateways.start(configuration(valkey.url))
    kill_one(gateway)
    for number in range(20):
        stream = connect(gateway, f"/events/{channel}{number}")
        assert stream.wait_open().type == "gateway.open"


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_is_waited_for(gateways: Gateways, valkey: Valkey) -> None:
    """The first time it is started at once, then after a pause with jitter, which has a bound."""
    gateway = gateways.start(configuration(valkey.url))
    for number in range(4):
        gateway.wait_until(lambda: gateway.metric(WORKERS) == 1, 10, "worker")
        kill_one(gateway)
        gateway.wait_log("worker.died", count=number + 1)
    pauses = [record["restart_in_s"] for record in gateway.records("worker.died")]

    assert pauses[0] == 0
    assert [low <= pause <= 2 * low for low, pause in zip((0.05, 0.1, 0.2), pauses[1:], strict=True)] == [True] * 3
    gateway.wait_ready()


def test_workers_share_the_connections(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """New connections go to all of them; each takes its share of the limit, and is a worker of its own in the log."""
    gateway = gateways.start(workers(2, valkey, limits={"connections": 301}))
    streams = [follow(connect, gateway, f"/{channel}") for _ in range(200)]
    valkey.publish(f"sse:{channel}", "hello")
    for stream in streams:
        stream.wait_data("hello")
    gateway.wait_metric(DELIVERIES, 200)
    metrics, found = gateway.metrics(), shares(gateway)

    assert sum(found) == 200
    assert min(found) >= 60
    assert [metrics.value(MARKER + "connections_limit", worker=str(slot)) for slot in range(2)] == [151, 150]
    assert sorted(record["worker"] for record in gateway.records("worker.started")) == [0, 1]
    assert gateway.records("gateway.started", workers=2, max_connections=301)
    assert gateway.stop() == 0
    by_worker = [len(gateway.records("stream.closed", worker=slot)) for slot in range(2)]
    assert by_worker == found


def test_one_dead_worker_is_not_ready(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str, gate: Gate
) -> None:
    """The node is not ready while one is missing; the other goes on as if nothing were."""
    gateway = gateways.start(workers(2, valkey), environment=gate.environment)
    streams: list[Stream] = []

    def have_both() -> bool:
        streams.append(follow(connect, gateway, f"/{channel}"))
        return min(shares(gateway)) >= 3

    gateway.wait_until(have_both, 20, "streams of both")
    with gate.closed():
        kill_one(gateway)
        gateway.wait_log("worker.died")
        assert gateway.unready_reasons() == ["worker"]
        for stream in streams:
            stream.read_available()
        left = [stream for stream in streams if not stream.eof]
        assert 0 < len(left) < len(streams)
        valkey.publish(f"sse:{channel}", "hello")
        for stream in left:
            stream.wait_data("hello")
        assert gateway.unready_reasons() == ["worker"]
    gateway.wait_ready()


def test_a_worker_that_starts_holds_up_no_question(gateways: Gateways, valkey: Valkey, gate: Gate) -> None:
    """However long it takes, probes and scrapes are answered: not ready, and with the metrics of the others."""
    gateway = gateways.start(workers(2, valkey), environment=gate.environment)
    before = set(gateway.worker_pids())
    with gate.closed(), lateness() as late:
        kill_one(gateway)
        poll(lambda: set(gateway.worker_pids()) - before, timeout_s=20, what="new worker")
        began = time.monotonic()
        reasons, metrics = gateway.unready_reasons(), gateway.metrics()
        took_s = time.monotonic() - began

    assert (reasons, metrics.value(WORKERS)) == (["worker"], 1)
    assert took_s < 1.5 * ANSWER_S + late.total_s  # each of the two would wait so long
    gateway.wait_ready()


def test_the_others_take_what_comes_for_one_that_is_away(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str, gate: Gate
) -> None:
    """Dead or silent: nobody waits for it; and when it is back it has its share again."""
    gateway = gateways.start(workers(2, valkey), environment=gate.environment)
    with gate.closed():
        kill_one(gateway)
        gateway.wait_log("worker.died")
        for number in range(30):
            follow(connect, gateway, f"/{channel}{number}").close()
    gateway.wait_ready()
    os.kill(gateway.worker_pids()[0], signal.SIGSTOP)
    for number in range(30):
        stream = connect(gateway, f"/events/{channel}{number}")
        stream.wait_open()
        stream.close()
    os.kill(gateway.worker_pids()[0], signal.SIGCONT)
    gateway.wait_ready()

    def is_shared() -> bool:
        streams = [follow(connect, gateway, f"/{channel}") for _ in range(20)]
        fewest = min(shares(gateway))
        for stream in streams:
            stream.close()
        return fewest >= 3

    gateway.wait_until(is_shared, 20, "spread over both")


def test_without_a_supervisor_there_are_no_workers(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str, tmp_path: Path
) -> None:
    """They let go of the address at once, so that a new supervisor can have it, and end their streams in order."""
    config = workers(2, valkey, shutdown={"drain": "2s"})
    gateway = gateways.start(config, environment={"RUNTIME_DIRECTORY": str(tmp_path)})
    streams = [follow(connect, gateway, f"/{channel}") for _ in range(10)]
    pids = gateway.worker_pids()
    assert len(pids) == 2
    os.kill(gateway.pid, signal.SIGKILL)
    poll(lambda: is_free(config["listen"]["port"]), timeout_s=20, what="free address")
    assert any(map(is_alive, pids)), "at once, and not at their end"
    gateways.start(config)
    for stream in streams:
        stream.wait_end()
        assert stream.blocks[-1].json() == {"reason": "drain"}
    wait_gone(*pids)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.slow
def test_restarts_leave_no_descriptor(gateways: Gateways, valkey: Valkey) -> None:
    """After a dozen the supervisor has open what it had, and no worker has what is another's."""
    count = 4
    gateway = gateways.start(workers(count, valkey), ready=False)
    gateway.wait_ready(60)
    before = len(open_files(gateway.pid))
    for round_ in range(3):
        for pid in gateway.worker_pids():
            os.kill(pid, signal.SIGKILL)
        gateway.wait_until(
            lambda wanted=count * (round_ + 1): gateway.metric(RESTARTS) == wanted,  # type: ignore[misc] # mypy cannot infer a lambda with defaults
            20,
            "restarts",
        )
        gateway.wait_ready(60)

    gateway.wait_until(lambda: len(open_files(gateway.pid)) <= before, 5, "as many descriptors as before")
    port = gateway.config["listen"]["port"]
    listening = {pid: sockets_on(pid, port) for pid in gateway.worker_pids()}
    assert [len(inodes) for inodes in listening.values()] == [count] * count  # its own, and those it may take care of
    assert len(set().union(*listening.values())) == count
    for pid in gateway.worker_pids():
        assert sockets_on(pid, gateway.config["admin"]["port"]) == set()


def sockets_on(pid: int, port: int) -> set[str]:
    """Inodes of the sockets with which a process listens on a port."""
    table = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    rows = [line.split() for line in table]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}
    return listening & set(open_files(pid))


def test_a_worker_that_hangs_is_replaced(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Who is silent for the watchdog's time is ended; meanwhile the node says that it is not ready, and is scraped."""
    gateway = gateways.start(configuration(valkey.url), environment={"WATCHDOG_USEC": "2000000"})
    stream = follow(connect, gateway, f"/{channel}")
    gateway.wait_metric(CONNECTIONS, 1)
    pid = gateway.signal_worker(signal.SIGSTOP)
    assert gateway.unready_reasons() == ["worker"]
    assert parse_metrics(gateway.admin("/metrics")[2]).value(CONNECTIONS) == 1  # what it said last
    assert gateway.admin_status("/healthz") == 200
    (hung,) = gateway.wait_log("worker.hung")
    (died,) = gateway.wait_log("worker.died")
    gateway.wait_ready()

    assert (hung["pid"], died["pid"], died["signal"]) == (pid, pid, "SIGKILL")
    assert 2 <= hung["silent_s"] < 4
    stream.wait_for(lambda s: s.eof)
    gateway.stray_output.clear()


def test_a_stopped_supervisor_takes_nobody_for_hung(gateways: Gateways, valkey: Valkey) -> None:
    """What the workers said while it did not run counts, and they serve without it."""
    gateway = gateways.start(configuration(valkey.url), environment={"WATCHDOG_USEC": "2000000"})
    pid = gateway.worker_pid
    gateway.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert isinstance(gateway.address, tuple)
    with socket.create_connection(gateway.address, 5) as client:
        client.sendall(b"GET /events/a HTTP/1.1\r\nHost: x\r\n\r\n")
        while time.monotonic() < stopped + 3.5:
            assert client.recv(4096)  # heartbeats
    gateway.signal(signal.SIGCONT)
    gateway.wait_ready()
    assert gateway.worker_pid == pid
    assert gateway.records("worker.hung") == []


def test_a_worker_told_to_stop_is_started_again(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """SIGTERM for a worker alone drains it; the place is filled again."""
    gateway = gateways.start(configuration(valkey.url, shutdown={"drain": "500ms"}))
    stream = follow(connect, gateway, f"/{channel}")
    pid = gateway.signal_worker(signal.SIGTERM)
    stream.wait_end()
    gateway.wait_log("worker.died", pid=pid, exit_code=0)
    gateway.wait_ready()
    assert stream.blocks[-1].json() == {"reason": "drain"}
    assert gateway.metric(MARKER + "streams_closed_total", reason="drain") == 1  # its last words


def test_signals_of_the_terminal_are_the_supervisors(gateways: Gateways, valkey: Valkey) -> None:
    """A worker minds neither Ctrl-C nor a hang-up."""
    gateway = gateways.start(configuration(valkey.url))
    pid = gateway.worker_pid
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    gateway.wait_metric(WORKERS, 1)
    assert gateway.worker_pids() == [pid]
    gateway.wait_ready()


@pytest.mark.slow
def test_a_hung_worker_does_not_hold_the_end_up(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A second SIGTERM ends in seconds what answers nothing any more."""
    gateway = gateways.start(workers(2, valkey, shutdown={"drain": "60s"}))
    for _ in range(10):
        follow(connect, gateway, f"/{channel}")
    pids = gateway.worker_pids()
    os.kill(pids[0], signal.SIGSTOP)
    gateway.signal(signal.SIGTERM)
    gateway.wait_not_ready()
    gateway.signal(signal.SIGTERM)

    assert gateway.wait_exit(20) == 0
    assert [record["pid"] for record in gateway.records("worker.killed")] == [pids[0]]
    wait_gone(*pids)


def test_what_a_worker_finds_bad_ends_all(gateways: Gateways, tmp_path: Path) -> None:
    """A Redis Cluster: exit code 78, and the sentence once."""
    with running(tmp_path, options=["--cluster-enabled", "yes", "--cluster-port", str(free_port())]) as server:
        gateway = gateways.start(workers(3, server), alive=False)

        assert gateway.wait_exit(30) == 78
    assert len(gateway.stray_output) == 1
    assert "cluster" in gateway.stray_output[0].lower()
    assert gateway.records("worker.died") == []


def test_too_few_descriptors_are_bad_configuration(gateways: Gateways, valkey: Valkey) -> None:
    """Found by a worker, said once with the remedy."""
    gateway = gateways.start(workers(2, valkey), open_files=100, alive=False)
    assert gateway.wait_exit(30) == 78
    assert len(gateway.stray_output) == 1
    assert "ulimit -n" in gateway.stray_output[0]


def test_a_service_without_standard_streams_serves(tmp_path: Path, valkey: Valkey) -> None:
    """Some service managers close them: a worker's sockets must not take their place."""
    gateway = GatewayProcess(workers(1, valkey), tmp_path)
    gateway.write_config()
    command = f"exec {sys.executable} -m sse_gateway serve --config {gateway.config_file} <&- >&- 2>&-"
    process = subprocess.Popen(["sh", "-c", command])
    try:
        poll(lambda: gateway.admin_status("/readyz") == 200, timeout_s=40, what="readiness")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_secrets_stay_in_memory(gateways: Gateways, own_valkey: Valkey) -> None:
    """Neither arguments nor environment of a worker have them, and no file of ours."""
    url = own_valkey.url.replace("redis://", "redis://default:hunter2@")
    own_valkey.config_set("requirepass", "hunter2")
    config = configuration("redis://127.0.0.1:1")
    gateway = gateways.start(config, environment={"SSE_GATEWAY__REDIS__URL": url})
    process = Path(f"/proc/{gateway.worker_pid}")
    assert "hunter2" not in (process / "cmdline").read_text(encoding="ascii")
    assert "hunter2" not in (process / "environ").read_text(encoding="utf-8")
    kill_one(gateway)
    gateway.wait_log("worker.died")
    gateway.wait_ready()
    own_valkey.config_set("requirepass", "")


def test_a_broken_file_does_not_hinder_a_restart(gateways: Gateways, valkey: Valkey) -> None:
    """A worker is started again with the configuration that was good."""
    gateway = gateways.start(configuration(valkey.url))
    gateway.reload("nonsense")
    gateway.wait_log("reload.failed")
    kill_one(gateway)
    gateway.wait_log("worker.died")
    gateway.wait_ready()


def test_the_directory_for_snapshots_goes_with_the_supervisor(
    gateways: Gateways, valkey: Valkey, tmp_path: Path
) -> None:
    """It is where systemd says, for its owner alone, and gone at the end."""
    gateway = gateways.start(configuration(valkey.url), environment={"RUNTIME_DIRECTORY": str(tmp_path)})
    (directory,) = tmp_path.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert gateway.stop() == 0
    assert list(tmp_path.iterdir()) == []
