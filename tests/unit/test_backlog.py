from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.backlog import Backlog
from sse_gateway.timeline import Timeline
from tests.support.core import Core, rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from sse_gateway.timeline import Mark
    from sse_gateway.window import Event


def core_of(*waits_s: float) -> Core:
    """A core to which one event was published before each wait, on two rules in turn."""
    core = Core(rule("a*"), rule("b*"))
    for number, wait_s in enumerate(waits_s):
        core.publish("ab"[number % 2], f"d{number}")
        core.tick(wait_s)
    return core


def test_events_come_in_log_order() -> None:
    """Whatever their rule; what is behind the position, and no marks."""
    core = core_of(1, 1, 1, 1)
    backlog = Backlog(core.hub.history, 2.0)
    assert [event.position for event in backlog.after(1)] == [2, 3, 4]
    core.hub.history._evict(core.hub.history.windows["a"])
    assert [event.position for event in backlog.after(-1)] == [2, 3, 4]


def test_the_lag_is_the_age_of_the_oldest() -> None:
    """Nothing behind is no lag, and a clock that goes back no negative one."""
    core = core_of(1, 1)
    backlog = Backlog(core.hub.history, 2.0)
    assert backlog.lag_s(0, core.now) == 2.0
    assert backlog.lag_s(1, core.now) == 1.0
    assert backlog.lag_s(2, core.now) == 0.0
    assert backlog.lag_s(0, -5.0) == 0.0


def test_what_gets_older_and_older_is_given_up() -> None:
    """Only what is too old, and only after it has had time to become younger."""
    core = core_of(1, 1, 1, 1)
    backlog = Backlog(core.hub.history, 2.0)
    assert backlog.give_up(4, core.now) == []
    assert backlog.give_up(0, core.now) == []  # four seconds: since when?
    assert backlog.give_up(0, core.now + 1.9) == []
    core.tick(2)
    core.publish("a", "young")
    given_up = backlog.give_up(0, core.now)
    assert [event.position for event in given_up] == [1, 2, 3, 4]
    assert backlog.given_up == 4
    assert [event.position for event in backlog.after(0)] == [5]
    assert backlog.lag_s(0, core.now) == 0.0


def test_who_catches_up_gives_up_nothing() -> None:
    """What is behind may be old, as long as it gets younger."""
    core = core_of(10, 10, 10, 0)
    backlog = Backlog(core.hub.history, 2.0)
    for position in (0, 1, 2):
        assert backlog.give_up(position, core.now) == []
        core.tick(2)
    assert backlog.give_up(4, core.now) == []
    assert backlog.given_up == -1


def test_losses_in_front_of_all_events_are_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins anew may have very many of them, and looks with each batch."""
    core = Core(rule("a*", events=1), rule("b*"))
    for number in range(50):
        core.publish(f"a{number}", "lost")
    for number in range(50):
        core.hub.history._evict(core.hub.history.windows[f"a{number}"])
    core.publish("a", "held")
    backlog = Backlog(core.hub.history, 2.0)
    assert [event.position for event in backlog.after(-1)] == [51]  # and so the timelines know where events begin
    walked: list[int] = []
    after = Timeline.after

    def counted(timeline: Timeline, position: int) -> Iterator[Event | Mark]:
        for entry in after(timeline, position):
            walked.append(entry.position)
            yield entry

    monkeypatch.setattr(Timeline, "after", counted)
    assert [event.position for event in backlog.after(-1)] == [51]
    assert set(walked) == {51}
