"""How long the supervisor waits before it starts a worker again."""

from __future__ import annotations

from sse_gateway.generation import BACKOFF_CAP_S, backoff_s


def test_the_first_time_is_at_once() -> None:
    """One end is an accident."""
    assert backoff_s(1) == 0


def test_pauses_double_up_to_a_bound() -> None:
    """Half of each is certain, half is chance, so that workers that died together do not start together."""
    for tries, most in enumerate((0.1, 0.2, 0.4, 0.8, 1.6, BACKOFF_CAP_S, BACKOFF_CAP_S), 2):
        drawn = [backoff_s(tries) for _ in range(100)]
        assert all(most / 2 <= pause_s <= most for pause_s in drawn)
        assert max(drawn) - min(drawn) > most / 8
    assert backoff_s(10_000) <= BACKOFF_CAP_S
