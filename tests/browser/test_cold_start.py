"""Every process of the gateway is killed while a page follows: it comes back by itself, and sees what it had missed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.gateway_process import configuration, poll, rule
from tests.support.proxy import proxied

if TYPE_CHECKING:
    from tests.browser.conftest import OpenPage
    from tests.support.gateway_process import Gateways
    from tests.support.valkey import Valkey

pytestmark = pytest.mark.slow

# Follows one URL, and writes down what is shown.
SCRIPT = """url => {
    window.shown = [];
    window.source = new EventSource(url);
    source.addEventListener("message", event => shown.push(event.data));
    source.addEventListener("gateway.gap", event => shown.push("gap: " + event.data));
}"""


def test_a_page_shows_what_it_had_missed_one_gap_and_goes_on(
    own_valkey: Valkey, gateways: Gateways, open_page: OpenPage
) -> None:
    """`kill -9` of all, two events published meanwhile, start: stored events, one gap, live events."""
    config = configuration(own_valkey.url, rule("sse:*"), persistence={"mode": "redis"}, stream={"retry": "200ms"})
    gateway = gateways.start(config)
    page = open_page().page
    with proxied(("127.0.0.1", gateway.config["listen"]["port"])) as proxy:
        home = f"http://127.0.0.1:{proxy.port}/"
        page.route(home, lambda route: route.fulfill(content_type="text/html", body="<!doctype html><title>x</title>"))
        page.goto(home)
        page.evaluate(SCRIPT, "/events/a")
        page.wait_for_function("source.readyState === EventSource.OPEN")
        for number in range(3):
            own_valkey.publish("sse:a", f"seen {number}")
        page.wait_for_function("shown.length === 3")
        proxy.to_client.hold()  # the page is on a train: what is published now is stored, and it does not get it
        for number in range(2):
            own_valkey.publish("sse:a", f"stored {number}")
        poll(
            lambda: gateway.metric("sse_gateway_persistence_events_total") == 5,
            timeout_s=15,
            what="events that are stored",
        )
        gateway.kill()
        proxy.reset_all()
        proxy.to_client.release()
        for number in range(2):
            assert own_valkey.publish("sse:a", f"lost {number}") == 0
        gateway.start()
        page.wait_for_function("shown.length >= 6")
        own_valkey.publish("sse:a", "live")
        page.wait_for_function("shown.at(-1) === 'live'")
    shown = page.evaluate("shown")
    gap = json.dumps({"reason": "source", "channels": ["a"], "missed": None}, separators=(",", ":"))
    assert shown == ["seen 0", "seen 1", "seen 2", "stored 0", "stored 1", f"gap: {gap}", "live"]
