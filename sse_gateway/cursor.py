"""The text of an ``id:``: ``<epoch>-<offset>-<check>``. The only code that knows its form.

Rules:
    - Only ``[0-9a-z-]``, at most 48 bytes: no byte that forces a CORS preflight, no value that
      could end its line (I7).
    - `epoch` names one unbroken run of offsets; `offset` counts from 0 in it, in decimal without
      leading zeros; `check` is the log's running keyed hash at that offset (I10).
    - ``0-0-0`` is a position that never verifies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

EPOCH_LENGTH = 12
"""Base-36 digits: the second in which the name was drawn, so that names ascend, and 31 random bits."""

CHECK_LENGTH = 12
"""Hexadecimal digits: the first 48 bits of the hash."""

UNVERIFIABLE = "0-0-0"

# 12 + 1 + 19 + 1 + 12 = 45 bytes at most; 19 digits hold 2**63.
_CURSOR = re.compile(r"([0-9a-z]{12})-(0|[1-9][0-9]{0,18})-([0-9a-f]{12})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the log, as a client holds it.

    Attributes:
        epoch: 12 base-36 digits.
        offset: 0 … 2**63.
        check: 12 hexadecimal digits.
    """

    epoch: str
    offset: int
    check: str

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}-{self.check}"


def parse_cursor(text: str) -> Cursor | None:
    """Parse what a client sent back; None for anything that is not one of our cursors."""
    match = _CURSOR.fullmatch(text)
    if match is None:
        return None
    epoch, offset, check = match.groups()
    return Cursor(epoch, int(offset), check)
