"""Which page may open a stream: what browsers say of it, row by row."""

from __future__ import annotations

import pytest

from sse_gateway.errors import RequestError
from sse_gateway.origins import SAFE_HEADERS, Origins

APP, HOST = "https://app.example", "gw.example"
NAMED = [APP, "http://localhost:3000"]
COOKIES, PLAIN = Origins(NAMED, with_cookies=True), Origins(NAMED, with_cookies=False)


def passes(
    to: Origins,
    *origins: str,
    host: str | None = HOST,
    site: str | None = None,
    mode: str | None = None,
    dest: str | None = None,
) -> bool:
    """Whether a request is let through; if not, it is with 403."""
    try:
        to.check(origins, host, site=site, mode=mode, dest=dest)
    except RequestError as error:
        return error.status != 403
    return True


FOREIGN = [
    "https://evil.example",
    "null",
    "",
    "https://app.example.evil.com",
    "https://evil-app.example",
    "https://app.example:444",
    "https://app.example:443",
    "http://app.example",
    "https://APP.example",
    "https://app.example.",
    "https://app.example/",
    "https://app.example,https://evil.example",
    " https://app.example",
    "*",
    "https://gw.example:8443",
    "ftp://gw.example",
]


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("site", [None, "cross-site", "same-site", "none", "nonsense"])
def test_with_cookies_a_foreign_page_is_refused(origin: str, site: str | None) -> None:
    """Whatever else the browser says; only same-origin, which no page can forge, would do."""
    assert not passes(COOKIES, origin, site=site)
    assert COOKIES.headers([origin]) == COOKIES.preflight([origin]) == {}


@pytest.mark.parametrize("origin", NAMED)
@pytest.mark.parametrize("site", [None, "cross-site", "same-site"])
@pytest.mark.parametrize("to", [COOKIES, PLAIN])
def test_a_page_of_a_named_origin_may(to: Origins, origin: str, site: str | None) -> None:
    """And is told so: exactly its origin, and cookies only where they are in use."""
    assert passes(to, origin, site=site, mode="cors", dest="empty")
    expected = {"Access-Control-Allow-Origin": origin}
    if to.with_cookies:
        expected["Access-Control-Allow-Credentials"] = "true"
    assert to.headers([origin]) == expected
    preflight = to.preflight([origin])
    assert expected.items() <= preflight.items()
    assert preflight.keys() - expected.keys() == {
        "Access-Control-Allow-Methods",
        "Access-Control-Allow-Headers",
        "Access-Control-Max-Age",
    }


@pytest.mark.parametrize(
    ("origins", "host", "site"),
    [
        ([], HOST, "same-origin"),
        ([], HOST, "same-site"),
        ([], HOST, "none"),
        ([], HOST, None),
        ([], None, None),
        (["https://gw.example"], "gw.example", None),
        (["https://gw.example"], "GW.example", "same-site"),
        (["http://gw.example:8080"], "gw.example:8080", None),
        (["https://public.example"], "internal:8080", "same-origin"),
    ],
)
def test_our_own_pages_and_what_is_no_browser_may(origins: list[str], host: str | None, site: str | None) -> None:
    """With cookies as without; where a proxy changes the host, the browser's word is enough."""
    assert passes(COOKIES, *origins, host=host, site=site)
    assert passes(PLAIN, *origins, host=host, site=site)


def test_a_cross_site_request_without_an_origin_is_refused() -> None:
    """An image, a script or a link of another site: with or without cookies, it could not read anyway."""
    assert not passes(COOKIES, site="cross-site")
    assert not passes(PLAIN, site="cross-site")


@pytest.mark.parametrize("origin", FOREIGN)
def test_without_cookies_a_foreign_page_gets_an_answer_that_it_cannot_read(origin: str) -> None:
    """Unless the browser itself says that it is of another site: then it does not even get that."""
    assert passes(PLAIN, origin)
    assert PLAIN.headers([origin]) == {}
    assert not passes(PLAIN, origin, site="cross-site")


def test_two_origins_are_none_of_ours() -> None:
    """A browser sends one."""
    assert not passes(COOKIES, APP, APP)
    assert not passes(COOKIES, APP, "https://evil.example")
    assert COOKIES.headers([APP, APP]) == {}


@pytest.mark.parametrize(
    "dest", ["document", "iframe", "frame", "embed", "object", "image", "script", "style", "font", "audio", "worker"]
)
@pytest.mark.parametrize("site", ["same-origin", "cross-site", "none"])
def test_a_stream_is_no_part_of_a_page(dest: str, site: str) -> None:
    """Not even of one of ours, nor by its address in the address bar."""
    assert not passes(COOKIES, site=site, dest=dest)
    assert not passes(PLAIN, APP, site=site, dest=dest)


@pytest.mark.parametrize(("mode", "may"), [("cors", True), ("same-origin", True), ("no-cors", False)])
def test_an_answer_that_nobody_could_read_is_not_given(mode: str, *, may: bool) -> None:
    """`fetch` without CORS, and navigation."""
    assert passes(PLAIN, APP, site="cross-site", mode=mode, dest="empty") is may
    assert not passes(PLAIN, site="same-origin", mode="navigate", dest="empty")


def test_every_answer_depends_on_the_origin() -> None:
    """And is neither guessed at nor embedded."""
    assert SAFE_HEADERS["Vary"] == "Origin"
    assert SAFE_HEADERS["X-Content-Type-Options"] == "nosniff"
    assert SAFE_HEADERS["Cross-Origin-Resource-Policy"] == "same-origin"
