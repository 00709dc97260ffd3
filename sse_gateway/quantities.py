"""Durations and sizes as an operator writes them: ``15s``, ``64KiB``.

What `format_…` writes, `parse_…` reads back as the same value.
"""

from __future__ import annotations

import re

_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

MAX_DURATION_S = 24 * 86_400.0
"""24 days: the kernel's socket options and browsers' timers hold at most 2**31 milliseconds."""

MAX_SIZE_BYTES = 1 << 40
"""1024 GiB: more is a slip of the pen."""

# Without leading zeros: ``010`` is eight to some readers and ten to others.
DURATION_PATTERN = r"^(0|[1-9][0-9]{0,12})(ms|s|m|h|d)$"
SIZE_PATTERN = r"^(0|[1-9][0-9]{0,15})(B|KiB|MiB|GiB)?$"

_DURATION = re.compile(DURATION_PATTERN)
_SIZE = re.compile(SIZE_PATTERN)
_BARE = re.compile(r"(0|[1-9][0-9]{0,15})")
_OTHER_UNIT = re.compile(r"(0|[1-9][0-9]{0,15}) ?([KMG])(?:i?B)?", re.IGNORECASE)


def parse_duration(value: object) -> float:
    """Read a duration.

    Args:
        value: Text: a whole number and one of ``ms s m h d``; anything else is refused.

    Returns:
        Seconds, 0 to 24 days.

    Raises:
        ValueError: With what to write instead; never quotes text that is not a number and a unit.
    """
    text = _text(value)
    if _BARE.fullmatch(text):
        raise ValueError(f"needs a unit: write {text}s for seconds, or one of ms, m, h, d")
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("must be a duration: a whole number and one of ms, s, m, h, d, such as 15s")
    seconds = int(match[1]) * _MILLISECONDS[match[2]] / 1000
    if seconds > MAX_DURATION_S:
        raise ValueError(f"must be at most {format_duration(MAX_DURATION_S)}")
    return seconds


def format_duration(seconds: float) -> str:
    """Write a duration of whole milliseconds in the largest unit that divides it."""
    milliseconds = round(seconds * 1000)
    if not milliseconds:
        return "0s"
    unit = max((unit for unit, size in _MILLISECONDS.items() if not milliseconds % size), key=_MILLISECONDS.__getitem__)
    return f"{milliseconds // _MILLISECONDS[unit]}{unit}"


def parse_size(value: object) -> int:
    """Read a size.

    Args:
        value: An integer (bytes), or text: a whole number and one of ``B KiB MiB GiB``.

    Returns:
        Bytes, 1 to 2**40.

    Raises:
        ValueError: With what to write instead; never quotes text that is not a number and a unit.
    """
    text = _text(value)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(_size_remedy(text))
    size = int(match[1]) * _BYTES[match[2] or "B"]
    if not 1 <= size <= MAX_SIZE_BYTES:
        raise ValueError(f"must be from 1 byte to {format_size(MAX_SIZE_BYTES)}")
    return size


def format_size(size: int) -> str:
    """Write a size in the largest unit that divides it."""
    unit = max((unit for unit, factor in _BYTES.items() if not size % factor), key=_BYTES.__getitem__)
    return f"{size // _BYTES[unit]}{unit}"


def _text(value: object) -> str:
    """The one spelling under which numbers and text are judged; empty for what is neither."""
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""


def _size_remedy(text: str) -> str:
    """What to write instead of `text`."""
    match = _OTHER_UNIT.fullmatch(text)
    if match is not None:
        return (
            f"has a unit that some read as 1000: write {match[1]}{match[2].upper()}iB, or the bytes as a plain number"
        )
    return "must be a size: a whole number and one of KiB, MiB, GiB, or plain bytes, such as 64KiB"
