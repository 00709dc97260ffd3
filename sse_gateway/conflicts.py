"""What no single key can tell: settings that contradict each other."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from sse_gateway.channels import globs_intersect, literal_head
from sse_gateway.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.document import Key
    from sse_gateway.settings import AdminSettings, ChannelSettings, ListenSettings, Settings

# Together these match every channel that does not begin with "__".
_NOT_RESERVED = (b"[^_]*", b"_", b"_[^_]*")

_ESCAPE = ord("\\")


@dataclass(frozen=True, slots=True)
class Conflict:
    """One contradiction.

    Attributes:
        keys: Where it lies; the first is where it is reported if the operator wrote it.
        text: What is wrong, whichever of the keys it is reported at.
        because: Further keys that it depends on: if one of them is wrong by itself, nothing is said.
    """

    keys: tuple[Key, ...]
    text: str
    because: tuple[Key, ...] = ()


def find_conflicts(settings: Settings) -> Iterator[Conflict]:
    """Every contradiction in `settings`, each pair of rules judged once."""
    yield from _socket_and_port("listen", settings.listen)
    yield from _socket_and_port("admin", settings.admin)
    yield from _one_listener(settings.listen, settings.admin)
    yield from _anonymous_admin(settings.admin)
    yield from _shares(settings)
    for index, rule in enumerate(settings.channels):
        yield from _pattern(index, rule)
        yield from _message_size(index, rule, settings.limits.message_bytes)
    for (i, first), (j, second) in combinations(enumerate(settings.channels), 2):
        yield from _pair(i, first, j, second)


def _socket_and_port(section: str, listener: ListenSettings | AdminSettings) -> Iterator[Conflict]:
    for name in sorted(listener.model_fields_set & {"host", "port"}) if listener.unix else ():
        yield Conflict(((section, name), (section, "unix")), "host and port have no meaning beside unix: remove them")


def _one_listener(listen: ListenSettings, admin: AdminSettings) -> Iterator[Conflict]:
    text = "the admin listener must not be the public listener"
    if listen.unix or admin.unix:
        if listen.unix == admin.unix:
            yield Conflict((("admin", "unix"), ("listen", "unix")), text)
    elif listen.port == admin.port and _same_host(listen.host, admin.host):
        yield Conflict((("admin", "port"), ("listen", "port")), text, because=(("admin", "host"), ("listen", "host")))


def _anonymous_admin(admin: AdminSettings) -> Iterator[Conflict]:
    is_far = admin.unix is None and not _is_loopback(admin.host)
    if is_far and not admin.token.get_secret_value() and not admin.anonymous:
        text = (
            "other hosts may reach the admin listener: set admin.token, or say aloud that whoever reaches it may read "
            "it (admin.anonymous: true)"
        )
        yield Conflict((("admin", "host"),), text, because=(("admin", "token"), ("admin", "anonymous")))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(_host(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _shares(settings: Settings) -> Iterator[Conflict]:
    if settings.worker_count > settings.limits.connections:
        yield Conflict((("workers",), ("limits", "connections")), "each worker needs a connection at least")


def _same_host(first: str, second: str) -> bool:
    """Whether two sockets with one port would be in each other's way."""
    hosts = {_host(first), _host(second)}
    return len(hosts) == 1 or not hosts.isdisjoint({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


def _host(text: str) -> str:
    if text == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text.lower()


def _pattern(index: int, rule: ChannelSettings) -> Iterator[Conflict]:
    """What one rule's pattern and prefix say together."""
    key: Key = ("channels", index, "pattern")
    strip: Key = ("channels", index, "strip_prefix")
    pattern = rule.pattern.encode()
    if not pattern:
        yield Conflict((key,), "must not be empty: it would match no channel")
    elif not any(globs_intersect(pattern, other) for other in _NOT_RESERVED):
        yield Conflict((key,), "matches no channel that could be delivered: channels that begin with __ never are")
    elif not literal_head(pattern).startswith(rule.strip_prefix.encode()):
        yield Conflict((strip, key), "the pattern, up to its first wildcard, must begin with strip_prefix")
    elif not _behind(pattern, len(rule.strip_prefix.encode())):
        yield Conflict((strip, key), "nothing would be left for clients to ask for")


def _behind(pattern: bytes, count: int) -> bytes:
    """What is left of a pattern without the first `count` bytes of its literal head."""
    at = 0
    for _ in range(count):
        at += 1 + (pattern[at] == _ESCAPE and at + 1 < len(pattern))
    return pattern[at:]


def _names(index: int, rule: ChannelSettings) -> bytes | None:
    """The pattern of the names that clients know a rule's channels by; None for a rule that is wrong by itself."""
    if any(_pattern(index, rule)):
        return None
    return _behind(rule.pattern.encode(), len(rule.strip_prefix.encode()))


def _message_size(index: int, rule: ChannelSettings, size: int) -> Iterator[Conflict]:
    for name, bound in (("queue", rule.queue.max_bytes), ("window", rule.window.max_bytes)):
        if size > bound:
            keys: tuple[Key, Key] = (("limits", "message_size"), ("channels", index, name, "max_bytes"))
            text = f"message_size ({format_size(size)}) must not be above a {name}'s max_bytes ({format_size(bound)})"
            yield Conflict(keys, text)


def _pair(i: int, first: ChannelSettings, j: int, second: ChannelSettings) -> Iterator[Conflict]:
    """What two rules say together; reported at the later one."""
    keys: tuple[Key, Key] = (("channels", j, "pattern"), ("channels", i, "pattern"))
    if first.pattern == second.pattern:
        yield Conflict(keys, "two rules have the same pattern")
        return
    if first.strip_prefix == second.strip_prefix:
        return
    names = _names(i, first), _names(j, second)
    if names[0] and names[1] and globs_intersect(names[0], names[1]):
        text = "rules with different strip_prefix would give clients the same name for different channels"
        yield Conflict(keys, text, because=(("channels", i, "strip_prefix"), ("channels", j, "strip_prefix")))
