"""A real Chromium, driven by playwright. Where either is missing, the tests that need it are skipped."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

_ARGUMENTS = [
    "--no-sandbox",  # CI runs as root in a container
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE_MS = 30_000


class OpenPage(Protocol):
    """Opens an empty page that is closed with the test."""

    def __call__(self, **context: Any) -> WatchedPage:
        """The keywords are those of playwright's `Browser.new_context`."""


class WatchedPage:
    """A page, and what it complained of.

    Attributes:
        page: Playwright's page.
        complaints: Errors of scripts, of the console, and of the content security policy.
        tolerated: Complaints that a test provokes: a regular expression. The browser reports each
            connection that breaks; that is what some tests are about.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.tolerated = r"net::ERR_"
        page.set_default_timeout(_PATIENCE_MS)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._take(message.type, message.text))

    def _take(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"} and not re.search(self.tolerated, text):
            self.complaints.append(text)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Run the system's Chromium, once for all tests."""
    reason = "NO BROWSER TESTS: they need playwright (pip) and Chromium (apt-get install chromium)"
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 - may be missing
    except ImportError:
        pytest.skip(reason)
    if executable is None:
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """Open pages, each with a profile of its own; at the end none may have complained."""
    opened: list[WatchedPage] = []

    def open_one(**context: Any) -> WatchedPage:
        opened.append(WatchedPage(chromium.new_context(**context).new_page()))
        return opened[-1]

    yield open_one
    for watched in opened:
        watched.page.context.close()
    assert [watched.complaints for watched in opened if watched.complaints] == []
