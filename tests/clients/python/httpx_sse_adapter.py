"""httpx-sse: an iterator over one response; coming back is left to its user."""

from __future__ import annotations

import httpx
from httpx_sse import SSEError, connect_sse

from tests.clients.python import report


def main() -> None:
    """Follow one response to its end."""
    url, cursor = report.arguments()
    try:
        with (
            httpx.Client(timeout=30, trust_env=False) as client,
            connect_sse(client, "GET", url, headers=report.headers(cursor)) as source,
        ):
            for event in source.iter_sse():
                report.event(event.event, event.data, event.id)
    except (httpx.HTTPError, SSEError) as error:
        report.error(error)
    report.end()


if __name__ == "__main__":
    main()
