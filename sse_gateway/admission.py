"""Whether one more stream may begin: what its address, its subject and the node have left.

Rules:
    1. A place is taken before the socket is, and given back when the descriptor is closed, once (I8).
    2. Who is over a limit of its own costs the others nothing: it is refused before it counts as an arrival.
    3. Replay is paid for as it is sent, so a budget may be overdrawn by what one replay brings; until it has
       faded, no further one begins. Nothing is left out of a replay that has begun.
    4. Who has no address, or no subject, is not counted by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import Struct

from sse_gateway.reasons import Refusal

if TYPE_CHECKING:
    from sse_gateway.census import Register

ADDRESSES, SUBJECTS, REPLAYS = range(3)
"""The tables of a census."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for a stream.

    Attributes:
        address: As `addresses` gives it; None if there is none.
        subject: Of its token; None if it has none.
    """

    address: str | None = None
    subject: str | None = None


NOBODY = Caller()


@dataclass(frozen=True, slots=True)
class Quotas:
    """Limits of one node; 0 is none, but for `streams`.

    Attributes:
        streams: In all.
        per_address: Of one address.
        per_subject: Of one subject.
        per_second: New ones within any second.
        replay_bytes: Of one subject, or of one address where there is no subject: at once, and again each minute.
    """

    streams: int
    per_address: int = 0
    per_subject: int = 0
    per_second: int = 0
    replay_bytes: int = 0

    @property
    def are_personal(self) -> bool:
        """Whether anything is counted by address or subject."""
        return bool(self.per_address or self.per_subject or self.replay_bytes)


class Place(Struct, frozen=True, gc=False):
    """What a stream has taken. A `Struct` because each stream keeps one: it takes a quarter less than Python's own.

    Attributes:
        address: Key that it is counted by; None if it is not counted by address.
        subject: Likewise.
        payer: Whom its replay is charged to; None if nobody.
    """

    address: bytes | None = None
    subject: bytes | None = None
    payer: bytes | None = None


class Admission:
    """Lets streams in, and counts them, for one process of the node."""

    def __init__(self, quotas: Quotas, register: Register) -> None:
        self._quotas = quotas
        self._register = register

    @property
    def is_full(self) -> bool:
        """Whether the node has all the streams it takes; those of workers that are being replaced make room."""
        return self._register.streams_of_generation >= self._quotas.streams

    def enter(self, caller: Caller, now: float, *, replays: bool) -> Place | Refusal:
        """Take a place, or say which limit is reached.

        Args:
            caller: Who asks.
            now: Seconds of a clock that all processes of the node share.
            replays: It may ask for events that were.
        """
        register, quotas = self._register, self._quotas
        payer = self._payer(caller)
        if payer and replays and register.spent(REPLAYS, payer, now) >= quotas.replay_bytes:
            return Refusal.REPLAY
        if not register.take_stream(quotas.streams):
            return Refusal.FULL
        address = self._key(caller.address, quotas.per_address)
        if address is not None and not register.take(ADDRESSES, address, quotas.per_address):
            self.leave(Place())
            return Refusal.ADDRESS
        subject = self._key(caller.subject, quotas.per_subject)
        if subject is not None and not register.take(SUBJECTS, subject, quotas.per_subject):
            self.leave(Place(address))
            return Refusal.SUBJECT
        place = Place(address, subject, payer)
        if quotas.per_second and not register.arrive(quotas.per_second, now):
            self.leave(place)
            return Refusal.RATE
        return place

    def _key(self, text: str | None, limit: int) -> bytes | None:
        """The key that somebody is counted by; None if it is not."""
        return self._register.key(text) if limit and text is not None else None

    def _payer(self, caller: Caller) -> bytes | None:
        """The key that replay is charged to. Subjects and addresses cannot be taken for one another."""
        if not self._quotas.replay_bytes:
            return None
        if caller.subject is not None:
            return self._register.key(f"subject {caller.subject}")
        return None if caller.address is None else self._register.key(f"address {caller.address}")

    def leave(self, place: Place) -> None:
        """Give a place back."""
        self._register.leave_stream()
        if place.address is not None:
            self._register.leave(ADDRESSES, place.address)
        if place.subject is not None:
            self._register.leave(SUBJECTS, place.subject)

    def pay(self, place: Place, size: int, now: float) -> None:
        """Charge bytes of replay."""
        if place.payer is not None:
            self._register.spend(REPLAYS, place.payer, size, now)
