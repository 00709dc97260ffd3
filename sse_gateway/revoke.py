"""Revokes tokens, by subject or by id, on every node of a cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hiredis import HiredisError

from sse_gateway.errors import GatewayError, SourceError
from sse_gateway.member import control_channel, log_key
from sse_gateway.primary import Primary
from sse_gateway.revocations import MAX_REVOCATIONS, Revocations, subject_mark, token_mark
from sse_gateway.revoked import add, forget, list_name
from sse_gateway.side_link import side_link

if TYPE_CHECKING:
    from sse_gateway.link import Link
    from sse_gateway.settings import Settings


async def revoke(settings: Settings, subject: str | None, token: str | None, until: int, now: float) -> int:
    """Revoke whatever is named.

    First the list, then the word: whoever starts in between finds it there.

    Args:
        settings: Of the cluster.
        subject: Whose tokens; None for nobody's.
        token: Id (``jti``) of one token; None for none.
        until: How long it holds, Unix seconds.
        now: Unix seconds.

    Returns:
        How many processes of the cluster were told.

    Raises:
        GatewayError: The list is full, or Redis is not to be had.
    """
    key = log_key(settings)
    named = [(subject_mark, subject), (token_mark, token)]
    revocations = Revocations(settings.cluster.secret.get_secret_value().encode())
    texts = [(until, revocations.write(mark(key, text), until)) for mark, text in named if text is not None]
    timeout_s = settings.redis.connect_timeout_s
    try:
        async with asyncio.timeout(2 * timeout_s):
            primary = Primary(settings.redis.url.get_secret_value(), timeout_s=timeout_s)
            async with primary.followed(_raise), side_link(primary.open, _raise) as link:
                return await _tell(link, settings, texts, now)
    except (OSError, TimeoutError, SourceError, HiredisError) as error:
        raise SourceError(f"nothing is sure to be revoked: {str(error) or type(error).__name__}") from None


def _raise(error: BaseException) -> None:
    raise error


async def _tell(link: Link, settings: Settings, texts: list[tuple[int, bytes]], now: float) -> int:
    name = list_name(settings.cluster.name)
    if await forget(link, name, now) + len(texts) > MAX_REVOCATIONS:
        problem = (
            f"nothing was revoked: the list is full ({MAX_REVOCATIONS} revocations); shorten --for, or change the key"
        )
        raise GatewayError(problem)
    await add(link, name, texts)
    told = 0
    for _, text in texts:
        receivers = await link.call(b"PUBLISH", control_channel(settings).encode(), text)
        told = receivers if isinstance(receivers, int) else 0
    return told
