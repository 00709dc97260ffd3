"""Mode callback: the application is asked who a client is, and what it may read.

A GET with the headers and cookies that are listed. The application answers 200 and
``{"channels": ["a", "b*"], "expires_in": 3600, "subject": "ann"}``, or 401, or 403.

Rules:
    1. It fails closed: whatever is no such answer refuses new streams for now, and lets nobody in.
    2. The same credentials are asked about once at a time, and the answer, yes or no, stands for `cache`.
    3. Time, questions under way, questions that wait, and the size of an answer are bounded; beyond, refused for now.
       A question that failed is asked once more, after a moment drawn at random.
    4. Nothing of credentials or answers reaches a log.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from typing import TYPE_CHECKING

import aiohttp
import msgspec
from aiohttp import hdrs
from yarl import URL

from sse_gateway.credentials import cookie_values
from sse_gateway.errors import AccessError, TemporaryError
from sse_gateway.grants import Access, Identity, read_grant
from sse_gateway.known import Known
from sse_gateway.logs import log_event
from sse_gateway.reasons import AccessFailure, Unavailable
from sse_gateway.tokens import MAX_TEXT, MAX_TIME

if TYPE_CHECKING:
    from collections.abc import Callable

    from multidict import CIMultiDictProxy

    from sse_gateway.auth_settings import CallbackSettings

MAX_WAITING = 1024
"""Questions that wait for their turn; beyond, new streams are refused for now."""

MAX_ANSWER_BYTES = 65_536
"""Of an answer."""

RETRY_S = (0.05, 0.25)
"""Between a question that failed and the second try, drawn between these."""

LOG_S = 1.0
"""At most one line a second about failures."""

_log = logging.getLogger(__name__)


class _Answer(msgspec.Struct):
    channels: list[str]
    expires_in: float
    subject: str = ""


class Callback:
    """Asks the application.

    Attributes:
        answers: Questions by outcome.
        judged: Clients that the application was asked about, or is being asked about already.
        remembered: Clients whose answer was remembered.
    """

    def __init__(
        self,
        settings: CallbackSettings,
        max_lifetime_s: float,
        marks: Callable[[str, str], tuple[str, ...]],
        wall: Callable[[], float],
    ) -> None:
        """Prepare; `run` opens the connections.

        Args:
            settings: Whom to ask, and how.
            max_lifetime_s: An answer stands for a stream no longer than this.
            marks: Digests of a subject, for revocations.
            wall: Unix seconds.
        """
        self.answers = {"ok": 0, "refused": 0, "failed": 0}
        self.judged = 0
        self.remembered = 0
        self._settings = settings
        self._url = URL(settings.url or "", encoded=True)
        self._max_lifetime_s = max_lifetime_s
        self._marks = marks
        self._wall = wall
        self._known = Known["Access | AccessFailure"](secrets.token_bytes(32))
        self._flights: dict[bytes, asyncio.Task[Access | AccessFailure | None]] = {}
        self._turns = asyncio.Semaphore(settings.concurrency)
        self._session: aiohttp.ClientSession | None = None
        self._logged_at = -LOG_S

    async def run(self) -> None:
        """Keep the connections, until cancelled."""
        connector = aiohttp.TCPConnector(limit=self._settings.concurrency)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": "sse-gateway", "Accept": "application/json", "Accept-Encoding": "identity"},
        ) as session:
            self._session = session
            try:
                await asyncio.Event().wait()
            finally:
                self._session = None
                for flight in self._flights.values():
                    flight.cancel()

    async def access(self, headers: CIMultiDictProxy[str], query: str) -> Access:  # noqa: ARG002 - other modes look there
        """What the application says of a client.

        Raises:
            AccessError: It says no.
            TemporaryError: It says nothing.
        """
        passed = self._passed(headers)
        if not passed:
            raise AccessError(AccessFailure.MISSING)
        digest = self._known.digest(part for pair in passed for part in pair)
        answer = self._known.get(digest, time.monotonic())
        if answer is None:
            self.judged += 1
            answer = await self._ask_once(digest, passed)
        else:
            self.remembered += 1
        if isinstance(answer, AccessFailure):
            raise AccessError(answer)
        return answer

    def _passed(self, headers: CIMultiDictProxy[str]) -> list[tuple[str, str]]:
        """What is passed on of a request."""
        settings = self._settings
        passed = [(name, value) for name in settings.headers for value in headers.getall(name, ())]
        fields = headers.getall(hdrs.COOKIE, ())
        cookies = [f"{name}={value}" for name in settings.cookies for value in cookie_values(fields, name)]
        return [*passed, (hdrs.COOKIE, "; ".join(cookies))] if cookies else passed

    async def _ask_once(self, digest: bytes, passed: list[tuple[str, str]]) -> Access | AccessFailure:
        """Ask, or wait for the question about the same credentials that is under way."""
        flight = self._flights.get(digest)
        if flight is None:
            if len(self._flights) >= self._settings.concurrency + MAX_WAITING:
                raise TemporaryError(Unavailable.SOURCE)
            flight = self._flights[digest] = asyncio.create_task(self._ask(digest, passed))
            flight.add_done_callback(lambda _: self._flights.pop(digest, None))
        answer = await asyncio.shield(flight)
        if answer is None:
            raise TemporaryError(Unavailable.SOURCE)
        return answer

    async def _ask(self, digest: bytes, passed: list[tuple[str, str]]) -> Access | AccessFailure | None:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._turns.acquire()
        except TimeoutError:
            self._failed("no turn came")
            return None
        try:
            answer = await self._try(passed) or await self._try_again(passed)
        finally:
            self._turns.release()
        if answer is None:
            return None
        lasts_s, size = self._settings.cache_s, 0
        if isinstance(answer, Access):
            lasts_s, size = min(lasts_s, answer.identity.expires_at - self._wall()), answer.grant.charge
        self._known.put(digest, answer, time.monotonic() + lasts_s, size)
        return answer

    async def _try_again(self, passed: list[tuple[str, str]]) -> Access | AccessFailure | None:
        await asyncio.sleep(random.uniform(*RETRY_S))
        return await self._try(passed)

    async def _try(self, passed: list[tuple[str, str]]) -> Access | AccessFailure | None:
        """Ask; None if it failed."""
        try:
            status, body = await self._get(passed)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._failed(type(error).__name__)
            return None
        if status in {401, 403}:
            self.answers["refused"] += 1
            return AccessFailure.REFUSED if status == 401 else AccessFailure.FORBIDDEN
        if status != 200 or len(body) > MAX_ANSWER_BYTES:
            self._failed(f"status {status}" if status != 200 else "a long answer")
            return None
        try:
            answer = self._read(body)
        except (ValueError, RecursionError):
            self._failed("an answer without its form")
            return None
        self.answers["ok"] += 1
        return answer

    async def _get(self, passed: list[tuple[str, str]]) -> tuple[int, bytes]:
        if self._session is None:
            raise TimeoutError
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
        async with self._session.get(self._url, headers=passed, allow_redirects=False, timeout=timeout) as response:
            body = b""
            while len(body) <= MAX_ANSWER_BYTES and (more := await response.content.read(MAX_ANSWER_BYTES + 1)):
                body += more
            return response.status, body

    def _read(self, body: bytes) -> Access:
        """Read what the application says.

        Raises:
            ValueError: It is not the answer to the question.
        """
        answer = msgspec.json.decode(body, type=_Answer)
        if not 0 < answer.expires_in < float("inf") or len(answer.subject) > MAX_TEXT:
            raise ValueError("not a lifetime, or not a subject")
        expires_at = self._wall() + min(answer.expires_in, self._max_lifetime_s, MAX_TIME)
        identity = Identity(expires_at, answer.subject, "", self._marks(answer.subject, ""))
        return Access(identity, read_grant(answer.channels))

    def _failed(self, reason: str) -> None:
        self.answers["failed"] += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_S:
            self._logged_at = now
            log_event(_log, logging.WARNING, "callback.failed", reason=reason, failures=self.answers["failed"])
