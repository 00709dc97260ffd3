"""Where a node stands on its way to the log."""

from __future__ import annotations

from enum import Enum, auto


class Role(Enum):
    """Where this node stands; `replica` says what each means."""

    OFFLINE = auto()
    JOINING = auto()
    BUFFERING = auto()
    SYNCED = auto()
    LEFT = auto()
