"""Channel names, patterns and the rules that own them.

Rules:
    - Everything is compared as bytes. A pattern matches here exactly where the server's PSUBSCRIBE
      would match it: nodes count what the first matching rule owns, so a difference of one byte
      would be a difference of logs.
    - A channel that begins with ``__`` belongs to nobody: not live, not by replay, not by prefix (I11).
    - A client's name leads back to the rule that owns the channel, or to none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.reasons import Format, Policy

MAX_NAME_BYTES = 256
"""UTF-8 bytes of a client's channel name; a longer one is refused, a longer channel rejected."""

_RESERVED = b"__"

_STAR, _QUESTION, _OPEN, _CLOSE, _ESCAPE = b"*?[]\\"

# A pattern as a row of byte sets, each an int with bit b for byte b; -1 (every bit) is a star.
_RUN = -1
_ANY = (1 << 256) - 1
_NONE = 0

# Servers with the fix of CVE-2024-31228 give up (no match) below this many nested stars; a trailing
# star does not nest. It bounds our regular expression too.
_MAX_NESTING = 1000

_CONTROLS = re.compile("[\x00-\x1f\x80-\x9f]")


@dataclass(frozen=True, slots=True)
class WindowBounds:
    """Bounds of one channel's replay window: events, seconds, bytes of encoded frames."""

    max_events: int
    max_age_s: float
    max_bytes: int


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """Bounds of one stream's queue: events, bytes of encoded frames, and what to do beyond."""

    max_events: int
    max_bytes: int
    policy: Policy


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of ``channels:``.

    Attributes:
        index: Place in the configuration, from 0; the first rule that matches owns a channel.
        pattern: Redis glob, PSUBSCRIBEd as written.
        strip_prefix: What clients do not see of the Redis channel's name.
        format: How payloads are read.
        prefix: Clients may follow ``name*``.
        public: Where clients are asked for a token, none is needed here.
        window: Bounds of each channel's window.
        queue: Bounds of a stream's queue.
        replay_on_connect: Events per channel for a client that has no cursor.
    """

    index: int
    pattern: str
    strip_prefix: str
    format: Format
    prefix: bool
    window: WindowBounds
    queue: QueueBounds
    replay_on_connect: int
    public: bool = False


class RuleTable:
    """The rules of one configuration, in order, and the two ways between channels and names.

    Attributes:
        rules: The rules, first match first.
    """

    __slots__ = ("_catch_alls", "_heads", "_matchers", "rules")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._matchers = tuple((_compile(rule.pattern.encode()), rule) for rule in self.rules)
        self._heads = tuple((rule, literal_head(rule.pattern.encode())) for rule in self.rules)
        # A literal head and a star: such a rule owns all that begins so, but for what an earlier one owns.
        self._catch_alls = {
            head: place
            for place, (rule, head) in reversed(tuple(enumerate(self._heads)))
            if _tokens(rule.pattern.encode())[len(head) :] == (_RUN,)
        }

    def matching(self, redis_channel: bytes) -> int:
        """Count the patterns that match: so many copies of a message Redis sends, reserved channel or not."""
        return sum(matcher.fullmatch(redis_channel) is not None for matcher, _ in self._matchers)

    def owner(self, redis_channel: bytes) -> Rule | None:
        """The first rule whose pattern matches; None where none does, for a reserved channel, for no name at all."""
        if redis_channel.startswith(_RESERVED) or not redis_channel:
            return None
        for matcher, rule in self._matchers:
            if matcher.fullmatch(redis_channel):
                return rule
        return None

    def client_name(self, rule: Rule, redis_channel: bytes) -> str | None:
        """What clients call a channel that `rule` owns; None where no client could ask for it."""
        prefix = rule.strip_prefix.encode()
        if not redis_channel.startswith(prefix):
            return None
        try:
            name = redis_channel[len(prefix) :].decode()
        except UnicodeDecodeError:
            return None
        return name if is_channel_name(name) else None

    def rule_of(self, name: str) -> Rule | None:
        """The rule for which ``strip_prefix + name`` belongs to that very rule; None if there is none."""
        if not is_channel_name(name):
            return None
        for rule in self.rules:
            if self.owner(self.redis_channel(rule, name)) is rule:
                return rule
        return None

    def rules_of_prefix(self, prefix: str) -> tuple[Rule, ...]:
        """Rules that let clients follow a prefix and could own a channel whose name starts with `prefix`.

        Judged by the patterns' literal heads: a rule too many is possible, one too few is not.

        Args:
            prefix: What `is_prefix` has accepted, without its ``*``; empty for every channel.
        """
        return tuple(
            rule
            for place, (rule, head) in enumerate(self._heads)
            if rule.prefix and self._could_own(place, head, self.redis_channel(rule, prefix))
        )

    def is_public(self, asked: str) -> bool:
        """Whether no token is needed for a name, or for a prefix (``name*``) as a whole.

        A prefix that a private rule could own a channel of is private (I11), and so is what no rule owns: whether
        there is such a channel is told to those who might read it.
        """
        if asked.endswith("*"):
            owners: tuple[Rule | None, ...] = self.rules_of_prefix(asked[:-1])
        else:
            owners = (self.rule_of(asked),)
        return bool(owners) and all(rule is not None and rule.public for rule in owners)

    def _could_own(self, place: int, head: bytes, start: bytes) -> bool:
        if start.startswith(_RESERVED) or not (start.startswith(head) or head.startswith(start)):
            return False
        return not any(owner < place and start.startswith(whole) for whole, owner in self._catch_alls.items())

    def redis_channel(self, rule: Rule, name: str) -> bytes:
        """The Redis channel of a client's name under `rule`."""
        return rule.strip_prefix.encode() + name.encode()


def is_channel_name(name: str) -> bool:
    """Whether a client may ask for `name`: 1 to 256 bytes of UTF-8, no C0 or C1 control, no ``*`` at its end."""
    if name.endswith("*") or _CONTROLS.search(name):
        return False
    try:
        return 0 < len(name.encode()) <= MAX_NAME_BYTES
    except UnicodeEncodeError:  # a lone surrogate: bytes that were not UTF-8
        return False


def is_prefix(name: str) -> bool:
    """Whether `name` asks for all channels that begin alike: it ends in ``*`` and is else a channel's name."""
    return name.endswith("*") and is_channel_name(name[:-1] + ".")


def glob_match(pattern: bytes, text: bytes) -> bool:
    """Whether the server's PSUBSCRIBE would match `text`, case-sensitively.

    Costs at most the product of the lengths, whatever the pattern.

    Source: ``stringmatchlen``, measured on Redis 7.0 and Valkey 9.1 for x86-64. On a machine whose
    C ``char`` is unsigned (ARM), a range that ends in a byte over 127 means another set there.
    """
    if not text:
        return not pattern  # the server's loop never starts: not even ``*`` matches an empty text
    return _compile(pattern).fullmatch(text) is not None


def literal_head(pattern: bytes) -> bytes:
    """What every text that `pattern` matches begins with: up to the first wildcard, escapes resolved."""
    head = bytearray()
    at = 0
    while at < len(pattern) and pattern[at] not in {_STAR, _QUESTION, _OPEN}:
        at += _escapes(pattern, at)
        head.append(pattern[at])
        at += 1
    return bytes(head)


def globs_intersect(a: bytes, b: bytes) -> bool:
    """Whether any text is matched by both patterns. Exact; costs the product of the lengths."""
    if not a or not b:
        return a == b  # an empty pattern matches the empty text, which no other pattern does
    left, right = _tokens(a), _tokens(b)
    seen = {(0, 0)}
    todo = [(0, 0)]
    while todo:
        at = todo.pop()
        if at == (len(left), len(right)):
            return True
        fresh = _steps(left, right, *at) - seen
        seen |= fresh
        todo.extend(fresh)
    return False


def _steps(left: tuple[int, ...], right: tuple[int, ...], i: int, j: int) -> set[tuple[int, int]]:
    """Where two patterns can stand after at most one byte more."""
    l_set = left[i] if i < len(left) else _NONE
    r_set = right[j] if j < len(right) else _NONE
    steps = set()
    if l_set == _RUN:
        steps.add((i + 1, j))
    if r_set == _RUN:
        steps.add((i, j + 1))
    if l_set & r_set:
        steps.add((i + (l_set != _RUN), j + (r_set != _RUN)))
    return steps


@lru_cache(maxsize=1024)
def _compile(pattern: bytes) -> re.Pattern[bytes]:
    """A regular expression for `pattern`, for texts that are not empty.

    Each star but the last takes the first place where what follows it fits, for good (an atomic
    group): a later place could only leave less text for the rest.
    """
    runs: list[list[bytes]] = [[]]
    for token in _tokens(pattern):
        if token == _RUN:
            runs.append([])
        else:
            runs[-1].append(_regex(token))
    head, *parts = (b"".join(run) for run in runs)
    middle = b"".join(b"(?>.*?%b)" % part for part in parts[:-1])
    last = b".*%b" % parts[-1] if parts else b""
    return re.compile(head + middle + last, re.DOTALL)


def _regex(token: int) -> bytes:
    """One byte out of a set, as a regular expression."""
    if token == _ANY:
        return b"."
    members = b"".join(b"\\x%02x" % byte for byte in range(256) if token >> byte & 1)
    return b"[%b]" % members if members else b"(?!)"


def _tokens(pattern: bytes) -> tuple[int, ...]:
    """A pattern as a row of byte sets and stars; neighbouring stars are one."""
    tokens: list[int] = []
    at = 0
    while at < len(pattern):
        if pattern[at] == _OPEN:
            token, at = _byte_class(pattern, at + 1)
        elif pattern[at] == _STAR:
            token = _RUN
        elif pattern[at] == _QUESTION:
            token = _ANY
        else:
            at += _escapes(pattern, at)
            token = 1 << pattern[at]
        if token != _RUN or tokens[-1:] != [_RUN]:
            tokens.append(token)
        at += 1
    return tuple(tokens) if tokens[:-1].count(_RUN) <= _MAX_NESTING else (_NONE,)


def _byte_class(pattern: bytes, at: int) -> tuple[int, int]:
    r"""The set behind a ``[``, and the place of its ``]``; where that is missing, of the last byte.

    As the server reads it: ``]`` closes even at once, ``\`` escapes, a range may be reversed and
    may end in ``]`` or ``\``, and a dash needs a byte on either side.
    """
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members = _NONE
    while at < len(pattern) and pattern[at] != _CLOSE:
        if _escapes(pattern, at):
            members |= 1 << pattern[at + 1]
            at += 2
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            members |= _byte_range(pattern[at], pattern[at + 2])
            at += 3
        else:
            members |= 1 << pattern[at]
            at += 1
    return (_ANY & ~members if negated else members), min(at, len(pattern) - 1)


def _byte_range(start: int, end: int) -> int:
    """The set from one byte to another, ordered as the server's signed ``char``: 128 to 255 come first."""
    low, high = sorted((start ^ 0x80, end ^ 0x80))
    return sum(1 << (byte ^ 0x80) for byte in range(low, high + 1))


def _escapes(pattern: bytes, at: int) -> bool:
    """Whether a backslash that escapes the next byte stands here; a last one stands for itself."""
    return pattern[at] == _ESCAPE and at + 1 < len(pattern)
