"""The payload of every benchmark event, as load_client.c reads it.

16 hex digits of sequence number, a space, 16 hex digits of the intended publish time (CLOCK_MONOTONIC,
nanoseconds), a space, and padding: the number shows loss, duplicates and disorder, the time shows the
latency, whoever of publisher, server and client was late.
"""

from __future__ import annotations

MIN_BYTES = 34
"""Two numbers of 16 digits and a space after each."""


def payload(seq: int, intended_ns: int, size: int) -> bytes:
    """Return the payload of event `seq` (from 1), exactly `size` bytes."""
    return (b"%016x %016x " % (seq, intended_ns)).ljust(size, b"x")


def intended_ns(seq: int, start_ns: int, rate: float) -> int:
    """Return when event `seq` (from 1) of a run at `rate` events a second is to be published."""
    return start_ns + int((seq - 1) * 1e9 / rate)
