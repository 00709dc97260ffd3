"""A window does what a list of everything that was ever appended would do."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings, strategies as st

from sse_gateway.window import Event, Window
from tests.support.core import rule

EVENTS, AGE_S, SIZE = 6, 10.0, 60


@dataclass
class Model:
    """All events ever, as (position, size, received_at), of which the first `lost` have left.

    Attributes:
        kept: Lost ones that are still remembered.
    """

    events: list[tuple[int, int, float]] = field(default_factory=list)
    lost: int = 0
    kept: int = 0

    @property
    def held(self) -> list[tuple[int, int, float]]:
        """What has not left."""
        return self.events[self.lost :]

    def is_over(self, oldest_allowed: float) -> bool:
        """The bounds, as the configuration words them."""
        sizes = sum(size for _, size, _ in self.held)
        return bool(self.held) and (len(self.held) > EVENTS or sizes > SIZE or self.held[0][2] <= oldest_allowed)

    def missed_after(self, position: int) -> int | None:
        """Count the lost, if nothing that was forgotten is among them."""
        if any(lost > position for lost, _, _ in self.events[: self.lost - self.kept]):
            return None
        return sum(lost > position for lost, _, _ in self.events[: self.lost])


def check(window: Window, model: Model, at: int) -> None:
    """Compare all that can be asked of both, at some position."""
    held = [position for position, _, _ in model.held]
    assert len(window) == len(held)
    assert window.bytes == sum(size for _, size, _ in model.held)
    assert [event.position for event in window.after(at, 3)] == [place for place in held if place > at][:3]
    assert (window.newest.position if window.newest else None) == (held[-1] if held else None)
    assert window.missed_after(at) == model.missed_after(at)
    lost = [position for position, _, _ in model.events[: model.lost]]
    assert window.newest_loss == (lost[-1] if lost else -1)
    for count in range(4):
        newest = [place for place in held if place <= at][-count:] if count else []
        found = window.nth_newest(count, at)
        assert (found.position if found else None) == (newest[0] if newest else None)
        among = [event.position for event in window.after(-1, 100) if window.is_among_newest(event, count, at)]
        assert among == newest + [place for place in held if place > at]


APPEND = st.tuples(st.just("append"), st.integers(1, 3), st.integers(1, 20))
EVICT = st.tuples(st.just("evict"), st.integers(0, 12), st.just(0))
FORGET = st.tuples(st.just("forget"), st.integers(0, 8), st.just(0))


@settings(deadline=None)
@given(st.lists(APPEND | APPEND | EVICT | FORGET, max_size=80), st.integers(-1, 150))
def test_window_is_a_list(steps: list[tuple[str, int, int]], at: int) -> None:
    """Whatever is appended, lost and forgotten, a window answers as a list of all of it would (I2, I5)."""
    window = Window("a", rule(events=EVENTS, age_s=AGE_S, size=SIZE), -1, 0.0)
    model = Model()
    now = 0
    for serial, (step, number, size) in enumerate(steps):
        if step == "append":
            now += number
            window.append(Event(now, window, b"x" * size, float(now)))
            model.events.append((now, size, float(now)))
            while window.is_over(now - AGE_S):
                assert model.is_over(now - AGE_S)
                window.evict(serial)
                model.lost += 1
                model.kept += 1
            assert not model.is_over(now - AGE_S)
        elif step == "evict":
            for _ in range(min(number, len(window))):
                assert window.evict(serial).position == model.held[0][0]
                model.lost += 1
                model.kept += 1
            assert window.loss_serial <= serial
        else:
            assert window.forget(number) == max(0, model.kept - number)
            model.kept = min(model.kept, number)
        check(window, model, at)
        check(window, model, now)
