"""One attempt to get the log from a peer: what is known of it, and what has come since."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sse_gateway.control import Kind

if TYPE_CHECKING:
    from sse_gateway.control import Message
    from sse_gateway.decisions import Publish
    from sse_gateway.snapshot import Snapshot

BUFFER_ENTRIES = 100_000
BUFFER_BYTES = 64 * 1024 * 1024
"""What is kept until a snapshot is there; beyond, the node joins anew."""

ECHO_S = 15.0
"""What we publish comes back, however late, or the link is found dead before. To say it again would not help."""

_OF_HOLDERS = frozenset({Kind.OFFER, Kind.VETO, Kind.CHECKPOINT})


@dataclass(frozen=True, slots=True)
class Publication:
    """A message of a publisher, kept with its times; `wall` is Unix seconds."""

    pattern: bytes
    channel: bytes
    payload: bytes
    now: float
    wall: float


class Joining:
    """One attempt to get the log: our JOIN and what has come since.

    Attributes:
        token: Of the JOIN.
        seen_at: When it came back, None before.
        buffer: What came after it.
        bytes: Of channels and payloads in it.
        deadline: When something else has to be tried, seconds.
        snapshot: Once a peer has offered.
        claimed: The epoch that we claim.
        join: Our PUBLISH of the JOIN.
        claim: Our PUBLISH of the CLAIM.
        was_alone: Nobody else was subscribed when Redis took the JOIN.
        is_alone: Nobody else was subscribed when Redis took the CLAIM.
        is_held: Somebody has spoken since the JOIN who holds the log.
        is_claim_seen: The CLAIM came back, and is not confirmed yet.
    """

    __slots__ = (
        "buffer",
        "bytes",
        "claim",
        "claimed",
        "deadline",
        "is_alone",
        "is_claim_seen",
        "is_held",
        "join",
        "seen_at",
        "snapshot",
        "token",
        "was_alone",
    )

    def __init__(self, token: str, deadline: float) -> None:
        self.token = token
        self.deadline = deadline
        self.seen_at: float | None = None
        self.buffer: deque[Publication | Message] = deque()
        self.bytes = 0
        self.snapshot: Snapshot | None = None
        self.claimed: str | None = None
        self.join: Publish | None = None
        self.claim: Publish | None = None
        self.was_alone = False
        self.is_alone = False
        self.is_held = False
        self.is_claim_seen = False

    @property
    def may_claim(self) -> bool:
        """Whether nobody seems to hold the log, once there was time to offer it."""
        return self.seen_at is not None and not (self.is_held or self.snapshot or self.claimed)

    @property
    def is_unopposed(self) -> bool:
        """Whether Redis says that there is nobody to wait for: to offer, or to object to the claim that came back."""
        if self.snapshot is not None:
            return False
        return self.was_alone if self.claimed is None else self.is_claim_seen and self.is_alone

    def note_alone(self, publish: Publish) -> None:
        """Note that nobody else got this PUBLISH."""
        self.was_alone |= publish is self.join
        self.is_alone |= publish is self.claim

    def keep(self, entry: Publication | Message) -> bool:
        """Keep what has come; False if there is no more room."""
        self.buffer.append(entry)
        if isinstance(entry, Publication):
            self.bytes += len(entry.channel) + len(entry.payload)
        elif entry.kind in _OF_HOLDERS:
            self.is_held = True
        return len(self.buffer) <= BUFFER_ENTRIES and self.bytes <= BUFFER_BYTES
