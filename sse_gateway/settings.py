"""What an operator can set: every key, its type, its range and its default.

Rules:
    - Defaults are written as an operator would write them and pass the same validation.
    - Names in Python carry the unit (`heartbeat_s`); the alias is the key in YAML (`heartbeat`).
    - The docstring below a field is its description in the JSON Schema.
    - Here each key is judged by itself; what two keys say together is judged in `conflicts`.
    - No message quotes a value: it might be a secret in the wrong place.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field, Strict

from sse_gateway.auth_settings import AuthSettings
from sse_gateway.channels import QueueBounds, Rule, WindowBounds
from sse_gateway.reasons import Format, Policy
from sse_gateway.section import Section
from sse_gateway.values import (
    MAX_WORKERS,
    REVEALED,
    Budget,
    ClusterName,
    Duration,
    Events,
    Flag,
    Host,
    KeyPrefix,
    Origin,
    Port,
    PositiveDuration,
    Quota,
    RedisUrl,
    Secret,
    SendBuffer,
    Size,
    Socket,
    Text,
    Trusted,
    Workers,
)

MAX_RULES = 256
"""Each rule is a PSUBSCRIBE, and each is tried in turn for a channel not seen before."""

DEFAULT_RULE = {"pattern": "sse:*", "strip_prefix": "sse:"}
"""The one rule of a configuration without `channels`."""


class ListenSettings(Section):
    """The public listener; TLS is the proxy's."""

    host: Host = "127.0.0.1"
    """Address to bind. No meaning where `unix` is set."""
    port: Port = 8080
    """TCP port to bind. No meaning where `unix` is set."""
    unix: Socket | None = None
    """Absolute path of a Unix socket to listen on, instead of host and port."""


class AdminSettings(Section):
    """Metrics, health, console; never the public listener."""

    host: Host = "127.0.0.1"
    """Address to bind. No meaning where `unix` is set."""
    port: Port = 9080
    """TCP port to bind. No meaning where `unix` is set."""
    unix: Socket | None = None
    """Absolute path of a Unix socket to listen on, instead of host and port."""
    token: Secret = Field(default="", validate_default=True)
    """Bearer token of whoever reads more than health. At least 16 characters; empty: whoever reaches it may."""
    anonymous: Flag = False
    """No token, on an address that is not loopback: said aloud, or refused."""


class RedisSettings(Section):
    """The primary whose PUBLISH order is the log."""

    url: RedisUrl = Field(default="redis://127.0.0.1:6379", validate_default=True)
    """redis://, rediss://, unix:// or redis+sentinel://host:26379,host:26379/service. A secret."""
    connect_timeout_s: PositiveDuration = Field(default="5s", alias="connect_timeout", validate_default=True)
    """How long connecting, and each step of the handshake, may take."""
    liveness_timeout_s: PositiveDuration = Field(default="5s", alias="liveness_timeout", validate_default=True)
    """The link is dead when nothing at all was heard for this long."""
    unordered: Flag = False
    """Follow a server that gives no order to share, such as a Cluster: one worker, a new epoch with each connection."""


class ClusterSettings(Section):
    """Which nodes belong together."""

    name: ClusterName = "default"
    """Nodes with one name and one Redis share one log. 1 to 64 of A-Z a-z 0-9 . _ -"""
    secret: Secret = Field(default="", validate_default=True)
    """Authenticates what nodes say to one another. At least 16 characters; empty: whoever may publish may speak."""


class PersistenceSettings(Section):
    """A copy of log and windows in Redis, for when no node is left that holds them."""

    mode: Literal["none", "redis"] = "none"
    """none: the log ends with the last node. redis: a node that starts when none is left goes on from the copy."""
    url: RedisUrl | None = None
    """Where the copy is, as `redis.url`. null: in that very Redis. A secret."""
    key_prefix: KeyPrefix = "sse-gateway"
    """What its keys begin with. 1 to 64 of A-Z a-z 0-9 . _ : -"""
    max_lag_s: PositiveDuration = Field(default="2s", alias="max_lag", validate_default=True)
    """How old an event may be when it is written, once writing falls behind; older ones are skipped, and marked as lost."""


class WindowSettings(Section):
    """Bounds of one channel's replay window."""

    max_events: Events = 1000
    """Events kept for clients that resume."""
    max_age_s: PositiveDuration = Field(default="5m", alias="max_age", validate_default=True)
    """How long an event is kept."""
    max_bytes: Size = Field(default="4MiB", validate_default=True)
    """Bytes of encoded frames kept."""


class QueueSettings(Section):
    """Bounds of what waits for one slow client, and what happens beyond."""

    max_events: Events = 2000
    """Events that may wait."""
    max_bytes: Size = Field(default="4MiB", validate_default=True)
    """Bytes of encoded frames that may wait."""
    policy: Policy = Policy.DROP_OLDEST
    """drop_oldest: the oldest go, told as a gap. disconnect: the client resumes. latest: newest of each channel."""


class ChannelSettings(Section):
    """One rule: which Redis channels, and how their events are served."""

    pattern: Text
    """A Redis glob, PSUBSCRIBEd as written. The first rule that matches owns the channel."""
    strip_prefix: Text = ""
    """What clients do not see of the Redis channel's name."""
    format: Format = Format.TEXT
    """text: the payload is the data. json: the envelope with data, event, id, ts."""
    prefix: Flag = True
    """Clients may follow `name*`."""
    access: Literal["public", "private"] | None = None
    """public: no token is asked for. private: a token has to name the channel. null: private, unless nobody is asked."""
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
            public=self.access == "public",
            window=WindowBounds(window.max_events, window.max_age_s, window.max_bytes),
            queue=QueueBounds(queue.max_events, queue.max_bytes, queue.policy),
            replay_on_connect=self.replay_on_connect,
        )


class StreamSettings(Section):
    """One client's open response."""

    heartbeat_s: PositiveDuration = Field(default="15s", alias="heartbeat", validate_default=True)
    """A heartbeat goes out at the latest after this much silence on a stream."""
    retry_s: PositiveDuration = Field(default="3s", alias="retry", validate_default=True)
    """Reconnection time told to clients, with ±50 % jitter, one draw per connection."""
    write_timeout_s: PositiveDuration = Field(default="30s", alias="write_timeout", validate_default=True)
    """A client that takes no byte for this long is dropped."""
    send_buffer_bytes: SendBuffer = Field(default="256KiB", alias="send_buffer", validate_default=True)
    """Bound on the kernel's share of a slow client's backlog."""
    max_age_s: Duration = Field(default="0s", alias="max_age", validate_default=True)
    """0s: none. Else streams end spread over 80 to 100 % of it."""
    max_channels: Annotated[int, Strict(), Field(ge=1, le=1024)] = 64
    """Channels one stream may ask for."""


class LimitSettings(Section):
    """What one node, or one worker, takes on."""

    connections: Annotated[int, Strict(), Field(ge=1, le=1_000_000)] = 50_000
    """Open streams per node, shared by its workers; of one worker never more than its descriptors less 128."""
    channels: Annotated[int, Strict(), Field(ge=1, le=10_000_000)] = 100_000
    """Channels remembered; beyond it the least recently used without readers is forgotten."""
    window_memory_bytes: Size = Field(default="512MiB", alias="window_memory", validate_default=True)
    """All windows of one worker together."""
    queue_memory_bytes: Size = Field(default="512MiB", alias="queue_memory", validate_default=True)
    """All queues together; beyond it the fullest stream is aborted."""
    message_bytes: Size = Field(default="1MiB", alias="message_size", validate_default=True)
    """The largest message, as payload and as encoded frame. Not above any queue's or window's max_bytes."""
    connections_per_address: Quota = 0
    """Open streams of one client address per node, an IPv6 /64 being one. 0: no limit."""
    connections_per_subject: Quota = 0
    """Open streams of one subject (of its token) per node. 0: no limit."""
    connections_per_second: Quota = 0
    """New streams per node within any second. 0: no limit."""
    replay_per_subject: Budget = 0
    """Bytes of replay per node and minute of one subject; without one, of one address. 0: no limit."""
    trusted_proxies: tuple[Trusted, ...] = ("127.0.0.0/8", "::1", "unix")
    """Addresses and networks whose X-Forwarded-For is believed; unix: whoever connects to listen.unix."""


class ShutdownSettings(Section):
    """How the gateway stops."""

    drain_s: Duration = Field(default="20s", alias="drain", validate_default=True)
    """Open streams end spread over this long."""


class CorsSettings(Section):
    """Which pages of other origins may read."""

    origins: tuple[Origin, ...] = ()
    """Exact origins, such as https://app.example."""


class LogSettings(Section):
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


class Settings(Section):
    """The configuration of one gateway."""

    listen: ListenSettings = Field(default_factory=ListenSettings)
    admin: AdminSettings = Field(default_factory=AdminSettings)
    workers: Workers = 1
    """Processes on one port, 1 to 256; auto: one for each core that may be used."""
    redis: RedisSettings = Field(default_factory=RedisSettings)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    persistence: PersistenceSettings = Field(default_factory=PersistenceSettings)
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
    def worker_count(self) -> int:
        """``workers:`` as a number; each has a connection to take at least."""
        if self.workers != "auto":
            return self.workers
        return min(len(os.sched_getaffinity(0)), self.limits.connections, MAX_WORKERS)

    def document(self) -> dict[str, Any]:
        """What `model_validate` takes, with its secrets: for processes of our own."""
        return self.model_dump(mode="json", by_alias=True, context=REVEALED)

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
