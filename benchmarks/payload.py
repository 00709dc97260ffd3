"""The payload of every benchmark event, as load_check.h reads it.

16 hex digits of sequence number, a space, 16 hex digits of the intended publish time (CLOCK_MONOTONIC,
nanoseconds), a space, and padding: the number shows loss, duplicates and disorder, the time shows the
latency, whoever of publisher, server and client was late. Below 34 bytes the compact form: 8 digits, a space, 11 digits
of microseconds.
"""

from __future__ import annotations

MIN_BYTES = 20
"""The compact form."""

FULL_BYTES = 34
"""Two numbers of 16 digits and a space after each."""


def payload(seq: int, intended_ns: int, size: int) -> bytes:
    """Return the payload of event `seq` (from 1), exactly `size` bytes."""
    if size < FULL_BYTES:
        return (b"%08x %011x" % (seq, intended_ns // 1000)).ljust(size, b"x")
    return (b"%016x %016x " % (seq, intended_ns)).ljust(size, b"x")


def intended_ns(number: int, start_ns: int, rate: float) -> int:
    """Return when the event of that number (from 0) of a run at `rate` events a second is to be published."""
    return start_ns + int(number * 1e9 / rate)
