"""What is stored of the log, for a node that has none and is about to begin one.

Rules:
    1. Nobody claims before it has looked there, once for each link: what nobody holds may still be stored.
    2. What was found is used where a new epoch begins, and only in a log that has none yet.
    3. A node that has not looked yet does not begin with others either: it takes the log from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.decisions import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_gateway.decisions import Decision
    from sse_gateway.hub import Hub
    from sse_gateway.recollection import Recollection


class Recall:
    """Looks for a stored log."""

    def __init__(self, hub: Hub, decide: Callable[[Decision], None], *, has_store: bool) -> None:
        """Start without having looked.

        Args:
            hub: The core.
            decide: Has a decision carried out.
            has_store: Whether there is anything to look into.
        """
        self._hub = hub
        self._decide = decide
        self._is_open = has_store
        self._is_loading = False
        self._is_late = False  # this look began on another link
        self._has_store = has_store
        self._found: Recollection | None = None

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to wait for: we have a log, or have looked."""
        return not self._is_open or bool(self._hub.log.epochs)

    def look(self) -> bool:
        """Begin to look, if that is still to be done; returns `is_settled`. To be called until it is."""
        if not self.is_settled and not self._is_loading:
            self._is_loading = True
            self._decide(Load())
        return self.is_settled

    def found(self, recollection: Recollection | None) -> None:
        """What was stored; None if nothing, or nothing of use."""
        is_late, self._is_late = self._is_late, False
        self._is_loading = False
        if not is_late:
            self._is_open = False
            self._found = None if self._hub.log.epochs else recollection

    def drop(self) -> None:
        """The log has come from elsewhere: what was found is of no use, and as large as the windows."""
        self._found = None

    def reset(self) -> None:
        """A new link: what is stored may be another by now, also while we read it."""
        self._is_late = self._is_loading
        self._is_open = self._has_store
        self._found = None

    def use(self, now: float) -> None:
        """Go on from what was found, if we have no log; a new epoch begins next."""
        found, self._found = self._found, None
        if found is not None and not self._hub.log.epochs:
            found.restore(self._hub.log, self._hub.history, now)
