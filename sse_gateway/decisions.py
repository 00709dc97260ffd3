"""What a replica has its caller do: messages to publish, snapshots to move, streams to close."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.control import Kind


class How(StrEnum):
    """How an epoch came to be ours."""

    CLAIMED = "claimed"
    """Nobody held the log; a claim is in force that we saw, ours or another's."""
    JOINED = "joined"
    """From a peer's snapshot."""
    SWITCHED = "switched"
    """We held another: the nodes diverged, or one of them claimed and we were too slow to object."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish on the control channel, and tell `published` what Redis answers."""

    kind: Kind
    payload: bytes


@dataclass(frozen=True, slots=True)
class Serve:
    """Hand the blocks of a cut to a joiner, and call `served` at the end."""

    token: str
    joiner: str
    via: str
    blocks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the blocks that a peer hands over; each comes back as `block`."""

    token: str
    via: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Serve or fetch this no longer."""

    token: str


@dataclass(frozen=True, slots=True)
class Load:
    """Look for a stored log, and call `loaded` with what there is."""


@dataclass(frozen=True, slots=True)
class Synced:
    """Information: the log is there, live."""

    epoch: str
    how: How


@dataclass(frozen=True, slots=True)
class Leave:
    """Close the streams with a word, drop the link, and come back after so many seconds."""

    seconds: float


Decision: TypeAlias = Publish | Serve | Fetch | Stop | Load | Synced | Leave
