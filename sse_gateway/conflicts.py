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

    from sse_gateway.auth_settings import AuthSettings
    from sse_gateway.document import Key
    from sse_gateway.settings import AdminSettings, ChannelSettings, ListenSettings, Settings

# Together these match every channel that does not begin with "__".
_NOT_RESERVED = (b"[^_]*", b"_", b"_[^_]*")

_ESCAPE = ord("\\")

_MODE: Key = ("auth", "mode")
_KEYS: tuple[Key, ...] = (("auth", "secret"), ("auth", "public_key_file"), ("auth", "jwks_url"))


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
    yield from _auth(settings.auth)
    yield from _unordered(settings)
    for index, rule in enumerate(settings.channels):
        yield from _pattern(index, rule)
        yield from _message_size(index, rule, settings.limits.message_bytes)
        if rule.access == "private" and settings.auth.mode == "none":
            keys: tuple[Key, Key] = (("channels", index, "access"), _MODE)
            yield Conflict(keys, "nobody is asked for a token, so nothing can be private")
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


def _auth(auth: AuthSettings) -> Iterator[Conflict]:
    """What the keys of ``auth`` say together: exactly one way to know a client, and one that can work."""
    yield from _meaningless(auth)
    if auth.mode == "jwt":
        yield from _key_source(auth)
        yield from _algorithms(auth)
        wanted = auth.token_from
        if not wanted.header and wanted.cookie is None and wanted.query is None:
            yield Conflict((("auth", "token_from"),), "leaves no place for a token")
    elif auth.mode == "callback":
        if auth.callback.url is None:
            yield Conflict((_MODE, ("auth", "callback", "url")), "mode callback needs auth.callback.url")
        if not auth.callback.headers and not auth.callback.cookies:
            text = "neither headers nor cookies are passed on: the application could not tell clients apart"
            yield Conflict((("auth", "callback", "headers"), ("auth", "callback", "cookies")), text)


def _given(auth: AuthSettings) -> list[str]:
    """Which keys there are."""
    sources = {"secret": auth.secret.get_secret_value(), "public_key_file": auth.public_key_file}
    return [name for name, value in (sources | {"jwks_url": auth.jwks_url}).items() if value]


def _meaningless(auth: AuthSettings) -> Iterator[Conflict]:
    """Whoever gives a key, or an address to ask at, does not mean a mode that leaves it unused."""
    unused: list[Key] = [("auth", name) for name in _given(auth)] if auth.mode != "jwt" else []
    if auth.mode != "callback" and auth.callback.url is not None:
        unused.append(("auth", "callback", "url"))
    for key in unused:
        yield Conflict((key, _MODE), f"has no meaning with mode {auth.mode}: remove it, or choose its mode")


def _key_source(auth: AuthSettings) -> Iterator[Conflict]:
    given = _given(auth)
    if not given:
        yield Conflict((_MODE,), "mode jwt needs a key: auth.secret, auth.public_key_file or auth.jwks_url", _KEYS)
    elif len(given) > 1:
        keys: tuple[Key, ...] = tuple(("auth", name) for name in given)
        yield Conflict(keys, "only one of secret, public_key_file and jwks_url may be given")


def _algorithms(auth: AuthSettings) -> Iterator[Conflict]:
    key: Key = ("auth", "algorithms")
    symmetric = {name.startswith("HS") for name in auth.algorithms}
    if not symmetric:
        yield Conflict((key,), "must not be empty")
    elif len(symmetric) > 1:
        text = "must not mix HS… with others: a public key could then be taken for the secret"
        yield Conflict((key,), text)
    elif _given(auth) and symmetric != {bool(auth.secret.get_secret_value())}:
        text = "HS… needs auth.secret, all others a public key (auth.public_key_file or auth.jwks_url)"
        yield Conflict((key, _MODE), text, _KEYS)


def _unordered(settings: Settings) -> Iterator[Conflict]:
    if settings.redis.unordered and settings.worker_count > 1:
        text = "an unordered server is followed by one worker only: each would have a log of its own"
        yield Conflict((("workers",), ("redis", "unordered")), text)
    if settings.redis.unordered and settings.persistence.mode != "none":
        text = "what an unordered server brings cannot be gone on from: each connection begins a new epoch"
        yield Conflict((("persistence", "mode"), ("redis", "unordered")), text)


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
