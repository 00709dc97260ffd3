"""Who may read what: the one place where a request is let in, or not.

Rules:
    1. All channels of a request are allowed or none (I11). What is public needs no token, and none is looked at where
       everything is: a cookie that has run out takes nobody's public stream away.
    2. A client learns the status and nothing else: not what was wrong with its token, not whether a channel exists.
    3. What is only temporary is refused for now, whatever the token is worth.
    4. Every refusal is counted by its reason, and logged by it, at most once a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from aiohttp import hdrs

from sse_gateway.callback import Callback
from sse_gateway.errors import AccessError, ConfigError, RequestError, TemporaryError
from sse_gateway.grants import NOTHING
from sse_gateway.jwks import PublishedKeys
from sse_gateway.keys import key_of_file, secret_key
from sse_gateway.logs import log_event
from sse_gateway.reasons import AccessFailure, Unavailable
from sse_gateway.revocations import Revocations, marks_of
from sse_gateway.tally import AccessCounts
from sse_gateway.tokens import Expected
from sse_gateway.verifier import OneKey, Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from multidict import CIMultiDictProxy

    from sse_gateway.auth_settings import AuthSettings
    from sse_gateway.channels import RuleTable
    from sse_gateway.grants import Access, Identity
    from sse_gateway.settings import Settings
    from sse_gateway.verifier import Keys

LOG_S = 1.0
"""At most one line a second and reason about refusals."""

EXPIRE_S = 60.0
"""Between two looks for revocations that have ended."""

_CHALLENGE = 'Bearer realm="sse-gateway"'

_log = logging.getLogger(__name__)


class Authority:
    """Lets requests in.

    Attributes:
        judge: Knows what credentials are worth.
        keys: Published keys, where there are any.
        failures: Requests not let in, by reason.
        revocations: What was revoked.
    """

    def __init__(
        self,
        judge: Verifier | Callback,
        rules: RuleTable,
        revocations: Revocations,
        wall: Callable[[], float],
        keys: PublishedKeys | None = None,
    ) -> None:
        self.judge = judge
        self.keys = keys
        self.failures = dict.fromkeys(AccessFailure, 0)
        self.revocations = revocations
        self._rules = rules
        self._wall = wall
        self._logged: dict[AccessFailure, tuple[float, int]] = {}
        self._has_news = False

    @property
    def lacks(self) -> Unavailable | None:
        """Why nobody with a token can be let in yet."""
        return Unavailable.SOURCE if self.keys is not None and not len(self.keys) else None

    def counts(self) -> AccessCounts:
        """What was counted so far."""
        judge, keys, revocations = self.judge, self.keys, self.revocations
        counts = AccessCounts(
            refused=self.failures,
            new=judge.judged,
            remembered=judge.remembered,
            revocations=len(revocations),
            displaced=revocations.displaced,
            ignored=revocations.ignored,
        )
        if isinstance(judge, Callback):
            counts = replace(counts, answers=judge.answers)
        return counts if keys is None else replace(counts, fetches=keys.fetches, keys=len(keys))

    async def run(self) -> None:
        """Fetch keys, keep connections, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for part in (self.keys, self.judge):
                if isinstance(part, PublishedKeys | Callback):
                    group.create_task(part.run())
            while True:
                await asyncio.sleep(EXPIRE_S)
                self.revocations.expire(self._wall())

    async def admit(self, asked: Sequence[str], headers: CIMultiDictProxy[str], query: str) -> Access | None:
        """Let a request in.

        Args:
            asked: Names and prefixes.
            headers: Of the request.
            query: Of its target, still encoded.

        Returns:
            What it was let in by; None if everything is public.

        Raises:
            RequestError: 400, 401 or 403.
            TemporaryError: Nobody knows now.
        """
        if NOTHING.allows(asked, self._rules):
            return None
        try:
            access = await self.judge.access(headers, query)
            self._check(access.identity)
            if not access.grant.allows(asked, self._rules):
                raise AccessError(AccessFailure.FORBIDDEN)  # noqa: TRY301 - counted with the others
        except AccessError as error:
            self._count(error.why)
            raise _refusal(error.why) from None
        except TemporaryError:
            self._count(AccessFailure.UNAVAILABLE)
            raise
        return access

    def recheck(self, identity: Identity) -> None:
        """Look again, after something was waited for.

        Raises:
            RequestError: 401.
        """
        try:
            self._check(identity)
        except AccessError as error:
            self._count(error.why)
            raise _refusal(error.why) from None

    def heard(self, payload: bytes) -> None:
        """Take in a revocation from the control channel, or from the list."""
        self._has_news |= self.revocations.take(payload, self._wall())

    def is_revoked(self, identity: Identity) -> bool:
        """Whether it, or whose it is, was revoked."""
        return self.revocations.covers(identity.marks, self._wall())

    def take_news(self) -> bool:
        """Whether anything was revoked since the last call."""
        news, self._has_news = self._has_news, False
        return news

    def _check(self, identity: Identity) -> None:
        if identity.expires_at <= self._wall():
            raise AccessError(AccessFailure.EXPIRED)
        if self.is_revoked(identity):
            raise AccessError(AccessFailure.REVOKED)

    def _count(self, why: AccessFailure) -> None:
        self.failures[why] += 1
        now = time.monotonic()
        logged_at, told = self._logged.get(why, (-LOG_S, 0))
        if now - logged_at >= LOG_S:
            self._logged[why] = now, self.failures[why]
            log_event(_log, logging.INFO, "access.refused", reason=why, requests=self.failures[why] - told)


def _refusal(why: AccessFailure) -> RequestError:
    """What the client is told.

    Source: RFC 6750 section 3.1.
    """
    if why is AccessFailure.AMBIGUOUS:
        challenge = f'{_CHALLENGE}, error="invalid_request"'
        return RequestError(400, "several tokens that differ: send one", {hdrs.WWW_AUTHENTICATE: challenge})
    if why is AccessFailure.FORBIDDEN:
        challenge = f'{_CHALLENGE}, error="insufficient_scope"'
        return RequestError(403, "the token does not cover all these channels", {hdrs.WWW_AUTHENTICATE: challenge})
    error = "" if why is AccessFailure.MISSING else ', error="invalid_token"'
    return RequestError(401, "a valid token is needed", {hdrs.WWW_AUTHENTICATE: _CHALLENGE + error})


def make_authority(settings: Settings, rules: RuleTable, key: bytes, wall: Callable[[], float]) -> Authority:
    """Make who the configuration says, with any mode but none.

    Args:
        settings: Configuration.
        rules: Who owns which channel.
        key: Of the log's hash; digests of what is revoked are made with it.
        wall: Unix seconds.

    Raises:
        ConfigError: The key is unfit.
    """
    auth = settings.auth
    revocations = Revocations(settings.cluster.secret.get_secret_value().encode())

    def marks(subject: str, token: str) -> tuple[str, ...]:
        return marks_of(key, subject, token)

    if auth.mode == "callback":
        callback = Callback(auth.callback, auth.longest_life_s, marks, wall)
        return Authority(callback, rules, revocations, wall)
    published = PublishedKeys(auth.jwks_url, auth.algorithms) if auth.jwks_url is not None else None
    keys: Keys = published if published is not None else _only_key(auth)
    expected = Expected(auth.audience, auth.issuer, auth.channels_claim, auth.longest_life_s, marks)
    verifier = Verifier(keys, auth.algorithms, auth.token_from, expected, wall)
    return Authority(verifier, rules, revocations, wall, published)


def _only_key(auth: AuthSettings) -> OneKey:
    if auth.public_key_file is not None:
        return OneKey(key_of_file(auth.public_key_file, auth.algorithms))
    secret = auth.secret.get_secret_value()
    if not secret:  # `conflicts` has said so; nothing may come of it if it had not
        raise ConfigError(["auth.mode: mode jwt needs a key"])
    return OneKey(secret_key(secret, auth.algorithms))
