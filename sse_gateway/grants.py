"""What a client may read, and until when.

Rules:
    - A grant is a list of names and of prefixes that end in a star; compared as the names are, byte for byte.
    - A prefix that a client asks for is granted as a whole or not at all: only by a prefix that covers everything
      it will ever show, so that what appears later is inside as well (I11).
    - What is not a grant grants nothing, and is said to be none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sse_gateway.channels import is_channel_name, is_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sse_gateway.channels import RuleTable

MAX_ENTRIES = 1024
"""Names and prefixes in one grant; a longer one is none."""

ENTRY_BYTES = 192
"""What each of them is charged in memory, besides four bytes for each character: 141 measured."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Channels that may be read.

    Attributes:
        names: Channels, by name.
        prefixes: Beginnings of names; the empty one is every channel.
    """

    names: frozenset[str]
    prefixes: tuple[str, ...]

    @property
    def charge(self) -> int:
        """What it is charged in memory, bytes."""
        return sum(ENTRY_BYTES + 4 * len(entry) for entries in (self.names, self.prefixes) for entry in entries)

    def covers(self, asked: str) -> bool:
        """Whether a name, or a prefix (``name*``) with all it will ever show, may be read."""
        if asked.endswith("*"):
            return asked[:-1].startswith(self.prefixes)
        return asked in self.names or asked.startswith(self.prefixes)

    def allows(self, asked: Iterable[str], rules: RuleTable) -> bool:
        """Whether all of a request may be read: what is not public is covered, or none of it."""
        return all(rules.is_public(name) or self.covers(name) for name in asked)


NOTHING = Grant(frozenset(), ())
"""The grant of somebody who may read what is public."""


def read_grant(entries: object) -> Grant:
    """Read a grant as it stands in a token, or in an application's answer.

    Raises:
        ValueError: It is not a list of at most `MAX_ENTRIES` names and prefixes.
    """
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise ValueError(f"not a list of at most {MAX_ENTRIES} channels")
    names, prefixes = set(), []
    for entry in entries:
        if isinstance(entry, str) and is_prefix(entry):
            prefixes.append(entry[:-1])
        elif isinstance(entry, str) and is_channel_name(entry):
            names.add(entry)
        else:
            raise ValueError("a channel is 1 to 256 bytes of UTF-8 without control characters")
    return Grant(frozenset(names), tuple(prefixes))


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a stream belongs to, and how it may be ended.

    Attributes:
        expires_at: Unix seconds; nothing is shown after it.
        subject: Whose it is; empty if nobody said.
        token: Its token's id (``jti``); empty if it has none.
        marks: What a revocation names: digests of both, of those that there are.
    """

    expires_at: float
    subject: str
    token: str
    marks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Access:
    """What a client's credentials give it.

    Attributes:
        identity: Whose they are.
        grant: What may be read.
    """

    identity: Identity
    grant: Grant
