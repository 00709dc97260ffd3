"""Random configurations, and random messages of which it is known what should come of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from sse_gateway.channels import QueueBounds, Rule, RuleTable, WindowBounds
from sse_gateway.limits import Limits
from sse_gateway.reasons import Format, Policy, RejectReason

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Plan:
    """One message before it is published.

    Attributes:
        rule: Owner of its channel, or None.
        channel: Redis channel.
        payload: As published.
        rejected: Why it will be rejected, or None.
        name: Channel as clients know it.
        type: Event type.
        text: Data of a plain client.
        value: Data of a client that has it wrapped.
        key: Idempotency key, or None.
    """

    rule: Rule | None
    channel: bytes
    payload: bytes
    rejected: RejectReason | None = None
    name: str = ""
    type: str = "message"
    text: str = ""
    value: Any = None
    key: str | None = None


class Setup:
    """One random configuration.

    Attributes:
        exact: Windows are bounded by their rules alone.
        table: The rules.
        limits: The core's bounds.
        floods: So much is published that the ring of hashes turns over.
        wide: So much is published that a prefix is walked in several stretches.
    """

    def __init__(self, seed: int) -> None:
        rng = Random(seed)
        self.exact = rng.random() < 0.6
        self.message_bytes = rng.choice([300, 300, 2000, 40_000, 40_000])
        rows = [("s:audit:*", Format.TEXT), ("s:j:*", Format.JSON), ("s:l:*", Format.TEXT), ("s:*", Format.TEXT)]
        self.table = RuleTable([self._rule(rng, index, *row) for index, row in enumerate(rows)])
        tight = not self.exact
        self.limits = Limits(
            channels=rng.choice([1, 2, 4, 8]) if tight and rng.random() < 0.6 else 100_000,
            window_bytes=rng.choice([500, 3000, 20_000]) if tight and rng.random() < 0.6 else 1 << 30,
            queue_bytes=rng.choice([3000, 30_000, 120_000]) if rng.random() < 0.25 else 1 << 30,
            message_bytes=self.message_bytes,
            heartbeat_s=15.0,
            write_timeout_s=30.0,
            ring_size=4096,
            writes_per_step=rng.choice([1, 2, 64]),
        )
        self.floods = rng.random() < 0.04
        self.wide = rng.random() < 0.05

    def _rule(self, rng: Random, index: int, pattern: str, format_: Format) -> Rule:
        policy = rng.choice([Policy.DROP_OLDEST, Policy.DROP_OLDEST, Policy.LATEST, Policy.DISCONNECT])
        if index == 2 and rng.random() < 0.6:
            policy = Policy.LATEST
        factor = rng.choice([1, 2, 10])
        window = WindowBounds(
            rng.choice([1, 2, 4, 30, 2000]),
            rng.choice([4.0, 60.0, 300.0]),
            rng.choice([1, 3, 100]) * self.message_bytes,
        )
        queue = QueueBounds(rng.choice([1, 2, 5, 50]), factor * self.message_bytes, policy)
        return Rule(index, pattern, "s:", format_, rng.random() < 0.85, window, queue, rng.choice([0, 0, 1, 3]))

    def owner(self, channel: str) -> Rule | None:
        """The first rule of a Redis channel; all patterns here are a head and a star."""
        return next((rule for rule in self.table.rules if channel.startswith(rule.pattern[:-1])), None)

    def bounds(self, names: Sequence[str]) -> QueueBounds | None:
        """What all rules that names could fall under leave to a queue; None where a name has no rule."""
        found: list[QueueBounds] = []
        for name in names:
            rules = [self.owner("s:" + name)] if not name.endswith("*") else self._could_own("s:" + name[:-1])
            if not rules:
                return None
            found += [rule.queue for rule in rules if rule is not None]
        order = [Policy.DISCONNECT, Policy.DROP_OLDEST, Policy.LATEST]
        policy = min((queue.policy for queue in found), key=order.index)
        return QueueBounds(min(q.max_events for q in found), min(q.max_bytes for q in found), policy)

    def _could_own(self, start: str) -> list[Rule | None]:
        found: list[Rule | None] = []
        for rule in self.table.rules:
            head = rule.pattern[:-1]
            if rule.prefix and (head.startswith(start) or start.startswith(head)):
                found.append(rule)
            if start.startswith(head):  # it owns all that begins so
                break
        return found


class Publisher:
    """Draws messages; no two have the same data."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._data = 0

    def draw(self, rng: Random, now: float) -> Plan:
        """Draw any message."""
        name = rng.choice(
            ["audit:1", "audit:2", "j:1", "j:1", "j:2", "l:1", "l:2", "n1", "n1", "n2", "n3", f"n{rng.randint(4, 30)}"]
        )
        if rng.random() < 0.04:
            return Plan(None, rng.choice([b"zz", b"__s:n1", b"other"]), b"x")
        if rng.random() < 0.08:
            return self._reject(rng, name)
        self._data += 1
        size = rng.choice([0, 0, 5, 50, self._setup.message_bytes // 3, self._setup.message_bytes - 160])
        data = f"{self._data}" + rng.choice(["", "\n", "\r\na", "\r", "é\u2028", "x" * size, "data: \n\nid: 1"])
        return self._json(rng, name, data, now) if name.startswith("j:") else self.text(name, data)

    def text(self, name: str, data: str) -> Plan:
        """Make a message of text."""
        rule = self._setup.owner("s:" + name)
        text = data.replace("\r\n", "\n").replace("\r", "\n")
        return Plan(rule, f"s:{name}".encode(), data.encode(), None, name, "message", text, data)

    def _json(self, rng: Random, name: str, data: str, now: float) -> Plan:
        value: Any = rng.choice([data, data, {"a": [1, data]}, self._data])
        raw = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
        type_ = rng.choice(["message", "note", "data: x"])
        key = rng.choice([None, None, f"k{rng.randint(0, 3)}"])
        extra = "" if type_ == "message" else f',"event":"{type_}"'
        extra += "" if key is None else f',"id":"{key}"'
        extra += rng.choice(["", f',"ts":{1e9 + now - 1}', ',"ts":1', ',"x":null'])
        text = (value if isinstance(value, str) else raw).replace("\r\n", "\n").replace("\r", "\n")
        payload = f'{{"data":{raw}{extra}}}'.encode()
        return Plan(self._setup.owner("s:" + name), f"s:{name}".encode(), payload, None, name, type_, text, value, key)

    def _reject(self, rng: Random, name: str) -> Plan:
        kinds = [("n1", b"\xff", RejectReason.ENCODING), ("j:1", b"{", RejectReason.ENVELOPE),
                 ("j:1", b'{"data":1,"event":"gateway.x"}', RejectReason.TYPE), ("n*", b"", RejectReason.CHANNEL),
                 (name, b"x" * (self._setup.message_bytes + 1), RejectReason.SIZE)]  # fmt: skip
        name, payload, reason = rng.choice(kinds)
        return Plan(self._setup.owner("s:" + name), f"s:{name}".encode(), payload, reason)
