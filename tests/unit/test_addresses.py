"""Whose address counts: the table of what proxies and liars send."""

from __future__ import annotations

import pytest

from sse_gateway.addresses import MAX_HOPS, TrustedProxies, parse_trusted

TRUSTED = TrustedProxies(["127.0.0.0/8", "::1", "10.0.0.0/8", "unix"])
NGINX = "127.0.0.1"
CLIENT = "203.0.113.7"


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (CLIENT, CLIENT),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", CLIENT),
        ("fe80::1%eth0", "fe80::/64"),
        ("", None),
        ("nonsense", None),
    ],
)
def test_a_peer_that_is_no_proxy_counts_itself(peer: str, address: str | None) -> None:
    """Whatever it says about others; IPv6 by /64, IPv4 as what it is."""
    assert TRUSTED.client(peer, []) == address
    assert TRUSTED.client(peer, ["198.51.100.1", "unknown"]) == address


@pytest.mark.parametrize("peer", [NGINX, "::1", "10.1.2.3", "::ffff:127.0.0.1", None])
def test_a_trusted_proxy_is_believed(peer: str | None) -> None:
    """By its network, in IPv6 clothes too, or because it comes through the Unix socket."""
    assert TRUSTED.client(peer, [CLIENT]) == CLIENT


@pytest.mark.parametrize("forwarded", [[], [""], [" , ,"], ["", ""]])
def test_a_proxy_that_names_nobody_is_not_counted(forwarded: list[str]) -> None:
    """A request without an address has none: it is not the proxy's."""
    assert TRUSTED.client(NGINX, forwarded) is None
    assert TRUSTED.client(None, forwarded) is None


@pytest.mark.parametrize(
    "forwarded",
    [
        [f"198.51.100.1, {CLIENT}"],
        [f"198.51.100.1,{CLIENT},10.0.0.2 , 127.0.0.1"],
        ["198.51.100.1", f"  {CLIENT}\t"],
        [CLIENT, "10.0.0.2", "127.0.0.9,"],
        [f"unknown, garbage, {CLIENT}"],
        [f"{'1.1.1.1,' * 1000}{CLIENT}"],
        [f"{'x' * 16_000},{CLIENT}"],
    ],
)
def test_hops_are_counted_from_the_right(forwarded: list[str]) -> None:
    """What the client wrote itself, however much of it, is never reached."""
    assert TRUSTED.client(NGINX, forwarded) == CLIENT


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        ("203.0.113.7:4711", CLIENT),
        ('"203.0.113.7:4711"', CLIENT),
        ("[2001:db8:1:2::3]:443", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::3]", "2001:db8:1:2::/64"),
        ('"[2001:db8:1:2::3]:443"', "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::3", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", CLIENT),
        ("[::ffff:203.0.113.7]:80", CLIENT),
        ("2001:db8:1:2::3%eth0", "2001:db8:1:2::/64"),
    ],
)
def test_the_forms_of_a_hop(hop: str, address: str) -> None:
    """With a port, in brackets, quoted, mapped, with a zone."""
    assert TRUSTED.client(NGINX, [hop]) == address


@pytest.mark.parametrize(
    "hop",
    [
        "unknown",
        "_hidden",
        "evil.example",
        "203.0.113",
        "203.0.113.7.8",
        "203.0.113.007",
        "203.0.113.7:123456",
        "203.0.113.7 198.51.100.1",
        "1.1.1.1\0",
        "٢.٢.٢.٢",
        "[2001:db8::1",
        "[]:1",
        "1",
        "x" * 1000,
    ],
)
def test_what_is_no_address_is_nobodys(hop: str) -> None:
    """The nearest untrusted hop comes from a proxy that is believed: if it knows no address, there is none."""
    assert TRUSTED.client(NGINX, [f"198.51.100.1, {hop}"]) is None


def test_where_all_hops_are_trusted_the_farthest_counts() -> None:
    """A client inside the trusted networks is a client, too."""
    assert TRUSTED.client(NGINX, ["10.9.9.9, 10.0.0.2"]) == "10.9.9.9"


def test_a_chain_of_trusted_hops_has_a_bound() -> None:
    """Beyond it nobody goes on reading, and the request has no address."""
    assert TRUSTED.client(NGINX, [",".join([CLIENT, *["10.0.0.1"] * MAX_HOPS])]) is None
    assert TRUSTED.client(NGINX, [",".join([CLIENT, *["10.0.0.1"] * (MAX_HOPS - 1)])]) == CLIENT


def test_without_trusted_proxies_nobody_is_believed() -> None:
    """Every peer counts itself; one on a Unix socket has no address."""
    nobody = TrustedProxies([])
    assert nobody.client(NGINX, [CLIENT]) == NGINX
    assert nobody.client(None, [CLIENT]) is None


@pytest.mark.parametrize("text", ["10.0.0.0/8", "::1", "unix", "2001:db8::/32", "192.0.2.1/32", "::ffff:10.0.0.0/104"])
def test_who_may_be_trusted(text: str) -> None:
    """Networks, addresses, the Unix socket."""
    assert str(parse_trusted(text)).removesuffix("/128") in {text, "10.0.0.0/8"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.1/8", "host bits"),
        ("localhost", "must be"),
        ("", "must be"),
        ("10.0.0.0/33", "must be"),
        ("0.0.0.0/0", "everybody"),
        ("::/0", "everybody"),
    ],
)
def test_who_may_not(text: str, why: str) -> None:
    """Names, networks with host bits, and everybody."""
    with pytest.raises(ValueError, match=why):
        parse_trusted(text)
