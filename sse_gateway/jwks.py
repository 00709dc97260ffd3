"""The issuer's keys, fetched from where it publishes them.

Rules:
    1. One fetch at a time; whoever needs a key meanwhile waits for that one.
    2. The last good keys stay until a fetch brings others: an issuer that is down, or talks nonsense, locks nobody out.
    3. A token with an unknown key makes us look once in `COOL_DOWN_S`, however many there are, and however lately we
       looked of ourselves: the first token of a new key is let in. It is refused if the issuer has answered since, and
       refused for now if it could not be asked.
    4. Time, size, number of keys and redirects (none) are bounded: the issuer is trusted with keys, not with our memory.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from sse_gateway.errors import AccessError, TemporaryError
from sse_gateway.keys import keys_of_set
from sse_gateway.logs import log_event
from sse_gateway.reasons import AccessFailure, Unavailable

if TYPE_CHECKING:
    from collections.abc import Collection

    from sse_gateway.keys import Key
    from sse_gateway.tokens import Token

REFRESH_S = 300.0
"""Between two fetches, while they succeed."""

COOL_DOWN_S = 30.0
"""Between two fetches for the sake of unknown keys."""

RETRY_S = (1.0, 60.0)
"""Between two fetches while they fail: the first wait, doubled up to the second."""

TIMEOUT_S = 5.0
"""For one fetch in all."""

MAX_SET_BYTES = 262_144
"""Of the answer."""

MAX_KEYS = 64
"""In it."""

_HEADERS = {"User-Agent": "sse-gateway", "Accept": "application/json", "Accept-Encoding": "identity"}

_log = logging.getLogger(__name__)


class PublishedKeys:
    """The keys behind a URL.

    Attributes:
        fetches: Fetches by outcome.
        serial: How often they have changed.
    """

    def __init__(self, url: str, algorithms: Collection[str]) -> None:
        """Prepare; `run` fetches.

        Args:
            url: Where they are.
            algorithms: That are listed.
        """
        self.fetches = {"ok": 0, "failed": 0}
        self.serial = 0
        self._url = url
        self._algorithms = algorithms
        self._keys: dict[str | None, Key] = {}
        self._is_good = False
        self._sought_at = -math.inf
        self._flight: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._keys)

    async def run(self) -> None:
        """Keep them fresh, until cancelled."""
        wait_s = RETRY_S[0]
        try:
            while True:
                await self._fetch()
                wait_s = RETRY_S[0] if self._is_good else min(RETRY_S[1], 2 * wait_s)
                await asyncio.sleep((REFRESH_S if self._is_good else wait_s) * random.uniform(0.75, 1.0))
        finally:
            if self._flight is not None:
                self._flight.cancel()

    async def find(self, token: Token) -> Key:
        """Find the key that a token names; one that names none needs the only key for its algorithm.

        Raises:
            AccessError: The issuer has no such key.
            TemporaryError: The issuer could not be asked.
        """
        key = self._known(token)
        if key is None and (self._flight is not None or self._may_seek()):
            await self._fetch()
            key = self._known(token)
        if key is not None:
            return key
        if not self._is_good:
            raise TemporaryError(Unavailable.SOURCE)
        raise AccessError(AccessFailure.KEY)

    def _may_seek(self) -> bool:
        now = time.monotonic()
        if now - self._sought_at < COOL_DOWN_S:
            return False
        self._sought_at = now
        return True

    def _known(self, token: Token) -> Key | None:
        if token.key_id is not None:
            return self._keys.get(token.key_id)
        fitting = [key for key in self._keys.values() if token.algorithm in key.algorithms]
        return fitting[0] if len(fitting) == 1 else None

    async def _fetch(self) -> None:
        """Fetch, or wait for the fetch that is under way."""
        if self._flight is None:
            self._flight = asyncio.create_task(self._fly())
        await asyncio.shield(self._flight)

    async def _fly(self) -> None:
        try:
            keys = keys_of_set(msgspec.json.decode(await self._load()), self._algorithms, MAX_KEYS)
            if not keys:
                raise ValueError("no usable key for these algorithms")  # noqa: TRY301 - handled as every other failure
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RecursionError) as error:
            self._is_good = False
            self.fetches["failed"] += 1
            log_event(_log, logging.WARNING, "jwks.failed", reason=_reason(error), keys=len(self._keys))
        else:
            if keys != self._keys:  # also another key by the same id
                self.serial += 1
                log_event(_log, logging.INFO, "jwks.changed", keys=len(keys))
            self._keys = keys
            self._is_good = True
            self.fetches["ok"] += 1
        finally:
            self._flight = None

    async def _load(self) -> bytes:
        """Get the document.

        Raises:
            ValueError: It is not what it should be; the sentence quotes nothing of it.
        """
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False, headers=_HEADERS) as session,
            session.get(self._url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            body = b""
            while len(body) <= MAX_SET_BYTES and (more := await response.content.read(MAX_SET_BYTES + 1)):
                body += more
            if len(body) > MAX_SET_BYTES:
                raise ValueError(f"more than {MAX_SET_BYTES} bytes")
            return body


def _reason(error: Exception) -> str:
    """What failed, without anything that the issuer has sent."""
    own = type(error) in {ValueError, OSError} or isinstance(error, aiohttp.ClientConnectorError)
    return str(error) if own else type(error).__name__
