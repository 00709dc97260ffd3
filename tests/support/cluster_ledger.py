"""Everything that was ever published, in Redis's order, and what every id stands for.

Known to the oracle alone. A *place* is an index into that order, over all epochs and logs; an id
gets its place from whoever counts the message (`note`), and stands for it everywhere.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import Struct

from tests.support.world import BrokenPromiseError, ensure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.messages import Plan


class Entry(Struct, frozen=True, gc=False):
    """One PUBLISH.

    Attributes:
        place: Its index in the order of all.
        at: When, seconds.
        channel: Channel.
        payload: Payload.
        patterns: Under which it is sent; none for a control message.
    """

    place: int
    at: float
    channel: bytes
    payload: bytes
    patterns: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a channel's window may hold at some node: events, seconds, bytes."""

    max_events: int
    max_age_s: float
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Start:
    """Where an epoch began.

    Attributes:
        family: The log it belongs to.
        place: Of the message that put it in force.
        kind: Kind of that message.
    """

    family: int
    place: int
    kind: str


class Ledger:
    """The order of everything.

    Attributes:
        entries: By place.
        plans: Messages that became events, by place.
        places: Of a channel's events, ascending.
        ids: The place an id stands for.
        conflicts: Ids that stand for more than one.
        starts: Epochs by name.
        breaks: Per family, places where an epoch began, ascending.
        bounds: Per rule index, the strictest bounds of any window.
        is_tight: Some node may lose more than its windows' bounds say.
        lag_s: A node may be so far behind; it guesses the age of what it hands over that badly.
        is_faulty: Something was done that no Redis does; what is told then needs no reason.
    """

    def __init__(self, heads: Sequence[tuple[bytes, ...]]) -> None:
        """Start empty.

        Args:
            heads: Per family of nodes that share a log, how channels begin that it counts.
        """
        self.entries: list[Entry] = []
        self.plans: dict[int, Plan] = {}
        self.places: dict[str, list[int]] = {}
        self.ids: dict[str, int] = {}
        self.conflicts: set[str] = set()
        self.starts: dict[str, Start] = {}
        self.breaks: list[list[int]] = [[] for _ in heads]
        self.bounds: dict[int, Bounds] = {}
        self.is_tight = False
        self.is_faulty = False
        self.lag_s = 0.1
        self._counts: list[list[int]] = [[0] for _ in heads]  # of each family, before each place
        self._counted = tuple(zip(self._counts, heads, strict=True))
        self._places: dict[tuple[bytes, bytes], int] = {}
        self._beginnings: dict[str, list[tuple[int, str]]] = {}
        self._keyed: dict[tuple[str, str], int] = {}
        self._earlier: dict[int, int] = {}
        self._sizes: dict[str, list[int]] = {}

    # What happens.

    def publish(self, at: float, channel: bytes, payload: bytes, patterns: tuple[bytes, ...]) -> Entry:
        """Give the next place to a message."""
        entry = Entry(len(self.entries), at, channel, payload, patterns)
        self.entries.append(entry)
        for counts, heads in self._counted:
            counts.append(counts[-1] + 1 if patterns and channel.startswith(heads) else counts[-1])
        if patterns:
            self._places[channel, payload] = entry.place
        else:
            self._note_control(entry)
        return entry

    def add(self, entry: Entry, plan: Plan) -> None:
        """Note that a message is one that clients get."""
        self.plans[entry.place] = plan
        self.places.setdefault(plan.name, []).append(entry.place)
        sizes = self._sizes.setdefault(plan.name, [0])
        sizes.append(sizes[-1] + 90 + len(plan.type) + len(plan.text.encode()) + 7 * plan.text.count("\n"))
        if plan.key is not None:
            earlier = self._keyed.get((plan.name, plan.key))
            if earlier is not None:
                self._earlier[entry.place] = earlier
            self._keyed[plan.name, plan.key] = entry.place

    def note(self, text: str, channel: bytes, payload: bytes) -> None:
        """Note what id a node gives to a message."""
        self._give(text, self._places[channel, payload])

    def note_start(self, family: int, name: str, text: str, before: str | None) -> Start:
        """Note that a node began an epoch.

        Args:
            family: The node's log.
            name: Of the epoch.
            text: Its id.
            before: The id of what the node had last.
        """
        after = self.ids.get(before, -1) if before else -1
        found = self._beginnings.get(name, [])
        place, kind = next(((place, kind) for place, kind in found if place > after), (after, "NOTHING"))
        start = Start(family, place, kind)
        self._give(text, place)
        if name not in self.starts:
            self.starts[name] = start
            self.breaks[family].insert(bisect_left(self.breaks[family], place), place)
        return start

    def widen(self, index: int, bounds: Bounds) -> None:
        """Note that some node's windows of a rule hold no more than that."""
        known = self.bounds.get(index, bounds)
        self.bounds[index] = Bounds(
            min(known.max_events, bounds.max_events),
            min(known.max_age_s, bounds.max_age_s),
            min(known.max_bytes, bounds.max_bytes),
        )

    def _give(self, text: str, place: int) -> None:
        if self.ids.setdefault(text, place) != place:
            self.conflicts.add(text)

    def _note_control(self, entry: Entry) -> None:
        words = entry.payload.decode("ascii", "replace").split(" ")
        if len(words) > 5 and words[1] in {"CONFIRM", "DIVERGED"}:
            name = words[5] if words[1] == "CONFIRM" else words[6]
            self._beginnings.setdefault(name, []).append((entry.place, words[1]))

    # What is asked.

    @property
    def head(self) -> int:
        """The newest place."""
        return len(self.entries) - 1

    def place(self, text: str) -> int:
        """What an id stands for: one place, of which its offset is right (I1)."""
        ensure(text not in self.conflicts, "one id, two histories (I1):", text)
        place = self.ids.get(text)
        ensure(place is not None, "an id that nobody counted:", text)
        assert place is not None
        name, offset, _ = text.split("-")
        start = self.starts[name]
        counts = self._counts[start.family]
        expected = counts[place + 1] - counts[start.place + 1] if place >= start.place >= 0 else -1
        ensure(self.is_faulty or int(offset) == expected, "miscounted:", text, "is", expected)
        return place

    def family(self, text: str) -> int | None:
        """Whose log an id belongs to; None if nobody's."""
        start = self.starts.get(text.partition("-")[0])
        return None if start is None else start.family

    def breaks_between(self, family: int, after: int, upto: int) -> list[int]:
        """Places where epochs began after one place, up to another."""
        found = self.breaks[family]
        return found[bisect_right(found, after) : bisect_right(found, upto)]

    def owed(self, family: int, name: str, after: int, upto: int) -> tuple[list[int], list[int]]:
        """Events of a channel after one place, up to another.

        Returns:
            Those that a client of that log must get, and those that it may get: their key was known before
            the log began anew, and not all nodes were there.
        """
        places = self.places.get(name, [])
        found = places[bisect_right(places, after) : bisect_right(places, upto)]
        first = self.breaks[family][0] if self.breaks[family] else 0  # nobody knows a key from before
        used = [place for place in found if self._earlier.get(place, -1) >= first]
        may = [place for place in used if not self.is_duplicate(family, place)]
        return [place for place in found if place not in used] if used else found, may

    def is_duplicate(self, family: int, place: int) -> bool:
        """Whether the key of an event was used before in the same epoch, and nobody has had to forget it."""
        later, earlier = place, self._earlier.get(place)
        if earlier is None or self.is_tight:
            return False
        while earlier is not None:  # who knows of a use before a BREAK has dropped the first one after it
            if self.breaks_between(family, earlier, later):
                return False
            later, earlier = earlier, self._earlier.get(earlier)
        return True

    def may_be_lost(self, place: int, now: float) -> bool:
        """Whether some window may have lost an event by its bounds."""
        plan = self.plans.get(place)
        if plan is None or plan.rule is None:
            return False
        bounds, places, sizes = self.bounds[plan.rule.index], self.places[plan.name], self._sizes[plan.name]
        index = bisect_left(places, place)
        return (
            self.is_tight
            or len(places) - index > bounds.max_events
            or now - self.entries[place].at >= bounds.max_age_s - self.lag_s
            or sizes[-1] - sizes[index] > bounds.max_bytes
        )


def one_of(ledger: Ledger, places: Sequence[int]) -> str:
    """Name some events, for a sentence about them."""
    return ", ".join(f"{ledger.plans[place].name}@{place}" for place in places[:5])


__all__ = ["Bounds", "BrokenPromiseError", "Entry", "Ledger", "Start", "one_of"]
