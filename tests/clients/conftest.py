"""The marker of the tests with clients of other hands, and what they run against."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "clients: runs clients written in Node, Go and Java, where these are installed")


class Refuser:
    """A server that answers every GET of ``/NNN`` with status NNN.

    Attributes:
        requests: How many came, by status.
    """

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        refuser = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status = int(self.path.strip("/"))
                refuser.requests[status] += 1
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:  # it would go to stderr
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def url(self, status: int) -> str:
        """Return the URL that is answered with a status."""
        return f"http://127.0.0.1:{self._server.server_port}/{status}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def refuser() -> Iterator[Refuser]:
    """Run a server that refuses as it is told."""
    server = Refuser()
    yield server
    server.close()
