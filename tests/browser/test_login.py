"""The three ways in which a page shows a token: real Chromium, over TLS through the shipped nginx file, tokens of 3 seconds.

In that time each of the three lives through several tokens, and may neither lose nor repeat an event.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support.access import SECRET
from tests.support.gateway_process import STREAMS_CLOSED, configuration, poll, rule
from tests.support.nginx import nginxes
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from tests.browser.conftest import OpenPage
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
LIFETIME_S = 3
WAYS = ("cookie", "header", "query")


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[int]:
    """Run the service; yields its port."""
    port = free_port()
    environment = os.environ | {"GATEWAY_SECRET": SECRET, "TOKEN_LIFETIME_S": str(LIFETIME_S)}
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", str(port), "login:app"]
    with (directory / "login.log").open("w") as log:
        service = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            poll(lambda: answers(port), timeout_s=30, what="service")
            yield port
        finally:
            service.kill()
            service.wait(10)


def test_each_way_outlives_its_token(valkey: Valkey, gateways: Gateways, open_page: OpenPage, tmp_path: Path) -> None:
    """Every event arrives once and in order, whatever becomes of tokens; nginx's logs have none of them (A11)."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        pytest.skip("EXAMPLES NOT RUN: they need fastapi and uvicorn (pip)")
    auth = yaml.safe_load((EXAMPLES / "login.yaml").read_text())["auth"] | {"secret": SECRET}
    gateway = gateways.start(configuration(valkey.url, rule("sse:*"), auth=auth, stream={"retry": "200ms"}))
    with serving(tmp_path) as port, nginxes() as start:
        room = {"location / { return 404; }": f"location / {{ proxy_pass http://127.0.0.1:{port}; }}"}
        nginx = start(gateway.address, edits={**room, "rate=20r/s": "rate=2000r/s"})
        pages = {way: visit(open_page, f"https://127.0.0.1:{nginx.port}/login.html?way={way}") for way in WAYS}
        poll(lambda: gateway.metric("sse_gateway_connections") == len(WAYS), timeout_s=20, what="three streams")
        begun = time.monotonic()
        sent: list[str] = []
        while time.monotonic() - begun < 3 * LIFETIME_S or expired(gateway) < 2 * len(WAYS):
            sent.append(str(len(sent)))
            valkey.publish("sse:orders:ann", sent[-1])
            pages["cookie"].wait_for_timeout(100)
        for way, page in pages.items():
            page.wait_for_function(f"document.querySelectorAll('#events li').length >= {len(sent)}")
            assert page.locator("#events li").all_text_contents() == sent, way
        logs = nginx.read_log() + nginx.read_log("sse-gateway-error.log") + nginx.read_log("access.log")
    assert "/events/orders:ann" in logs
    assert "eyJ" not in logs
    assert "eyJ" not in str(gateway.logs)


def expired(gateway: GatewayProcess) -> float:
    """How many streams have ended with their tokens."""
    return gateway.metric(STREAMS_CLOSED, reason="expired")


def visit(open_page: OpenPage, url: str) -> Page:
    """Open the page in a browser of its own, and log in."""
    watched = open_page(ignore_https_errors=True)
    watched.tolerated = "net::ERR_|401"
    watched.page.goto(url)
    watched.page.click("#login")
    return watched.page


def answers(port: int) -> bool:
    """Whether the service is up."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        with contextlib.suppress(OSError):
            connection.request("GET", "/login.html")
            return connection.getresponse().status == 200
        return False
