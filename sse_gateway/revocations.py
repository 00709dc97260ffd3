"""What was revoked: as text and back, and the list of it that every process keeps.

``revoke 1 MARK until [mac]``, ASCII, single spaces: on the control channel, and as a member of the list in Redis.

Rules:
    1. A revocation stands for itself: it names a digest and an end, whoever brings it and however often, in any order.
       So nodes of every fingerprint heed it, old and new ones, and a recorded one repeats what is true anyway.
    2. With a secret it carries a MAC, here and in the list; what does not verify is ignored. Without one, whoever may
       PUBLISH on the control channel may revoke.
    3. The list is bounded. In a full one, whatever ends first gives way, and is counted: `sse-gateway revoke` refuses
       long before.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WORD = b"revoke "
"""What such a message begins with, and no message of `control` does."""

MAX_REVOCATIONS = 100_000
"""Of about 150 bytes each."""

FOR_GOOD_S = 100 * 365 * 86_400
"""How long a revocation holds where no limit is set to a token's life: beyond any that is still to come."""

MAX_HOLD_S = FOR_GOOD_S + 86_400
"""The longest time for which anything can be revoked, and a day for clocks that differ: what says more is a mistake."""

_MAC_LENGTH = 32
_REVOCATION = re.compile(rb"revoke 1 ([st][0-9a-f]{32}) ([1-9][0-9]{8,11})", re.ASCII)


def subject_mark(key: bytes, subject: str) -> str:
    """What stands for a subject: nobody learns it from the list."""
    return "s" + _digest(key, subject)


def token_mark(key: bytes, token: str) -> str:
    """What stands for a token's id."""
    return "t" + _digest(key, token)


def marks_of(key: bytes, subject: str, token: str) -> tuple[str, ...]:
    """What stands for a subject and a token's id, for those that there are."""
    marks = (subject_mark(key, subject),) if subject else ()
    return (*marks, token_mark(key, token)) if token else marks


def _digest(key: bytes, text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16, key=key, person=b"sse-gateway rev").hexdigest()


class Revocations:
    """What is revoked at the moment.

    Attributes:
        ignored: Messages that did not verify, or were none.
        displaced: Revocations that a full list has let go of before their end.
    """

    def __init__(self, secret: bytes = b"", most: int = MAX_REVOCATIONS) -> None:
        """Start empty.

        Args:
            secret: Key of the MAC; empty for none.
            most: Revocations that the list holds.
        """
        self.ignored = 0
        self.displaced = 0
        self._most = most
        self._secret = secret
        self._until: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._until)

    def write(self, mark: str, until: int) -> bytes:
        """Make the text of a revocation."""
        body = b"revoke 1 %b %d" % (mark.encode(), until)
        return body + b" " + self._mac(body) if self._secret else body

    def take(self, payload: bytes, now: float) -> bool:
        """Take in a revocation that somebody brings.

        Args:
            payload: Its text.
            now: Unix seconds.

        Returns:
            Whether it says something new.
        """
        match = self._verified(payload)
        if match is None or int(match[2]) > now + MAX_HOLD_S:
            self.ignored += 1
            return False
        mark, until = match[1].decode(), int(match[2])
        if until <= max(now, self._until.get(mark, 0)):
            return False
        self._until[mark] = until
        if len(self._until) > self._most:
            self._make_room(now)
        return True

    def covers(self, marks: Iterable[str], now: float) -> bool:
        """Whether any of these is revoked."""
        return any(self._until.get(mark, 0) > now for mark in marks)

    def texts(self) -> Iterator[tuple[int, bytes]]:
        """All revocations, each with its end: for a list that has lost them."""
        for mark, until in list(self._until.items()):
            yield until, self.write(mark, until)

    def expire(self, now: float) -> None:
        """Forget what has ended. O(all)."""
        self._until = {mark: until for mark, until in self._until.items() if until > now}

    def _make_room(self, now: float) -> None:
        """Let go of what has ended, or else of the hundredth that ends first: it takes a walk through all."""
        self.expire(now)
        if len(self._until) > self._most:
            surplus = len(self._until) - self._most + self._most // 100
            for mark in sorted(self._until, key=self._until.__getitem__)[:surplus]:
                del self._until[mark]
            self.displaced += surplus

    def _verified(self, payload: bytes) -> re.Match[bytes] | None:
        body = payload
        if self._secret:
            body, _, mac = payload.rpartition(b" ")
            if not hmac.compare_digest(mac, self._mac(body)):
                return None
        return _REVOCATION.fullmatch(body)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._secret, body, "sha256").hex()[:_MAC_LENGTH].encode()
