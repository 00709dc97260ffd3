"""Random configurations for a cluster, and random messages for all its nodes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from sse_gateway.channels import QueueBounds, Rule, RuleTable, WindowBounds
from sse_gateway.control import fingerprint
from sse_gateway.limits import Limits
from sse_gateway.reasons import Format, Policy, RejectReason
from tests.support.cluster_ledger import Bounds
from tests.support.cluster_parts import KEY, Kit
from tests.support.messages import Plan

if TYPE_CHECKING:
    from random import Random

MESSAGE_BYTES = 700
ROWS = [("s:audit:*", Format.TEXT), ("s:j:*", Format.JSON), ("s:l:*", Format.TEXT), ("s:*", Format.TEXT)]
OTHER = "zz*"
"""A pattern that only nodes of the second family have: they count other messages."""

HEADS = ((b"s:",), (b"s:", b"zz"))
NAMES = ["audit:1", "audit:2", "j:1", "j:1", "j:2", "l:1", "l:2", "n1", "n1", "n1", "n2", "n3"]
ASKED = ["audit:1", "audit:2", "j:1", "j:2", "l:1", "l:2", "n1", "n1", "n2", "n3", "n7", "n12"]
PREFIXES = ["audit:*", "j*", "l:*", "n*", "n1*", "*", "a*"]


class Message(Struct, frozen=True):
    """One PUBLISH to come: with a plan if clients get it."""

    channel: bytes
    payload: bytes
    plan: Plan | None


class Setup:
    """One random configuration, common to the nodes of all families.

    Attributes:
        rules: The rules, with windows that hold everything.
        is_calm: No node loses anything.
        is_tight: Nodes have memory for little.
    """

    def __init__(self, rng: Random, *, calm: bool) -> None:
        self.is_calm = calm
        self.is_tight = not calm and rng.random() < 0.1
        self._rng = rng
        self._data = 0
        self._keyed: list[tuple[str, str]] = []
        self.rules = [self._rule(index, *row) for index, row in enumerate(ROWS)]

    def _rule(self, index: int, pattern: str, format_: Format) -> Rule:
        rng = self._rng
        policy = rng.choice([Policy.DROP_OLDEST, Policy.DROP_OLDEST, Policy.LATEST, Policy.DISCONNECT])
        queue = QueueBounds(rng.choice([2, 5, 50, 500]), rng.choice([2, 10, 100]) * MESSAGE_BYTES, policy)
        return Rule(index, pattern, "s:", format_, rng.random() < 0.9, WindowBounds(2000, 300.0, 1 << 20), queue,
                    rng.choice([0, 0, 0, 2]))  # fmt: skip

    def kit(self, family: int, host: int) -> Kit:
        """Configure one node."""
        rng = self._rng
        rules = list(self.rules)
        if not self.is_calm and rng.random() < 0.6:
            rules = [replace(rule, window=self._window()) for rule in rules]
        if family:
            rules.append(replace(rules[-1], index=len(rules), pattern=OTHER, strip_prefix="", prefix=False))
        is_small = self.is_tight and rng.random() < 0.7
        limits = Limits(
            channels=rng.choice([2, 4, 8]) if is_small else 100_000,
            window_bytes=rng.choice([3000, 20_000, 1 << 30]) if is_small else 1 << 30,
            queue_bytes=1 << 30,
            message_bytes=MESSAGE_BYTES,
            heartbeat_s=1.5,
            write_timeout_s=rng.choice([3.0, 30.0]),
            writes_per_step=rng.choice([1, 64]),
        )
        patterns = frozenset(rule.pattern.encode() for rule in rules)
        return Kit(family, host, RuleTable(rules), limits, fingerprint(rules, MESSAGE_BYTES, KEY), patterns)

    def _window(self) -> WindowBounds:
        rng = self._rng
        return WindowBounds(
            rng.choice([3, 10, 60, 2000]), rng.choice([3.0, 20.0, 300.0]), rng.choice([2, 10, 1000]) * MESSAGE_BYTES
        )

    def names(self) -> list[str]:
        """What a person follows."""
        rng = self._rng
        rule_of = RuleTable(self.rules)
        found = rng.sample(sorted(set(ASKED)), rng.choice([1, 1, 2, 3]))
        if rng.random() < 0.4:
            found.append(rng.choice(PREFIXES))
        kept = [name for name in found if not name.endswith("*") or rule_of.rules_of_prefix(name[:-1])]
        return kept or ["n1"]

    # Messages; no two have the same payload.

    def draw(self) -> Message:
        """Draw any message."""
        rng = self._rng
        self._data += 1
        chance = rng.random()
        if chance < 0.06:
            return self._reject()
        if chance < 0.10:
            return Message(b"zz1", b"%d" % self._data, None)
        name = rng.choice([*NAMES, f"n{rng.randint(4, 30)}"])
        size = rng.choice([0, 0, 5, 50, MESSAGE_BYTES // 3])
        data = f"{self._data}" + rng.choice(["", "\n", "\r\na", "\r", "é\u2028", "x" * size, "data: \n\nid: 1"])
        return self._json(name, data) if name.startswith("j:") else self._text(name, data)

    def _text(self, name: str, data: str) -> Message:
        rule = self.rules[0 if name.startswith("audit:") else 2 if name.startswith("l:") else 3]
        plan = Plan(rule, f"s:{name}".encode(), data.encode(), None, name, "message", _lines(data), data)
        return Message(plan.channel, plan.payload, plan)

    def _json(self, name: str, data: str) -> Message:
        rng = self._rng
        value: Any = rng.choice([data, data, {"a": [1, data]}, self._data])
        raw = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
        type_ = rng.choice(["message", "note", "data: x"])
        key = rng.choice([None, f"k{self._data}", f"k{rng.randint(max(0, self._data - 40), self._data)}", "k0"])
        extra = "" if type_ == "message" else f',"event":"{type_}"'
        extra += "" if key is None else f',"id":"{key}"'
        text = _lines(value if isinstance(value, str) else raw)
        payload = f'{{"data":{raw}{extra},"x":{self._data}}}'.encode()
        plan = Plan(self.rules[1], f"s:{name}".encode(), payload, None, name, type_, text, value, key)
        return Message(plan.channel, payload, plan)

    def _reject(self) -> Message:
        number = b"%d" % self._data
        kinds = [
            (b"s:n1", b"\xff" + number, RejectReason.ENCODING),
            (b"s:j:1", b"{" + number, RejectReason.ENVELOPE),
            (b"s:j:1", b'{"data":%b,"event":"gateway.x"}' % number, RejectReason.TYPE),
            (b"s:n*", number, RejectReason.CHANNEL),
            (b"s:l:1", number.ljust(MESSAGE_BYTES + 1, b"x"), RejectReason.SIZE),
        ]
        channel, payload, _ = self._rng.choice(kinds)
        return Message(channel, payload, None)

    def patterns(self, channel: bytes) -> tuple[bytes, ...]:
        """Under which a message comes, in the server's order of today."""
        found = _patterns(channel)
        return tuple(self._rng.sample(found, len(found)))


def bounds_of(rule: Rule) -> Bounds:
    """A window's bounds, as the oracle keeps them."""
    return Bounds(rule.window.max_events, rule.window.max_age_s, rule.window.max_bytes)


@lru_cache
def _patterns(channel: bytes) -> tuple[bytes, ...]:
    found = [pattern.encode() for pattern, _ in ROWS if channel.startswith(pattern[:-1].encode())]
    return (*found, OTHER.encode()) if channel.startswith(b"zz") else tuple(found)


def _lines(data: str) -> str:
    return data.replace("\r\n", "\n").replace("\r", "\n")
