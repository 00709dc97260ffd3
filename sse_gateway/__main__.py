"""``python -m sse_gateway``: the same as the command ``sse-gateway``."""

from __future__ import annotations

from sse_gateway.cli import main

if __name__ == "__main__":
    main()
