"""What an operator can set: every key, its type, its range and its default.

Rules:
    - Defaults are written as an operator would write them and pass the same validation.
    - Names in Python carry the unit (`heartbeat_s`); the alias is the key in YAML (`heartbeat`).
    - The docstring below a field is its description in the JSON Schema.
    - Here each key is judged by itself; what two keys say together is judged in `conflicts`.
    - No message quotes a value: it might be a secret in the wrong place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    Strict,
    WithJsonSchema,
)

from sse_gateway.channels import QueueBounds, Rule, WindowBounds
from sse_gateway.quantities import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from sse_gateway.reasons import Format, Policy
from sse_gateway.redis_url import check_redis_url, mask_redis_url

MAX_RULES = 256
"""Each rule is a PSUBSCRIBE, and each is tried in turn for a channel not seen before."""

DEFAULT_RULE = {"pattern": "sse:*", "strip_prefix": "sse:"}
"""The one rule of a configuration without `channels`."""

_HOST = re.compile(
    r"(?=.{1,255}$)(?:(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?)"
)
_CLUSTER = re.compile(r"[A-Za-z0-9._-]{1,64}")
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
    if type(value) is int and value == 1:
        return value
    if value == "auto" or (type(value) is int and value > 1):
        raise ValueError("several workers are not available in this version: write 1")
    raise ValueError("must be 1")


def _check_mode(value: object) -> Literal["none"]:
    if value == "none":
        return "none"
    if value in ("jwt", "callback"):
        raise ValueError(
            "this mode is not available in this version: write none, and let a proxy in front authenticate"
        )
    raise ValueError("must be none")


def _check_url(url: SecretStr) -> SecretStr:
    check_redis_url(url.get_secret_value())
    return url


def _mask_url(url: SecretStr) -> str:
    return mask_redis_url(url.get_secret_value())


def _check_cluster(name: str) -> str:
    if not _CLUSTER.fullmatch(name):
        raise ValueError("must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return name


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
Workers = Annotated[
    int | Literal["auto"],
    PlainValidator(_check_workers),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
]
Mode = Annotated[Literal["none"], PlainValidator(_check_mode), WithJsonSchema({"const": "none"})]
RedisUrl = Annotated[
    SecretStr,
    AfterValidator(_check_url),
    PlainSerializer(_mask_url),
    WithJsonSchema({"type": "string", "pattern": r"^(redis|rediss|unix|redis\+sentinel)://"}),
]


class _Section(BaseModel):
    """A mapping of known keys; values do not change."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        hide_input_in_errors=True,
    )


class ListenSettings(_Section):
    """The public listener; TLS is the proxy's."""

    host: Host = "127.0.0.1"
    """Address to bind. No meaning where `unix` is set."""
    port: Port = 8080
    """TCP port to bind. No meaning where `unix` is set."""
    unix: Socket | None = None
    """Absolute path of a Unix socket to listen on, instead of host and port."""


class AdminSettings(_Section):
    """Metrics, health, console; never the public listener."""

    host: Host = "127.0.0.1"
    """Address to bind. No meaning where `unix` is set."""
    port: Port = 9080
    """TCP port to bind. No meaning where `unix` is set."""
    unix: Socket | None = None
    """Absolute path of a Unix socket to listen on, instead of host and port."""


class RedisSettings(_Section):
    """The primary whose PUBLISH order is the log."""

    url: RedisUrl = Field(default="redis://127.0.0.1:6379", validate_default=True)
    """redis://, rediss://, unix:// or redis+sentinel://host:26379,host:26379/service. A secret."""
    connect_timeout_s: PositiveDuration = Field(default="5s", alias="connect_timeout", validate_default=True)
    """How long connecting, and each step of the handshake, may take."""
    liveness_timeout_s: PositiveDuration = Field(default="5s", alias="liveness_timeout", validate_default=True)
    """The link is dead when nothing at all was heard for this long."""


class ClusterSettings(_Section):
    """Which nodes belong together."""

    name: Annotated[Text, AfterValidator(_check_cluster)] = "default"
    """Nodes with one name and one Redis share one log. 1 to 64 of A-Z a-z 0-9 . _ -"""


class WindowSettings(_Section):
    """Bounds of one channel's replay window."""

    max_events: Events = 1000
    """Events kept for clients that resume."""
    max_age_s: PositiveDuration = Field(default="5m", alias="max_age", validate_default=True)
    """How long an event is kept."""
    max_bytes: Size = Field(default="4MiB", validate_default=True)
    """Bytes of encoded frames kept."""


class QueueSettings(_Section):
    """Bounds of what waits for one slow client, and what happens beyond."""

    max_events: Events = 2000
    """Events that may wait."""
    max_bytes: Size = Field(default="4MiB", validate_default=True)
    """Bytes of encoded frames that may wait."""
    policy: Policy = Policy.DROP_OLDEST
    """drop_oldest: the oldest go, told as a gap. disconnect: the client resumes. latest: newest of each channel."""


class ChannelSettings(_Section):
    """One rule: which Redis channels, and how their events are served."""

    pattern: Text
    """A Redis glob, PSUBSCRIBEd as written. The first rule that matches owns the channel."""
    strip_prefix: Text = ""
    """What clients do not see of the Redis channel's name."""
    format: Format = Format.TEXT
    """text: the payload is the data. json: the envelope with data, event, id, ts."""
    prefix: Flag = True
    """Clients may follow `name*`."""
    window: WindowSettings = Field(default_factory=WindowSettings)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    replay_on_connect: Annotated[int, Strict(), Field(ge=0, le=10_000_000)] = 0
    """Events per channel for a client that has no cursor."""

    def rule(self, index: int) -> Rule:
        """This rule as the core knows it; `index` is its place in ``channels:``."""
        window, queue = self.window, self.queue
        return Rule(
            index=index,
            pattern=self.pattern,
            strip_prefix=self.strip_prefix,
            format=self.format,
            prefix=self.prefix,
            window=WindowBounds(window.max_events, window.max_age_s, window.max_bytes),
            queue=QueueBounds(queue.max_events, queue.max_bytes, queue.policy),
            replay_on_connect=self.replay_on_connect,
        )


class StreamSettings(_Section):
    """One client's open response."""

    heartbeat_s: PositiveDuration = Field(default="15s", alias="heartbeat", validate_default=True)
    """A heartbeat goes out at the latest after this much silence on a stream."""
    retry_s: PositiveDuration = Field(default="3s", alias="retry", validate_default=True)
    """Reconnection time told to clients, with ±50 % jitter, one draw per connection."""
    write_timeout_s: PositiveDuration = Field(default="30s", alias="write_timeout", validate_default=True)
    """A client that takes no byte for this long is dropped."""
    send_buffer_bytes: Annotated[Size, AfterValidator(_check_send_buffer)] = Field(
        default="256KiB", alias="send_buffer", validate_default=True
    )
    """Bound on the kernel's share of a slow client's backlog."""
    max_age_s: Duration = Field(default="0s", alias="max_age", validate_default=True)
    """0s: none. Else streams end spread over 80 to 100 % of it."""
    max_channels: Annotated[int, Strict(), Field(ge=1, le=1024)] = 64
    """Channels one stream may ask for."""


class LimitSettings(_Section):
    """What one node, or one worker, takes on."""

    connections: Annotated[int, Strict(), Field(ge=1, le=1_000_000)] = 50_000
    """Open streams per node; never more than the process's descriptors less 128."""
    channels: Annotated[int, Strict(), Field(ge=1, le=10_000_000)] = 100_000
    """Channels remembered; beyond it the least recently used without readers is forgotten."""
    window_memory_bytes: Size = Field(default="512MiB", alias="window_memory", validate_default=True)
    """All windows of one worker together."""
    queue_memory_bytes: Size = Field(default="512MiB", alias="queue_memory", validate_default=True)
    """All queues together; beyond it the fullest stream is aborted."""
    message_bytes: Size = Field(default="1MiB", alias="message_size", validate_default=True)
    """The largest message, as payload and as encoded frame. Not above any queue's or window's max_bytes."""


class ShutdownSettings(_Section):
    """How the gateway stops."""

    drain_s: Duration = Field(default="20s", alias="drain", validate_default=True)
    """Open streams end spread over this long."""


class AuthSettings(_Section):
    """Who may read. Has no default: anonymous access is said aloud."""

    mode: Mode
    """none: everyone may read every channel that a rule covers."""


class CorsSettings(_Section):
    """Which pages of other origins may read."""

    origins: tuple[Origin, ...] = ()
    """Exact origins, such as https://app.example."""


class LogSettings(_Section):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is written."""
    format: Literal["json", "text"] = "json"
    """json: one object a line. text: for people."""


def _check_rules(rules: tuple[ChannelSettings, ...]) -> tuple[ChannelSettings, ...]:
    # Not a constraint of the type: pydantic counts only the sound rules, and would complain twice.
    if not 1 <= len(rules) <= MAX_RULES:
        raise ValueError(f"must have from 1 to {MAX_RULES} rules")
    return rules


def _default_channels() -> tuple[ChannelSettings, ...]:
    return (ChannelSettings.model_validate(DEFAULT_RULE),)


class Settings(_Section):
    """The configuration of one gateway."""

    listen: ListenSettings = Field(default_factory=ListenSettings)
    admin: AdminSettings = Field(default_factory=AdminSettings)
    workers: Workers = 1
    """Processes on one port. Only 1 is available in this version."""
    redis: RedisSettings = Field(default_factory=RedisSettings)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    channels: Annotated[tuple[ChannelSettings, ...], AfterValidator(_check_rules)] = Field(
        default_factory=_default_channels, json_schema_extra={"minItems": 1, "maxItems": MAX_RULES}
    )
    """The rules; the first that matches owns the channel. Default: sse:* with the prefix sse: stripped."""
    stream: StreamSettings = Field(default_factory=StreamSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    shutdown: ShutdownSettings = Field(default_factory=ShutdownSettings)
    auth: AuthSettings
    cors: CorsSettings = Field(default_factory=CorsSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """``channels:`` as the core knows them, in order."""
        return tuple(channel.rule(index) for index, channel in enumerate(self.channels))


def keys_of(shape: object) -> dict[str, object]:
    """The keys of a section as YAML knows them, each with the shape of its value; empty for what is no section.

    Args:
        shape: A type: `Settings`, or what this function or `item_of` returned.
    """
    if not (isinstance(shape, type) and issubclass(shape, BaseModel)):
        return {}
    return {field.alias or name: field.annotation for name, field in shape.model_fields.items()}


def item_of(shape: object) -> object | None:
    """The shape of a list's items; None for what is no list."""
    return get_args(shape)[0] if get_origin(shape) is tuple else None
