"""Pages of other sites, where a cookie lets a client in: what browsers send of them, directly and through nginx."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.access import jwt_auth, token
from tests.support.gateway_process import CONNECTIONS, MARKER, configuration
from tests.support.nginx import nginxes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Address, Stream
    from tests.support.valkey import Valkey

APP = "https://app.example"
COOKIE = "__Host-sse"
CORS = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
CROSS = {"Sec-Fetch-Site": "cross-site", **CORS}


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """A gateway that lets in by cookie, pages of one other origin too, and that has three places."""
    config = configuration(valkey.url, auth=jwt_auth(), cors={"origins": [APP]}, limits={"connections": 3})
    return module_gateways.start(config)


@pytest.fixture(scope="module", params=["direct", "nginx"])
def door(request: pytest.FixtureRequest, gateway: GatewayProcess) -> Iterator[Address]:
    """The gateway's own port, and nginx in front of it."""
    if request.param == "direct":
        yield gateway.address
        return
    with nginxes() as start:
        yield start(gateway.address).address


def ask(
    connect: Connect, door: Address, fields: Mapping[str, str], *, method: str = "GET", good: bool = True
) -> Stream:
    """Ask as a browser does that has the cookie."""
    cookie = f"theme=dark; {COOKIE}={token('a') if good else 'nonsense'}"
    headers = {"Accept": "text/event-stream", "Cookie": cookie, **fields}
    return connect(door, "/events/a", method=method, headers=headers).wait_head()


FOREIGN: dict[str, dict[str, str]] = {
    "a page of another site": {"Origin": "https://evil.example", **CROSS},
    "an old browser, which says the origin alone": {"Origin": "https://evil.example"},
    "a sandboxed frame, or a file": {"Origin": "null", **CROSS},
    "a name that begins like ours": {"Origin": "https://app.example.evil.com", **CROSS},
    "another port": {"Origin": "https://app.example:444", **CROSS},
    "another scheme": {"Origin": "http://app.example", **CROSS},
    "capitals": {"Origin": "https://APP.example"},
    "a dot at the end": {"Origin": "https://app.example."},
    "a sibling of ours": {"Origin": "https://other.app.example", "Sec-Fetch-Site": "same-site", **CORS},
    "no origin, but cross-site": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
    "a script of another site": {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "no-cors",
        "Sec-Fetch-Dest": "script",
    },
    "an image of another site": {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "no-cors",
        "Sec-Fetch-Dest": "image",
    },
    "a frame": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    "a link": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    "the address bar": {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    "a script of our own": {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
}

OURS: dict[str, dict[str, str]] = {
    "our own page": {"Sec-Fetch-Site": "same-origin", **CORS},
    "our own page, in an old browser": {},
    "our own page that says its origin": {"Host": "gw.example", "Origin": "https://gw.example"},
    "a page of the named origin": {"Origin": APP, **CROSS},
    "a page of the named origin, in an old browser": {"Origin": APP},
    "no browser": {"User-Agent": "curl"},
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_page_is_refused_before_it_has_anything(
    door: Address, gateway: GatewayProcess, connect: Connect, name: str
) -> None:
    """With a good cookie: 403, no word that lets it read, and no place taken."""
    opened = gateway.metric(MARKER + "streams_opened_total")
    for method in ("GET", "HEAD"):
        refused = ask(connect, door, FOREIGN[name], method=method)
        assert refused.status == 403
        assert refused.headers.get("Vary") == "Origin"
        assert not [field for field in refused.headers.names() if field.startswith("access-control-")]
    refused = ask(connect, door, FOREIGN[name])
    refused.wait_for(lambda it: it.ended, what="end of the refusal")
    assert set(json.loads(refused.body)) == {"type", "title", "status", "detail"}
    assert b"evil" not in refused.body
    assert gateway.metric(MARKER + "streams_opened_total") == opened


@pytest.mark.parametrize("name", OURS)
def test_our_pages_are_let_in(door: Address, gateway: GatewayProcess, connect: Connect, name: str) -> None:
    """And those of a named origin are told that they may read, and may have sent the cookie."""
    gateway.wait_metric(CONNECTIONS, 0)
    stream = ask(connect, door, OURS[name])
    assert stream.wait_open().json()["channels"] == ["a"]
    named = OURS[name].get("Origin") == APP
    assert stream.headers.get("Access-Control-Allow-Origin") == (APP if named else None)
    assert stream.headers.get("Access-Control-Allow-Credentials") == ("true" if named else None)
    assert stream.headers.get("Vary") == "Origin"
    assert stream.headers.get("Cross-Origin-Resource-Policy") == "same-origin"
    stream.close()


def test_a_foreign_page_does_not_learn_whether_somebody_is_let_in(door: Address, connect: Connect) -> None:
    """Its 403 comes before any look at the cookie; a page of the named origin can read why it is refused."""
    for good in (True, False):
        assert ask(connect, door, FOREIGN["a page of another site"], good=good).status == 403
    refused = ask(connect, door, OURS["a page of the named origin"], good=False)
    assert refused.status == 401
    assert refused.headers.get("Access-Control-Allow-Origin") == APP
    assert refused.headers.get("Access-Control-Allow-Credentials") == "true"


def test_foreign_pages_take_no_place_from_ours(door: Address, gateway: GatewayProcess, connect: Connect) -> None:
    """However many of them there are."""
    gateway.wait_metric(CONNECTIONS, 0)
    for fields in list(FOREIGN.values())[:12]:
        assert ask(connect, door, fields).status == 403
    streams = [ask(connect, door, OURS["our own page"]) for _ in range(3)]
    for stream in streams:
        stream.wait_open()
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("origin", [APP, "https://evil.example", "null"])
def test_a_preflight_lets_the_named_origin_in_alone(door: Address, connect: Connect, origin: str) -> None:
    """Three headers, cookies, for a day; to all others not a word. It needs no cookie: browsers send none."""
    fields = {
        "Origin": origin,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "last-event-id, x-evil",
    }
    answer = connect(door, "/events/a", method="OPTIONS", headers=fields).wait_head()
    told = {name: answer.headers.get(name) for name in answer.headers.names() if name.startswith("access-control-")}
    assert answer.status == 204
    assert answer.headers.get("Vary") == "Origin"
    if origin != APP:
        assert told == {}
        return
    assert told == {
        "access-control-allow-origin": APP,
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET, HEAD, OPTIONS",
        "access-control-allow-headers": "authorization, cache-control, last-event-id",
        "access-control-max-age": "86400",
    }
