"""How late this machine is: what a test of times may add to what was promised, and no more."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAP_S = 0.01


class Lateness:
    """Somebody who does nothing but sleep, and adds up how much too long.

    Attributes:
        total_s: So much, so far.
    """

    def __init__(self) -> None:
        self.total_s = 0.0
        self._awake = threading.Event()
        self._thread = threading.Thread(target=self._sleep, daemon=True)
        self._thread.start()

    def _sleep(self) -> None:
        due = time.monotonic() + _NAP_S
        while not self._awake.wait(_NAP_S):
            now = time.monotonic()
            self.total_s += max(0.0, now - due)
            due = now + _NAP_S

    def close(self) -> None:
        """Stop."""
        self._awake.set()
        self._thread.join()


@contextlib.contextmanager
def lateness() -> Iterator[Lateness]:
    """Measure it for the length of a ``with`` block."""
    measured = Lateness()
    try:
        yield measured
    finally:
        measured.close()
