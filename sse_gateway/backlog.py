"""What the windows hold and the store does not yet: in log order, how old it is, and when it is given up."""

from __future__ import annotations

from heapq import merge
from itertools import takewhile
from operator import attrgetter
from typing import TYPE_CHECKING

from sse_gateway.window import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.history import History

_BY_POSITION = attrgetter("position")


class Backlog:
    """The events behind a head.

    Attributes:
        given_up: Up to this position nothing will be written, -1 for none.
    """

    def __init__(self, history: History, max_lag_s: float) -> None:
        """Start without having judged anything.

        Args:
            history: The windows.
            max_lag_s: An older event is given up, if the backlog does not get younger either.
        """
        self.given_up = -1
        self._history = history
        self._max_lag_s = max_lag_s
        self._behind: tuple[float, float] | None = None  # since when it has been too old, and how old it was then

    def after(self, position: int) -> Iterator[Event]:
        """Walk the events after a position that are held and not given up; the windows must not change meanwhile."""
        after = max(position, self.given_up)
        walks = [
            timeline.after(max(after, oldest.position - 1))  # in front of it there may be very many marks
            for timeline in self._history.timelines
            if (oldest := timeline.oldest()) is not None
        ]
        return (entry for entry in merge(*walks, key=_BY_POSITION) if isinstance(entry, Event))

    def lag_s(self, position: int, now: float) -> float:
        """Age of the oldest of them, 0 if there is none."""
        oldest = next(self.after(position), None)
        return max(0.0, now - oldest.received_at) if oldest is not None else 0.0

    def give_up(self, position: int, now: float) -> list[Event]:
        """Judge how old they are; returns those that are given up.

        What is too old has `max_lag` for becoming younger: so whoever takes over, or comes back, catches up.
        """
        lag_s = self.lag_s(position, now)
        if lag_s <= self._max_lag_s:
            self._behind = None
            return []
        if self._behind is None:
            self._behind = now, lag_s
        since, lag_then_s = self._behind
        if now - since < self._max_lag_s:
            return []
        self._behind = now, lag_s
        if lag_s < lag_then_s:
            return []
        oldest_allowed = now - self._max_lag_s
        found = list(takewhile(lambda event: event.received_at < oldest_allowed, self.after(position)))
        self.given_up = found[-1].position
        return found
