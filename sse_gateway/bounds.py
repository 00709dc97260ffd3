"""The bounds of the core, as the configuration says them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.limits import Limits

if TYPE_CHECKING:
    from sse_gateway.settings import Settings


def core_limits(settings: Settings, tick_s: float) -> Limits:
    """Make them.

    Args:
        settings: Configuration.
        tick_s: Between two looks at the clock.
    """
    return Limits(
        channels=settings.limits.channels,
        window_bytes=settings.limits.window_memory_bytes,
        queue_bytes=settings.limits.queue_memory_bytes,
        message_bytes=settings.limits.message_bytes,
        # A tick comes late by its interval at most, so a heartbeat is due that much earlier.
        heartbeat_s=settings.stream.heartbeat_s - tick_s,
        write_timeout_s=settings.stream.write_timeout_s,
    )
