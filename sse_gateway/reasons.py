"""Closed sets: why a stream ended, a gap was told, a message was refused.

Every value is a metric label and a word in a log line or in the stream itself, so the sets
are the contract: a new member needs a row in ``docs/protocol.md`` or ``docs/operations.md``.
"""

from __future__ import annotations

from enum import StrEnum


class Policy(StrEnum):
    """What happens to a client that reads too slowly; in order of what loses least."""

    DISCONNECT = "disconnect"
    DROP_OLDEST = "drop_oldest"
    LATEST = "latest"


class Format(StrEnum):
    """How a payload is read."""

    TEXT = "text"
    JSON = "json"


class GapReason(StrEnum):
    """Why events may be missing, as told in ``gateway.gap``."""

    WINDOW = "window"
    """Aged or pushed out of the replay window."""
    OVERFLOW = "overflow"
    """This client was too slow."""
    SOURCE = "source"
    """The link to Redis was lost."""
    EPOCH = "epoch"
    """The log began anew, or the cursor is of a log unknown here."""
    CURSOR = "cursor"
    """The cursor is not one of ours, or does not verify."""


class Replay(StrEnum):
    """What ``gateway.open`` says of the events between the cursor and now."""

    NONE = "none"
    COMPLETE = "complete"
    GAP = "gap"


class CloseReason(StrEnum):
    """Why a stream ended. Every stream ends once, with one of these (I8)."""

    CLIENT = "client"
    """The client went away."""
    DRAIN = "drain"
    """The gateway stops."""
    MAX_AGE = "max_age"
    """The stream reached its maximal age."""
    EXPIRED = "expired"
    """The client's token ended."""
    REVOKED = "revoked"
    """The client's token was revoked."""
    ERROR = "error"
    """A fault of ours; the stream cannot go on."""
    SLOW = "slow"
    """The policy `disconnect` acted."""
    MEMORY = "memory"
    """The fullest queue at the limit of `queue_memory`."""
    TIMEOUT = "timeout"
    """The client took no byte for `write_timeout`."""
    PROTOCOL = "protocol"
    """The client kept sending on a stream that only we write."""

    @classmethod
    def of(cls, error: OSError) -> CloseReason:
        """Why a socket is of no use any more: the kernel, too, waits no longer than `write_timeout`."""
        return cls.TIMEOUT if isinstance(error, TimeoutError) else cls.CLIENT


class Unavailable(StrEnum):
    """Why a new stream is refused for now, as told in ``gateway.unavailable``."""

    DRAINING = "draining"
    FULL = "full"
    SOURCE = "source"


class AccessFailure(StrEnum):
    """Why a client was not let in. Clients are told no more than the status."""

    MISSING = "missing"
    """No token, or nothing to show to the application."""
    AMBIGUOUS = "ambiguous"
    """Several tokens that differ."""
    MALFORMED = "malformed"
    """Not a signed token; too long; a header or a claim without its form."""
    ALGORITHM = "algorithm"
    """Signed in a way that is not listed."""
    KEY = "key"
    """Signed with a key that is not known."""
    SIGNATURE = "signature"
    """The signature is wrong."""
    EXPIRED = "expired"
    """Its time is over."""
    LIFETIME = "lifetime"
    """It would live longer than `max_lifetime`."""
    EARLY = "early"
    """Its time has not come."""
    AUDIENCE = "audience"
    """It is for somebody else."""
    ISSUER = "issuer"
    """It is somebody else's."""
    CHANNELS = "channels"
    """Its list of channels is none."""
    REVOKED = "revoked"
    """It, or whose it is, was revoked."""
    REFUSED = "refused"
    """The application said no."""
    FORBIDDEN = "forbidden"
    """It is good, but not for all these channels."""
    UNAVAILABLE = "unavailable"
    """The application, or the issuer's keys, could not be reached: refused for now."""


class Refusal(StrEnum):
    """Why a new stream is refused for now, as counted and logged; the client is told less."""

    DRAINING = "draining"
    """The gateway stops."""
    SOURCE = "source"
    """The log is not there."""
    FULL = "full"
    """`limits.connections`, or no descriptor is left."""
    ADDRESS = "address"
    """`limits.connections_per_address`."""
    SUBJECT = "subject"
    """`limits.connections_per_subject`."""
    RATE = "rate"
    """`limits.connections_per_second`."""
    REPLAY = "replay"
    """`limits.replay_per_subject`."""

    @property
    def told(self) -> Unavailable:
        """What the client is told."""
        return _TOLD.get(self, Unavailable.FULL)


_TOLD = {Refusal.DRAINING: Unavailable.DRAINING, Refusal.SOURCE: Unavailable.SOURCE}


class DropReason(StrEnum):
    """Why a connection without a stream was ended."""

    DEADLINE = "deadline"
    """Its request took too long to arrive."""
    CROWD = "crowd"
    """There were too many, and it had waited longest."""
    SIZE = "size"
    """It sent too much that was no request, or while one was being answered."""


class RejectReason(StrEnum):
    """Why a published message was refused."""

    ENCODING = "encoding"
    """Not UTF-8."""
    ENVELOPE = "envelope"
    """Not the JSON envelope."""
    SIZE = "size"
    """Larger than `message_size`, as payload or as encoded frame."""
    TYPE = "type"
    """An event type or id that is reserved or ill-formed."""
    CHANNEL = "channel"
    """A channel name that no client could ask for."""
    INTERNAL = "internal"
    """Decoding failed in a way we did not foresee (I9)."""
