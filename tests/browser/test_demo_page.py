"""The demo's page as a visitor sees it: every button does what it says, in every light and width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.test_demo import Demo, started

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from tests.browser.conftest import OpenPage

pytestmark = pytest.mark.slow

MINUTE_MS = 30_000


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demo for all visitors."""
    with started(tmp_path_factory.mktemp("demo")) as running:
        yield running


@pytest.fixture
def page(demo: Demo, open_page: OpenPage) -> Page:
    """The page, once its stream is live and a number of `tick` has come."""
    return visit(demo, open_page)


def visit(demo: Demo, open_page: OpenPage, **context: Any) -> Page:
    """Open the page; return when it is live."""
    page = open_page(**context).page
    page.goto(f"http://127.0.0.1:{demo.port}/")
    page.wait_for_selector('#state[data-state="live"]')
    page.wait_for_selector("#row-tick")
    return page


def wait_text(page: Page, selector: str, pattern: str) -> list[str]:
    """Wait until an element's text matches; returns the match and its groups, as of that moment."""
    match = page.wait_for_function(
        "([selector, pattern]) => new RegExp(pattern).exec(document.querySelector(selector).textContent)",
        arg=[selector, pattern],
        timeout=MINUTE_MS,
    ).json_value()
    assert isinstance(match, list)
    return match


def figures(page: Page) -> dict[str, int]:
    """The four numbers of the stream."""
    return {name: int(page.inner_text(f"#{name}")) for name in ("events", "reconnects", "gaps", "silent")}


def test_events_of_all_channels_arrive(page: Page) -> None:
    """Job, prices and ticks arrive; the cursor and the latency are shown; nothing is missing."""
    page.wait_for_selector('[id="row-job:report"]')
    page.wait_for_selector('[id^="row-price:"]')
    wait_text(page, "#job-text", r"Report job \d+")
    wait_text(page, "#cursor", r"^[0-9a-z]+-\d+-[0-9a-f]+$")
    wait_text(page, "#latency", r"median \d+(\.\d)? ms")
    assert page.get_attribute("#plot-line", "d")
    assert figures(page)["reconnects"] == figures(page)["gaps"] == figures(page)["silent"] == 0


def test_publish(page: Page) -> None:
    """What a visitor publishes comes back through Redis, under the channel that was chosen."""
    page.select_option("#publish select", "room:green")
    page.fill("#publish input", "<b>a text of one's own</b>")
    page.click("#publish button")
    wait_text(page, "#publish output", r"^Here again after \d+ ms")
    assert "<b>a text of one's own</b>" in page.inner_text('[id="row-room:green"]')


def test_cut(page: Page) -> None:
    """After a cut the browser comes back by itself, and gets what it missed."""
    page.click("#cut button")
    match = wait_text(page, "#cut output", r"^Resumed after [\d.]+ s: (\d+) events missed and delivered, (\d+) lost")
    assert int(match[1]) > 0
    assert match[2] == "0"
    assert figures(page) | {"events": 0} == {"events": 0, "reconnects": 1, "gaps": 0, "silent": 0}
    lines = page.inner_text("#lines")
    assert "You cut the connection." in lines
    assert "replay: complete" in lines
    assert page.get_attribute("#cut button", "aria-disabled") is None


def test_another_page_is_not_cut(page: Page, demo: Demo, open_page: OpenPage) -> None:
    """A visitor's controls reach the visitor's own streams only."""
    other = visit(demo, open_page)
    page.click("#cut button")
    wait_text(page, "#cut output", r"^Resumed")
    assert figures(other)["reconnects"] == 0


def test_stall(page: Page) -> None:
    """One stall, three policies: a hole that is told, only the newest, everything after a reconnect."""
    page.click("#stall button")
    wait_text(page, "#stall output", r"^Nobody reads")
    wait_text(page, "#stall output", r"^Of 200 events each")
    oldest = wait_text(page, "#slow-drop_oldest .outcome", r"^(\d+) came, (\d+) dropped; the gap told (\d+)\.")
    latest = wait_text(page, "#slow-latest .outcome", r"^(\d+) came, (\d+) replaced by newer ones")
    wait_text(page, "#slow-disconnect .outcome", r"^200 came: disconnected, resumed once, 0 lost")
    assert oldest[2] == oldest[3]
    assert min(int(oldest[1]), int(oldest[2]), int(latest[1]), int(latest[2])) >= 20
    assert int(latest[2]) > int(oldest[2])
    assert figures(page)["silent"] == 0
    assert figures(page)["reconnects"] == 0, "the page's own stream is not concerned"
    assert page.get_attribute("#stall button", "aria-disabled") is None


def test_stop_redis(page: Page) -> None:
    """While Redis is away the page knows it; afterwards it is told that something is missing."""
    page.click("#redis button")
    wait_text(page, "#state", r"^connected, Redis is away$")
    wait_text(page, "#redis output", r"live: false")
    page.click("#publish button")
    wait_text(page, "#publish output", r"^Redis is away: nobody took")
    page.focus("#redis button")
    page.keyboard.press("Enter")  # held: does nothing
    match = wait_text(page, "#redis output", r"^Redis is back\. A gap \(source\) was told, and indeed (\d+) numbers")
    assert int(match[1]) > 0
    wait_text(page, "#state", "^live$")
    assert figures(page) | {"events": 0} == {"events": 0, "reconnects": 0, "gaps": 1, "silent": 0}
    assert page.evaluate("document.activeElement.textContent") == "Stop it for five seconds"


def test_the_keyboard_reaches_every_control(page: Page) -> None:
    """Tab goes through all controls in order, and each shows that it has the focus."""
    seen = []
    for _ in range(7):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "document.activeElement.name || document.activeElement.id || document.activeElement.textContent"
            )
        )
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert seen == ["channel", "text", "Publish", "Cut it", "Stop it for five seconds", "Stall them", "lines"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 400, 1200])
def test_every_width_and_light(scheme: str, width: int, demo: Demo, open_page: OpenPage) -> None:
    """Nothing sticks out sideways, and text stands out from its ground by 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    page = visit(demo, open_page, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRASTS) == []


def test_reduced_motion(demo: Demo, open_page: OpenPage) -> None:
    """Whoever wants no motion gets none."""
    page = visit(demo, open_page, reduced_motion="reduce")
    moving = "Array.from(document.querySelectorAll('*')).filter((e) => getComputedStyle(e).transitionDuration !== '0s')"
    assert page.evaluate(f"{moving}.length") == 0


def test_the_policy_holds(demo: Demo, open_page: OpenPage) -> None:
    """Nothing foreign loads and no inline script runs."""
    watched = open_page()
    page = watched.page
    page.goto(f"http://127.0.0.1:{demo.port}/")
    page.evaluate(
        """() => {
          window.refused = [];
          document.addEventListener("securitypolicyviolation", (event) => window.refused.push(event.effectiveDirective));
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
          new Image().src = "http://127.0.0.1:9/x.png";
          fetch("http://127.0.0.1:9/x").catch(() => {});
        }"""
    )
    page.wait_for_function("window.refused.length === 3")
    assert set(page.evaluate("window.refused")) == {"script-src-elem", "img-src", "connect-src"}
    assert page.evaluate("window.ran") is None
    while len(watched.complaints) < 3:  # they come in their own time
        page.wait_for_timeout(20)
    watched.tolerated = "Content Security Policy"  # more of them may
    watched.complaints[:] = [text for text in watched.complaints if watched.tolerated not in text]  # these were wanted


CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return channels(colour)[3] === 0 && element.parentElement ? ground(element.parentElement) : colour;
  };
  const weak = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = Array.from(element.childNodes).some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("noscript")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) weak.push(`${element.tagName} ${element.textContent} ${contrast.toFixed(2)}`);
  }
  return weak;
}"""
