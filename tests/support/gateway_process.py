"""The gateway as its users run it: a child process, a configuration file, two listeners, a log."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import yaml
from prometheus_client.parser import text_string_to_metric_families

from sse_gateway.generation import ANSWER_S
from tests.support.valkey import free_port, log_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from signal import Signals

    from tests.support.raw_client import Address

Config = dict[str, Any]
LogRecord = dict[str, Any]
T = TypeVar("T")

# The names of what /metrics shows, for all tests.
CONNECTIONS: Final = "sse_gateway_connections"
STREAMS_OPENED: Final = "sse_gateway_streams_opened_total"
STREAMS_CLOSED: Final = "sse_gateway_streams_closed_total"
RECEIVED: Final = "sse_gateway_messages_received_total"
REJECTED: Final = "sse_gateway_messages_rejected_total"
EVENTS: Final = "sse_gateway_events_total"
DELIVERIES: Final = "sse_gateway_deliveries_total"
DROPPED: Final = "sse_gateway_dropped_events_total"
GAPS: Final = "sse_gateway_gaps_total"
REPLAYS: Final = "sse_gateway_replays_total"
WINDOW_EVENTS: Final = "sse_gateway_window_events"
WINDOW_BYTES: Final = "sse_gateway_window_bytes"
CHANNELS: Final = "sse_gateway_channels"
AUDIENCES: Final = "sse_gateway_audiences"
MARKER: Final = "sse_gateway_"

STREAM_CLOSED: Final = "stream.closed"
"""The log event of a stream's end."""

_CLUSTERS: Final = itertools.count()

# What is waited for comes at once, or not at all: these are for machines that stand still for a while.
_START_S = 40.0
_STOP_S = 30.0
_ANSWER_S = 20.0
_WAIT_S = 20.0


def rule(pattern: str, **settings: Any) -> Config:
    """Build one entry of ``channels:`` that strips ``sse:``."""
    return {"pattern": pattern, "strip_prefix": "sse:", **settings}


def configuration(redis_url: str, *rules: Config, **sections: Config) -> Config:
    """Build a configuration with short times, for tests; it shares its log with no other.

    Those of Redis are as they come: on a busy machine it says nothing for a second, and nobody is to take it for dead.

    Args:
        redis_url: The source.
        rules: The entries of ``channels:``; one rule for ``sse:*`` if there are none.
        sections: Keys that replace or join those of a section, by section.
    """
    config: Config = {
        "listen": {"host": "127.0.0.1", "port": free_port()},
        "admin": {"host": "127.0.0.1", "port": free_port()},
        "redis": {"url": redis_url},
        "cluster": {"name": f"test-{os.getpid()}-{next(_CLUSTERS)}"},
        "channels": list(rules) or [rule("sse:*", prefix=True)],
        "stream": {"heartbeat": "300ms", "retry": "3s"},
        "shutdown": {"drain": "1s"},
        "auth": {"mode": "none"},
        "log": {"level": "info", "format": "json"},
    }
    for name, keys in sections.items():
        config[name] = keys if "unix" in keys else {**config.get(name, {}), **keys}
    return config


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of /metrics."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """One scrape of /metrics."""

    samples: Sequence[Sample]

    def value(self, name: str, **labels: str) -> float:
        """Sum the samples of `name` that carry `labels`; 0 if there are none."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= dict(sample.labels).items()
        )


def _is_worker(pid: int) -> bool:
    """Whether it runs our program; until it does, the supervisor waits for it, and a signal would hold up both."""
    try:
        return b"sse_gateway.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _started(pid: int) -> int:
    """When a process began; ids come round again."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()[19])
    except OSError:
        return 0


def parse_metrics(text: str) -> Metrics:
    """Parse the Prometheus text format."""
    families = text_string_to_metric_families(text)
    return Metrics([Sample(s.name, s.labels, s.value) for family in families for s in family.samples])


def poll(probe: Callable[[], T], *, timeout_s: float, what: str) -> T:
    """Call `probe` until it returns something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.01)
    return answer


class GatewayProcess:
    """One ``sse-gateway serve`` with a configuration of its own.

    Args:
        config: What `configuration` builds.
        directory: An empty directory of its own.
        environment: Variables on top of ours.
        open_files: The most descriptors it may have; our own limit by default.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        open_files: int | None = None,
    ) -> None:
        self.config = config
        self.logs: list[LogRecord] = []
        self.stray_output: list[str] = []
        self._file = directory / "sse-gateway.yaml"
        self._open_files = open_files
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._log_reader: threading.Thread | None = None

    @property
    def config_file(self) -> Path:
        """The configuration it runs with."""
        return self._file

    @property
    def address(self) -> Address:
        """Where clients connect: (host, port), or the path of a Unix socket."""
        listen = self.config["listen"]
        return listen["unix"] if "unix" in listen else (listen["host"], listen["port"])

    @property
    def pid(self) -> int:
        """Process id of the supervisor, also after the end."""
        assert self._process is not None, "the gateway was not started"
        return self._process.pid

    def worker_pids(self) -> list[int]:
        """Process ids of the workers, the oldest first; none once the supervisor has gone."""
        return sorted(filter(_is_worker, self._children()), key=_started)

    def _children(self) -> list[int]:
        """Process ids of its children, also of such as are not workers yet, or no more."""
        try:
            return list(map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text("ascii").split()))
        except OSError:
            return []

    @property
    def worker_pid(self) -> int:
        """Process id of the only worker."""
        (pid,) = self.worker_pids()
        return pid

    def start(self, *, ready: bool = True, alive: bool = True) -> GatewayProcess:
        """Start the process; return when it is ready, or its admin listener answers, or at once."""
        self.write_config()
        command = [sys.executable, "-m", "sse_gateway", "serve", "--config", str(self._file)]
        if self._open_files is not None:
            command = ["sh", "-c", f'ulimit -n {self._open_files}; exec "$@"', "sh", *command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self._environment,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._log_reader = threading.Thread(target=self._read_logs, daemon=True)
        self._log_reader.start()
        if alive:
            self.wait_until(lambda: self.admin_status("/healthz") == 200, _START_S, "/healthz")
        if alive and ready:
            self.wait_ready()
        return self

    def write_config(self) -> None:
        """Write the configuration as it is now."""
        # Through JSON: a mapping used twice would become an anchor and an alias.
        config = json.loads(json.dumps(self.config))
        if "url" in config.get("redis", {}):
            patterns = [rule["pattern"] for rule in config.get("channels", [{"pattern": "sse:*"}])]
            cluster = config.get("cluster", {}).get("name", "default")
            config["redis"]["url"] = log_in(config["redis"]["url"], patterns, cluster)
        self._replace_file(yaml.safe_dump(config, sort_keys=False))

    def reload(self, text: str | None = None) -> None:
        """Write the configuration as it is now, or whatever else, and send SIGHUP."""
        if text is None:
            self.write_config()
        else:
            self._replace_file(text)
        self.signal(signal.SIGHUP)

    def _replace_file(self, text: str) -> None:
        """All at once: a reload that has begun reads the one or the other."""
        new = self._file.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self._file)

    def _read_logs(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._take_log_line(line)

    def _take_log_line(self, line: str) -> None:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                self.logs.append(record)
                return
        self.stray_output.append(line)

    def wait_until(self, probe: Callable[[], T], timeout_s: float, what: str) -> T:
        """Wait for `probe` while the process lives."""

        def probe_alive() -> T:
            assert self.running, f"the gateway ended with {self.exit_code}:\n{self.output_tail()}"
            return probe()

        try:
            return poll(probe_alive, timeout_s=timeout_s, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output_tail()}") from None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Exit code, or None while the process lives."""
        return None if self._process is None else self._process.poll()

    def output_tail(self) -> str:
        """Return the newest of what the process wrote to stderr, for a failure's message."""
        records = [str({key: value for key, value in r.items() if key != "exception"}) for r in self.logs[-20:]]
        traces = [str(record["exception"]) for record in self.logs if "exception" in record]
        return "".join(self.stray_output[-40:]) + "\n".join([*records, *traces[-1:]])

    # -- admin listener

    def admin(
        self, path: str, *, accept: str = "*/*", headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        """GET a path of the admin listener: status, content type, body; status 0 if nobody answers."""
        admin = self.config["admin"]
        connection = http.client.HTTPConnection(admin["host"], admin["port"], timeout=_ANSWER_S)
        try:
            connection.request("GET", path, headers={"Accept": accept, **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, "", ""
        finally:
            connection.close()

    def admin_status(self, path: str) -> int:
        """GET a path of the admin listener and return its status, 0 if nobody answers."""
        return self.admin(path)[0]

    def unready_reasons(self) -> list[str]:
        """What /readyz says is missing; ``["no answer"]`` if nobody does."""
        status, _, body = self.admin("/readyz")
        reasons: list[str] = json.loads(body)["reasons"] if status else ["no answer"]
        return reasons

    def wait_ready(self, timeout_s: float = _START_S) -> None:
        """Wait until /readyz says 200."""
        self.wait_until(lambda: self.admin_status("/readyz") == 200, timeout_s, "readiness")

    def wait_not_ready(self, timeout_s: float = _WAIT_S) -> None:
        """Wait until /readyz says 503."""
        self.wait_until(lambda: self.admin_status("/readyz") == 503, timeout_s, "unreadiness")

    def metrics(self) -> Metrics:
        """Scrape /metrics; again where a worker had no time to answer, and is shown as it was when it last said something."""
        began = time.monotonic()
        status, _, body = self.admin("/metrics")
        if time.monotonic() - began >= ANSWER_S:  # once: it may be one that never answers
            status, _, body = self.admin("/metrics")
        assert status == 200, f"/metrics answered {status}"
        return parse_metrics(body)

    def metric(self, name: str, **labels: str) -> float:
        """Scrape one value."""
        return self.metrics().value(name, **labels)

    def wait_metric(self, name: str, value: float, *, timeout_s: float = _WAIT_S, **labels: str) -> None:
        """Wait until a metric has exactly this value."""
        seen: list[float] = []

        def reached() -> bool:
            seen.append(self.metric(name, **labels))
            return seen[-1] == value

        try:
            self.wait_until(reached, timeout_s, f"{name}{labels or ''} == {value}")
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen {seen[-1:]}") from None

    # -- logs

    def records(self, event: str, **fields: Any) -> list[LogRecord]:
        """Return the log lines of an event that carry these fields."""
        wanted = {"event": event, **fields}
        return [record for record in list(self.logs) if wanted.items() <= record.items()]

    def wait_log(self, event: str, *, timeout_s: float = _WAIT_S, count: int = 1, **fields: Any) -> list[LogRecord]:
        """Wait for `count` log lines of an event that carry these fields."""
        try:
            poll(lambda: len(self.records(event, **fields)) >= count, timeout_s=timeout_s, what=f"{event} {fields}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output_tail()}") from None
        return self.records(event, **fields)

    # -- the end

    def signal(self, number: Signals) -> None:
        """Send a signal to the supervisor."""
        os.kill(self.pid, number)

    def signal_worker(self, number: Signals) -> int:
        """Send a signal to the only worker; returns its process id."""
        pid = self.worker_pid
        os.kill(pid, number)
        return pid

    def wait_exit(self, timeout_s: float = _STOP_S) -> int:
        """Wait for the end and return the exit code; all logs have been read then."""
        assert self._process is not None
        code = self._process.wait(timeout_s)
        if self._log_reader is not None:
            self._log_reader.join(timeout_s)
        return code

    def stop(self, timeout_s: float = _STOP_S) -> int:
        """SIGTERM, and return the exit code."""
        if self.running:
            self.signal(signal.SIGTERM)
        return self.wait_exit(timeout_s)

    def kill(self) -> None:
        """``kill -9`` of all its processes, as when the host fails. Idempotent."""
        if self._process is None:
            return
        children = self._freeze() if self.running else []
        self._process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait_exit()

    def _freeze(self) -> list[int]:
        """Stop the supervisor, so that it starts no more workers; returns all that it has begun to start.

        It stands still only when a worker that it is about to start has become one.
        """
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return self._children()

    def check_clean(self) -> None:
        """Fail if the process wrote anything that is not a log line, or logged an error of its own."""
        assert not self.stray_output, "stray output:\n" + "".join(self.stray_output[-60:])
        failures = [
            r for r in self.logs if str(r.get("level", "")).lower() in {"critical", "fatal"} or "exception" in r
        ]
        assert not failures, failures


class Gateways:
    """Starts gateways and makes sure that every one of them ends."""

    def __init__(self, new_directory: Callable[[], Path]) -> None:
        self._new_directory = new_directory
        self._started: list[GatewayProcess] = []

    def start(
        self,
        config: Config,
        *,
        ready: bool = True,
        alive: bool = True,
        environment: Mapping[str, str] | None = None,
        open_files: int | None = None,
    ) -> GatewayProcess:
        """Start a gateway that is stopped with this collection."""
        gateway = GatewayProcess(config, self._new_directory(), environment=environment, open_files=open_files)
        self._started.append(gateway)
        return gateway.start(ready=ready, alive=alive)

    def close(self) -> None:
        """End all gateways; those that still ran must end cleanly and have written nothing but log lines."""
        try:
            for gateway in self._started:
                if gateway.running:
                    code = gateway.stop()
                    assert code == 0, f"exit code {code}:\n{gateway.output_tail()}"
                    gateway.check_clean()
        finally:
            for gateway in self._started:
                gateway.kill()


@contextlib.contextmanager
def gateways(new_directory: Callable[[], Path]) -> Iterator[Gateways]:
    """Collect gateways for the length of a ``with`` block."""
    collection = Gateways(new_directory)
    try:
        yield collection
    finally:
        collection.close()
