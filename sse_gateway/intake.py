"""From a message of the source to an event in the window of its channel.

Rules:
    1. A message is counted before anything is known of its content; whatever becomes of it, it has
       its place in the log (I1).
    2. A message that is rejected harms only itself (I9). A duplicate is counted, and is no event.
    3. An event is encoded once, for everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.decoder import decode
from sse_gateway.errors import MessageError
from sse_gateway.frames import event_frame
from sse_gateway.reasons import RejectReason
from sse_gateway.window import Event

if TYPE_CHECKING:
    from sse_gateway.channels import Rule, RuleTable
    from sse_gateway.events import Publication
    from sse_gateway.history import History
    from sse_gateway.log import Log
    from sse_gateway.tally import Tally

MAX_TS_OFF_S = 86_400.0
"""A publisher's `ts` further off than a day is ignored."""


class Intake:
    """Takes messages in."""

    def __init__(
        self, rules: RuleTable, log: Log, history: History, tally: Tally, *, max_bytes: int, max_routes: int
    ) -> None:
        """Share the core's parts.

        Args:
            rules: Who owns which channel.
            log: Counts messages.
            history: Holds events.
            tally: The counters.
            max_bytes: Largest payload, and largest encoded frame.
            max_routes: Channels whose owner is remembered; beyond it they are looked up anew.
        """
        self._rules = rules
        self._patterns = [rule.pattern.encode() for rule in rules.rules]
        self._log = log
        self._history = history
        self._tally = tally
        self._max_bytes = max_bytes
        self._max_routes = max_routes
        self._routes: dict[bytes, tuple[Rule, str | None] | None] = {}

    def take(
        self, pattern: bytes, channel: bytes, payload: bytes, now: float, wall: float
    ) -> Event | tuple[Rule, MessageError] | None:
        """Take one message.

        Args:
            pattern: Under which Redis sent it; copies under other patterns are not counted.
            channel: Redis channel.
            payload: As published.
            now: When its bytes came, seconds of the loop's clock.
            wall: The same moment, Unix seconds.

        Returns:
            The event; the rule and the error of a message that was rejected; None for a copy, a
            duplicate, or a channel of nobody.
        """
        route = self._routes[channel] if channel in self._routes else self._route(channel)
        if route is None or self._patterns[route[0].index] != pattern:
            return None
        rule, name = route
        cursor = self._log.append(channel, payload)
        self._tally.messages[rule.index] += 1
        try:
            return self._hold(rule, name, cursor, payload, now, wall)
        except MessageError as error:
            self._tally.rejected[error.reason] += 1
            # Its traceback leads to the frame that it is returned to: a cycle, which would keep the payload.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            return rule, error

    def _route(self, channel: bytes) -> tuple[Rule, str | None] | None:
        rule = self._rules.owner(channel)
        route = None if rule is None else (rule, self._rules.client_name(rule, channel))
        if len(self._routes) >= self._max_routes:
            self._routes.clear()
        self._routes[channel] = route
        return route

    def _hold(self, rule: Rule, name: str | None, cursor: str, payload: bytes, now: float, wall: float) -> Event | None:
        if name is None:
            raise MessageError(RejectReason.CHANNEL, "no client could ask for this channel")
        publication = decode(payload, rule.format, self._max_bytes)
        frame = event_frame(cursor, publication)
        if len(frame) > self._max_bytes:
            raise MessageError(RejectReason.SIZE, f"{len(frame)} bytes as an encoded frame")
        window = self._history.window(name, rule, now)
        if publication.id is not None and not self._history.remember_key(window, publication.id):
            self._tally.duplicates[rule.index] += 1
            return None
        event = Event(
            self._log.head,
            window,
            frame,
            now,
            type=publication.type,
            is_text=publication.is_text,
            raw=publication.data if b"\r" in publication.data else None,
            ts=_on_loop_clock(publication, now, wall),
            key=publication.id,
        )
        self._tally.events[rule.index] += 1
        self._history.append(event, window, now)
        return event


def _on_loop_clock(publication: Publication, now: float, wall: float) -> float | None:
    if publication.ts is None or abs(wall - publication.ts) > MAX_TS_OFF_S:
        return None
    return now - (wall - publication.ts)
