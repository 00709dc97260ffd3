"""What one person has seen over all streams, on all nodes, judged block by block.

The person follows the same channels all along and comes back with the last id it got. So what it
was owed is known from Redis's order alone, whichever nodes it was on:

    - an id stands for one event everywhere, and ids ascend;
    - between two events of a channel nothing is missing, unless a gap in between tells it;
    - no event comes twice, and all come in the order in which they were published;
    - a gap tells why, and the reason is true; where it says how many, it is so many.

After a gap `cursor`, and after a change to another family of nodes, the person begins anew.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sse_gateway.reasons import GapReason, Policy
from tests.support.cluster_ledger import one_of
from tests.support.world import ensure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.channels import Rule
    from tests.support.cluster_ledger import Ledger
    from tests.support.unframer import Block

UNVERIFIABLE = "0-0-0"
HOLD_S = 5.0
MAX_TOLD = 1000
EXCUSES_CUT_REPLAYS = True


@dataclass(slots=True)
class Stream:
    """One stream of a person, as the oracle sees it from outside.

    Attributes:
        family: Of the node's log.
        policy: For slow readers.
        cursor: As sent, or None.
        replay: It asked for the newest events of each channel, or its rules give them.
        at: When it was opened.
        head: Place of the node's head then.
        is_slow: Its socket has refused bytes.
        is_new: The node has taken its log from a peer since the stream was opened.
        begun: Place of the node's head when its beginning was decided.
    """

    family: int
    policy: Policy
    cursor: str | None
    replay: bool
    at: float
    head: int
    is_slow: bool = False
    is_new: bool = False
    begun: int = -1


class Witness:
    """Judges what one person gets.

    Attributes:
        names: Names and prefixes it follows.
        last_id: What it comes back with; None before the first id.
        events: It got.
        gaps: It was told, by reason.
        debts: Holes that were not told in place, where the world itself was at fault.
        tape: All streams and blocks, if they are to be judged again.
        untold: Events lost in replays that were cut short, see `_not_excused`.
    """

    def __init__(self, ledger: Ledger, names: Sequence[str], *, calm: bool) -> None:
        self.names = tuple(names)
        self.last_id: str | None = None
        self.events = 0
        self.gaps: Counter[str] = Counter()
        self.debts: list[int] = []
        self.untold = 0
        self.tape: list[Stream | tuple[Block, float]] | None = None
        self.stream: Stream
        self._ledger = ledger
        self._is_calm = calm
        self.now = 0.0
        self._outcome = ""
        self._settled: dict[str, int] = {}  # delivered or told, per channel
        self._start = -1  # where nothing is noted
        self._breaks = -1  # told up to here
        self._last = -1  # place of the last id
        self._counted: set[str] = set()  # channels of which this stream's beginning is known
        self._own: dict[str, int] = {}  # where a node counts from, per channel
        self._own_start = -1  # and where nothing is noted

    def begin(self, stream: Stream) -> None:
        """A stream is opened."""
        if self.tape is not None:
            self.tape.append(stream)
        self.stream = stream
        self._outcome = ""
        self._own_start = -1
        self._own.clear()
        self._counted.clear()

    def covers(self, name: str, rule: Rule) -> bool:
        """Whether it follows a channel."""
        return name in self.names or (
            rule.prefix and any(asked.endswith("*") and name.startswith(asked[:-1]) for asked in self.names)
        )

    def take(self, block: Block, now: float) -> None:
        """Judge the next block."""
        if self.tape is not None:
            self.tape.append((block, now))
        self.now = now
        if not self._outcome:
            self._take_open(block)
        elif block.type == "gateway.gap":
            self._take_gap(block, now)
        elif block.type in {"gateway.heartbeat", "gateway.close"}:
            self._take_sign(block)
        else:
            self._take_event(block)
        self.last_id = block.id

    # The first block.

    def _take_open(self, block: Block) -> None:
        ensure(block.type == "gateway.open", "not gateway.open:", block)
        said = json.loads(block.data)
        ensure(said["channels"] == sorted(self.names), "other channels:", said)
        cursor = self.stream.cursor
        if block.id == UNVERIFIABLE:
            ensure(cursor is not None and said["replay"] == "gap", "unverifiable:", said)
            self._outcome = "unverified"
        elif cursor is None:
            self._outcome = "fresh"
            self._start_anew(self._ledger.place(block.id))
        else:
            ensure(block.id == cursor, "resumed elsewhere:", block, cursor)
            ensure(self._ledger.family(cursor) == self.stream.family, "resumed on another log:", block)
            self._outcome = "resume"
            self._own_start = self._last

    def _start_anew(self, position: int) -> None:
        stream = self.stream
        self._settled.clear()
        self._start = max(position, stream.begun if stream.replay else position)
        self._own_start = self._start
        self._breaks = self._last = position

    # Events.

    def _take_event(self, block: Block) -> None:
        ledger, family = self._ledger, self.stream.family
        ensure(not block.type.startswith("gateway.") and self._outcome != "unverified", "out of place:", block)
        place = ledger.place(block.id)
        plan = ledger.plans.get(place)
        ensure(plan is not None, "never published for anybody:", block)
        assert plan is not None
        assert plan.rule is not None
        ensure((block.type, block.data) == (plan.type, plan.text), "other content (I1):", block, plan)
        ensure(self.covers(plan.name, plan.rule), "not asked for (I11):", block)
        ensure(place > self._last, "twice, or out of order (I1):", block.id, place, "after", self._last)
        ensure(ledger.is_faulty or not ledger.is_duplicate(family, place), "a key used before:", block)
        missing = ledger.breaks_between(family, self._breaks, place)
        ensure(not missing, "a BREAK was not told (I2):", missing, "before", block.id)
        self._judge_hole(plan.name, place)
        self._counted.add(plan.name)
        self._settled[plan.name] = self._own[plan.name] = self._last = place
        self.events += 1

    def _judge_hole(self, name: str, place: int) -> None:
        is_extra = self._outcome in {"fresh", "cursor"} and place <= self.stream.begun and name not in self._counted
        if is_extra or self.stream.policy is Policy.LATEST:
            return
        hole, _ = self._ledger.owed(self.stream.family, name, self._upto(name), place - 1)
        if hole and self._ledger.is_faulty:
            self.debts += hole
        else:
            hole = self._not_excused(name, hole)
            ensure(not hole, "a silent hole (I2):", one_of(self._ledger, hole), "before", place)

    def _not_excused(self, name: str, hole: list[int]) -> list[int]:
        """Leave out what a replay that was cut short had not told yet, and another node cannot know of.

        A replay tells a loss where its newest lies (I2). Until it gets there, its ids stand beyond older
        losses; whoever is cut there and goes on at a node whose windows hold the newer ones misses the older.
        So there must be a newer one, beyond the last id.
        """
        if not EXCUSES_CUT_REPLAYS or not self._may_lose_beyond(name, self._own_start):
            return hole
        excused = [p for p in hole if p <= self._own_start and self._ledger.may_be_lost(p, self.now)]
        self.untold += len(excused)
        return [place for place in hole if place not in excused]

    def _may_lose_beyond(self, name: str, place: int) -> bool:
        places = self._ledger.places[name]
        beyond = bisect_right(places, place)
        return beyond < len(places) and self._ledger.may_be_lost(places[beyond], self.now)

    def _upto(self, name: str) -> int:
        return self._settled.get(name, self._start)

    # Gaps.

    def _take_gap(self, block: Block, now: float) -> None:
        said = json.loads(block.data)
        place, reason = self._ledger.place(block.id), said["reason"]
        self.gaps[reason] += 1
        ensure(not self._is_calm or reason == GapReason.OVERFLOW, "a gap, though nothing has happened:", block)
        if self._outcome == "unverified":
            self._take_first_gap(place, reason, said, now)
            return
        ensure(place > self._last, "ids do not ascend (I1):", block, "after", self._last)
        names = self._named(said["channels"])
        if reason in {GapReason.SOURCE, GapReason.EPOCH}:
            self._judge_break(place, said)
        else:
            self._judge_loss(place, said, names, now)
        for name in names:
            self._settled[name] = max(self._upto(name), place)
            if reason in {GapReason.WINDOW, GapReason.OVERFLOW}:
                self._own[name] = place
        if said["channels"] == sorted(self.names):
            self._start = max(self._start, place)
        self._last = place

    def _judge_break(self, place: int, said: dict[str, Any]) -> None:
        ensure(said["missed"] is None and said["channels"] == sorted(self.names), "nobody can count that:", said)
        found = self._ledger.breaks_between(self.stream.family, self._breaks, place)
        ensure(found or self._ledger.is_faulty, "no epoch began there:", said, place)
        self._breaks = place
        self.debts.clear()

    def _take_first_gap(self, place: int, reason: str, said: dict[str, Any], now: float) -> None:
        ensure(said["channels"] == sorted(self.names) and said["missed"] is None, said)
        ledger, stream = self._ledger, self.stream
        cursor = stream.cursor or ""
        if not ledger.is_faulty:
            self._justify(cursor, reason, now)
        is_same = ledger.family(cursor) == stream.family
        self._outcome = reason
        self.debts.clear()
        if reason == GapReason.CURSOR or (is_same and self._was_held(cursor, now)):
            stream.begun = ledger.head  # at the latest
            self._start_anew(place)
            self._own_start = place
            return
        ensure(not is_same or place > self._last, "told behind what it has had:", said, place, self._last)
        self._settled.clear()
        self._start = self._breaks = self._last = self._own_start = place

    def _justify(self, cursor: str, reason: str, now: float) -> None:
        """Whether a cursor could not be resumed from."""
        ledger, stream = self._ledger, self.stream
        if cursor == UNVERIFIABLE:
            ensure(reason == GapReason.CURSOR, "told as", reason)
            return
        if ledger.family(cursor) != stream.family:
            ensure(reason == GapReason.EPOCH, "of another log, and told as", reason)
        elif reason == GapReason.WINDOW:
            ensure(ledger.is_tight, "too old:", cursor)
        elif not self._was_held(cursor, now):
            ensure(reason == GapReason.EPOCH, "a good cursor, told as a bad one:", cursor, stream)
            since = ledger.breaks_between(stream.family, ledger.place(cursor), ledger.head)
            ensure(since, "no epoch has begun since:", cursor, stream)

    def _was_held(self, cursor: str, now: float) -> bool:
        """Whether a node that was behind has waited long enough for what it does not know."""
        is_late = now - self.stream.at >= HOLD_S
        return is_late and cursor != UNVERIFIABLE and self._ledger.place(cursor) > self.stream.head

    def _named(self, said: Sequence[str]) -> list[str]:
        found = []
        for name, places in self._ledger.places.items():
            rule = self._ledger.plans[places[0]].rule
            assert rule is not None
            is_named = any(word == name or (word.endswith("*") and name.startswith(word[:-1])) for word in said)
            if is_named and self.covers(name, rule):
                found.append(name)
        return found

    def _judge_loss(self, place: int, said: dict[str, Any], names: list[str], now: float) -> None:
        """A gap that counts: why, where, and how many."""
        ledger, stream, missed = self._ledger, self.stream, said["missed"]
        is_window = said["reason"] == GapReason.WINDOW
        ensure(said["reason"] in {GapReason.WINDOW, GapReason.OVERFLOW}, "a gap out of place:", said)
        ensure(not (is_window and stream.policy is Policy.LATEST and not ledger.is_tight), "under latest:", said)
        ensure(is_window or stream.policy is not Policy.DISCONNECT, "overflow under disconnect:", said)
        if ledger.is_tight or ledger.is_faulty:
            return
        plan = ledger.plans.get(place)
        ensure(plan is not None and plan.name in names, "a gap that lies nowhere:", said, place)
        if is_window:
            ensure(ledger.may_be_lost(place, now), "no window can have lost that:", said, place)
        else:
            ensure(stream.is_slow or stream.is_new or stream.replay, "overflow, though it took everything:", said)
        self._judge_count(place, names, missed)

    def _judge_count(self, place: int, names: list[str], missed: int | None) -> None:
        ledger, family = self._ledger, self.stream.family
        if self._outcome in {"fresh", "cursor"} and any(name not in self._counted for name in names):
            return  # which of its newest events it was to get was decided at the node
        if missed is None:
            ensure(any(len(ledger.places[name]) > MAX_TOLD for name in names), "that can be counted:", place, names)
            return
        allowed: set[int] = set()
        for begin in (-1, self._breaks):  # what lies before a BREAK may have gone into its gap
            owed = [
                ledger.owed(family, name, max(begin, self._own.get(name, self._own_start)), place) for name in names
            ]
            must, may = (sum(len(found[kind]) for found in owed) for kind in (0, 1))
            allowed.update(range(must, must + may + 1))
        if any(self._own.get(name, self._own_start) < self._breaks for name in names):
            allowed.update(range(min(allowed), max(allowed)))  # a node that was away counts from where it left
        if self.stream.policy is Policy.LATEST:
            ensure(0 < missed <= max(allowed), "missed", missed, "of", allowed)
        else:
            ensure(missed in allowed - {0}, "missed", missed, "instead of", allowed, "at", place, names)

    # Signs of life.

    def _take_sign(self, block: Block) -> None:
        ensure(self._outcome != "unverified", "before the gap:", block)
        place = self._ledger.place(block.id)
        ensure(place >= self._last, "ids do not ascend (I1):", block, "after", self._last)
        self._last = place
        self.judge_current(place, block)

    def judge_current(self, upto: int, *why: object) -> None:
        """Everything up to a place has been delivered, told, or superseded."""
        ledger, family = self._ledger, self.stream.family
        missing = ledger.breaks_between(family, self._breaks, upto)
        ensure(not missing, "a BREAK was not told (I2):", missing, *why)
        for name, places in ledger.places.items():
            rule = ledger.plans[places[0]].rule
            if rule is None or not self.covers(name, rule):
                continue
            owed, _ = ledger.owed(family, name, self._upto(name), upto)
            if owed and self.stream.policy is Policy.LATEST:
                owed = [] if self._is_silent(places, owed[-1], upto) else owed
            if owed and ledger.is_faulty:
                self.debts += owed
            else:
                owed = self._not_excused(name, owed)
                ensure(not owed, "a silent hole (I2):", one_of(ledger, owed), "up to", upto, *why)

    def _is_silent(self, places: Sequence[int], newest: int, upto: int) -> bool:
        """Under `latest`: superseded since, or lost by the window before a stream resumed."""
        return places[-1] > upto or self._ledger.may_be_lost(newest, self.now)
