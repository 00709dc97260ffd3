"""launchdarkly-eventsource: reconnects by itself if it is told to."""

from __future__ import annotations

from ld_eventsource import SSEClient
from ld_eventsource.actions import Event, Fault
from ld_eventsource.config import ErrorStrategy

from tests.clients.python import report


def main() -> None:
    """Follow the stream until the client gives up."""
    url, cursor = report.arguments()
    client = SSEClient(
        url,
        initial_retry_delay=0.1,  # its default is 1 s, doubled again and again
        error_strategy=ErrorStrategy.always_continue(),
        last_event_id=cursor or None,
    )
    for action in client.all:
        if isinstance(action, Event):
            report.event(action.event, action.data, action.id)
        elif isinstance(action, Fault):
            report.error(action.error or "the stream ended")
    report.end()


if __name__ == "__main__":
    main()
