"""An outbox does what a plain list would do that is cut to its bounds before every batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings, strategies as st

from sse_gateway.channels import QueueBounds
from sse_gateway.frames import gap_frame
from sse_gateway.outbox import CHUNK_BYTES, Outbox
from sse_gateway.reasons import GapReason, Policy
from sse_gateway.window import Event, Window
from tests.support.core import rule

WINDOWS = [Window(name, rule(), -1, 0.0) for name in "abc"]
SIZES = st.sampled_from([20, 20, 20, 50, CHUNK_BYTES // 2, 2 * CHUNK_BYTES])
CHANNELS = st.sampled_from([0, 0, 1, 2, None])
"""Index of a channel; None for a break."""
BATCHES = st.lists(st.tuples(CHANNELS, SIZES), min_size=1, max_size=8)
TAKE = None
STEPS = st.lists(BATCHES | st.just(TAKE), max_size=30)
BOUNDS = st.tuples(st.integers(1, 6), st.sampled_from([60, CHUNK_BYTES, 10**6]))


def event(position: int, channel: int | None, size: int) -> Event:
    """An event, or a break."""
    if channel is None:
        return Event(position, None, gap_frame(str(position), GapReason.SOURCE, [], None), 0.0, type="source")
    frame = b"id: %d\ndata: " % position
    return Event(position, WINDOWS[channel], frame + b"x" * (size - len(frame) - 2) + b"\n\n", 0.0)


@dataclass
class Model:
    """What waits, and what was dropped since the last gap.

    Attributes:
        dropped: Dropped events and breaks, not told yet.
        superseded: Events replaced by newer ones.
    """

    policy: Policy
    max_events: int
    max_bytes: int
    queue: list[Event] = field(default_factory=list)
    dropped: list[Event] = field(default_factory=list)
    superseded: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the queue is beyond its bounds."""
        return len(self.queue) > self.max_events or sum(len(item.frame) for item in self.queue) > self.max_bytes

    def offer(self, batch: list[Event]) -> None:
        """Cut to the bounds, then queue."""
        while self.is_over:
            self.dropped.append(self.queue.pop(0))
        for item in batch:
            older = [other for other in self.queue if item.window is not None and other.window is item.window]
            if self.policy is Policy.LATEST and older:
                self.queue.remove(older[0])
                self.superseded += 1
            self.queue.append(item)

    def take(self) -> tuple[list[Event], list[Event]]:
        """The dropped, and the next chunk."""
        dropped, self.dropped = self.dropped, []
        taken = self.queue[:1]
        while len(taken) < len(self.queue):
            following = self.queue[len(taken)]
            if sum(len(item.frame) for item in [*taken, following]) > CHUNK_BYTES:
                break
            taken.append(following)
        del self.queue[: len(taken)]
        return dropped, taken


def check_gap(box: Outbox, dropped: list[Event]) -> None:
    """One gap stands for all that was dropped, with an exact count unless a break is among it."""
    if not dropped:
        assert box.loss is None
        return
    loss = box.loss
    breaks = [item for item in dropped if item.window is None]
    assert loss is not None
    assert (loss.position, loss.cursor) == (dropped[-1].position, str(dropped[-1].position))
    assert loss.missed == (None if breaks else len(dropped))
    assert loss.reason is (GapReason.SOURCE if breaks else GapReason.OVERFLOW)
    assert set(loss.windows) == (set() if breaks else {item.window for item in dropped})


@pytest.mark.parametrize("policy", Policy)
@settings(deadline=None)
@given(BOUNDS, STEPS)
def test_outbox_is_a_list(
    policy: Policy, bounds: tuple[int, int], steps: list[list[tuple[int | None, int]] | None]
) -> None:
    """Bounds are judged when a batch arrives; order, counts, the one gap and `latest` are as of a list (I1, I2, I5)."""
    box = Outbox(QueueBounds(*bounds, policy), 0)
    model = Model(policy, *bounds)
    position = lost = told = 0
    for step in steps:
        assert box.is_over == model.is_over
        if step is None:
            check_gap(box, model.dropped)
            before = box.position
            loss, events = box.take()
            dropped, expected = model.take()
            assert events == expected
            assert (loss is None) == (not dropped)
            assert box.position == (expected or dropped or [Event(before, None, b"", 0.0)])[-1].position >= before
            told += loss.missed or 0 if loss is not None else 0
        elif box.is_over and policy is Policy.DISCONNECT:
            return  # the stream is ended instead
        else:
            batch = []
            for channel, size in step:
                position += 1
                batch.append(event(position, channel, size))
            lost += box.offer(batch)
            model.offer(batch)
            check_gap(box, model.dropped)
        assert (box.count, box.bytes) == (len(model.queue), sum(len(item.frame) for item in model.queue))
        assert len(box.events) <= 2 * box.count + 16 + 8
    if policy is Policy.DROP_OLDEST and all(channel is not None for step in steps for channel, _ in step or []):
        assert lost == told + len(model.dropped)
