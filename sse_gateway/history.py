"""Every channel's window, held in log order and within memory.

Rules:
    1. A loss is remembered where it lies. When a whole channel is forgotten, its rule remembers
       the highest loss (`marks`), and a channel that appears starts with its rule's mark (I2).
    2. Memory (`window_memory`): remembered losses go first, and the idempotency keys of channels
       that hold no event; then the oldest event of all. Each held event, loss and key is charged
       with what it costs Python. A channel's newest loss is not forgotten.
    3. Channels (`limits.channels`): the least recently used one without readers is forgotten.
    4. A channel that is about to change is shown to the cuts first, which may have to copy it.
    5. Whoever stores what is held elsewhere learns which channels have lost something (`touched`), and whether all
       has been replaced; of events it learns from the timelines.
"""

from __future__ import annotations

from collections import OrderedDict
from operator import attrgetter
from typing import TYPE_CHECKING

from sse_gateway.timeline import Mark, Timeline
from sse_gateway.window import MAX_LOST, NO_KEYS, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sse_gateway.channels import Rule
    from sse_gateway.cut import Cut
    from sse_gateway.snapshot import Held
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


_BY_POSITION = attrgetter("position")
_BY_USE = attrgetter("used_at")


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
        timelines: Per rule, its entries in log order.
        cuts: Snapshots being taken.
        touched: Channels that have lost something, or were forgotten, since somebody asked; None while nobody does,
            and once there are more than twice the channels remembered.
        replaced: How often all was cleared, or taken over from elsewhere.
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
        self._rules = rules
        self.timelines = [Timeline() for _ in rules]
        self.cuts: list[Cut] = []
        self.touched: dict[str, None] | None = None
        self.replaced = 0
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
        return self.timelines[rule.index]

    def window(self, name: str, rule: Rule, now: float) -> Window:
        """Find or make the window of a channel."""
        window = self.windows.get(name)
        if window is None:
            window = self._make(name, rule, now)
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
        if self.cuts:
            self._show(window)
        window.append(event)
        window.used_at = now
        if window in self._unread:
            self._unread.move_to_end(window)
        self.timelines[window.rule.index].append(event)
        self._hold(event)
        self._evict_over(window, now)
        if self.memory > self._max_memory:
            self._shrink()

    def remember_key(self, window: Window, key: str) -> bool:
        """Note an idempotency key; False if it is among the last `MAX_KEYS` of the channel."""
        if key in window.keys:
            return False
        if self.cuts:
            self._show(window)
        window.add_key(key)
        self.memory += KEY_BYTES + len(key)
        if len(window.keys) > MAX_KEYS:
            oldest = next(iter(window.keys))
            window.drop_key(oldest)
            self.memory -= KEY_BYTES + len(oldest)
        return True

    def expire(self, now: float) -> None:
        """Lose what has reached its age, and forget channels that nobody needs any more."""
        for timeline, max_age_s in zip(self.timelines, self._ages, strict=True):
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
        found = [event for timeline in self.timelines if (event := timeline.oldest())]
        return min(found, key=lambda event: event.position, default=None)

    def clear(self) -> None:
        """Forget everything; channels that have readers stay, empty. Snapshots being taken are void."""
        self.replaced += 1
        for cut in tuple(self.cuts):
            cut.close()
        for window in self.windows.values():
            window.clear()  # those too that are forgotten: they and their events hold each other
        for window in self._unread:
            del self.windows[window.name]
        self._unread.clear()
        self._lossy.clear()
        self.timelines = [Timeline() for _ in self._rules]
        self.marks = [-1] * len(self._rules)
        self.newest_losses = [-1] * len(self._rules)
        self.events = self.bytes = self.memory = 0

    def install(
        self, channels: Iterable[Held], marks: Sequence[int], abandoned: Sequence[Iterable[int]], now: float
    ) -> None:
        """Take over what another history holds and has lost after everything that is here.

        Args:
            channels: Their events and losses, at positions above all of ours.
            marks: Per rule, the highest loss of channels that were forgotten there, -1 for none.
            abandoned: Per rule, where such losses lie.
            now: Seconds.
        """
        self.replaced += 1
        entries: list[list[Event | Mark]] = [[Mark(position, None) for position in found] for found in abandoned]
        windows = [self._take_over(held, entries[held.rule], now) for held in channels]
        known = set(windows)
        for window in self.windows.values():
            mark = marks[window.rule.index]
            if mark >= 0 and window not in known:  # it is one of those that were forgotten there
                self._lose_track(window, mark)
                self._drop_keys(window)
        for timeline, found in zip(self.timelines, entries, strict=True):
            for entry in sorted(found, key=_BY_POSITION):
                timeline.append(entry)
        for index, mark in enumerate(marks):
            self.marks[index] = max(self.marks[index], mark)
            self.newest_losses[index] = max(self.newest_losses[index], mark)
        for window in windows:
            self._evict_over(window, now)
            self._forget_losses(window, keep=MAX_LOST)
        self._unread = OrderedDict.fromkeys(sorted(self._unread, key=_BY_USE))
        self._make_room()
        self._shrink()

    def _take_over(self, held: Held, entries: list[Event | Mark], now: float) -> Window:
        """Add one channel's part; its entries are put into the timeline by the caller, in log order."""
        rule = self._rules[held.rule]
        window = self.windows.get(held.name)
        if window is None:
            window = self._make(held.name, rule, now)
        elif self.cuts:
            self._show(window)
        window.used_at = max(window.used_at, held.used_at) if len(window) else held.used_at
        if held.lost:
            self._lose(window, held)
            entries.append(Mark(window.newest_loss, window))
        elif held.newest_loss >= 0:  # it was forgotten there, and has appeared again
            self._lose_track(window, held.newest_loss)
        window.forgotten = max(window.forgotten, held.forgotten)
        self._drop_keys(window)
        for key in held.keys:
            self.remember_key(window, key)
        for event in held.events:
            event.window = window
            window.append(event)
            self._hold(event)
        entries.extend(held.events)
        if window.lost or window.keys:
            self._lossy[window] = None
        return window

    def _lose(self, window: Window, held: Held) -> None:
        """Note losses that lie after everything the window holds: that is lost, too."""
        while len(window):
            self._evict(window)
        if window.lost:
            self.timelines[held.rule].discard(window.newest_loss)
        self.serial += 1
        window.lose(held.lost, self.serial)
        self.memory += LOST_BYTES * len(held.lost)
        self.newest_losses[held.rule] = max(self.newest_losses[held.rule], window.newest_loss)

    def _lose_track(self, window: Window, mark: int) -> None:
        """Forget a channel's events and losses: up to `mark` nobody knows what it has lost."""
        while len(window):
            self._evict(window)
        if window.lost:
            self.timelines[window.rule.index].abandon(window.newest_loss)
        self._forget_losses(window, keep=0)
        self._lossy.pop(window, None)
        self.serial += 1
        window.loss_serial = self.serial
        window.newest_loss = window.forgotten = max(window.newest_loss, mark)

    def _make(self, name: str, rule: Rule, now: float) -> Window:
        window = Window(name, rule, self.marks[rule.index], now)
        self.windows[name] = window
        self._unread[window] = None
        return window

    def _show(self, window: Window) -> None:
        for cut in self.cuts:
            cut.save(window)

    def _hold(self, event: Event) -> None:
        self.events += 1
        self.bytes += len(event.frame)
        self.memory += _cost(event)

    def _evict_over(self, window: Window, now: float) -> None:
        oldest_allowed = now - window.rule.window.max_age_s
        while window.is_over(oldest_allowed):
            self._evict(window)

    def _make_room(self) -> None:
        """Come back under the channel limit, but for the channel that was used last."""
        while len(self.windows) > self._max_channels and len(self._unread) > 1:
            self._forget_channel(next(iter(self._unread)))
            self.forgotten_channels += 1

    def _evict(self, window: Window) -> None:
        if self.cuts:
            self._show(window)
        if self.touched is not None:
            self._touch(window)
        index = window.rule.index
        timeline = self.timelines[index]
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
        if self.cuts:
            self._show(window)
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
        if self.cuts:
            self._show(window)
        self.memory -= sum(KEY_BYTES + len(key) for key in window.keys)
        window.keys = NO_KEYS

    def _touch(self, window: Window) -> None:
        assert self.touched is not None  # noqa: S101 - the caller has looked
        self.touched[window.name] = None
        if len(self.touched) > 2 * self._max_channels:
            self.touched = None

    def _forget_channel(self, window: Window) -> None:
        if self.touched is not None:
            self._touch(window)
        self._lose_track(window, -1)
        index = window.rule.index
        self.marks[index] = max(self.marks[index], window.newest_loss)
        self._drop_keys(window)
        del self._unread[window]
        del self.windows[window.name]


def _cost(event: Event) -> int:
    return EVENT_BYTES + len(event.frame) + (len(event.raw) if event.raw else 0)
