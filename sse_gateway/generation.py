"""The workers of one configuration: started together, kept alive, ended together.

Rules:
    1. A worker that ends unasked is started again: the first time at once, then after a back-off
       with jitter; one that lived for a while begins anew.
    2. A worker that is silent for the watchdog's time is ended with SIGABRT, which shows where it
       hung, and then SIGKILL.
    3. After `drain` and `hurry` none is started again, and the end of each has a bound.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sse_gateway.child import spawn
from sse_gateway.logs import log_event
from sse_gateway.orders import Accept, Drain, Start, Stop

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sse_gateway.child import Child, Owner
    from sse_gateway.listeners import Sockets
    from sse_gateway.orders import Message
    from sse_gateway.settings import Settings

START_S = 30.0
"""How long a worker may take to load; only then does the watchdog's time count."""

ABORT_S = 2.0
"""How long SIGABRT may take."""

SPARE_S = 6.0
"""How long workers may take to end after their drain, or without one; then SIGKILL."""

BACKOFF_S = 0.1
BACKOFF_CAP_S = 2.0

SETTLED_S = 10.0
"""A worker that lived so long is started again at once."""

_log = logging.getLogger(__name__)


class House(Owner, Protocol):
    """Who keeps the generations."""

    def next_number(self) -> int: ...
