"""What was found out about credentials, remembered for a while.

Rules:
    - Remembered is a keyed digest of the credentials, never they themselves.
    - Bounded in entries and in bytes (I5); in a full memory the oldest gives way, and is found out anew.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_KNOWN = 65_536
"""Entries."""

MAX_KNOWN_BYTES = 67_108_864
"""Bytes that they are charged."""

KNOWN_BYTES = 1024
"""What an entry is charged besides the length of what it was made of."""

Value = TypeVar("Value")


class Known(Generic[Value]):
    """A bounded memory."""

    def __init__(self, salt: bytes, most: int = MAX_KNOWN, most_bytes: int = MAX_KNOWN_BYTES) -> None:
        """Start empty.

        Args:
            salt: Key of the digests, drawn for this memory alone.
            most: Entries.
            most_bytes: Bytes that they are charged.
        """
        self._salt = salt
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries: dict[bytes, tuple[Value, float, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def digest(self, parts: Iterable[str]) -> bytes:
        """What stands for some texts, in this order."""
        digest = hashlib.blake2b(digest_size=16, key=self._salt)
        for part in parts:
            raw = part.encode("utf-8", "surrogateescape")
            digest.update(b"%d:%b" % (len(raw), raw))  # lengths: no two rows of texts run together
        return digest.digest()

    def get(self, digest: bytes, now: float) -> Value | None:
        """What is remembered and still holds."""
        found = self._entries.get(digest)
        if found is None:
            return None
        if found[1] > now:
            return found[0]
        self.forget(digest)
        return None

    def put(self, digest: bytes, value: Value, until: float, size: int) -> None:
        """Remember something.

        Args:
            digest: Of the credentials.
            value: What was found out.
            until: How long it holds.
            size: Bytes of what it was made of.
        """
        self.forget(digest)
        self._entries[digest] = value, until, KNOWN_BYTES + size
        self._bytes += KNOWN_BYTES + size
        while len(self._entries) > self._most or self._bytes > self._most_bytes:
            self.forget(next(iter(self._entries)))

    def forget(self, digest: bytes) -> None:
        """Forget it. Idempotent."""
        if (found := self._entries.pop(digest, None)) is not None:
            self._bytes -= found[2]
