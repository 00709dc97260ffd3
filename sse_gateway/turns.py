"""Who is due what, and whose turn it is.

Rules:
    1. What comes is only noted, for each audience; it gets its part at its turn. So very many audiences are looked at
       once for an event, and nothing holds the loop when it comes.
    2. Turns go in rounds: what comes while a round is under way is due in the next one. So an audience that gets
       very much has one turn in a round as all others, and what has gathered for it goes out together. In a round
       the last noted comes first: that is the cheapest way through a dictionary, and nobody waits longer than a round.
    3. An audience with more slots than one step has writes left gets a pass, which goes on in the next steps,
       before further turns. After each pass the round goes on for as many writes as a step has: whoever always has
       passes does not hold up the others (I4). To make passes counts as a write, unless they go on at once.
    4. Before an audience gets a new member, what is due to it becomes passes (`settle`): the new member has pulled it
       already (I3).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from sse_gateway.batch import Joiner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sse_gateway.audience import Audience, Desk, Write
    from sse_gateway.batch import Batch, Gathered

NO_MORE: Final[list[Batch]] = []


class Round:
    """What is due to some audiences.

    Attributes:
        due: For each audience the newest batch, and those before it.
        held: Batches that are charged until the round ends.
        joiner: What several audiences need is made once in it.
    """

    __slots__ = ("due", "held", "joiner")

    def __init__(self) -> None:
        self.due: dict[Audience, Gathered] = {}
        self.held: list[Batch] = []
        self.joiner = Joiner()


class Turns:
    """Serves audiences in rounds."""

    def __init__(self, write: Write, desk: Desk) -> None:
        """Start with nothing to do.

        Args:
            write: Writes to what a sink is written to, without waiting.
            desk: The counters, and who is behind.
        """
        self._write = write
        self._desk = desk
        self._ready: deque[Audience] = deque()  # have passes
        self._round = self._none = Round()
        self._next = Round()
        self._others = 0  # slots of the round that come before the next pass

    def __bool__(self) -> bool:
        return bool(self._ready or self._round.held or self._next.held)

    def __contains__(self, audience: Audience) -> bool:
        return audience in self._next.due or audience in self._round.due

    def add(self, audiences: Iterable[Audience], batch: Batch) -> None:
        """Note a batch for some audiences, each once.

        Not one by one: an event may have very many audiences, and most get nothing else in a round.
        """
        found: dict[Audience, Gathered] = dict.fromkeys(audiences, (batch, None))
        if not found:
            return
        self._hold(self._next, batch)
        due = self._next.due
        if not due:
            self._next.due = found
            return
        grown: dict[int, Gathered] = {}
        for audience in due.keys() & found.keys():
            before = due[audience]
            after = grown.get(id(before))
            if after is None:
                after = grown[id(before)] = batch, before
            found[audience] = after
        due |= found

    def settle(self, audience: Audience) -> None:
        """Make passes of what is due to an audience."""
        for each in self._round, self._next:
            gathered = each.due.pop(audience, None)
            if gathered:
                self._put(audience, self._shaped(each, audience, gathered))

    def settle_all(self) -> None:
        """Make passes of all that is due."""
        for audience in [*self._round.due, *self._next.due]:
            self.settle(audience)

    def serve(self, limit: int, now: float) -> None:
        """Look at so many slots at most; most of them are a write."""
        left = limit
        while left > 0:
            if self._ready and not self._others:
                left -= self._go_on(left, limit, now)
            elif self._round.due or self._begin_round():
                # There may be very many that all need passes now (rule 3).
                left -= self._take_turns(left, now) or bool(self._others)
            elif self._ready:
                self._others = 0  # there are none
            else:
                break

    def _take_turns(self, limit: int, now: float) -> int:
        """Go on with the round, at most until passes are made; returns how many slots were looked at."""
        each, write, desk = self._round, self._write, self._desk
        due, left = each.due, limit
        while due and left > 0:
            audience, gathered = due.popitem()
            if not audience.size:  # everybody has left
                left -= 1
                continue
            batch, before = gathered
            if before is not None or audience.framing.wrapped:
                batch, *more = self._shaped(each, audience, gathered)
            else:
                more = NO_MORE
            if more or len(audience.handles) > left or audience.passes:
                self._put(audience, (batch, *more))
                break
            if audience.lone is not None:
                left -= self._serve_alike(audience, gathered, batch, left, now)
            else:
                left -= audience.serve(batch, write, desk, now)
        looked_at = limit - left
        self._others = max(0, self._others - looked_at) if due else 0
        return looked_at

    def _serve_alike(self, audience: Audience, gathered: Gathered, batch: Batch, limit: int, now: float) -> int:
        """Serve an audience of one, and those after it as long as they are such and due the same; returns how many.

        Of an event that very many audiences get this is all that each of them costs.
        """
        due, write, desk, framing = self._round.due, self._write, self._desk, audience.framing
        data, position, count, bytes_ = batch.blob(framing.chunked).data, batch.position, batch.count, batch.size
        size = len(data)
        served = whole = 0
        while True:
            try:
                sent = write(audience.lone, data)
            except OSError:
                sent = -1
            if sent == size:
                whole += 1
            else:
                audience.finish_lone(batch, sent, write, desk, now)
            audience.position = position
            audience.events += count
            audience.bytes += bytes_
            audience.sent_at = now
            served += 1
            if served == limit or not due:
                break
            audience, found = due.popitem()
            if found is not gathered or audience.lone is None or audience.passes or audience.framing is not framing:
                due[audience] = found
                break
        if whole:
            desk.served.append(batch)
        batch.served += whole
        return served

    def _go_on(self, left: int, limit: int, now: float) -> int:
        """Serve the passes of an audience; a pass under way goes on, and after it others have their turn."""
        audience = self._ready.popleft()
        if not audience.passes:  # everybody has left
            return 1
        served = audience.deliver(self._write, left, self._desk, now)
        if audience.passes and audience.passes[0].index:
            self._ready.appendleft(audience)
            return served
        self._others = limit
        if audience.passes:
            self._ready.append(audience)
        return served

    def _begin_round(self) -> bool:
        """Begin the next round, as all have had their turn; returns whether there is one. Of the old one nothing is kept."""
        for batch in self._round.held:
            self._desk.tally.pass_bytes -= batch.release()
        if not self._next.held:
            self._round = self._none
            return False
        self._round, self._next = self._next, Round()
        return True

    def _put(self, audience: Audience, batches: Iterable[Batch]) -> None:
        if not audience.size:
            return
        if not audience.passes:
            self._ready.append(audience)
        for batch in batches:
            self._desk.tally.pass_bytes += audience.put(batch)

    def _shaped(self, each: Round, audience: Audience, gathered: Gathered) -> tuple[Batch, ...]:
        """What goes out of what is due, at least one: joined, and wrapped for those that want that."""
        made = len(each.joiner.made)
        batches = each.joiner.join(gathered)
        if audience.framing.wrapped:
            batches = tuple(each.joiner.wrap(batch) if batch.events else batch for batch in batches)
        for batch in each.joiner.made[made:]:
            self._hold(each, batch)
        return batches

    def _hold(self, each: Round, batch: Batch) -> None:
        self._desk.tally.pass_bytes += batch.hold()
        each.held.append(batch)
