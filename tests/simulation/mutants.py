"""Nodes that lack one rule each: the oracle has to notice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import structs

from sse_gateway.control import Control
from sse_gateway.decoder import decode
from sse_gateway.errors import MessageError
from sse_gateway.history import History
from sse_gateway.intake import Intake
from sse_gateway.log import Log, Verdict
from sse_gateway.placement import Placement
from sse_gateway.replica import Replica
from tests.support.cluster_parts import Parts, WatchedHub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sse_gateway.audience import Write
    from sse_gateway.channels import Rule, RuleTable
    from sse_gateway.control import Message
    from sse_gateway.cursor import Cursor
    from sse_gateway.cut import Cut
    from sse_gateway.limits import Limits
    from sse_gateway.reader import Reader
    from sse_gateway.snapshot import Snapshot
    from sse_gateway.window import Event, Window


class LateCut:
    """A snapshot that is taken when it is sent."""

    def __init__(self, take: Callable[[], Cut]) -> None:
        self._take = take
        self._cut: Cut | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._cut is None:
            self._cut = self._take()
        return next(self._cut)

    def close(self) -> None:
        """See `Cut`."""
        if self._cut is not None:
            self._cut.close()


class CutsWhenServed(WatchedHub):
    """2.: a snapshot shows the log as it is when it is sent, not as it was at the JOIN."""

    def cut(self, token: str, have: str, claims: Iterable[str], now: float) -> Any:
        """See `Hub`."""
        take = super().cut
        return LateCut(lambda: take(token, have, claims, now))


class OmitsClaims(WatchedHub):
    """A snapshot does not tell of claims under way."""

    def cut(self, token: str, have: str, claims: Iterable[str], now: float) -> Cut:
        """See `Hub`."""
        del claims
        return super().cut(token, have, (), now)


class ShowsNothing(History):
    """A channel changes before the cuts have read it."""

    def _show(self, window: Window) -> None:
        del window


class ForgetsKeysByTime(History):
    """Idempotency keys are forgotten by the clock."""

    _asked_at = 0.0
    _noted_at: dict[tuple[str, str], float]

    def window(self, name: str, rule: Rule, now: float) -> Window:
        """See `History`."""
        self._asked_at = now
        return super().window(name, rule, now)

    def remember_key(self, window: Window, key: str) -> bool:
        """See `History`."""
        noted_at = self.__dict__.setdefault("_noted_at", {})
        was_long_ago = self._asked_at - noted_at.get((window.name, key), self._asked_at) > 1.0
        if was_long_ago and key in window.keys:
            window.drop_key(key)
        if key not in window.keys:
            noted_at[window.name, key] = self._asked_at
        return super().remember_key(window, key)


class CountsLate(Intake):
    """A message is counted once it has been decoded."""

    def take(
        self, pattern: bytes, channel: bytes, payload: bytes, now: float, wall: float
    ) -> Event | tuple[Rule, MessageError] | None:
        """See `Intake`."""
        route = self._route(channel)
        if route is not None and route[0].pattern.encode() == pattern:
            try:
                decode(payload, route[0].format, self._max_bytes)
            except MessageError as error:
                return route[0], error
        return super().take(pattern, channel, payload, now, wall)


class TrustsCursors(Log):
    """I10: a cursor's hash is not looked at."""

    def _verify(self, cursor: Cursor, position: int) -> tuple[Verdict, int]:
        del cursor
        return Verdict.VERIFIED, position


class HoldsNobody(Placement):
    """A cursor ahead of the log is told as a gap at once."""

    def place(self, reader: Reader, now: float) -> None:
        """See `Placement`."""
        catchup = reader.catchup
        assert catchup is not None
        verdict, position = self._log.locate(catchup.asked) if catchup.asked else (None, self._log.head)
        if verdict in {Verdict.AHEAD, Verdict.NEWER_EPOCH}:
            self._begin(reader, catchup, verdict, position)
        else:
            super().place(reader, now)


def rewired(**parts: type) -> type[WatchedHub]:
    """A hub some parts of which are of another make: by the name of the attribute."""

    class Rewired(WatchedHub):
        """See `rewired`."""

        def __init__(self, rules: RuleTable, limits: Limits, key: bytes, write: Write) -> None:
            super().__init__(rules, limits, key, write)
            for name, make in parts.items():
                getattr(self, name).__class__ = make

    return Rewired


class ForgetsLosses(WatchedHub):
    """I2: what a peer has lost is not taken over."""

    def install(self, snapshot: Snapshot, now: float) -> None:
        """See `Hub`."""
        head = snapshot.head
        assert head is not None
        nothing: Sequence[int] = [-1] * len(head.marks)
        snapshot.head = structs.replace(head, marks=nothing, abandoned=[[] for _ in nothing])
        for held in snapshot._held.values():
            held.lost = []
            held.newest_loss = held.forgotten = -1
        super().install(snapshot, now)


class RepairsNobody(WatchedHub):
    """Streams are not taken back to the windows when a peer fills them."""

    def _rewind(self) -> list[Reader]:
        return []


class ClaimsOneName(Replica):
    """All epochs of one server have the same name."""

    def _claim(self, now: float) -> None:
        draw, self._draw = self._draw, lambda: "zepochzepoch"
        super()._claim(now)
        self._draw = draw


class ComparesNothing(Replica):
    """CHECKPOINTs are not looked at."""

    def _compare(self, checkpoint: Message, now: float) -> None:
        del checkpoint, now


class HearsNoVeto(Replica):
    """VETOs are not looked at."""

    def entry(self, payload: bytes, now: float) -> None:
        """See `Replica`."""
        if b" VETO " not in payload:
            super().entry(payload, now)


class ConfirmsUnclaimed(Replica):
    """A CONFIRM is in force also for those who did not see its CLAIM, or saw it vetoed."""

    def entry(self, payload: bytes, now: float) -> None:
        """See `Replica`."""
        words = payload.decode("ascii", "replace").split(" ")
        if len(words) > 5 and words[1] == "CONFIRM":
            self._note_claim(words[5])
        super().entry(payload, now)


class HearsEverybody(Control):
    """Messages of nodes with another fingerprint are taken for ours."""

    def read(self, payload: bytes) -> Message | None:
        """See `Control`."""
        words = payload.split(b" ")
        if len(words) > 4 and not self._secret:
            words[2] = self._fingerprint.encode()
        return super().read(b" ".join(words))


MUTANTS: dict[str, tuple[Parts, str]] = {
    "silent reconnect": (Parts(tells_link=False), "links"),
    "snapshot as of now": (Parts(hub=CutsWhenServed), "snapshots"),
    "one name for all epochs": (Parts(replica=ClaimsOneName), "claims"),
    "veto ignored": (Parts(replica=HearsNoVeto), "claims"),
    "confirm without claim": (Parts(replica=ConfirmsUnclaimed), "claims"),
    "keys forgotten by time": (Parts(hub=rewired(history=ForgetsKeysByTime)), "calm"),
    "count after decode": (Parts(hub=rewired(_intake=CountsLate)), "calm"),
    "no copy on write": (Parts(hub=rewired(history=ShowsNothing)), "snapshots"),
    "losses not carried": (Parts(hub=ForgetsLosses), "snapshots"),
    "nobody repaired": (Parts(hub=RepairsNobody), "links"),
    "nobody held": (Parts(hub=rewired(placement=HoldsNobody)), "lag"),
    "a stranger's messages": (Parts(control=HearsEverybody), "all"),
}
"""By name: the nodes, and the schedules in which they should be noticed."""

FAULTY: dict[str, Parts] = {
    "no checkpoint": Parts(replica=ComparesNothing),
    "no hash": Parts(hub=rewired(log=TrustsCursors)),
}
"""What only matters where a link has dropped a message without a trace."""

HARMLESS: dict[str, tuple[Parts, str]] = {
    "claims omitted": (Parts(hub=OmitsClaims), "claims"),
}
"""What costs an epoch at most: a node that does not know of a claim joins anew."""
