"""The gateway to look at: with its own Valkey, a sample publisher, and a live page.

Everything listens on the loopback only and is gone when the demo ends, also by ``kill -9``.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis.exceptions
import yaml

from sse_gateway.config import load_settings
from sse_gateway.demo_relay import Relay
from sse_gateway.demo_samples import PREFIX, publish_samples
from sse_gateway.demo_site import Site, page_parts
from sse_gateway.demo_valkey import HOST, OwnValkey, connect, free_port
from sse_gateway.errors import ConfigError, GatewayError, SourceError
from sse_gateway.gateway import run
from sse_gateway.publish import check_primary_url
from sse_gateway.reasons import Policy
from sse_gateway.redis_url import mask_redis_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from redis.asyncio import Redis

    from sse_gateway.config import Settings


async def run_demo(port: int, redis_url: str | None, echo: Callable[[str], None]) -> None:
    """Run the demo until SIGTERM or SIGINT.

    Args:
        port: Of the public listener and its page.
        redis_url: A Redis to use; None starts a Valkey.
        echo: Takes what the person at the terminal should read, once everything is up.

    Raises:
        ConfigError: The port is taken, the demo's Valkey is not installed, or the URL is none.
        SourceError: Redis does not answer.
    """
    _check_port(port)
    # Until the gateway watches the signals itself, SIGTERM ends the demo as Ctrl-C does: tidily.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sse-gateway-demo-")))
        own = await stack.enter_async_context(_valkey(directory)) if redis_url is None else None
        url = own.url if own is not None else redis_url or ""
        client = await stack.enter_async_context(_connected(url))
        settings = _settings(directory, port, url)
        await _run(settings, port, client, own, lambda: echo(_welcome(port, url)))


async def _run(
    settings: Settings, port: int, client: Redis, own: OwnValkey | None, started: Callable[[], None]
) -> None:
    """Run gateway, page and publisher together; if one fails, all end."""
    background: set[asyncio.Task[None]] = set()
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:

            def spawn(work: Coroutine[Any, Any, None]) -> None:
                task = group.create_task(work)
                background.add(task)
                task.add_done_callback(background.discard)

            spawn(publish_samples(client))
            url = mask_redis_url(settings.redis.url.get_secret_value())
            site = Site(client, Relay(port), own, url, spawn, page_parts())
            await run(settings, started=started, fallback=site.answer)
            for task in background:
                task.cancel()
    except* GatewayError as errors:
        failure = errors.exceptions[0]
    if failure is not None:
        raise failure


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections may linger
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError([f"cannot listen on {HOST}:{port}: {reason}; choose another with --port"]) from None


@asynccontextmanager
async def _valkey(directory: Path) -> AsyncIterator[OwnValkey]:
    own = OwnValkey(directory)
    try:
        await own.start()
        yield own
    finally:
        await own.stop()


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Redis]:
    try:
        check_primary_url(url)
    except ValueError as error:
        raise ConfigError([f"--redis {error}"]) from None
    client = connect(url)
    try:
        try:
            await client.ping()
        except redis.exceptions.RedisError as error:
            raise SourceError(f"cannot connect to Redis at {mask_redis_url(url)}: {error} (is it running?)") from None
        yield client
    finally:
        await client.aclose()


def _settings(directory: Path, port: int, redis_url: str) -> Settings:
    """The demo's configuration, read as an operator's file is; the URL stays off the disk.

    Short times and small bounds: what takes minutes in service is to be seen in seconds.
    """
    slow = [_rule(f"slow:{policy}:*", "json", queue={"max_events": 20, "policy": str(policy)}) for policy in Policy]
    document = {
        "listen": {"host": HOST, "port": port},
        "admin": {"host": HOST, "port": free_port()},
        "redis": {"connect_timeout": "1s", "liveness_timeout": "2s"},
        "cluster": {"name": "demo"},
        "channels": [
            *slow,
            _rule("job:*", "json"),
            _rule("price:*", "json"),
            _rule("tick", "json"),
            _rule("*", "text"),
        ],
        "stream": {"heartbeat": "2s", "retry": "1s", "send_buffer": "8KiB"},
        "shutdown": {"drain": "1s"},
        "auth": {"mode": "none"},
        "log": {"level": "warning", "format": "text"},
    }
    file = directory / "demo.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return load_settings(file, {"SSE_GATEWAY__REDIS__URL": redis_url})


def _rule(pattern: str, format_: str, **more: object) -> dict[str, object]:
    return {"pattern": PREFIX + pattern, "strip_prefix": PREFIX, "format": format_, **more}


def _welcome(port: int, redis_url: str) -> str:
    """What the person at the terminal reads."""
    name = "sse-gateway" if shutil.which("sse-gateway") else f"{shlex.quote(sys.executable)} -m sse_gateway"
    base = f"http://{HOST}:{port}"
    shown = mask_redis_url(redis_url)
    return f"""
  Live page    {base}/
  Stream       {base}/events/hello
  Redis        {shown}

From another terminal, follow the stream and publish to it:

  {name} tail {base}/events/hello
  {name} publish demo:hello 'Hello from the terminal' --redis {shlex.quote(shown)}

  (or: curl -N {base}/events/hello)

The sample publisher feeds demo:job:report, demo:price:* and demo:tick. Ctrl-C ends everything.
"""
