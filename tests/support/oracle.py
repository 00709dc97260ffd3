"""What the core owes its clients, worked out from what was published and from the bytes they got.

It knows the promise and none of the code: `World` is the log as its publishers see it, with a
plain model of what the windows still hold; `StreamCheck` reads one client's bytes with the
reference parser and judges every block as it comes. A gap that is told later excuses no hole.

`World.is_exact` says whether the windows are bounded by their rules alone. Under the limits of
memory and channels they lose more, and earlier; then whatever is told is taken for true as far as
it could be, and only holes, order, content and scope are judged.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sse_gateway.reasons import GapReason, Policy
from tests.support.unframer import Unframer
from tests.support.world import BrokenPromiseError, ensure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.channels import Rule
    from tests.support.unframer import Block
    from tests.support.world import Deliverable, World

UNVERIFIABLE = "0-0-0"
MAX_TOLD = 1000
"""Lost events of a channel that are counted one by one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a stream asked for.

    Attributes:
        names: Names and prefixes, as in the request.
        policy: The policy that its rules leave.
        cursor: As sent, or None.
        outcomes: What may become of the cursor: ``resume``, or a reason for a gap; ``fresh``
            without one.
        replay: Newest events per channel, or None for the rules' own.
        wrapped: Events come as JSON.
        chunked: HTTP/1.1.
    """

    names: tuple[str, ...]
    policy: Policy
    cursor: str | None
    outcomes: frozenset[str]
    replay: int | None
    wrapped: bool
    chunked: bool

    def covers(self, channel: str, rule: Rule) -> bool:
        """Whether a channel is among what was asked for."""
        return channel in self.names or (
            rule.prefix and any(name.endswith("*") and channel.startswith(name[:-1]) for name in self.names)
        )

    def newest(self, rule: Rule) -> int:
        """Events of a channel that a client without a cursor gets."""
        return rule.replay_on_connect if self.replay is None else self.replay


@dataclass(slots=True)
class Known:
    """What a client has settled: delivered or told, per channel; `start` where nothing is noted."""

    start: int
    channels: dict[str, int] = field(default_factory=dict)
    breaks: int = -1

    def upto(self, channel: str) -> int:
        """Up to where a channel is settled."""
        return self.channels.get(channel, self.start)

    def copy(self) -> Known:
        """Copy, to go on from here in another stream."""
        return Known(self.start, dict(self.channels), self.breaks)


class StreamCheck:
    """Judges one stream, block by block.

    Attributes:
        blocks: All blocks so far.
        events: Events among them.
        gaps: Gap blocks among them, by reason.
        known: What its client has settled, with the streams before it.
        states: The same after each block.
        closed: Reason of `gateway.close`, or None.
    """

    def __init__(self, world: World, asked: Asked, head: bytes, before: Known | None = None) -> None:
        """Begin to judge.

        Args:
            world: What is published.
            asked: The request.
            head: Bytes before the first block.
            before: What the same client had settled when its last stream was cut at `asked.cursor`.
        """
        self.asked = asked
        self.blocks: list[Block] = []
        self.events = 0
        self.gaps: Counter[str] = Counter()
        self.known = before.copy() if before else Known(-1)
        self.states: list[Known] = []
        self.closed: str | None = None
        self._world = world
        self._resumes = before is not None
        self._frames = Unframer(head, chunked=asked.chunked)
        self._own = Known(-1)  # for this stream alone: `missed` counts from here
        self._last = -1
        self._outcome = ""
        self._begun_at: int | None = None
        self._lost_then: dict[str, int] = {}  # when it began
        self._lost_at_open: dict[str, int] = {}
        self._wanted: dict[str, list[int]] = {}  # newest events of each channel at that moment
        self._lenient = False  # it was opened later, and more was lost meanwhile

    def begin(self) -> None:
        """Note the moment at which the stream's beginning is decided."""
        self._begun_at = self._world.head
        self._lost_then = dict(self._world.lost)
        for name in self.channels():
            newest = self.asked.newest(self._world.owners[name])
            self._wanted[name] = self._world.held(name)[-newest:] if newest else []

    @property
    def is_begun(self) -> bool:
        """Whether `begin` was called."""
        return self._begun_at is not None

    @property
    def is_complete(self) -> bool:
        """Whether the response has ended cleanly, as far as HTTP can say it."""
        return self._frames.ended or not self.asked.chunked

    def channels(self) -> list[str]:
        """Channels followed that exist."""
        return [name for name, rule in self._world.owners.items() if self.asked.covers(name, rule)]

    def feed(self, data: bytes, *, at_once: bool) -> None:
        """Take the next bytes.

        Args:
            data: As written to the socket.
            at_once: They came in the very call in which the stream began.
        """
        for block in self._frames.feed(data):
            ensure(self.closed is None, "a block after gateway.close:", block)
            self.blocks.append(block)
            if len(self.blocks) == 1:
                self._take_open(block, at_once=at_once)
            elif block.type == "gateway.gap":
                self._take_gap(block)
            elif block.type in {"gateway.heartbeat", "gateway.close"}:
                self._take_sign(block)
            else:
                ensure(not block.type.startswith("gateway."), "out of place:", block)
                self._take_event(block)
            self.states.append(self.known.copy())

    # The first block.

    def _take_open(self, block: Block, *, at_once: bool) -> None:
        ensure(block.type == "gateway.open", "not gateway.open:", block)
        ensure(self._begun_at is not None, "opened while held")
        said = json.loads(block.data)
        ensure(said["channels"] == sorted(self.asked.names), "other channels:", said)
        self._lenient = not at_once
        self._lost_at_open = dict(self._world.lost)
        outcomes = self.asked.outcomes
        if block.id == UNVERIFIABLE:
            self._outcome = "unverified"
            ensure(outcomes - {"resume", "fresh"}, "the cursor was good:", self.asked.cursor)
            ensure(said["replay"] == "gap", said)
            return
        position = self._world.place(block.id)
        if self.asked.cursor is None:
            self._open_fresh(position, said["replay"])
        else:
            ensure("resume" in outcomes and block.id == self.asked.cursor, "resumed elsewhere:", block, outcomes)
            self._outcome = "resume"
            self._start(position)
            self._judge_replay(position, said["replay"])

    def _start(self, position: int) -> None:
        self._last = position
        self._own = Known(position, breaks=position)
        if not self._resumes:
            self.known = self._own.copy()

    def _judge_replay(self, position: int, said: str) -> None:
        world = self._world
        ensure(said in {"complete", "gap"}, "a resumed stream says", said)
        now = bool(world.breaks(position, world.head))
        then = bool(world.breaks(position, self._begun_at or 0))
        if self.asked.policy is not Policy.LATEST:
            names = self.channels()
            now |= any(world.lost.get(name, -1) > position for name in names)
            then |= any(self._lost_then.get(name, -1) > position for name in names)
        if said == "complete":
            ensure(not (then and world.is_exact), "'complete', though something is lost")
        elif world.is_exact:
            ensure(now, "'gap', though nothing is lost")

    def _open_fresh(self, position: int, said: str) -> None:
        self._outcome = "fresh"
        self._start_fresh(position)
        if self._lenient or not self._world.is_exact:
            return
        first = [wanted[0] - 1 for wanted in self._wanted.values() if wanted]
        ensure(position == min([self._begun_at or 0, *first]), "a fresh stream begins at", position, first)
        if first:
            is_broken = self._world.breaks(position, self._begun_at or 0)
            ensure(said == ("gap" if is_broken else "complete"), "a replay says", said)

    def _start_fresh(self, position: int) -> None:
        """Begin where a client without a cursor does: each channel before what it asked for."""
        assert self._begun_at is not None
        self._own = Known(self._begun_at, breaks=position)
        if not self._lenient and self._world.is_exact:
            for name, wanted in self._wanted.items():
                self._own.channels[name] = wanted[0] - 1 if wanted else self._begun_at
        self._last = position
        if not self._resumes:
            self.known = self._own.copy()

    # Every other block.

    def _take_event(self, block: Block) -> None:
        world, asked = self._world, self.asked
        ensure(self._outcome not in {"", "unverified"}, "an event before the gap:", block)
        position = world.place(block.id)
        ensure(position > self._last, "ids do not ascend (I1):", block.id, "after", self._last)
        event = world.events.get(position)
        ensure(event is not None, "never published for anybody:", block)
        assert event is not None
        ensure(asked.covers(event.channel, world.owners[event.channel]), "not asked for (I11):", block)
        self._judge_data(block, event)
        name = event.channel
        if asked.policy is Policy.LATEST:
            self._judge_latest(event)
        elif self._is_extra(position, name):
            self._own.channels[name] = self.known.channels[name] = position - 1
        else:
            hole = world.between(name, self.known.upto(name), position - 1)
            ensure(not hole, "a silent hole (I2):", hole, "before", block.id, name)
        missing = world.breaks(self.known.breaks, position)
        ensure(not missing, "a BREAK was not told (I2):", missing, "before", block.id)
        self._settle(name, position)
        self._last = position
        self.events += 1

    def _is_extra(self, position: int, name: str) -> bool:
        """Whether this is the first of the newest events that a fresh client gets, and nobody knows which."""
        return (
            self._outcome in {"fresh", "cursor"}
            and position <= (self._begun_at or 0)
            and name not in self._own.channels
        )

    def _judge_latest(self, event: Deliverable) -> None:
        """Of what was there when the stream resumed, only the newest event of each channel is sent."""
        if self._outcome == "resume":
            newest = self._world.between(event.channel, -1, self._begun_at or 0)
            ensure(not newest or event.position >= newest[-1], "superseded, and sent all the same:", event)

    def _judge_data(self, block: Block, event: Deliverable) -> None:
        if not self.asked.wrapped:
            ensure((block.type, block.data) == (event.type, event.text), "other content:", block, event)
            return
        said = json.loads(block.data)
        ensure(block.type == "message" and "\n" not in block.data, "not wrapped:", block)
        expected = {"channel": event.channel, "event": event.type, "data": event.value}
        ensure(said == expected, "other content:", said, expected)

    def _take_gap(self, block: Block) -> None:
        said = json.loads(block.data)
        position, reason = self._world.place(block.id), said["reason"]
        self.gaps[reason] += 1
        names = self._named(said["channels"])
        if self._outcome == "unverified":
            self._take_first_gap(position, reason, said)
            return
        ensure(position > self._last, "ids do not ascend (I1):", block, "after", self._last)
        missing = [place for name in names for place in self._world.between(name, self._own.upto(name), position)]
        if reason in {GapReason.SOURCE, GapReason.EPOCH}:
            ensure(said["missed"] is None, "nobody can count that:", said)
            reasons = {told for _, base, told in self._world.epochs if self.known.breaks < base <= position}
            ensure(reason in reasons, "no such BREAK there:", said, reasons)
            self._own.breaks = self.known.breaks = position
        else:
            self._judge_loss(position, said, names, missing)
        is_break = self._world.breaks(position - 1, position)  # it counts nothing: a later gap may count across it
        for name in names:
            self._settle(name, position, counts=not is_break)
        self._last = position

    def _take_first_gap(self, position: int, reason: str, said: dict[str, Any]) -> None:
        ensure(reason in self.asked.outcomes, "told as", reason, "instead of", set(self.asked.outcomes))
        ensure(said["channels"] == sorted(self.asked.names) and said["missed"] is None, said)
        self._outcome = reason
        if reason == GapReason.CURSOR:
            self._start_fresh(position)
        else:
            self._start(position)
        if self._resumes:
            for name in self.channels():
                self.known.channels[name] = max(self.known.upto(name), position)
            self.known.start, self.known.breaks = position, position
            if reason == GapReason.CURSOR:
                self.known = self._own.copy()

    def _named(self, said: Sequence[str]) -> list[str]:
        channels = self.channels()
        for name in said:
            ensure(name in self.asked.names or name in channels, "a gap of a channel that was not asked for:", name)
        return [
            name
            for name in channels
            if any(word == name or (word.endswith("*") and name.startswith(word[:-1])) for word in said)
        ]

    def _judge_loss(self, position: int, said: dict[str, Any], names: list[str], missing: list[int]) -> None:
        """A gap that counts: why, how many, and where."""
        world, missed = self._world, said["missed"]
        is_window = said["reason"] == GapReason.WINDOW
        ensure(said["reason"] in {GapReason.WINDOW, GapReason.OVERFLOW}, "a gap out of place:", said)
        ensure(not (is_window and self.asked.policy is Policy.LATEST), "a window gap under latest:", said)
        ensure(is_window or self.asked.policy is not Policy.DISCONNECT, "overflow under disconnect:", said)
        if not names or not world.is_exact:
            return
        event = world.events.get(position)
        ensure(event is not None and event.channel in names, "a gap that lies nowhere:", said, position)
        assert event is not None
        if is_window:
            ensure(all(world.lost.get(world.events[p].channel, -1) >= p for p in missing), "not lost at all:", said)
            ensure(self._lost_then.get(event.channel, -1) >= position or self._lenient, "lost later: overflow,", said)
        elif self._lost_then.get(event.channel, -1) >= position:
            raise BrokenPromiseError(f"lost before the stream began: window, not {said}")
        if self._lenient and self._outcome in {"fresh", "cursor"}:
            return  # what it asked for was decided later, and some of that may have been lost before
        if missed is None:
            ensure(any(len(world.between(name, -1, world.lost.get(name, -1))) > MAX_TOLD for name in names), said)
        elif self.asked.policy is Policy.LATEST:
            ensure(0 < missed <= len(missing), "missed", len(missing), said)
        else:
            since = [
                place for place in missing if place > self._own.breaks
            ]  # the rest may have gone into a BREAK's gap
            ensure(missed in {len(missing), len(since)} - {0}, "missed", missing, said, "at", position)

    def _take_sign(self, block: Block) -> None:
        """Heartbeat and close: an id that claims nothing that was not handed over or told."""
        said = json.loads(block.data)
        if block.type == "gateway.close":
            self.closed = said["reason"]
        ensure(self._outcome not in {"", "unverified"}, "before the gap:", block)
        position = self._world.place(block.id)
        ensure(position >= self._last, "ids do not ascend (I1):", block, "after", self._last)
        self._last = position
        if block.type == "gateway.heartbeat":
            self.judge_current(position)

    def judge_current(self, upto: int) -> None:
        """Everything up to a position has been delivered, told, or superseded."""
        world = self._world
        ensure(not world.breaks(self.known.breaks, upto), "a BREAK up to", upto, "was not told (I2)")
        for name in self.channels():
            owed = world.between(name, self.known.upto(name), upto)
            if self.asked.policy is Policy.LATEST:
                owed = [] if owed and self._is_silent(name, owed[-1], upto) else owed
            ensure(not owed, "a silent hole (I2):", owed, "of", name, "before", upto)

    def _is_silent(self, name: str, newest: int, upto: int) -> bool:
        """Under `latest`: superseded since, or lost by the window before a stream resumed."""
        if self._world.between(name, upto, self._world.head):
            return True
        return not self._world.is_exact or self._lost_at_open.get(name, -1) >= newest

    def _settle(self, name: str, position: int, *, counts: bool = True) -> None:
        if counts:
            self._own.channels[name] = max(self._own.upto(name), position)
        self.known.channels[name] = max(self.known.upto(name), position)
