"""Whatever happens to a history, its books are right and no loss is forgotten."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings, strategies as st

from sse_gateway.history import EVENT_BYTES, KEY_BYTES, LOST_BYTES, History
from sse_gateway.timeline import Mark
from sse_gateway.window import Event, Window
from tests.support.core import rule

RULES = (rule("a*", 0, events=3, age_s=10.0), rule("b*", 1, events=5, age_s=100.0, size=400))
NAMES = [f"{head}{number}" for head in "ab" for number in range(4)]
ROUGH = EVENT_BYTES + 100

PUBLISH = st.tuples(st.just("publish"), st.sampled_from(NAMES), st.integers(1, 150))
KEYED = st.tuples(st.just("keyed"), st.sampled_from(NAMES), st.integers(0, 9))
ATTACH = st.tuples(st.just("attach"), st.sampled_from(NAMES), st.just(0))
DETACH = st.tuples(st.just("detach"), st.sampled_from(NAMES), st.just(0))
WAIT = st.tuples(st.just("wait"), st.just(""), st.sampled_from([1, 5, 30, 250]))
STEPS = st.lists(PUBLISH | PUBLISH | PUBLISH | KEYED | ATTACH | DETACH | WAIT, max_size=120)


class World:
    """A history, and everything that was ever published to it."""

    def __init__(self, max_channels: int, max_memory: int) -> None:
        self.history = History(RULES, max_channels, max_memory)
        self.max_channels, self.max_memory = max_channels, max_memory
        self.published: dict[str, list[int]] = defaultdict(list)
        self.attached: set[str] = set()
        self.head = 0
        self.now = 0.0

    def play(self, step: str, name: str, number: int) -> None:
        """Do one step."""
        owner = RULES[name.startswith("b")]
        if step == "publish":
            self.publish(name, b"x" * number, b"y" * number if number % 7 == 0 else None)
        elif step == "keyed":
            window = self.history.window(name, owner, self.now)
            key = "k" * (number + 1)
            if self.history.remember_key(window, key):
                self.publish(name, b"x", None)
        elif step == "attach":
            self.history.attach(name, owner, self.now)
            self.attached.add(name)
        elif step == "detach" and name in self.attached:
            self.attached.remove(name)
            self.history.detach(self.history.windows[name], self.now)
        elif step == "wait":
            self.now += number
            self.history.expire(self.now)

    def publish(self, name: str, frame: bytes, raw: bytes | None) -> None:
        """Hold one event."""
        self.head += 1
        window = self.history.window(name, RULES[name.startswith("b")], self.now)
        event = Event(self.head, window, frame, self.now, raw=raw)
        self.history.append(event, window, self.now)
        self.published[name].append(self.head)


def cost(window: Window) -> int:
    """What a window is charged, counted from scratch."""
    events = sum(EVENT_BYTES + len(event.frame) + len(event.raw or b"") for event in window.after(-1, 1000))
    return events + LOST_BYTES * len(window.lost) + sum(KEY_BYTES + len(key) for key in window.keys)


def check_books(world: World) -> None:
    """Counters equal what they count; limits hold as far as anything can be given up."""
    history = world.history
    windows = list(history.windows.values())
    events = [event for window in windows for event in window.after(-1, 1000)]
    assert history.events == len(events)
    assert history.bytes == sum(len(event.frame) for event in events)
    assert history.memory == sum(map(cost, windows))
    assert len(windows) <= max(world.max_channels, len(world.attached) + 1)
    if history.memory > world.max_memory:
        assert not events
        assert all(len(window.lost) <= 1 and not window.keys for window in windows)
    assert all(name in history.windows for name in world.attached)


def check_losses(world: World) -> None:
    """Every event that is not held any more is told to whoever resumes from before it, exactly or as unknown."""
    history = world.history
    for name, positions in world.published.items():
        index = int(name.startswith("b"))
        window = history.windows.get(name)
        held = [event.position for event in window.after(-1, 1000)] if window else []
        lost = [position for position in positions if position not in held]
        assert not held or not lost or lost[-1] < held[0]
        assert history.newest_losses[index] >= (lost[-1] if lost else -1)
        if window is None:
            assert history.marks[index] >= (lost[-1] if lost else -1)
            continue
        assert window.newest_loss >= (lost[-1] if lost else -1)
        for position in [-1, *lost]:
            missed = window.missed_after(position)
            assert missed is None or missed == sum(place > position for place in lost)


def check_timelines(world: World) -> None:
    """A walk over a rule meets every event, and after each loss a mark before its channel's next event (I2)."""
    history = world.history
    for index, owner in enumerate(RULES):
        entries = list(history.timeline(owner).after(-1))
        places = [entry.position for entry in entries]
        assert places == sorted(set(places))
        events = [entry.position for entry in entries if isinstance(entry, Event)]
        windows = [window for window in history.windows.values() if window.rule is owner]
        assert events == sorted(event.position for window in windows for event in window.after(-1, 1000))
        marks = [entry for entry in entries if isinstance(entry, Mark)]
        for name, positions in world.published.items():
            if name.startswith("b") != bool(index):
                continue
            held = [place for place in positions if place in events]
            for loss in set(positions) - set(held):
                told = [mark.position for mark in marks if mark.window is None or mark.window.name == name]
                assert any(loss <= place < (held[0] if held else world.head + 1) for place in told)
    oldest = history.oldest()
    held = [event.position for window in history.windows.values() for event in window.after(-1, 1)]
    assert (oldest.position if oldest else None) == min(held, default=None)


@settings(deadline=None)
@given(STEPS, st.integers(1, 6), st.sampled_from([0, ROUGH, 5 * ROUGH, 100 * ROUGH]))
def test_history_keeps_its_books(steps: list[tuple[str, str, int]], max_channels: int, max_memory: int) -> None:
    """Memory never drifts, limits hold, no loss is forgotten, whatever comes and goes (I2, I5)."""
    world = World(max_channels, max_memory)
    for step in steps:
        world.play(*step)
        check_books(world)
    check_losses(world)
    check_timelines(world)
