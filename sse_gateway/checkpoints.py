"""Whether the nodes still count the same: hashes compared twice a second, and what a difference means.

Rules:
    1. Whoever has not just seen a checkpoint of its epoch sends one: where it stands, with the hash there.
    2. A checkpoint that our ring does not bear out, or that is ahead of us, means that somebody has a
       hole. Nobody can tell who, so both sides are suspect, and the log begins anew for all.
    3. One of a younger epoch means that we have missed how it began. One of an older epoch was sent by a
       node that is behind, or is an old message repeated: if it is still there, it will hear of ours.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sse_gateway.log import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_gateway.log import Log

CHECKPOINT_S = 0.5
"""Time between two checkpoints of anybody."""

DIVERGENCES = 3
DIVERGENCE_S = 300.0
"""So many divergences in this time, and the node leaves."""


class Checkpoints:
    """When to send one, and what to make of others.

    Attributes:
        divergences: Divergences that this node took part in.
        due: When to send the next one, seconds; a checkpoint of anybody puts it off.
    """

    def __init__(self, log: Log, random: Callable[[], float]) -> None:
        """Start; `begin` comes before the first use.

        Args:
            log: What is compared.
            random: Draws from 0 to 1.
        """
        self.divergences = 0
        self._log = log
        self._random = random
        self.due = 0.0
        self._diverged_at: deque[float] = deque(maxlen=DIVERGENCES)

    def begin(self, now: float) -> None:
        """An epoch is ours from now on."""
        self._wait(now)

    def is_due(self, now: float) -> bool:
        """Whether to send one now; says so once."""
        if now < self.due:
            return False
        self._wait(now)
        return True

    def contested(self, cursor: str, now: float) -> list[str]:
        """Take a checkpoint of anybody.

        Returns:
            The epochs that have diverged; empty if all is well.
        """
        ours = self._log.epoch.name
        theirs, _, _ = cursor.partition("-")
        if theirs == ours:
            self._wait(now)
        verdict, _ = self._log.locate(cursor)
        if theirs == ours:
            return [] if verdict in {Verdict.VERIFIED, Verdict.STALE} else [ours]
        return [ours, theirs] if verdict is Verdict.NEWER_EPOCH else []

    def took_part(self, now: float) -> bool:
        """Note a divergence that this node took part in; True if it was one too many."""
        self.divergences += 1
        self._diverged_at.append(now)
        is_last = len(self._diverged_at) == DIVERGENCES and now - self._diverged_at[0] < DIVERGENCE_S
        if is_last:
            self._diverged_at.clear()
        return is_last

    def _wait(self, now: float) -> None:
        self.due = now + CHECKPOINT_S * (1 + self._random() / 4)
