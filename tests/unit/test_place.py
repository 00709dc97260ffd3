"""What a URL says of where Redis is, and of the sentinels that know."""

from __future__ import annotations

import pytest

from sse_gateway.place import Address, Place, Watch, place_of, watch_of


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://cache", Place(Address("cache", 6379))),
        ("redis://127.0.0.1:7000/3", Place(Address("127.0.0.1", 7000), database=3)),
        ("redis://cache/", Place(Address("cache", 6379))),
        ("redis://user:p%40ss@cache", Place(Address("cache", 6379), "", "user", "p@ss")),
        ("redis://:secret@cache", Place(Address("cache", 6379), "", "", "secret")),
        ("redis://cache?username=u&password=p%26", Place(Address("cache", 6379), "", "u", "p&")),
        ("redis://[::1]:7000", Place(Address("::1", 7000))),
        ("rediss://cache?ssl_ca_certs=/ca", Place(Address("cache", 6379), tls={"ssl_ca_certs": "/ca"})),
        ("rediss://cache", Place(Address("cache", 6379), tls={})),
        ("unix:///run/redis.sock", Place(Address("", 6379), path="/run/redis.sock")),
        ("unix://u:p@/run/a%20b", Place(Address("", 6379), "/run/a b", "u", "p")),
        ("redis+sentinel://u:p%2F@a,b:1/main", Place(Address("sentinels", 6379), "", "u", "p/")),
        ("redis+sentinel://a/main?sentinel_password=x", Place(Address("sentinels", 6379))),
    ],
)
def test_a_url_says_where_and_who(url: str, place: Place) -> None:
    """Host, port or path, the data server's credentials, what TLS needs, and where keys are."""
    assert place_of(url) == place


@pytest.mark.parametrize(
    ("url", "watch"),
    [
        ("redis://cache", None),
        ("redis+sentinel://a:1,b,[::1]:2,[::2]/main", Watch("main", (Address("a", 1), Address("b", 26379),
         Address("::1", 2), Address("::2", 26379)))),
        ("redis+sentinel://u:p@a/ev%20ents", Watch("ev ents", (Address("a", 26379),))),
        ("redis+sentinel://u:p@a/main?sentinel_username=s&sentinel_password=q%40",
         Watch("main", (Address("a", 26379),), "s", "q@")),
    ],
)  # fmt: skip
def test_a_url_says_who_watches_what(url: str, watch: Watch | None) -> None:
    """The sentinels' own credentials are options: those before the hosts are the data servers'."""
    assert watch_of(url) == watch


def test_an_address_is_shown_as_it_is_written() -> None:
    """An IPv6 address needs its brackets."""
    assert str(Address("::1", 1)) == "[::1]:1"
    assert str(Address("cache", 6379)) == "cache:6379"


def test_a_password_is_not_shown() -> None:
    """Neither of the servers nor of the sentinels."""
    url = "redis+sentinel://u:hunter1@a/main?sentinel_password=hunter2"
    assert "hunter" not in f"{place_of(url)!r} {watch_of(url)!r}"
