"""How much the core may hold, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from sse_gateway.log import RING_SIZE


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the core.

    Attributes:
        channels: Channels remembered.
        window_bytes: Memory of all windows.
        queue_bytes: Memory of all outboxes.
        message_bytes: Largest payload, and largest encoded frame.
        pass_bytes: Bytes in rounds and passes beyond which the source should pause.
        heartbeat_s: Silence after which a stream gets a heartbeat.
        write_timeout_s: How long a socket may take no byte.
        ring_size: Positions whose cursors can be verified.
        writes_per_step: Writes between two looks at the clock: 128 take about 0.6 ms.
    """

    channels: int
    window_bytes: int
    queue_bytes: int
    message_bytes: int
    heartbeat_s: float
    write_timeout_s: float
    pass_bytes: int = 8 * 1024 * 1024
    ring_size: int = RING_SIZE
    writes_per_step: int = 128
