"""Mode jwt: from the token of a request to what it gives.

Rules:
    1. A token is verified once and remembered until it ends: a storm of reconnections is none of cryptography.
    2. What was verified with keys that have changed since is verified anew: a key that its issuer has withdrawn lets nobody in.
    3. Algorithm before key, key before signature, signature before claims: each step is given what the last has proved.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Protocol

from aiohttp import hdrs

from sse_gateway.credentials import bearer_tokens, cookie_values, only_token
from sse_gateway.errors import AccessError
from sse_gateway.known import Known
from sse_gateway.reasons import AccessFailure
from sse_gateway.subscription import parameter_values
from sse_gateway.tokens import parse_token, read_claims

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from multidict import CIMultiDictProxy

    from sse_gateway.auth_settings import TokenFromSettings
    from sse_gateway.grants import Access
    from sse_gateway.keys import Key
    from sse_gateway.tokens import Expected, Token


class Keys(Protocol):
    """Who has the keys.

    Attributes:
        serial: Changes whenever they do.
    """

    serial: int

    async def find(self, token: Token) -> Key:
        """The key that a token says it was signed with.

        Raises:
            AccessError: There is none.
            TemporaryError: Nobody knows yet.
        """


class OneKey:
    """The one key of a configuration; what a token calls its key makes no difference."""

    def __init__(self, key: Key) -> None:
        self.serial = 0
        self._key = key

    async def find(self, token: Token) -> Key:  # noqa: ARG002 - there is no choice
        """Return the key."""
        return self._key


class Verifier:
    """Verifies tokens.

    Attributes:
        remembered: Verified tokens that came again.
        judged: Tokens verified.
    """

    def __init__(
        self,
        keys: Keys,
        algorithms: Collection[str],
        places: TokenFromSettings,
        expected: Expected,
        wall: Callable[[], float],
    ) -> None:
        """Prepare.

        Args:
            keys: The keys.
            algorithms: That are listed.
            places: Where a token may stand.
            expected: What its claims have to say.
            wall: Unix seconds.
        """
        self.remembered = 0
        self.judged = 0
        self._keys = keys
        self._algorithms = frozenset(algorithms)
        self._places = places
        self._expected = expected
        self._wall = wall
        self._known = Known["Access"](secrets.token_bytes(32))

    async def access(self, headers: CIMultiDictProxy[str], query: str) -> Access:
        """What a request's token gives.

        Raises:
            AccessError: It is not accepted.
            TemporaryError: Nobody knows yet.
        """
        text = only_token(self._found(headers, query))
        digest = self._known.digest((text, str(self._keys.serial)))
        known = self._known.get(digest, self._wall())
        if known is not None:
            self.remembered += 1
            return known
        token = parse_token(text)
        if token.algorithm not in self._algorithms:
            raise AccessError(AccessFailure.ALGORITHM)
        (await self._keys.find(token)).verify(token)
        access = read_claims(token.payload, self._expected, self._wall())
        self.judged += 1
        self._known.put(digest, access, access.identity.expires_at, len(text) + access.grant.charge)
        return access

    def _found(self, headers: CIMultiDictProxy[str], query: str) -> list[str]:
        places, found = self._places, list[str]()
        if places.header and hdrs.AUTHORIZATION in headers:
            found += bearer_tokens(headers.getall(hdrs.AUTHORIZATION))
        if places.cookie is not None and hdrs.COOKIE in headers:
            found += cookie_values(headers.getall(hdrs.COOKIE), places.cookie)
        if places.query is not None:
            values = parameter_values(query, places.query)
            if len(values) > 1:
                raise AccessError(AccessFailure.AMBIGUOUS)
            found += filter(None, values)
        return found
