"""Compares what a client got with what was published: exactly once, in order, or told.

It knows nothing of cursors, windows or queues, only of the promise: between two gaps that name
a channel the client's events of it are a contiguous slice of what was published there, and
events of all its channels come in one order.

Sources of truth: `Ledger`, what was published, in order, each message with data of its own; and
the blocks a client got, over all its connections, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.raw_client import position

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.support.raw_client import Block

UNVERIFIABLE = "0-0-0"
"""The id of a stream that could not be resumed; it says nothing of where the stream is."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A client got an event with this data."""

    data: str


@dataclass(frozen=True, slots=True)
class Told:
    """A client was told of a gap."""

    reason: str
    channels: tuple[str, ...]
    missed: int | None


Seen = Delivered | Told


class Ledger:
    """What was published, in the order in which Redis took it."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []

    def message(self, channel: str, padding: int = 0) -> tuple[str, str]:
        """Write down the next message of a client's channel: (channel, data of its own)."""
        data = f"{channel}#{len(self.entries)}#" + "x" * padding
        self.entries.append((channel, data))
        return channel, data

    def messages(self, channel: str, count: int, padding: int = 0) -> list[tuple[str, str]]:
        """Write down `count` messages of one channel."""
        return [self.message(channel, padding) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.entries)


def observe(blocks: Iterable[Block], *, wrapped: bool = False) -> list[Seen]:
    """Reduce a client's blocks to what it got and what it was told."""
    seen: list[Seen] = []
    for block in blocks:
        if block.type == "gateway.gap":
            told = block.json()
            seen.append(Told(told["reason"], tuple(told["channels"]), told["missed"]))
        elif not block.own:
            seen.append(Delivered(block.json()["data"] if wrapped else block.data))
    return seen


@dataclass(slots=True)
class _Gap:
    """A gap that was told.

    Attributes:
        told: What it said.
        filled: How many events are missing there.
        exact: Both numbers must be the same.
    """

    told: Told
    exact: bool
    filled: int = 0


@dataclass(slots=True)
class _Channel:
    """One channel's events, and how far the client has followed them."""

    published: dict[str, int] = field(default_factory=dict)
    superseding: bool = False
    next: int = 0
    gaps: list[_Gap] = field(default_factory=list)


class _Run:
    def __init__(
        self, ledger: Ledger, channels: Sequence[str], since: int, skips: Sequence[str], from_cursor: Sequence[str]
    ) -> None:
        self._from_cursor = set(from_cursor)
        self.problems: list[str] = []
        self._newest = -1
        self._place = {data: place for place, (_, data) in enumerate(ledger.entries)}
        self._owner = {data: channel for channel, data in ledger.entries}
        self._channels = {name: _Channel(superseding=name in skips) for name in channels}
        self._gaps: list[_Gap] = []
        for place, (name, data) in enumerate(ledger.entries):
            if place >= since and name in self._channels:
                published = self._channels[name].published
                published[data] = len(published)

    def take(self, seen: Seen) -> None:
        if isinstance(seen, Told):
            self._take_gap(seen)
        else:
            self._take_event(seen.data)

    def _take_gap(self, told: Told) -> None:
        gap = _Gap(told, exact=told.missed is not None)
        self._gaps.append(gap)
        if told.missed is not None and told.missed <= 0:
            self.problems.append(f"a gap of nothing: {told}")
        for name in told.channels:
            for channel in self._named(name, told):
                channel.gaps.append(gap)

    def _named(self, name: str, told: Told) -> list[_Channel]:
        """Return the channels that a gap's name stands for: one, or all that begin with a prefix."""
        if name in self._channels:
            return [self._channels[name]]
        if name.endswith("*"):
            return [channel for other, channel in self._channels.items() if other.startswith(name[:-1])]
        self.problems.append(f"a gap of a channel nobody follows: {told}")
        return []

    def _take_event(self, data: str) -> None:
        channel = self._channels.get(self._owner.get(data, ""))
        if channel is None or data not in channel.published:
            self.problems.append(f"never published for this client: {data[:60]!r}")
            return
        place = channel.published[data]
        if place < channel.next:
            self.problems.append(f"again, or too late: {data[:60]!r}")
            return
        if self._place[data] < self._newest:
            self.problems.append(f"before an event of another channel that is older: {data[:60]!r}")
        self._newest = max(self._newest, self._place[data])
        self._skip_to(channel, place, f"{data[:60]!r}")
        channel.next = place + 1
        channel.gaps = []

    def _skip_to(self, channel: _Channel, place: int, where: str) -> None:
        hole = place - channel.next
        if channel.gaps:
            _fill(channel.gaps, hole)
        elif hole and not channel.superseding:
            self.problems.append(f"a silent hole of {hole} before {where}")

    def finish(self) -> None:
        for name, channel in self._channels.items():
            self._skip_to(channel, len(channel.published), f"the end of {name}")
        for gap in self._gaps:
            counted = gap.told.missed or 0
            if gap.exact and (
                gap.filled < counted or (gap.filled > counted and gap.told.reason not in self._from_cursor)
            ):
                self.problems.append(f"{gap.filled} events are missing where a gap says: {gap.told}")


def _fill(gaps: list[_Gap], hole: int) -> None:
    """Spread a channel's missing events over the gaps told before its next event, each taking what it says."""
    numbered = [gap for gap in gaps if gap.told.missed is not None]
    for gap in numbered:
        part = min(hole, max(0, (gap.told.missed or 0) - gap.filled))
        gap.filled += part
        hole -= part
        # Next to a gap without a number nobody can say whose the missing events are.
        gap.exact = gap.exact and len(numbered) == len(gaps)
    gaps[-1].filled += hole


def check(
    ledger: Ledger,
    seen: Iterable[Seen],
    channels: Sequence[str],
    *,
    since: int = 0,
    skips: Sequence[str] = (),
    from_cursor: Sequence[str] = (),
) -> list[str]:
    """Return every way in which a client's view breaks the promise; an empty list if none.

    Args:
        ledger: What was published.
        seen: What the client got and was told, until it had everything.
        channels: The channels it followed, as clients name them.
        since: How many messages had been published before the client's position.
        skips: Channels that may be superseded without a word (policy `latest`).
        from_cursor: Reasons of gaps that count from the cursor of a connection: a client that was cut while
            events of another channel came, before its gap, has missed more than the next connection knows.
    """
    run = _Run(ledger, channels, since, skips, from_cursor)
    for item in seen:
        run.take(item)
    run.finish()
    return run.problems


def check_ids(views: Sequence[Sequence[Block]]) -> list[str]:
    """Return every way in which ids break the promise, over all clients and all nodes they were on.

    An id stands for one event everywhere. What a client gets, over all its connections, has ids that ascend
    within an epoch, and no epoch comes back; a block of the gateway's own may stand where the client is.

    Args:
        views: Of each client all blocks that it got, one connection after the other, none of them wrapped.
    """
    problems: list[str] = []
    events: dict[str, tuple[str, str]] = {}
    for view in views:
        newest: dict[str, int] = {}
        current = ""
        for block in view:
            if block.id in {None, UNVERIFIABLE}:
                continue
            assert block.id is not None
            epoch, offset = position(block.id)
            is_move = not block.own or block.type == "gateway.gap"
            if offset < newest.get(epoch, -1) + is_move or (epoch != current and epoch in newest):
                problems.append(f"{block.type} at {block.id} behind {current} {newest[epoch]}")
            current, newest[epoch] = epoch, max(offset, newest.get(epoch, -1))
            event = (block.type, block.data)
            if not block.own and events.setdefault(block.id, event) != event:
                problems.append(f"{block.id} stands for {event[1][:60]!r} and {events[block.id][1][:60]!r}")
    return problems
