"""Refusals as documents: `application/problem+json`, which says what is wrong and quotes nothing of the request.

Source: RFC 9457.
"""

from __future__ import annotations

import json
from http import HTTPStatus

from aiohttp import web

from sse_gateway.origins import METHODS, SAFE_HEADERS

SERVER = "sse-gateway"
"""Instead of the library's, which tells its versions to everybody."""

CONTENT_TYPE = "application/problem+json"


def problem(status: int, detail: str, headers: dict[str, str]) -> web.Response:
    """The answer to a request that is refused.

    Args:
        status: Of HTTP.
        detail: A sentence for the person who sent it.
        headers: What it has besides.
    """
    if status == 405:
        headers = {"Allow": METHODS, **headers}
    return web.Response(
        status=status,
        body=_body(status, detail),
        content_type=CONTENT_TYPE,
        headers={"Server": SERVER, "Cache-Control": "no-store", **SAFE_HEADERS, **headers},
    )


def raw_problem(status: int, detail: str) -> bytes:
    """The same for what is no request yet, as bytes; the connection ends after it."""
    body = _body(status, detail)
    headers = {
        "Server": SERVER,
        "Content-Type": CONTENT_TYPE,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "Connection": "close",
        **SAFE_HEADERS,
    }
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _body(status: int, detail: str) -> bytes:
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return json.dumps(document).encode() + b"\n"
