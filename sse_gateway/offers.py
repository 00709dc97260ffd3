"""Snapshots for nodes that join: cut, offered, handed over.

Rules:
    1. The cut is made when the JOIN is dequeued, by every node that holds the log; the first OFFER in
       the log wins, and the others let go of theirs.
    2. A node of the joiner's own host offers at once, others wait a little: their way is longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sse_gateway.control import Kind
from sse_gateway.decisions import Serve, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sse_gateway.control import Message
    from sse_gateway.cut import Cut
    from sse_gateway.decisions import Decision
    from sse_gateway.hub import Hub

OFFER_S = (0.02, 0.12)
"""How long a node of another host waits before it offers."""

MAX_CUTS = 4
"""Snapshots that are given at the same time; other joiners ask again."""


@dataclass(slots=True)
class _Offer:
    """A cut that is offered to a joiner at `due`, seconds."""

    cut: Cut
    joiner: str
    via: str
    due: float
    is_made: bool = False
    has_won: bool = False


class Offers:
    """The snapshots that this node gives.

    Attributes:
        served: Snapshots whose hand-over has begun.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        publish: Callable[..., object],
        decide: Callable[[Decision], None],
        random: Callable[[], float],
        is_local: Callable[[str], bool],
    ) -> None:
        """Start with none.

        Args:
            hub: The core.
            publish: Publishes a control message: its kind and fields.
            decide: Has a decision carried out.
            random: Draws from 0 to 1.
            is_local: Whether a node can be reached on this host.
        """
        self.served = 0
        self._hub = hub
        self._publish = publish
        self._decide = decide
        self._random = random
        self._is_local = is_local
        self._offers: dict[str, _Offer] = {}

    def prepare(self, join: Message, claims: Iterable[str], now: float) -> None:
        """Cut for a JOIN, at its place in the log."""
        token, have = join.fields
        for known, offer in list(self._offers.items()):
            if offer.joiner == join.node or known == token:  # it asks anew: of the other it wants no more
                self._stop(known)
        if len(self._offers) >= MAX_CUTS:
            return
        is_local = self._is_local(join.node)
        delay = 0.0 if is_local else OFFER_S[0] + self._random() * (OFFER_S[1] - OFFER_S[0])
        cut = self._hub.cut(token, have, claims, now)
        self._offers[token] = _Offer(cut, join.node, "unix" if is_local else "list", now + delay)
        self.make(now)

    @property
    def is_waiting(self) -> bool:
        """Whether an offer has still to be made."""
        return not all(offer.is_made for offer in self._offers.values())

    def make(self, now: float) -> None:
        """Offer what is due."""
        for token, offer in self._offers.items():
            if not offer.is_made and now >= offer.due:
                offer.is_made = True
                self._publish(Kind.OFFER, token, offer.joiner, offer.via)

    def settle(self, message: Message, *, is_ours: bool) -> None:
        """Take an OFFER: the first for a token wins, later ones find nothing any more."""
        token = message.fields[0]
        offer = self._offers.get(token)
        if offer is None:
            return
        if is_ours:
            offer.has_won = True
            self.served += 1
            self._decide(Serve(token, offer.joiner, offer.via, offer.cut))
        elif not offer.has_won:
            self.end(token)

    def end(self, token: str) -> None:
        """Let go of a cut. Idempotent."""
        offer = self._offers.pop(token, None)
        if offer is not None:
            offer.cut.close()

    def drop(self) -> None:
        """Let go of all, and stop what is under way."""
        for token in list(self._offers):
            self._stop(token)

    def _stop(self, token: str) -> None:
        self.end(token)
        self._decide(Stop(token))
