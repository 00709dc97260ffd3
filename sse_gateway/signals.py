"""The signals that every process of the gateway handles. Where nobody has handlers for them yet, or no more, they are blocked and wait."""

from __future__ import annotations

import signal

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
