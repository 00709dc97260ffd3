"""Which pages may open a stream, and what browsers are told about it.

A browser sends cookies with whatever a page of any site asks for, and hides only the answer. So where
cookies let a client in, a stream for a foreign page would be a stream of the user's, opened by somebody
else: it is refused before anything is sent, and before it takes a place. What a browser says of the page
(``Origin``, ``Sec-Fetch-…``) no page can forge; what sends neither is no browser, and has no cookies
that are not its own.

Rules:
    1. An origin is allowed if it is one of those named, as a whole and byte for byte. There is no ``*``.
    2. The gateway's own origin needs no name: the browser says same-origin, or the host is that of the request.
    3. With cookies in use, any other origin is refused; and so is a request without one that the browser calls
       cross-site.
    4. Without cookies, only what the browser itself calls cross-site, from an origin that is not named: it could
       not read the answer, but would have a place.
    5. A stream is read by a script. As a page, a frame, an image or a script it is refused, wherever it comes from.
    6. Every answer says that it depends on the origin, whatever it was.

Source: WHATWG Fetch, 3.2 (CORS protocol), 3.7 (CORP); W3C Fetch Metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Collection

METHODS = "GET, HEAD, OPTIONS"

SAFE_HEADERS = {
    "Vary": "Origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer: it depends on the origin, is what it says, and is no part of other pages."""

_READABLE_MODES = {"cors", "same-origin"}


class Origins:
    """The pages that may read.

    Attributes:
        with_cookies: Whether what a browser sends by itself may let a client in.
    """

    def __init__(self, named: Collection[str], *, with_cookies: bool) -> None:
        self._named = frozenset(named)
        self.with_cookies = with_cookies

    def check(
        self, origins: Collection[str], host: str | None, *, site: str | None, mode: str | None, dest: str | None
    ) -> None:
        """Let a request for a stream pass, or not.

        Args:
            origins: Values of ``Origin``; there is one at most.
            host: Of the request.
            site: ``Sec-Fetch-Site``, None from what is no browser, or an old one.
            mode: ``Sec-Fetch-Mode``.
            dest: ``Sec-Fetch-Dest``.

        Raises:
            RequestError: 403.
        """
        if (dest or "empty") != "empty" or (mode or "cors") not in _READABLE_MODES:
            raise RequestError(403, "a stream is read by EventSource or fetch; it is no page, and no part of one")
        if site == "same-origin" or self._is_named(origins):
            return
        is_foreign = bool(origins) and not _is_own(origins, host)
        if site == "cross-site" or (is_foreign and self.with_cookies):
            raise RequestError(403, "pages of this origin may not read streams here: name it in cors.origins")

    def headers(self, origins: Collection[str]) -> dict[str, str]:
        """What an answer tells the browser."""
        if not self._is_named(origins):
            return {}
        (origin,) = origins
        with_cookies = {"Access-Control-Allow-Credentials": "true"} if self.with_cookies else {}
        return {"Access-Control-Allow-Origin": origin, **with_cookies}

    def preflight(self, origins: Collection[str]) -> dict[str, str]:
        """What the answer to a preflight tells besides."""
        cors = self.headers(origins)
        if cors:
            cors["Access-Control-Allow-Methods"] = METHODS
            cors["Access-Control-Allow-Headers"] = "authorization, cache-control, last-event-id"
            cors["Access-Control-Max-Age"] = "86400"
        return cors

    def _is_named(self, origins: Collection[str]) -> bool:
        return len(origins) == 1 and self._named.issuperset(origins)


def _is_own(origins: Collection[str], host: str | None) -> bool:
    """Whether the page is of the host that was asked; TLS ends before us, so that either scheme is ours."""
    own = {f"{scheme}://{host.lower()}" for scheme in ("http", "https")} if host else set[str]()
    return len(origins) == 1 and own.issuperset(origins)
