"""The types of single values in the configuration: their form, their range, and how they are shown.

No message quotes a value: it might be a secret in the wrong place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    SerializationInfo,
    Strict,
    WithJsonSchema,
)

from sse_gateway.addresses import parse_trusted
from sse_gateway.quantities import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from sse_gateway.redis_url import check_redis_url, mask_redis_url

MIN_SECRET = 16
"""Characters of a secret at least."""

MAX_WORKERS = 256
"""Each is a process with a link to Redis and windows of its own."""

REVEALED = "revealed"
"""Context for `model_dump`: secrets as they are."""

_HOST = re.compile(
    r"(?=.{1,255}$)(?:(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?)"
)
_CLUSTER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY_PREFIX = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_ORIGIN = re.compile(r"(https?)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
_DEFAULT_PORTS = {("http", "80"), ("https", "443")}
_SOCKET_PATH_BYTES = 107  # sun_path of Linux is 108 with its final zero
_SEND_BUFFER_BYTES = 1 << 30  # SO_SNDBUF is a signed 32-bit integer, and the kernel doubles it


def _positive(seconds: float) -> float:
    if not seconds:
        raise ValueError("must be more than 0s")
    return seconds


def _check_send_buffer(size: int) -> int:
    if size > _SEND_BUFFER_BYTES:
        raise ValueError(f"must be at most {format_size(_SEND_BUFFER_BYTES)}")
    return size


def _check_host(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise ValueError("must be a host name or an address without brackets, such as 127.0.0.1 or ::1")
    return host


def _check_socket(path: Path) -> Path:
    if not path.is_absolute() or len(str(path).encode()) > _SOCKET_PATH_BYTES:
        raise ValueError(f"must be an absolute path of at most {_SOCKET_PATH_BYTES} bytes")
    return path


def _check_workers(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if type(value) is int and 1 <= value <= MAX_WORKERS:
        return value
    raise ValueError(f"must be from 1 to {MAX_WORKERS}, or auto")


def _check_url(url: SecretStr) -> SecretStr:
    check_redis_url(url.get_secret_value())
    return url


def _mask_url(url: SecretStr, info: SerializationInfo) -> str:
    secret = url.get_secret_value()
    return secret if info.context == REVEALED else mask_redis_url(secret)


def _check_cluster(name: str) -> str:
    if not _CLUSTER.fullmatch(name):
        raise ValueError("must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return name


def _check_key_prefix(prefix: str) -> str:
    if not _KEY_PREFIX.fullmatch(prefix) or prefix.startswith("__"):
        raise ValueError("must be 1 to 64 of A-Z a-z 0-9 . _ : - and not begin with __")
    return prefix


def _check_secret(secret: SecretStr) -> SecretStr:
    if 0 < len(secret.get_secret_value()) < MIN_SECRET:
        raise ValueError(f"must have at least {MIN_SECRET} characters, or be empty")
    return secret


def mask_secret(secret: SecretStr, info: SerializationInfo) -> str:
    """Show that there is a secret, and not which."""
    value = secret.get_secret_value()
    return value if info.context == REVEALED or not value else "***"


def _check_trusted(text: str) -> str:
    parse_trusted(text)
    return text


def _parse_budget(value: object) -> int:
    return 0 if value in (0, "0") and not isinstance(value, bool) else parse_size(value)


def _format_budget(size: int) -> int | str:
    return format_size(size) if size else 0


def _check_origin(origin: str) -> str:
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise ValueError(
            "must be one exact origin as browsers send it, such as https://app.example or https://app.example:8443: "
            "lower case, no *, no path, no slash at the end"
        )
    if match.groups() in _DEFAULT_PORTS:
        raise ValueError("must not name the scheme's own port: browsers leave it out")
    return origin


Text = Annotated[str, Strict()]
Flag = Annotated[bool, Strict()]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]
Host = Annotated[Text, AfterValidator(_check_host)]
Socket = Annotated[Path, AfterValidator(_check_socket)]
Origin = Annotated[Text, AfterValidator(_check_origin)]
Events = Annotated[int, Strict(), Field(ge=1, le=10_000_000)]
Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": SIZE_PATTERN}, {"type": "integer", "minimum": 1}]}),
]
Budget = Annotated[
    int,
    BeforeValidator(_parse_budget),
    PlainSerializer(_format_budget),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": SIZE_PATTERN}, {"type": "integer", "minimum": 0}]}),
]
Quota = Annotated[int, Strict(), Field(ge=0, le=1_000_000)]
Trusted = Annotated[Text, AfterValidator(_check_trusted)]
SendBuffer = Annotated[Size, AfterValidator(_check_send_buffer)]
ClusterName = Annotated[Text, AfterValidator(_check_cluster)]
KeyPrefix = Annotated[Text, AfterValidator(_check_key_prefix)]
Workers = Annotated[
    int | Literal["auto"],
    PlainValidator(_check_workers),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_WORKERS}, {"const": "auto"}]}),
]
RedisUrl = Annotated[
    SecretStr,
    AfterValidator(_check_url),
    PlainSerializer(_mask_url),
    WithJsonSchema({"type": "string", "pattern": r"^(redis|rediss|unix|redis\+sentinel)://"}),
]


Secret = Annotated[
    SecretStr,
    AfterValidator(_check_secret),
    PlainSerializer(mask_secret),
    WithJsonSchema({"type": "string"}),
]
