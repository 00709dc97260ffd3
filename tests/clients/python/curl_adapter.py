"""curl: shows the bytes as they come; what they mean is read by the reference parser."""

from __future__ import annotations

import subprocess

from tests.clients.python import report
from tests.support.eventsource import EventSourceParser


def main() -> None:
    """Follow one response to its end."""
    url, cursor = report.arguments()
    command = ["curl", "--no-buffer", "--silent", "--show-error", "--fail", "--header", "Accept: text/event-stream"]
    command += ["--header", f"Last-Event-ID: {cursor}"] if cursor else []
    parser = EventSourceParser()
    with subprocess.Popen([*command, url], stdout=subprocess.PIPE, bufsize=0) as curl:
        assert curl.stdout is not None
        while piece := curl.stdout.read(65_536):
            for event in parser.feed(piece):
                report.event(event.type, event.data or "", event.last_event_id)
    if curl.returncode:
        report.error(f"curl ended with {curl.returncode}")
    report.end()


if __name__ == "__main__":
    main()
