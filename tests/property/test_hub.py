"""The core under random schedules, against an oracle that knows nothing of it.

Each schedule mixes publishers, clients, faults and time, and is judged block by block. A schedule
that fails is shrunk, and printed with its seed: `play(seed, steps)` runs it again. Schedules are
as many as `SSE_GATEWAY_TEST_SCHEDULES` says, 300 unless told.

The second half switches one rule of the core off at a time: the oracle has to notice.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sse_gateway.audiences import Audiences
from sse_gateway.delivery import Delivery
from sse_gateway.history import History
from sse_gateway.hub import Hub
from sse_gateway.intake import Intake
from sse_gateway.log import Log, Verdict
from sse_gateway.placement import Placement
from sse_gateway.reader import Phase
from tests.support.schedules import fails, play, schedule, shrink
from tests.support.world import BrokenPromiseError

if TYPE_CHECKING:
    from sse_gateway.audience import Audience, Write
    from sse_gateway.channels import RuleTable
    from sse_gateway.cursor import Cursor
    from sse_gateway.limits import Limits
    from sse_gateway.log import Epoch
    from sse_gateway.reader import Reader
    from sse_gateway.reasons import CloseReason
    from sse_gateway.window import Window
    from tests.support.schedules import MakeHub

SCHEDULES = int(os.environ.get("SSE_GATEWAY_TEST_SCHEDULES", "300"))
PARTS = 12
LENGTH = 80  # steps of the shortest

GAP = b"event: gateway.gap"


@pytest.mark.timeout(0)  # as long as was asked for
@pytest.mark.parametrize("part", range(PARTS))
def test_every_schedule_keeps_the_promise(part: int) -> None:
    """Order, holes, scope, bounds and counters hold at every event (I1 I2 I3 I4 I5 I8 I10 I11)."""
    for seed in range(part, SCHEDULES, PARTS):
        length = LENGTH * (1 + seed % 3)
        if (error := fails(seed, schedule(seed, length))) is not None:
            steps = shrink(seed, schedule(seed, length))
            print(f"seed {seed}, {len(steps)} steps left of {length}:\n{steps}\n{error!r}")  # noqa: T201
            play(seed, steps)
            raise error


def rewired(
    *,
    log: type[Log] = Log,
    history: type[History] = History,
    audiences: type[Audiences] = Audiences,
    delivery: type[Delivery] = Delivery,
) -> MakeHub:
    """A hub that some parts are taken out of, for others."""

    def make(rules: RuleTable, limits: Limits, key: bytes, write: Write) -> Hub:
        hub = Hub(rules, limits, key, write)
        hub.log = log(key, limits.ring_size)
        hub.history = history(rules.rules, limits.channels, limits.window_bytes)
        hub._intake = Intake(
            rules, hub.log, hub.history, hub.tally, max_bytes=limits.message_bytes, max_routes=limits.channels
        )
        hub._audiences = audiences(hub.history)
        hub._delivery = delivery(hub.log, hub.history, hub._desk, hub._turns, write)
        hub.placement = Placement(hub.log, hub.history, hub.tally, hub.schedule)
        return hub

    return make


class JoinsBeforeTheHead(Delivery):
    """I3: a reader joins with its first pull, wherever that ends."""

    def _pull(self, reader: Reader) -> list[bytes]:
        frames = super()._pull(reader)
        catchup, audience = reader.catchup, reader.audience
        if reader.phase is Phase.REPLAY and catchup is not None and catchup.is_open and audience is not None:
            reader.phase, reader.catchup = Phase.LIVE, None
            audience.stop_waiting(reader)
            audience.join(reader)
            if reader.outbox is not None:
                reader.outbox.position = reader.position
        return frames


class TellsNoGapInReplay(Delivery):
    """I2: a replay passes over what the windows have lost."""

    def _pull(self, reader: Reader) -> list[bytes]:
        return [frame for frame in super()._pull(reader) if not frame.startswith(GAP)]


class TellsNoGapInQueue(Delivery):
    """I2: the gap that stands before a queue is not written."""

    def _take(self, reader: Reader, now: float) -> list[bytes]:
        return [frame for frame in super()._take(reader, now) if not frame.startswith(GAP)]


class TellsGapElsewhere(Delivery):
    """I1, I2: a loss is told where the pull has got to, not where it lies."""

    def _pull(self, reader: Reader) -> list[bytes]:
        frames = super()._pull(reader)
        here = b"id: " + self._log.cursor(reader.position).encode()
        return [re.sub(rb"id: \S+", here, frame, count=1) if frame.startswith(GAP) else frame for frame in frames]


class ClaimsTheHead(Delivery):
    """I1: the last block names the log's head, whatever still waits."""

    def position(self, reader: Reader, head: int) -> int:
        """See `Delivery`."""
        del reader, head
        return self._log.head


class LosesTheRest(Delivery):
    """What a socket does not take of a chunk is forgotten."""

    def _keep(self, reader: Reader, rest: bytes) -> None:
        super()._keep(reader, rest[:-1])


class TrustsCursors(Log):
    """I10: a cursor's hash is not looked at."""

    def _verify(self, cursor: Cursor, position: int) -> tuple[Verdict, int]:
        del cursor
        return Verdict.VERIFIED, position


class ForgetsKeys(History):
    """Every idempotency key is new."""

    def remember_key(self, window: Window, key: str) -> bool:
        """See `History`."""
        super().remember_key(window, key)
        return True


class ForgetsLosses(History):
    """I2: a channel that is forgotten takes the memory of its losses with it."""

    def _forget_channel(self, window: Window) -> None:
        marks = list(self.marks)
        super()._forget_channel(window)
        self.marks[:] = marks
        self.newest_losses[:] = marks


class DropsWithoutGap(Hub):
    """I2: what a queue drops leaves no trace."""

    def step(self, now: float) -> None:
        """See `Hub`."""
        super().step(now)
        for reader in self.lagging:
            if reader.outbox is not None:
                reader.outbox.dropped = None


class NeverDrops(Hub):
    """I5: a queue has no bounds."""

    def step(self, now: float) -> None:
        """See `Hub`."""
        for reader in self.lagging:
            if reader.outbox is not None:
                reader.outbox.bounds = replace(reader.outbox.bounds, max_events=10**9, max_bytes=10**9)
        super().step(now)


class SendsTwice(Hub):
    """I3: a pass also serves members that joined after it was made."""

    def step(self, now: float) -> None:
        """See `Hub`."""
        for audience in self._audiences:
            for current in audience.passes:
                current.end = len(audience._members)
        super().step(now)


class ClaimsWhatIsNotSpread(Delivery):
    """I1: the last block stands for what is published and not yet in a pass."""

    def position(self, reader: Reader, head: int) -> int:
        """See `Delivery`."""
        return super().position(reader, max(head, self._log.head))


class TellsNoBreak(Hub):
    """I2: live streams do not learn of a new epoch."""

    def _tell_break(self, epoch: Epoch, now: float) -> None:
        """See `Hub`."""


class BeatsTooEarly(Hub):
    """I1: a heartbeat overtakes the events of the current read batch."""

    def tick(self, now: float, *, live: bool) -> None:
        """See `Hub`."""
        self._is_ticking = True
        super().tick(now, live=live)
        self._is_ticking = False

    def flush(self, now: float) -> None:
        """See `Hub`."""
        if not getattr(self, "_is_ticking", False):
            super().flush(now)


class IgnoresNames(Audiences):
    """I11: everybody gets everything."""

    def followers(self, window: Window) -> list[Audience]:
        """See `Audiences`."""
        del window
        return list(self)


class NeverLeaves(Hub):
    """I8, I11: a stream that has ended stays a member of its audience."""

    def leave(self, reader: Reader, reason: CloseReason) -> None:
        """See `Hub`."""
        if reader.phase is not Phase.ENDED:
            reader.phase = Phase.ENDED
            self.readers -= 1
            self.tally.closed[reason] += 1


MUTANTS: dict[str, MakeHub] = {
    "joins before the head": rewired(delivery=JoinsBeforeTheHead),
    "tells no gap in a replay": rewired(delivery=TellsNoGapInReplay),
    "tells no gap before a queue": rewired(delivery=TellsNoGapInQueue),
    "tells a gap elsewhere": rewired(delivery=TellsGapElsewhere),
    "claims the head": rewired(delivery=ClaimsTheHead),
    "claims what is not spread": rewired(delivery=ClaimsWhatIsNotSpread),
    "loses the rest of a chunk": rewired(delivery=LosesTheRest),
    "trusts cursors": rewired(log=TrustsCursors),
    "forgets idempotency keys": rewired(history=ForgetsKeys),
    "forgets losses": rewired(history=ForgetsLosses),
    "ignores names": rewired(audiences=IgnoresNames),
    "drops without a gap": DropsWithoutGap,
    "never drops": NeverDrops,
    "sends twice": SendsTwice,
    "tells no BREAK": TellsNoBreak,
    "beats too early": BeatsTooEarly,
    "never leaves": NeverLeaves,
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_oracle_notices_a_rule_switched_off(mutant: MakeHub) -> None:
    """A core without one of its rules breaks the promise within a few schedules (negative test)."""
    for seed in range(150):
        if (error := fails(seed, schedule(seed, 2 * LENGTH), mutant)) is not None:
            assert isinstance(error, BrokenPromiseError)
            return
    pytest.fail("150 schedules and nothing noticed")
