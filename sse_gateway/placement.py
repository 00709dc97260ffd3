"""Where in the log a reader begins, and where it goes on after the log was taken over from a peer.

Rules:
    1. A cursor is verified, and then resumed, held, or told as a gap; nothing is guessed (I10).
    2. A cursor ahead of the log, or of an epoch that may have begun elsewhere since ours, is held: this
       node may be behind the one that gave it. So nobody is sent again what he has had from there.
    3. A stream that was live goes back to the windows when the log is extended behind its back: it
       pulls what the peer filled in, from its own position on, as if it had resumed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sse_gateway.hold import Hold
from sse_gateway.log import Verdict
from sse_gateway.reader import Catchup, Phase
from sse_gateway.reasons import GapReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sse_gateway.audience import Audience
    from sse_gateway.history import History
    from sse_gateway.log import Log
    from sse_gateway.reader import Reader
    from sse_gateway.tally import Tally

_GAPS = {
    Verdict.STALE: GapReason.WINDOW,
    Verdict.UNKNOWN_EPOCH: GapReason.EPOCH,
    Verdict.NEWER_EPOCH: GapReason.EPOCH,
    Verdict.INVALID: GapReason.CURSOR,
    Verdict.AHEAD: GapReason.CURSOR,
}


class Placement:
    """Decides where readers begin.

    Attributes:
        horizon: A name like those of epochs that begin now: what lies between it and ours may have begun elsewhere.
        beside: Another log ran beside when the current epoch began, or since: who comes from there may have had
            what our windows hold.
    """

    def __init__(self, log: Log, history: History, tally: Tally, schedule: Callable[[Reader], None]) -> None:
        """Share the core's parts.

        Args:
            log: The sequence.
            history: The windows.
            tally: The counters.
            schedule: Has a reader advanced soon; there may be very many at once.
        """
        self.horizon = ""
        self.beside = False
        self._log = log
        self._history = history
        self._tally = tally
        self._schedule = schedule
        self._hold = Hold()

    def place(self, reader: Reader, now: float) -> None:
        """Find the place of a reader that has a catch-up, or hold it."""
        catchup = _catchup(reader)
        verdict, position = self._log.locate(catchup.asked) if catchup.asked else (None, self._log.head)
        if not catchup.is_open:
            if verdict is Verdict.AHEAD:
                self._hold.put(reader, position, now)
                return
            if verdict is Verdict.NEWER_EPOCH and (catchup.asked or "") <= self.horizon:
                self._hold.put(reader, sys.maxsize, now)
                return
        self._begin(reader, catchup, verdict, position)

    def reached(self, now: float) -> None:
        """Go on with the readers whose position the log has reached."""
        self._place_all(self._hold.reached(self._log.head), now)

    def epoch_began(self, now: float) -> None:
        """Look again at every reader that is held; who has waited keeps his deadline."""
        self._place_all(self._hold.all(), now)

    def expire(self, now: float) -> None:
        """Tell those that have waited long enough: nobody else has that log."""
        for reader in self._hold.expired(now):
            catchup = _catchup(reader)
            verdict, position = self._log.locate(catchup.asked or "")
            if verdict is Verdict.NEWER_EPOCH:  # he has been where we have not: he may have all that we hold
                position = self._log.head
            self._begin(reader, catchup, verdict, position)
            self._schedule(reader)

    def rewind(self, reader: Reader, audience: Audience) -> None:
        """Take a live reader back to its own position, from where it pulls from the windows."""
        position = audience.position_of(reader, self._log.head)
        audience.leave(reader)
        audience.wait(reader)
        if reader.outbox is not None:
            before = len(reader.outbox)
            reader.outbox.rewind()
            self._tally.queue_bytes += len(reader.outbox) - before
        reader.phase = Phase.REPLAY
        reader.position = position
        reader.catchup = catchup = Catchup(head=position, newest=None)
        catchup.has_cursor = catchup.is_open = True

    def uproot(self, readers: Iterable[Reader]) -> None:
        """Note where all readers stand as cursors, because positions are about to become void; `replant` follows."""
        self._hold.all()
        for reader in readers:
            catchup = _catchup(reader)
            self._tally.queue_bytes -= catchup.charged
            reader.catchup = anew = Catchup(head=-1, newest=catchup.newest)
            anew.is_open = catchup.is_open
            # Who has not been told yet that his cursor was void has got no further.
            is_here = catchup.is_open and catchup.gap is None
            anew.asked = self._log.cursor(reader.position) if is_here else catchup.asked

    def replant(self, readers: Iterable[Reader], now: float) -> None:
        """Find new places for readers that were uprooted."""
        self._place_all(readers, now)

    def _place_all(self, readers: Iterable[Reader], now: float) -> None:
        for reader in readers:
            self.place(reader, now)
            if reader.phase is not Phase.HELD:
                self._schedule(reader)

    def _begin(self, reader: Reader, catchup: Catchup, verdict: Verdict | None, position: int) -> None:
        if verdict is Verdict.AHEAD or (verdict is Verdict.UNKNOWN_EPOCH and self.beside):
            position = self._log.head
        catchup.head = self._log.head
        catchup.has_cursor = catchup.is_open or verdict not in {None, Verdict.INVALID, Verdict.AHEAD}
        catchup.gap = None if verdict is None else _GAPS.get(verdict)
        if catchup.is_open and catchup.gap not in {None, GapReason.WINDOW}:
            catchup.gap = GapReason.SOURCE  # its cursor was good: it is we who have lost its log
        catchup.serial = self._history.serial
        reader.phase = Phase.REPLAY
        reader.position = catchup.settled_from = position


def _catchup(reader: Reader) -> Catchup:
    assert reader.catchup is not None  # noqa: S101 - in HELD and REPLAY it has one
    return reader.catchup
