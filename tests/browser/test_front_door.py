"""The front door: a real Chromium, over TLS and HTTP/2, through the shipped nginx file, to a real gateway.

The page stands where the file has room for the application. nginx's `retry:` is a hundredth of
the shipped one, or the restarts would take minutes; nothing else is changed.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gateway_process import Config, configuration, rule
from tests.support.nginx import SHIPPED, nginxes
from tests.support.proxy import proxied

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from playwright.sync_api import Page

    from tests.browser.conftest import OpenPage
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.nginx import Nginx
    from tests.support.proxy import FaultProxy
    from tests.support.valkey import Valkey

pytestmark = pytest.mark.slow

PAGE = "<!doctype html><title>front door</title>"
RETRIES = re.findall(r'(?m)^    (?:default  |"~\[..\]\$") ( *\d+00;)$', SHIPPED.read_text(encoding="utf-8"))
EDITS = {
    "location / { return 404; }": f"location / {{ default_type text/html; return 200 '{PAGE}'; }}",
    **{retry: f" {retry.strip()[:-3]};" for retry in RETRIES},
}

# Follows one URL, and writes down all that a page can know of it.
SCRIPT = """url => {
    window.seen = [];
    window.failures = [];
    window.source = new EventSource(url);
    const types = ["message", "tick", "gateway.open", "gateway.heartbeat", "gateway.gap", "gateway.close",
                   "gateway.unavailable"];
    for (const type of types)
        source.addEventListener(type, event => seen.push({type, data: event.data, id: event.lastEventId}));
    source.addEventListener("error", () => failures.push(source.readyState));
}"""


@dataclass(frozen=True, slots=True)
class Tab:
    """A page that follows a stream."""

    page: Page

    def seen(self, kind: str = "message") -> list[dict[str, str]]:
        """What has been dispatched of a type: data and id."""
        told = self.page.evaluate("kind => seen.filter(event => event.type === kind)", kind)
        assert isinstance(told, list)
        return told

    @property
    def data(self) -> list[str]:
        """The data of every message."""
        return [event["data"] for event in self.seen()]

    def told(self, kind: str) -> list[Any]:
        """The JSON of every block of a type."""
        return [json.loads(event["data"]) for event in self.seen(kind)]

    def wait(self, kind: str, count: int = 1) -> None:
        """Wait until so many of a type have come."""
        condition = "([kind, count]) => seen.filter(event => event.type === kind).length >= count"
        self.page.wait_for_function(condition, arg=[kind, count])

    def wait_next(self, kind: str) -> None:
        """Wait for one more of a type."""
        self.wait(kind, len(self.seen(kind)) + 1)

    def wait_data(self, data: str) -> None:
        """Wait for a message with this data."""
        self.page.wait_for_function("data => seen.some(event => event.data === data)", arg=data)

    def wait_lost(self) -> None:
        """Wait until the browser knows that the stream has ended."""
        self.page.wait_for_function("source.readyState !== EventSource.OPEN")

    def wait_open(self) -> None:
        """Wait until the newest of the gateway's own words says that the stream is open."""
        self.page.wait_for_function(
            "['gateway.open', 'gateway.heartbeat', 'gateway.gap'].includes("
            "seen.filter(event => event.type.startsWith('gateway.')).at(-1)?.type)"
            " && source.readyState === EventSource.OPEN"
        )

    @property
    def failures(self) -> list[int]:
        """The `readyState` at every error: 0 is that the browser comes back, 2 that it never does."""
        failures = self.page.evaluate("failures")
        assert isinstance(failures, list)
        return failures


@dataclass(frozen=True, slots=True)
class FrontDoor:
    """nginx, what stands between it and the gateway, the gateway, Redis."""

    nginx: Nginx
    proxy: FaultProxy
    gateway: GatewayProcess
    valkey: Valkey
    open_page: OpenPage

    def follow(self, target: str, page: Page | None = None) -> Tab:
        """Open a page, or use that one, and follow a stream; returns when it is open."""
        page = page or self.open_page(ignore_https_errors=True).page
        page.goto(f"https://127.0.0.1:{self.nginx.port}/")
        page.evaluate(SCRIPT, target)
        tab = Tab(page)
        tab.wait_open()
        return tab

    def publish(self, channel: str, *data: str) -> None:
        """Publish, in order."""
        self.valkey.publish_many([(f"sse:{channel}", item) for item in data])


class OpenDoor:
    """Builds front doors that end with the test."""

    def __init__(self, stack: ExitStack, gateways: Gateways, valkey: Valkey, open_page: OpenPage) -> None:
        self._stack = stack
        self._gateways = gateways
        self._valkey = valkey
        self._open_page = open_page
        self._start_nginx = stack.enter_context(nginxes())

    def __call__(self, *rules: Config, edits: Mapping[str, str] | None = None, **sections: Config) -> FrontDoor:
        """The arguments are those of `configuration`, and what more to change in nginx's file."""
        stream = {"retry": "100ms", **sections.pop("stream", {})}
        gateway = self._gateways.start(configuration(self._valkey.url, *rules, stream=stream, **sections))
        assert isinstance(gateway.address, tuple)
        proxy = self._stack.enter_context(proxied(gateway.address))
        nginx = self._start_nginx(proxy.address, edits={**EDITS, **(edits or {})})
        return FrontDoor(nginx, proxy, gateway, self._valkey, self._open_page)


@pytest.fixture
def open_door(open_page: OpenPage, gateways: Gateways, own_valkey: Valkey) -> Iterator[OpenDoor]:
    """Build front doors that end with the test."""
    with ExitStack() as stack:
        yield OpenDoor(stack, gateways, own_valkey, open_page)


def test_the_shortened_times_are_all_there() -> None:
    """What the fixture above shortens is every `retry:` of the file."""
    assert len(RETRIES) == 8


def test_named_and_multi_line_events_arrive_over_http2(open_door: OpenDoor) -> None:
    """Type, lines and characters are those that were published; the protocol is HTTP/2."""
    door = open_door(rule("sse:*", format="json"))
    tab = door.follow("/events/a%2Fb")
    door.publish(
        "a/b", '{"event": "tick", "data": "one\\ntwo\\n\\nfour"}', '{"data": "Grüße 🚪"}', '{"data": {"n": [1]}}'
    )
    tab.wait("message", 2)

    assert [event["data"] for event in tab.seen("tick")] == ["one\ntwo\n\nfour"]
    assert tab.data == ["Grüße 🚪", '{"n": [1]}']
    door.proxy.reset_all()
    tab.wait("gateway.open", 2)
    protocols = tab.page.evaluate(
        "performance.getEntries().filter(entry => entry.nextHopProtocol !== undefined)"
        ".map(entry => [new URL(entry.name).pathname, entry.nextHopProtocol])"
    )
    assert ["/", "h2"] in protocols
    assert ["/events/a%2Fb", "h2"] in protocols


def test_a_cut_loses_nothing_and_repeats_nothing(open_door: OpenDoor) -> None:
    """Whether nginx's worker dies or the gateway's connection does: the browser resumes where it was."""
    door = open_door()
    tab = door.follow("/events/a")
    published: list[str] = []

    def publish() -> None:
        batch = [f"{len(published) + number}" for number in range(20)]
        published.extend(batch)
        door.publish("a", *batch)

    for cut in [door.nginx.kill_workers, door.proxy.reset_all] * 3:
        publish()
        cut()
        publish()
        tab.wait_data(published[-1])

    assert tab.data == published
    assert tab.seen("gateway.gap") == []
    assert [told["replay"] for told in tab.told("gateway.open")] == ["none"] + ["complete"] * 6
    assert set(tab.failures) == {0}


def test_the_cursor_arrives_on_a_quiet_stream(open_door: OpenDoor) -> None:
    """Open and heartbeat carry an id that listeners see, and that is sent back after a cut."""
    door = open_door()
    tab = door.follow("/events/quiet")
    tab.wait("gateway.heartbeat", 2)
    (opened,) = tab.seen("gateway.open")
    door.publish("other", "moves the log")
    tab.page.wait_for_function("seen.at(-1).id !== seen[0].id")
    newest = tab.seen("gateway.heartbeat")[-1]["id"]
    door.proxy.reset_all()
    tab.wait("gateway.open", 2)

    assert re.fullmatch(r"[0-9a-z]+-0-[0-9a-z]+", opened["id"])
    assert re.fullmatch(r"[0-9a-z]+-1-[0-9a-z]+", newest)
    assert tab.seen("gateway.open")[1]["id"] == newest
    assert tab.told("gateway.open")[1]["replay"] == "complete"


def test_a_window_gap_is_told(open_door: OpenDoor) -> None:
    """What was pushed out while the browser was away is counted, and the rest comes."""
    door = open_door(rule("sse:*", window={"max_events": 5}))
    tab = door.follow("/events/a")
    door.nginx.stop()
    tab.wait_lost()
    door.publish("a", *map(str, range(20)))
    door.nginx.start()
    tab.wait_data("19")

    assert tab.told("gateway.gap") == [{"reason": "window", "channels": ["a"], "missed": 15}]
    assert tab.data == ["15", "16", "17", "18", "19"]


def test_an_overflow_gap_is_told(open_door: OpenDoor) -> None:
    """A browser that was too slow is told how many events it has missed, and where."""
    door = open_door(
        rule("sse:*", queue={"max_events": 10, "max_bytes": "1MiB"}),
        stream={"send_buffer": "16KiB"},
        limits={"message_size": "128KiB"},
    )
    tab = door.follow("/events/a")
    door.proxy.to_client.hold()
    filling = "x" * 100_000  # of 200 the kernel and the proxy take some; the rest is too much
    door.publish("a", *[f"{number:03}{filling}" for number in range(200)])
    door.publish("a", "last")
    door.proxy.release()
    tab.wait_data("last")
    numbers = [int(data[:3]) for data in tab.data[:-1]]
    gaps = tab.told("gateway.gap")

    assert gaps
    assert {gap["reason"] for gap in gaps} == {"overflow"}
    assert numbers == sorted(set(numbers))
    assert sum(gap["missed"] for gap in gaps) == 200 - len(numbers)


def test_a_source_gap_and_an_absent_redis_are_told(open_door: OpenDoor) -> None:
    """`live` is false while Redis is away; afterwards the gap, and live again, on the same stream."""
    door = open_door()
    tab = door.follow("/events/a")
    assert door.valkey.kill_subscribers() == 1
    tab.wait("gateway.gap")
    door.valkey.kill()
    tab.page.wait_for_function("seen.some(event => event.data === '{\"live\":false}')")
    door.valkey.start()
    door.gateway.wait_ready()
    tab.wait("gateway.gap", 2)
    tab.wait_next("gateway.heartbeat")
    door.publish("a", "again")
    tab.wait_data("again")

    assert tab.told("gateway.gap") == [{"reason": "source", "channels": ["a"], "missed": None}] * 2
    assert tab.told("gateway.heartbeat")[-1] == {"live": True}
    assert len(tab.seen("gateway.open")) == 1
    assert tab.failures == []


def test_twenty_restarts_are_survived(open_door: OpenDoor) -> None:
    """Gateway and nginx stop, die and start again, in turn: the browser always comes back, and knows what it missed."""
    door = open_door()
    tab = door.follow("/events/a")
    published = []

    def stop_gateway() -> None:
        assert door.gateway.stop() == 0
        tab.wait("gateway.unavailable", len(tab.seen("gateway.unavailable")) + 1)
        door.gateway.start()

    def kill_gateway() -> None:
        door.gateway.kill()
        tab.wait_lost()
        door.gateway.start()

    for number, restart in enumerate([stop_gateway, door.nginx.restart, kill_gateway, door.nginx.kill_workers] * 5):
        opened = len(tab.seen("gateway.open"))
        restart()
        tab.wait("gateway.open", opened + 1)
        tab.wait_open()
        published.append(f"{number}")
        door.publish("a", published[-1])
        tab.wait_data(published[-1])

    assert tab.data == published
    assert {gap["reason"] for gap in tab.told("gateway.gap")} == {"epoch"}
    assert len(tab.told("gateway.gap")) == 10  # the gateway's restarts; nginx's lose nothing
    assert {told["reason"] for told in tab.told("gateway.unavailable")} <= {"draining", "source", "full"}
    assert set(tab.failures) == {0}


def test_without_our_refusal_a_browser_gives_up(open_door: OpenDoor) -> None:
    """What the tests above guard against: one 502, and a native EventSource is closed for ever."""
    door = open_door(edits={"error_page 500 502 503 504 = $sse_gateway_away;": ""})
    watched = door.open_page(ignore_https_errors=True)
    watched.tolerated += "|status of 502"
    tab = door.follow("/events/a", watched.page)
    door.gateway.stop()
    tab.page.wait_for_function("source.readyState === EventSource.CLOSED")

    assert tab.failures[-1] == 2


def test_ten_tabs_at_once(open_door: OpenDoor) -> None:
    """Tabs of one browser share one connection, so that the seventh works as well as the first; so they resume."""
    door = open_door()
    first = door.follow("/events/a")
    tabs = [first] + [door.follow("/events/a", first.page.context.new_page()) for _ in range(9)]
    door.publish("a", "one")
    for tab in tabs:
        tab.wait_data("one")
    door.nginx.kill_workers()
    door.publish("a", "two")
    for tab in tabs:
        tab.wait_data("two")

    assert [tab.data for tab in tabs] == [["one", "two"]] * 10
