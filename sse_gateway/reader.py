"""One stream's place in the log: what it follows, how far it has got, what waits for it.

A reader goes through its phases in this order; from LIVE it goes back to REPLAY when a peer has filled in what
this node has missed:

    HELD     its cursor is ahead of the log; the headers are out, nothing else
    REPLAY   it pulls what it missed from the windows, as its socket drains
    LIVE     it is a member of its audience and gets every pass
    ENDED    it gets nothing any more
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from sse_gateway.channels import QueueBounds
from sse_gateway.outbox import NAMED, Outbox
from sse_gateway.reasons import Policy, Replay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.audience import Audience
    from sse_gateway.channels import Rule
    from sse_gateway.reasons import CloseReason, GapReason
    from sse_gateway.window import Window


Handle: TypeAlias = Any
"""What a sink is written to: a socket; the core only hands it to its `write`. It is true, unlike the None in its place."""


class Phase(Enum):
    """Where a reader stands."""

    HELD = auto()
    REPLAY = auto()
    LIVE = auto()
    ENDED = auto()


class Sink(Protocol):
    """The socket of a reader, as the core sees it.

    Attributes:
        handle: What the core's `write` takes for it; it belongs to this one as long as it is a member of anything.
    """

    handle: Handle

    def wait_writable(self) -> None:
        """Call the hub's `advance` when the socket takes bytes again. Idempotent; ends no stream."""

    def replayed(self, size: int) -> None:
        """So many bytes of events that were are about to be written to it."""

    def abort(self, reason: CloseReason) -> None:
        """End the stream at once, without a word, and no other: an audience may be in the midst of being written to."""


@dataclass(frozen=True, slots=True)
class Follow:
    """A set of channels to follow.

    Attributes:
        asked: Names and prefixes (``name*``) as the client asked for them, duplicates merged.
        exact: Channels with their rules; none that a prefix covers.
        prefixes: Prefixes (without the star) with the rules that could own such a channel.
        bounds: Of a member's queue.
    """

    asked: tuple[str, ...]
    exact: tuple[tuple[str, Rule], ...]
    prefixes: tuple[tuple[str, tuple[Rule, ...]], ...]
    bounds: QueueBounds


def smallest_bounds(rules: Sequence[Rule]) -> QueueBounds:
    """Return the smallest bounds of some rules, and of their policies the one that loses least."""
    queues = list({rule.queue: None for rule in rules})
    if len(queues) == 1:
        return queues[0]  # not another like it for each stream
    return QueueBounds(
        min(queue.max_events for queue in queues),
        min(queue.max_bytes for queue in queues),
        min((queue.policy for queue in queues), key=list(Policy).index),
    )


@dataclass(frozen=True, slots=True)
class Framing:
    """How blocks are written: HTTP/1.1 chunks or not, wrapped in JSON or not."""

    chunked: bool
    wrapped: bool


@cache
def framing_of(*, chunked: bool, wrapped: bool) -> Framing:
    """The one of its kind, to which every stream refers."""
    return Framing(chunked, wrapped)


class Catchup:
    """What a reader needs only until it is live.

    Attributes:
        gap: Told first: why the cursor could not be resumed from.
        asked: The cursor as the client sent it, or None.
        is_open: `gateway.open` has been written.
        newest: Newest events per channel that a client without a cursor gets; None for the rules'
            own number.
        has_cursor: The client resumes, and gets everything after `settled_from`.
        settled_from: Everything up to here is settled on every channel.
        settled: Beyond it, per channel: delivered or told up to here.
        charged: Bytes of `settled` that are counted in `queue_memory`: under a prefix it may hold every channel.
        head: The log's head when the stream began.
        serial: The history's loss counter when `gateway.open` was written.
        scanned: How far the search for losses under a prefix has come.
    """

    __slots__ = (
        "asked",
        "charged",
        "gap",
        "has_cursor",
        "head",
        "is_open",
        "newest",
        "scanned",
        "serial",
        "settled",
        "settled_from",
    )

    def __init__(self, *, head: int, newest: int | None) -> None:
        self.gap: GapReason | None = None
        self.asked: str | None = None
        self.is_open = False
        self.newest = newest
        self.has_cursor = False
        self.settled_from = head
        self.settled: dict[Window, int] = {}
        self.charged = 0
        self.head = head
        self.serial = 0
        self.scanned: int | None = None

    def settled_on(self, window: Window) -> int:
        """Up to where this channel's events were delivered or told."""
        return self.settled.get(window, self.settled_from)


class Reader:
    """One stream, as the core knows it.

    Attributes:
        sink: Its socket.
        follow: What it follows.
        framing: How its blocks are written.
        phase: Where it stands.
        position: In REPLAY, everything up to here has been pulled.
        catchup: State of HELD and REPLAY; None afterwards.
        outbox: What waits while the socket takes no more; None while it is writable.
        audience: Its audience while LIVE.
        slot: Its place among the audience's members.
        events: Events handed to the socket, less what the audience counts (see `Audience.leave`).
        bytes: Bytes, likewise.
        dropped: Events dropped by its policy.
        retry_ms: Its one draw of the reconnection time.
        replay: What `gateway.open` said.
        progress_at: When its socket last took a byte while it was not writable.
    """

    __slots__ = (
        "audience",
        "bytes",
        "catchup",
        "dropped",
        "events",
        "follow",
        "framing",
        "outbox",
        "phase",
        "position",
        "progress_at",
        "replay",
        "retry_ms",
        "sink",
        "slot",
    )

    def __init__(self, sink: Sink, follow: Follow, framing: Framing, retry_ms: int) -> None:
        self.sink = sink
        self.follow = follow
        self.framing = framing
        self.phase = Phase.REPLAY
        self.position = -1
        self.catchup: Catchup | None = None
        self.outbox: Outbox | None = None
        self.audience: Audience | None = None
        self.slot = -1
        self.events = 0
        self.bytes = 0
        self.dropped = 0
        self.retry_ms = retry_ms
        self.replay = Replay.NONE
        self.progress_at = 0.0


def names_of(follow: Follow, windows: Sequence[Window]) -> list[str]:
    """Channel names for a gap block: those that lost events, or all that were asked for.

    A prefix may lose on very many channels; beyond `NAMED` the gap is told on all.
    """
    if not windows or len(windows) > NAMED:
        return list(follow.asked)
    return sorted(window.name for window in windows)
