"""Every channel's window, held in log order and within memory.

Rules:
    1. A loss is remembered where it lies. When a whole channel is forgotten, its rule remembers
       the highest loss (`marks`), and a channel that appears starts with its rule's mark (I2).
    2. Memory (`window_memory`): remembered losses go first, and the idempotency keys of channels
       that hold no event; then the oldest event of all. Each held event, loss and key is charged
       with what it costs Python. A channel's newest loss is not forgotten.
    3. Channels (`limits.channels`): the least recently used one without readers is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from sse_gateway.timeline import Mark, Timeline
from sse_gateway.window import MAX_LOST, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.channels import Rule
    from sse_gateway.window import Event

MAX_KEYS = 1000
"""Idempotency keys a channel remembers; beyond it the oldest is forgotten."""

EVENT_BYTES = 200
"""What one held event costs beside its frame and raw data: object, places in window and timeline."""

LOST_BYTES = 9
"""What one remembered loss costs: its position in an array."""

KEY_BYTES = 120
"""What one idempotency key costs beside its characters."""

REMEMBER_S = 60.0
"""A channel without events and readers is remembered for another `max_age`, at least this long, so
that a client which comes back a little late still learns how many events it has missed."""


class History:
    """All windows of the gateway.

    Attributes:
        windows: By the name clients know.
        marks: Per rule, the highest loss of channels that were forgotten, -1 for none.
        newest_losses: Per rule, the highest loss of any channel, -1 for none.
        serial: Counts losses; tells whether a loss came before or after some moment.
        events: Events held.
        bytes: Bytes of their frames.
        memory: Bytes charged in all.
        forgotten_channels: Channels forgotten at the limit.
        evicted_for_memory: Events lost at the limit.
    """

    def __init__(self, rules: Sequence[Rule], max_channels: int, max_memory: int) -> None:
        """Start empty.

        Args:
            rules: All rules, in order of their index.
            max_channels: Channels remembered.
            max_memory: Bytes.
        """
        self._max_channels = max_channels
        self._max_memory = max_memory
        self._timelines = [Timeline() for _ in rules]
        self._ages = [rule.window.max_age_s for rule in rules]
        self._unread: OrderedDict[Window, None] = OrderedDict()  # least recently used first
        self._lossy: OrderedDict[Window, None] = OrderedDict()  # windows that may have something to spare
        self.windows: dict[str, Window] = {}
        self.marks = [-1] * len(rules)
        self.newest_losses = [-1] * len(rules)
        self.serial = 0
        self.events = 0
        self.bytes = 0
        self.memory = 0
        self.forgotten_channels = 0
        self.evicted_for_memory = 0

    def timeline(self, rule: Rule) -> Timeline:
        """The entries of one rule in log order."""
        return self._timelines[rule.index]

    def window(self, name: str, rule: Rule, now: float) -> Window:
        """Find or make the window of a channel."""
        window = self.windows.get(name)
        if window is None:
            window = Window(name, rule, self.marks[rule.index], now)
            self.windows[name] = window
            self._unread[window] = None
            self._make_room()
        return window

    def attach(self, name: str, rule: Rule, now: float) -> Window:
        """Find or make the window of a channel that has a reader from now on, so that it is not forgotten."""
        window = self.window(name, rule, now)
        self._unread.pop(window, None)
        return window

    def detach(self, window: Window, now: float) -> None:
        """Note that a channel has no reader any more; an unused one is forgotten at once."""
        window.used_at = now
        self._unread[window] = None
        if not (len(window) or window.lost or window.keys):
            self._forget_channel(window)
        self._make_room()

    def append(self, event: Event, window: Window, now: float) -> None:
        """Hold an event, and lose what no longer fits."""
        window.append(event)
        window.used_at = now
        if window in self._unread:
            self._unread.move_to_end(window)
        self._timelines[window.rule.index].append(event)
        self.events += 1
        self.bytes += len(event.frame)
        self.memory += _cost(event)
        oldest_allowed = now - window.rule.window.max_age_s
        while window.is_over(oldest_allowed):
            self._evict(window)
        if self.memory > self._max_memory:
            self._shrink()

    def remember_key(self, window: Window, key: str) -> bool:
        """Note an idempotency key; False if it is among the last `MAX_KEYS` of the channel."""
        if key in window.keys:
            return False
        window.keys[key] = None
        self.memory += KEY_BYTES + len(key)
        if len(window.keys) > MAX_KEYS:
            oldest = next(iter(window.keys))
            del window.keys[oldest]
            self.memory -= KEY_BYTES + len(oldest)
        return True

    def expire(self, now: float) -> None:
        """Lose what has reached its age, and forget channels that nobody needs any more."""
        for timeline, max_age_s in zip(self._timelines, self._ages, strict=True):
            while (event := timeline.oldest()) and event.received_at <= now - max_age_s:
                assert event.window is not None  # noqa: S101 - entries of a timeline have one
                self._evict(event.window)
        while self._unread:
            window = next(iter(self._unread))
            if len(window) or now - window.used_at < max(REMEMBER_S, 2 * window.rule.window.max_age_s):
                break
            self._forget_channel(window)

    def oldest(self) -> Event | None:
        """The oldest event held under any rule."""
        found = [event for timeline in self._timelines if (event := timeline.oldest())]
        return min(found, key=lambda event: event.position, default=None)

    def _make_room(self) -> None:
        """Come back under the channel limit, but for the channel that was used last."""
        while len(self.windows) > self._max_channels and len(self._unread) > 1:
            self._forget_channel(next(iter(self._unread)))
            self.forgotten_channels += 1

    def _evict(self, window: Window) -> None:
        index = window.rule.index
        timeline = self._timelines[index]
        if window.lost:
            timeline.discard(window.newest_loss)
        self.serial += 1
        event = window.evict(self.serial)
        timeline.mark(Mark(event.position, window))
        self.events -= 1
        self.bytes -= len(event.frame)
        self.memory += LOST_BYTES - _cost(event)
        self.newest_losses[index] = max(self.newest_losses[index], event.position)
        self._lossy[window] = None
        self._forget_losses(window, keep=MAX_LOST)

    def _forget_losses(self, window: Window, keep: int) -> None:
        self.memory -= LOST_BYTES * window.forget(keep)

    def _shrink(self) -> None:
        """Come back under the memory limit, in the order of rule 2."""
        while self.memory > self._max_memory:
            if not self._lossy:
                event = self.oldest()
                if event is None:
                    break
                assert event.window is not None  # noqa: S101 - entries of a timeline have one
                self._evict(event.window)
                self.evicted_for_memory += 1
            window = self._lossy.popitem(last=False)[0]
            self._forget_losses(window, keep=1)
            if not len(window):
                self._drop_keys(window)

    def _drop_keys(self, window: Window) -> None:
        self.memory -= sum(KEY_BYTES + len(key) for key in window.keys)
        window.keys.clear()

    def _forget_channel(self, window: Window) -> None:
        while len(window):
            self._evict(window)
        index = window.rule.index
        if window.lost:
            self._timelines[index].abandon(window.newest_loss)
        self.marks[index] = max(self.marks[index], window.newest_loss)
        self._forget_losses(window, keep=0)
        self._drop_keys(window)
        self._lossy.pop(window, None)
        del self._unread[window]
        del self.windows[window.name]


def _cost(event: Event) -> int:
    return EVENT_BYTES + len(event.frame) + (len(event.raw) if event.raw else 0)
