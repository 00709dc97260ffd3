"""What one request asked for, read from its target and headers.

Rules:
    - Two steps: a request is read (400), and then, once it is known who may read what, its rules are found (404).
    - Names are percent-encoded once. In the query ``+`` is a space, in the path it is itself.
    - All names are checked before any is looked up: 400 comes before 404.
    - The cursor is never a reason to refuse: whatever it is, the log judges it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sse_gateway.channels import is_channel_name, is_prefix
from sse_gateway.errors import RequestError
from sse_gateway.reader import Follow, smallest_bounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.channels import Rule, RuleTable

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
_SINGLE = ("replay", "wrap", "last_event_id", "lastEventId")
ALL = 2**63 - 1
"""`?replay=all`."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One request for a stream.

    Attributes:
        follow: The channels.
        cursor: What the client sent back, unverified; None if it sent nothing.
        replay: Newest events of each channel that a client without a cursor wants; None if it
            did not say.
        wrap: Whether events are wrapped in JSON.
    """

    follow: Follow
    cursor: str | None
    replay: int | None
    wrap: bool

    @property
    def wants_replay(self) -> bool:
        """Whether it may be sent events that were."""
        if self.cursor is not None or self.replay:
            return True
        rules = [rule for _, rule in self.follow.exact]
        rules += [rule for _, owners in self.follow.prefixes for rule in owners]
        return self.replay is None and any(rule.replay_on_connect for rule in rules)


@dataclass(frozen=True, slots=True)
class Wish:
    """A request for a stream, as it was read.

    Attributes:
        names: Names and prefixes (``name*``), each once.
        cursor: As in `Subscription`.
        replay: As in `Subscription`.
        wrap: As in `Subscription`.
    """

    names: tuple[str, ...]
    cursor: str | None
    replay: int | None
    wrap: bool

    def subscription(self, rules: RuleTable) -> Subscription:
        """Find the rules.

        Raises:
            RequestError: 404.
        """
        return Subscription(_resolve(self.names, rules), self.cursor, self.replay, self.wrap)


def parse_subscription(
    path_name: str | None, query: str, last_event_id: str | None, rules: RuleTable, max_channels: int
) -> Subscription:
    """Read a request of somebody who may read everything; as `read_wish`.

    Raises:
        RequestError: 400 or 404.
    """
    return read_wish(path_name, query, last_event_id, max_channels).subscription(rules)


def read_wish(path_name: str | None, query: str, last_event_id: str | None, max_channels: int) -> Wish:
    """Read a request.

    Args:
        path_name: What follows ``/events/`` in the path, still encoded; None for ``/events``.
        query: Without the question mark, still encoded.
        last_event_id: The header, None if there is none.
        max_channels: Names that one stream may ask for.

    Raises:
        RequestError: 400.
    """
    parameters = _parameters(query)
    for key in _SINGLE:
        if len(parameters.get(key, ())) > 1:
            raise RequestError(400, f"the parameter '{key}' is given more than once")
    names = _names(path_name, parameters.get("channel", []), max_channels)
    replay = _replay(parameters.get("replay", [""])[0])
    wrap = _wrap(parameters.get("wrap", [""])[0])
    cursor = last_event_id or parameters.get("last_event_id", [""])[0] or parameters.get("lastEventId", [""])[0] or None
    return Wish(tuple(names), cursor, replay, wrap)


def parameter_values(query: str, name: str) -> list[str]:
    """All values of one parameter of a query, decoded."""
    found = []
    for part in query.split("&"):
        encoded, _, value = part.partition("=")
        if _unquote(encoded.replace("+", " ")).decode(errors="replace") == name:
            found.append(_unquote(value.replace("+", " ")).decode(errors="replace"))
    return found


def _parameters(query: str) -> dict[str, list[str]]:
    """Split a query; values stay encoded but for ``+``. Unknown parameters are ignored."""
    found: dict[str, list[str]] = {}
    for part in query.split("&"):
        encoded, _, value = part.partition("=")
        key = _unquote(encoded.replace("+", " ")).decode(errors="replace")
        if key == "channel":
            found.setdefault(key, []).append(value.replace("+", " "))
        elif key in _SINGLE:
            found.setdefault(key, []).append(_unquote(value.replace("+", " ")).decode(errors="replace"))
    return found


def _unquote(text: str) -> bytes:
    """Decode percent escapes once; a stray ``%`` stands for itself."""
    raw = text.encode("utf-8", "surrogateescape")
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]) if match[1] else b"%", raw)


def _names(path_name: str | None, encoded: Sequence[str], max_channels: int) -> list[str]:
    if path_name is not None and encoded:
        raise RequestError(400, "name the channels in the path or in the query, not in both")
    given = encoded if path_name is None else [path_name]
    if not given:
        raise RequestError(400, "no channel given: ask for /events/NAME or /events?channel=NAME")
    names = list(dict.fromkeys(_name(text) for text in given))
    if len(names) > max_channels:
        raise RequestError(400, f"{len(names)} channels asked for; one stream may follow {max_channels}")
    return names


def _name(encoded: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", encoded):
        raise RequestError(400, "a channel name holds a '%' that is not followed by two hexadecimal digits")
    try:
        name = _unquote(encoded).decode()
    except UnicodeDecodeError:
        raise RequestError(400, "a channel name is not UTF-8") from None
    if not (is_prefix(name) or is_channel_name(name)):
        raise RequestError(400, "a channel name is 1 to 256 bytes of UTF-8 without control characters")
    return name


def _replay(text: str) -> int | None:
    if not text:
        return None
    if text == "all":
        return ALL
    if not re.fullmatch(r"[0-9]+", text, re.ASCII):
        raise RequestError(400, "'replay' is a number of events or 'all'")
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) < len(str(ALL)) else ALL  # more than there can be


def _wrap(text: str) -> bool:
    if text not in {"", "0", "1"}:
        raise RequestError(400, "'wrap' is 1 or 0")
    return text == "1"


def _resolve(names: Sequence[str], rules: RuleTable) -> Follow:
    """Find the rules of all names, and leave out what a prefix covers anyway."""
    prefixes: dict[str, tuple[Rule, ...]] = {}
    exact: dict[str, Rule] = {}
    for name in names:
        if name.endswith("*"):
            prefixes[name[:-1]] = owners = rules.rules_of_prefix(name[:-1])
            if not owners:
                raise RequestError(404, "no rule lets clients follow channels with this prefix")
        else:
            rule = rules.rule_of(name)
            if rule is None:
                raise RequestError(404, "no rule owns this channel")
            exact[name] = rule
    shortest = {
        prefix: owners
        for prefix, owners in prefixes.items()
        if not any(prefix != other and prefix.startswith(other) for other in prefixes)
    }
    alone = {
        name: rule
        for name, rule in exact.items()
        if not any(name.startswith(prefix) and rule in owners for prefix, owners in shortest.items())
    }
    bounds = smallest_bounds([*exact.values(), *(rule for owners in prefixes.values() for rule in owners)])
    return Follow(tuple(sorted(names)), tuple(sorted(alone.items())), tuple(sorted(shortest.items())), bounds)
