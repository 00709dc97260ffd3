"""A keyspace of Redis without Redis: the commands that store a log, and reading it as a node that starts does."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from sse_gateway.recollection import Recollection, read_rows, read_state
from sse_gateway.stored import Keys, Seal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sse_gateway.mirror import Mirror
    from sse_gateway.stored import Row, State
    from tests.support.core import Core

Value: TypeAlias = "bytes | dict[bytes, bytes] | dict[bytes, float]"

KEYS = Keys("sse-gateway", "default", "f1ngerpr1nt")
SEAL = Seal(b"key")


@dataclass
class Keyspace:
    """What Redis holds.

    Attributes:
        values: Strings, hashes, and sorted sets by member.
        expiry: When keys with a time to live end.
        now: Seconds.
    """

    values: dict[bytes, Value] = field(default_factory=dict)
    expiry: dict[bytes, float] = field(default_factory=dict)
    now: float = 0.0

    def transact(self, commands: Iterable[tuple[bytes, ...]], expected: Mapping[int, int] | None = None) -> bool:
        """Carry out commands; returns whether the answers are those that were expected."""
        answers = [getattr(self, f"_{name.decode().lower()}")(key, *words) for name, key, *words in commands]
        return all(answers[index] == answer for index, answer in (expected or {}).items())

    def wait(self, now: float) -> None:
        """Let keys expire."""
        self.now = now
        for key in [key for key, end in self.expiry.items() if end <= now]:
            self._del(key)

    def copy(self) -> Keyspace:
        """The same, for itself."""
        return deepcopy(self)

    def string(self, key: bytes) -> bytes | None:
        """A string, None for no key."""
        value = self.values.get(key)
        assert value is None or isinstance(value, bytes)
        return value

    def mapping(self, key: bytes) -> dict[bytes, bytes]:
        """The fields of a hash."""
        value = self.values.get(key, {})
        assert isinstance(value, dict)
        return value  # type: ignore[return-value] # it is a hash

    def scores(self, key: bytes) -> dict[bytes, float]:
        """The members of a sorted set."""
        value = self.values.setdefault(key, {})
        assert isinstance(value, dict)
        return value  # type: ignore[return-value] # it is a sorted set

    def members(self, key: bytes) -> list[tuple[bytes, float]]:
        """The members of a sorted set, in order."""
        if key not in self.values:
            return []
        return sorted(self.scores(key).items(), key=lambda item: (item[1], item[0]))

    # As the gateway reads it.

    def newest(self) -> str:
        """The newest epoch, empty for none."""
        epochs = self.members(KEYS.epochs)
        return epochs[-1][0].decode() if epochs else ""

    def known(self, epoch: str) -> tuple[State | None, dict[str, Row]]:
        """What a writer learns of an epoch."""
        value = self.string(KEYS.state(epoch))
        if value is None:
            return None, {}
        rows = read_rows(KEYS, SEAL, epoch, self.mapping(KEYS.channels(epoch)))
        return read_state(KEYS, SEAL, epoch, value), rows

    def begin(self, mirror: Mirror, core: Core, *, is_blank: bool = False) -> bool:
        """Have a writer begin; from nothing, if it has found keys to be gone."""
        epoch = core.hub.log.epoch.name
        epochs = self.members(KEYS.epochs)
        order = dict(epochs).get(epoch.encode(), (epochs[-1][1] if epochs else 0) + 1)
        return mirror.begin(*((None, {}) if is_blank else self.known(epoch)), int(order), core.now)

    def load(self, now: float, *, rules: int = 1, max_bytes: int = 1 << 30) -> Recollection | None:
        """Read the newest epoch; None if there is none."""
        epoch = self.newest()
        if not epoch:
            return None
        state, rows = self.known(epoch)
        assert state is not None
        found = Recollection(KEYS, SEAL, state, rows, rules=rules, max_bytes=max_bytes)
        found.add_ring([self.string(KEYS.ring(epoch, block)) for block in found.blocks()])
        for name in rows:
            found.add_window(name, self.members(KEYS.window(epoch, name)), now, now)
        return found

    # Commands.

    def _del(self, key: bytes) -> None:
        self.values.pop(key, None)
        self.expiry.pop(key, None)

    def _set(self, key: bytes, value: bytes, px: bytes, ttl: bytes) -> None:
        assert px == b"PX"
        self.values[key] = value
        self._pexpire(key, ttl)

    def _setrange(self, key: bytes, at: bytes, part: bytes) -> int:
        value, start = bytearray(self.string(key) or b""), int(at)
        value.extend(bytes(max(0, start - len(value))))
        value[start : start + len(part)] = part
        self.values[key] = bytes(value)
        return len(value)

    def _pexpire(self, key: bytes, ttl: bytes) -> int:
        if key in self.values:
            self.expiry[key] = self.now + int(ttl) / 1000
        return int(key in self.values)

    def _hset(self, key: bytes, *words: bytes) -> int:
        self.values.setdefault(key, {})
        before = len(self.mapping(key))
        self.mapping(key).update(zip(words[::2], words[1::2], strict=True))
        return len(self.mapping(key)) - before

    def _hdel(self, key: bytes, name: bytes) -> None:
        self.mapping(key).pop(name, None)
        if not self.mapping(key):
            self._del(key)

    def _zadd(self, key: bytes, *words: bytes) -> None:
        self.scores(key).update(zip(words[1::2], map(float, words[::2]), strict=True))

    def _zremrangebyscore(self, key: bytes, lowest: bytes, highest: bytes) -> None:
        assert lowest == b"-inf"
        self._keep(key, {member: score for member, score in self.scores(key).items() if score > float(highest)})

    def _zremrangebyrank(self, key: bytes, first: bytes, last: bytes) -> None:
        assert first == b"0"
        self._keep(key, dict(self.members(key)[int(last) + 1 :] if int(last) != -1 else []))

    def _keep(self, key: bytes, members: dict[bytes, float]) -> None:
        if members:
            self.values[key] = members
        else:
            self._del(key)
