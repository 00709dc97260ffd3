"""Exceptions, by whose fault it is.

    GatewayError
    ├── ConfigError      the operator   every problem at once, exit 78
    ├── RequestError     the client     answered with its status
    ├── AccessError      the client     what it showed is not accepted, or does not suffice: 400, 401 or 403
    ├── TemporaryError   nobody         the answer is not to be had now; the client comes back
    ├── MessageError     the publisher  counted and skipped
    └── SourceError      Redis          back-off, reconnect, new epoch

Anything else is ours and ends the process (I9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sse_gateway.reasons import AccessFailure, RejectReason, Unavailable


class GatewayError(Exception):
    """Base of all errors the gateway raises on purpose."""


class ConfigError(GatewayError):
    """The configuration cannot be used.

    Attributes:
        problems: One sentence each, as ``FILE:LINE:COL: key: what is wrong``.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class RequestError(GatewayError):
    """A request that is refused.

    Attributes:
        status: HTTP status, 400 to 499.
        detail: One sentence for the person who sent it.
        headers: That the answer has besides.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}


class AccessError(GatewayError):
    """Credentials that are not accepted.

    Attributes:
        why: For our log and metrics; the client is not told.
    """

    def __init__(self, why: AccessFailure) -> None:
        super().__init__(why.value)
        self.why = why


class TemporaryError(GatewayError):
    """A request that cannot be judged now, through no fault of the client's.

    Attributes:
        reason: What the client is told.
    """

    def __init__(self, reason: Unavailable) -> None:
        super().__init__(reason.value)
        self.reason = reason


class MessageError(GatewayError):
    """A published message that is rejected; it harms only itself.

    Attributes:
        reason: Metric label.
    """

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class SourceError(GatewayError):
    """Redis is away, unfit, or not to be trusted any more; try again after a back-off."""


class SnapshotError(GatewayError):
    """A snapshot of a peer is damaged, forged or too large; ask again."""


class StoreError(GatewayError):
    """What is stored of the log is damaged, foreign, of another version, or too large; a new log begins."""
