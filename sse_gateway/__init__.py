"""SSE gateway: plain Redis PUBLISH in, resumable Server-Sent Events out.

The package is built in layers; imports point down, and layers 0 to 2 do no I/O. docs/architecture.md says which module is where:

    4 root        commands, processes, and the wiring
    3 adapters    Redis, sockets, HTTP, metrics, configuration
    2 core        the hub and the replica: bytes and `now` in, bytes and decisions out
    1 mechanisms  log, windows, audiences, turns, outboxes; what nodes say; who may read
    0 vocabulary  cursors, channels, events, reasons
"""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("sse-gateway")
