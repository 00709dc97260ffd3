"""A page of another site, in a real Chromium: with the user's cookie, it opens no stream, however it tries."""

from __future__ import annotations

import http.server
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.access import jwt_auth, token
from tests.support.gateway_process import MARKER, configuration
from tests.support.nginx import nginxes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.browser.conftest import OpenPage
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

OPENED = MARKER + "streams_opened_total"

TRY = """async url => {
    const ended = source => new Promise(resolve => {
        source.addEventListener("gateway.open", () => resolve("open"));
        source.onerror = () => source.readyState === 2 && resolve("refused");
    });
    const loaded = (tag, name) => new Promise(resolve => {
        const element = document.createElement(tag);
        element.onload = () => resolve("loaded");
        element.onerror = () => resolve("refused");
        element[name] = url;
        document.body.append(element);
    });
    const fetched = mode => fetch(url, {credentials: "include", mode})
        .then(answer => answer.ok ? "open" : "refused", () => "refused");
    return {
        eventsource: await ended(new EventSource(url, {withCredentials: true})),
        plain: await ended(new EventSource(url)),
        script: await loaded("script", "src"),
        image: await loaded("img", "src"),
        fetch: await fetched("cors"),
        blind: await fetched("no-cors"),
    };
}"""


class _Page(http.server.BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        """Answer with it."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title><body>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def evil() -> Iterator[str]:
    """Another site."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def gateway(valkey: Valkey, gateways: Gateways) -> GatewayProcess:
    """A gateway that lets in by cookie."""
    return gateways.start(configuration(valkey.url, auth=jwt_auth()))


def test_a_page_of_another_site_opens_no_stream(gateway: GatewayProcess, open_page: OpenPage, evil: str) -> None:
    """Not by EventSource, script, image or fetch, though the browser sends the cookie; a page of ours does."""
    with nginxes() as start:
        site = (
            "location / { return 404; }",
            "location / { default_type text/html; return 200 '<!doctype html><body>'; }",
        )
        nginx = start(gateway.address, edits=dict([site]))
        ours = f"https://127.0.0.1:{nginx.port}"
        watched = open_page(ignore_https_errors=True)
        watched.tolerated = r"net::ERR_|CORS|MIME|status of 403|blocked"
        cookie = {"name": "__Host-sse", "value": token("a"), "url": ours, "secure": True, "sameSite": "None"}
        watched.page.context.add_cookies([cookie])  # type: ignore[list-item]  # the keys are those of its own type
        watched.page.goto(evil)
        assert set(watched.page.evaluate(TRY, f"{ours}/events/a").values()) == {"refused"}
        assert gateway.metric(OPENED) == 0
        assert watched.page.goto(f"{ours}/events/a") is not None
        assert gateway.metric(OPENED) == 0
        watched.page.goto(ours)
        opened = "url => new Promise(done => new EventSource(url).addEventListener('gateway.open', () => done(1)))"
        assert watched.page.evaluate(opened, f"{ours}/events/a") == 1
        assert gateway.metric(OPENED) == 1
