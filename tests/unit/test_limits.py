from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from sse_gateway.limits import Limits
from sse_gateway.log import RING_SIZE


def test_bounds_stand_once_the_core_has_them() -> None:
    """Nothing changes them under it; what the operator does not set covers what the documents promise."""
    limits = Limits(channels=1, window_bytes=2, queue_bytes=3, message_bytes=4, heartbeat_s=15.0, write_timeout_s=30.0)
    assert (limits.ring_size, limits.pass_bytes) == (RING_SIZE, 8 << 20)
    with pytest.raises(FrozenInstanceError):
        limits.channels = 2  # type: ignore[misc] # that is what is tried
