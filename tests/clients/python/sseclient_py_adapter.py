"""sseclient-py: parses whatever yields bytes, here a response of requests; never reconnects."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import requests
from sseclient import SSEClient

from tests.clients.python import report

if TYPE_CHECKING:
    from collections.abc import Iterator


def main() -> None:
    """Follow one response to its end."""
    url, cursor = report.arguments()
    headers = {"Accept": "text/event-stream", **report.headers(cursor)}
    try:
        response = requests.get(url, stream=True, headers=headers, timeout=30)
        response.raise_for_status()
        # Its types ask for an iterator; its documentation passes the response, and that is what is tried here.
        for event in SSEClient(cast("Iterator[bytes]", response)).events():
            report.event(event.event, event.data, event.id)
    except requests.RequestException as error:
        report.error(error)
    report.end()


if __name__ == "__main__":
    main()
