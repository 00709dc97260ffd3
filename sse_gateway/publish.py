"""Publish one message, as an upstream service would: a plain Redis PUBLISH.

Rules:
    - Never sends twice: a client that repeats PUBLISH after a lost reply delivers a message twice,
      and here is nobody to give it an idempotency key. Redis' library repeats by default.
    - What the gateway would refuse is refused here, by the gateway's own decoder.
    - No secret of a URL is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sse_gateway.decoder import decode
from sse_gateway.errors import SourceError
from sse_gateway.reasons import Format
from sse_gateway.redis_url import check_redis_url, mask_redis_url

if TYPE_CHECKING:
    from types import TracebackType

_TIMEOUT_S = 5.0
"""Longest wait for a connection, and for a reply."""


def encode_payload(data: bytes, *, event: str | None = None, id_: str | None = None) -> bytes:
    """Make the payload of one message: the data itself, or the envelope around it as a string.

    Args:
        data: UTF-8.
        event: Event type; makes an envelope, which needs a rule with ``format: json``.
        id_: Idempotency key; likewise.

    Raises:
        MessageError: The gateway would refuse it.
    """
    decode(data, Format.TEXT, len(data))
    if event is None and id_ is None:
        return data
    envelope = {"data": data.decode(), "event": event, "id": id_}
    payload = msgspec.json.encode({key: value for key, value in envelope.items() if value is not None})
    decode(payload, Format.JSON, len(payload))
    return payload


def check_primary_url(url: str) -> None:
    """Refuse what does not name one server.

    Raises:
        ValueError: The sentence quotes nothing of `url`.
    """
    check_redis_url(url)
    if url.startswith("redis+sentinel:"):
        raise ValueError("must name the primary itself; only the gateway's configuration may name sentinels")


class Publisher:
    """A connection to Redis that publishes.

    Use as a context manager: entering connects.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.

    Raises:
        ValueError: `url` is none of these.
    """

    def __init__(self, url: str) -> None:
        check_primary_url(url)
        self._where = mask_redis_url(url)
        self._client = redis.Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
        )

    def __enter__(self) -> Self:
        try:
            self._client.ping()
        except redis.RedisError as error:
            self._client.close()
            raise SourceError(
                f"cannot connect to Redis at {self._where}: {error} (is it running? --redis URL names another)"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def publish(self, channel: str, payload: bytes) -> int:
        """Publish once.

        Returns:
            How many subscribers Redis handed it to.

        Raises:
            SourceError: It failed; the sentence says whether the message may have gone out.
        """
        try:
            return int(self._client.publish(channel, payload))
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise SourceError(
                f"lost Redis at {self._where}, the message may or may not have been published: {error}"
            ) from None
        except redis.RedisError as error:
            raise SourceError(f"Redis at {self._where} refused the message: {error}") from None
