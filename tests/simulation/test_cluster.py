"""The whole cluster under random schedules, against an oracle that knows only what was published.

Nodes run the shipping core; Redis, links, snapshots' transport, clients and the clock are virtual and
follow from one seed. Schedules are as many as `SSE_GATEWAY_TEST_SCHEDULES` says, 2,000 unless told;
``python -m tests.simulation.campaign`` runs more, or one again.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.simulation.campaign import portion, story
from tests.support.cluster_run import Run, fails

SCHEDULES = int(os.environ.get("SSE_GATEWAY_TEST_SCHEDULES", "2000"))
PARTS = 16


@pytest.mark.timeout(0)  # as long as was asked for
@pytest.mark.parametrize("part", range(PARTS))
def test_no_client_misses_anything_untold(part: int) -> None:
    """Whatever fails, every client gets all of its channels once, in order, or is told (I1 I2 I6 I8 I10 I11)."""
    share = -(-SCHEDULES // PARTS)
    counts, failed = portion(part * share, min((part + 1) * share, SCHEDULES), "")
    for seed, _ in failed[:1]:
        print(story(seed, lines=200))  # noqa: T201
    assert not failed, f"{len(failed)} of {counts['schedules']} schedules: {failed[:5]}"


def test_without_a_fault_there_is_one_epoch_and_no_gap() -> None:
    """Nodes that come and go in order, and clients that roam, are no reason for a gap."""
    counts: Counter[str] = Counter()
    assert [seed for seed in range(60) if fails(seed, profile="calm", counts=counts)] == []

    assert counts["epochs"] == 60
    assert counts["deliveries"] > 5000
    assert not any(counts[f"gap {reason}"] for reason in ("window", "epoch", "source", "cursor"))


def test_a_hole_that_no_redis_makes_is_told_all_the_same() -> None:
    """Where a link drops a message without a trace, checkpoints find it, and the log begins anew for all."""
    counts: Counter[str] = Counter()
    failed = [(seed, error) for seed in range(80) if (error := fails(seed, profile="hole", counts=counts))]

    assert failed == []
    assert counts["faults"] > 80
    assert counts["switched"] > 80


def test_a_seed_is_a_schedule() -> None:
    """The same seed gives the same schedule, line by line."""
    stories = []
    for _ in range(2):
        run = Run(11, tracing=True)
        run.play()
        stories.append(run.lines)

    assert stories[0] == stories[1]
