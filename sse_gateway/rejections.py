"""Publishers' mistakes, as the log shows them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sse_gateway.logs import log_event

if TYPE_CHECKING:
    from sse_gateway.channels import Rule
    from sse_gateway.errors import MessageError

REJECTED_LOG_S = 1.0
"""At most one line a second and rule about rejected messages."""

_log = logging.getLogger(__name__)


class Rejections:
    """Shows rejected messages, at a bounded rate."""

    def __init__(self) -> None:
        self._told_at: dict[int, float] = {}

    def tell(self, rule: Rule, error: MessageError, channel: bytes, payload: bytes, now: float) -> None:
        """Show one: once a second and rule, the only payload that is ever logged."""
        if now - self._told_at.get(rule.index, -REJECTED_LOG_S) >= REJECTED_LOG_S:
            self._told_at[rule.index] = now
            log_event(
                _log,
                logging.WARNING,
                "message.rejected",
                rule=rule.pattern,
                reason=error.reason,
                detail=str(error),
                channel=channel[:80].decode(errors="backslashreplace"),
                payload=payload[:80].decode(errors="backslashreplace"),
            )
