"""The examples as their readers run them: real gateway, real service, real browser."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gateway_process import CONNECTIONS, configuration, poll, rule
from tests.support.proxy import proxied
from tests.support.valkey import free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from tests.browser.conftest import OpenPage
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.proxy import FaultProxy
    from tests.support.valkey import Valkey

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
GATEWAY = 'const GATEWAY = "http://127.0.0.1:8080";'


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything an example needs.

    Attributes:
        app: Port of the service.
        gateway: The gateway.
        proxy: In front of it; can cut.
        valkey: Redis.
    """

    app: int
    gateway: GatewayProcess
    proxy: FaultProxy
    valkey: Valkey

    def api(self, method: str, path: str) -> Any:
        """Ask the service."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.app, timeout=20)) as connection:
            connection.request(method, path)
            with connection.getresponse() as response:
                return json.loads(response.read())

    def publish(self, channel: str, data: object, event: str = "message") -> None:
        """Publish an envelope."""
        self.valkey.publish(f"sse:{channel}", json.dumps({"event": event, "data": data}))


@pytest.fixture(scope="module")
def setting(module_gateways: Gateways, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """Run Redis, the service, and a gateway that lets its pages read; whoever stops one starts it again."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        pytest.skip("EXAMPLES NOT RUN: they need fastapi and uvicorn (pip)")
    port = free_port()
    with contextlib.ExitStack() as stack:
        valkey = stack.enter_context(running(tmp_path_factory.mktemp("valkey")))
        config = configuration(
            valkey.url,
            rule("sse:*", format="json"),
            cors={"origins": [f"http://127.0.0.1:{port}"]},
            stream={"retry": "300ms"},
        )
        gateway = module_gateways.start(config)
        proxy = stack.enter_context(proxied(("127.0.0.1", config["listen"]["port"])))
        stack.enter_context(serving(tmp_path_factory.mktemp("app"), port, proxy.port, valkey.url))
        made = Setting(port, gateway, proxy, valkey)
        poll(lambda: _answers(made), timeout_s=20, what="service")
        yield made


@contextlib.contextmanager
def serving(directory: Path, port: int, gateway_port: int, redis_url: str) -> Iterator[None]:
    """Run the service with a copy of the examples; all that is changed is where their gateway listens."""
    copy = directory / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for page in copy.glob("*.html"):
        text = page.read_text()
        assert text.count(GATEWAY) == (page.name != "login.html"), page  # that one is served beside its gateway
        page.write_text(text.replace(GATEWAY, GATEWAY.replace("8080", str(gateway_port))))
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(copy), "--port", str(port), "app:app"]
    with (directory / "app.log").open("w") as log:
        service = subprocess.Popen(command, env=os.environ | {"REDIS_URL": redis_url}, stdout=log, stderr=log)
        try:
            yield
        finally:
            service.kill()
            service.wait(10)


def _answers(setting: Setting) -> bool:
    try:
        return bool(setting.api("GET", "/api/stock"))
    except OSError:
        return False


def visit(open_page: OpenPage, setting: Setting, name: str, *, tolerated: str = "net::ERR_") -> Page:
    """Open an example."""
    watched = open_page()
    watched.tolerated = tolerated
    watched.page.goto(f"http://127.0.0.1:{setting.app}/{name}")
    return watched.page


def wait_text(page: Page, selector: str, text: str) -> None:
    """Wait until an element begins with a text."""
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent.startsWith(text)",
        arg=[selector, text],
        timeout=20_000,
    )


def wait_list(page: Page, *texts: str) -> None:
    """Wait until the list has as many lines, which must be these."""
    page.wait_for_function(f"document.querySelectorAll('#events li').length >= {len(texts)}")
    assert page.locator("#events li").all_text_contents() == list(texts)


def test_the_configuration_is_sound() -> None:
    """The gateway takes the examples' configuration."""
    command = [sys.executable, "-m", "sse_gateway", "check-config", str(EXAMPLES / "gateway.yaml")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def test_eventsource(setting: Setting, open_page: OpenPage) -> None:
    """State and changes are shown; after a gap the state is fetched again, whatever was lost."""
    setting.api("PUT", "/api/stock/apples?left=12")
    page = visit(open_page, setting, "eventsource.html")
    wait_text(page, "#item-apples", "apples: 12")
    setting.api("PUT", "/api/stock/apples?left=11")
    wait_text(page, "#item-apples", "apples: 11")

    setting.valkey.kill()
    wait_text(page, "#status", "no news")
    setting.api("PUT", "/api/stock/apples?left=5")  # nobody hears of it
    setting.valkey.start()
    wait_text(page, "#item-apples", "apples: 5")
    wait_text(page, "#status", "caught up after a gap (source")

    setting.gateway.kill()
    wait_text(page, "#status", "reconnecting")
    setting.api("PUT", "/api/stock/pears?left=1")
    setting.gateway.start()
    wait_text(page, "#item-pears", "pears: 1")
    wait_text(page, "#status", "caught up after a gap (epoch")


def test_eventsource_after_a_proxy_s_error(setting: Setting, open_page: OpenPage) -> None:
    """An answer for which the browser gives up for ever does not end the page."""
    page = visit(open_page, setting, "eventsource.html", tolerated=r"net::ERR_|502")
    wait_text(page, "#status", "live")
    headers = {"Access-Control-Allow-Origin": "*"}
    page.route("**/events/**", lambda route: route.fulfill(status=502, headers=headers), times=1)
    with page.expect_response(lambda response: response.status == 502):
        setting.proxy.reset_all()
    wait_text(page, "#status", "reconnecting")
    wait_text(page, "#status", "live")
    setting.api("PUT", "/api/stock/pears?left=2")
    wait_text(page, "#item-pears", "pears: 2")


def test_several_channels(setting: Setting, open_page: OpenPage) -> None:
    """Events of all channels and types arrive through one listener, in the order they were published."""
    page = visit(open_page, setting, "several_channels.html")
    wait_text(page, "#status", "live")
    setting.publish("news", "<b>bold</b>", "headline")
    setting.publish("price:ACME", {"price": 1.5}, "tick")
    setting.publish("other", "not asked for")
    setting.publish("price:NEW", {"price": 2}, "tick")
    setting.publish("stock", {"item": "plums", "left": 3})
    wait_list(page, "headline: <b>bold</b>", "ACME costs 1.5", "NEW costs 2", "plums: 3 left")


def test_fetch_stream(setting: Setting, open_page: OpenPage) -> None:
    """Read with fetch nothing is lost or repeated over cuts; a gap is told; the button ends the stream."""
    page = visit(open_page, setting, "fetch_stream.html")
    wait_text(page, "#status", "live, replay: none")
    setting.publish("news", "1")
    setting.publish("news", "2")
    wait_list(page, "message: 1", "message: 2")
    setting.proxy.reset_all()
    setting.publish("news", "3", "headline")
    setting.publish("news", "ü\n4")
    wait_text(page, "#status", "live, replay: complete")
    setting.publish("news", "5")
    wait_list(page, "message: 1", "message: 2", "headline: 3", "message: ü\n4", "message: 5")
    setting.valkey.restart()
    page.wait_for_function("document.querySelectorAll('#events li').length >= 6")
    setting.publish("news", "6")
    wait_list(
        page, "message: 1", "message: 2", "headline: 3", "message: ü\n4", "message: 5", "gap: source", "message: 6"
    )
    page.click("#stop")
    wait_text(page, "#status", "stopped")
    setting.gateway.wait_metric(CONNECTIONS, 0)


def test_fetch_stream_that_is_refused(setting: Setting, open_page: OpenPage) -> None:
    """What will not get better is said, not asked for again."""
    page = visit(open_page, setting, "fetch_stream.html", tolerated="404")
    wait_text(page, "#status", "live")
    refusal = page.evaluate(
        """async (url) => {
          const { follow, Refused } = await import("/fetch_stream.js");
          try {
            for await (const block of follow(url)) return block;
          } catch (error) {
            return [error instanceof Refused, error.message.slice(0, 3)];
          }
        }""",
        f"http://127.0.0.1:{setting.proxy.port}/events/no/channel",
    )
    assert refusal == [True, "404"]


def test_report_job(setting: Setting, open_page: OpenPage) -> None:
    """The bar follows the job from its first step, and the stream ends with the job."""
    page = visit(open_page, setting, "report_job.html?step_s=0.2")
    page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => window.seen.push(document.querySelector("#text").textContent))
            .observe(document.querySelector("#text"), { childList: true });
        }"""
    )
    page.click("#begin")
    wait_text(page, "#text", "The report is ready.")
    assert page.evaluate("document.querySelector('#bar').value") == 100
    seen = page.evaluate("window.seen")
    assert len(seen) == 21, "20 steps and the end, each once"
    assert seen[0].startswith("0 %")
    setting.gateway.wait_metric(CONNECTIONS, 0)


def test_report_job_whose_end_is_lost(setting: Setting, open_page: OpenPage) -> None:
    """If Redis is away when the job ends, the page asks for the state, and ends too."""
    page = visit(open_page, setting, "report_job.html?step_s=0.4")
    with page.expect_response("**/api/reports*") as begun:
        page.click("#begin")
    job = begun.value.json()["job"]
    page.wait_for_function("/^[0-9]+ %/.test(document.querySelector('#text').textContent)")
    setting.valkey.kill()
    poll(lambda: setting.api("GET", f"/api/reports/{job}")["step"] == "done", timeout_s=30, what="end of the job")
    setting.valkey.start()
    wait_text(page, "#text", "The report is ready.")
    setting.gateway.wait_metric(CONNECTIONS, 0)
