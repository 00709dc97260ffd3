"""Who is due what, and whose turn it is.

Rules:
    1. What comes is only noted, for each audience; it gets its part at its turn. So very many audiences are looked at
       once for an event, and nothing holds the loop when it comes.
    2. Turns go in rounds: what comes while a round is under way is due in the next one. So an audience that gets
       very much has one turn in a round as all others, and what has gathered for it goes out together. In a round
       the last noted comes first: that is the cheapest way through a dictionary, and nobody waits longer than a round.
    3. An audience with more slots than one step has writes left gets a pass, which goes on in the next steps,
       before further turns.
    4. Before an audience gets a new member, or a member's position is asked for, what is due to it becomes passes
       (`settle`): the new member has pulled it already (I3).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sse_gateway.batch import Joiner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sse_gateway.audience import Audience, Desk, Write
    from sse_gateway.batch import Batch


class Round:
    """What is due to some audiences.

    Attributes:
        due: Batches for each audience, in log order but for those of one read.
        held: Batches that are charged until the round ends.
        joiner: What several audiences need is made once in it.
    """

    __slots__ = ("due", "held", "joiner")

    def __init__(self) -> None:
        self.due: dict[Audience, tuple[Batch, ...]] = {}
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
        self._round = Round()
        self._next = Round()

    def __bool__(self) -> bool:
        return bool(self._ready or self._round.held or self._next.held)

    def __contains__(self, audience: Audience) -> bool:
        return audience in self._next.due or audience in self._round.due

    def add(self, audiences: Iterable[Audience], batch: Batch) -> None:
        """Note a batch for some audiences, each once.

        Not one by one: an event may have very many audiences, and most get nothing else in a round.
        """
        alone = (batch,)
        found: dict[Audience, tuple[Batch, ...]] = dict.fromkeys(audiences, alone)
        if not found:
            return
        self._hold(self._next, batch)
        due = self._next.due
        if not due:
            self._next.due = found
            return
        grown: dict[int, tuple[Batch, ...]] = {}
        for audience in due.keys() & found.keys():
            before = due[audience]
            after = grown.get(id(before))
            if after is None:
                after = grown[id(before)] = before + alone
            found[audience] = after
        due |= found

    def settle(self, audience: Audience) -> None:
        """Make passes of what is due to an audience."""
        for each in self._round, self._next:
            batches = each.due.pop(audience, None)
            if batches:
                self._put(audience, self._shaped(each, audience, batches))

    def settle_all(self) -> None:
        """Make passes of all that is due."""
        for audience in [*self._round.due, *self._next.due]:
            self.settle(audience)

    def serve(self, limit: int, now: float) -> None:
        """Do so many writes, and a few more if the last audience has more slots than that by a few."""
        ready, write, desk = self._ready, self._write, self._desk
        left = limit
        while left > 0:
            if ready:
                left -= self._go_on(ready.popleft(), left, now)
                continue
            each = self._round
            due = each.due
            if not due and not self._begin_round():
                break
            while due and left > 0:
                audience, batches = due.popitem()
                if len(batches) > 1 or audience.framing.wrapped:
                    batches = self._shaped(each, audience, batches)
                if len(batches) > 1 or len(audience.handles) > left:
                    self._put(audience, batches)
                    break
                left -= audience.serve(batches[0], write, desk, now) or 1

    def _go_on(self, audience: Audience, limit: int, now: float) -> int:
        """Serve an audience's passes; a pass under way goes on, and between two passes others have their turn."""
        if not audience.passes:
            return 0
        served = audience.deliver(self._write, limit, self._desk, now)
        if audience.passes:
            (self._ready.appendleft if audience.passes[0].index else self._ready.append)(audience)
        return served

    def _begin_round(self) -> bool:
        """Begin the next round, as all have had their turn; returns whether there is one."""
        for batch in self._round.held:
            self._desk.tally.pass_bytes -= batch.release()
        self._round.held.clear()
        if not self._next.held:
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

    def _shaped(self, each: Round, audience: Audience, batches: tuple[Batch, ...]) -> tuple[Batch, ...]:
        """What goes out of what is due: joined, and wrapped for those that want that."""
        made = len(each.joiner.made)
        if len(batches) > 1:
            batches = each.joiner.join(batches)
        if audience.framing.wrapped:
            batches = tuple(each.joiner.wrap(batch) if batch.events else batch for batch in batches)
        for batch in each.joiner.made[made:]:
            self._hold(each, batch)
        return batches

    def _hold(self, each: Round, batch: Batch) -> None:
        self._desk.tally.pass_bytes += batch.hold()
        each.held.append(batch)
