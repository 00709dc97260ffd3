"""aiohttp-sse-client2: an asynchronous iterator that reconnects by itself."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import aiohttp
from aiohttp_sse_client2.client import EventSource

from tests.clients.python import report


async def main() -> None:
    """Follow the stream until the client gives up."""
    url, cursor = report.arguments()
    try:
        async with EventSource(
            url,
            headers=report.headers(cursor),
            reconnection_time=timedelta(milliseconds=100),  # its default of 5 s is the first wait, doubled
            timeout=aiohttp.ClientTimeout(total=None),  # else aiohttp ends every stream after 5 minutes
            on_error=lambda: report.error("error"),
        ) as source:
            async for event in source:
                report.event(event.type or "message", event.data, event.last_event_id)
    except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError, ValueError) as error:
        report.error(error)
    report.end()


if __name__ == "__main__":
    asyncio.run(main())
