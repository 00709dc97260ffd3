"""Whose address a request counts for: the peer's, or what a trusted proxy says of its client.

Rules:
    1. Only trusted proxies are believed, and of what they say only what the nearest of them has added:
       hops are read from the right, trusted ones are passed over, and the first that is not is the client.
       What a client wrote itself stands further left and is never reached.
    2. A request that comes through a trusted proxy and names no client has no address: nobody is
       counted together with the proxy.
    3. One subscriber's IPv6 is a /64, in which it has as many addresses as it likes: it counts as one.
       An IPv4 address in IPv6 clothes is that IPv4 address.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from ipaddress import IPv4Network

    Network = IPv4Network | IPv6Network
    Address = IPv4Address | IPv6Address

UNIX = "unix"
"""Among trusted proxies: whoever connects to a Unix socket."""

MAX_HOPS = 32
"""Trusted hops in a row that are passed over; a longer chain is nobody's, and its client has no address."""

MAX_KNOWN = 1024
"""Addresses that are remembered as they were read: a proxy's comes with every request. Of those that trust is asked of, too."""

_MAX_HOP = 64
"""Characters of one hop; a longer one is no address."""

_IPV4_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}")
_BRACKETS = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?")


def parse_trusted(text: str) -> Network | str:
    """Read one entry of `trusted_proxies`: a network, an address, or ``unix``.

    Raises:
        ValueError: It is none of these, has host bits set, or would be everybody.
    """
    if text == UNIX:
        return UNIX
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError("must be an address, a network such as 10.0.0.0/8 without host bits, or unix") from None
    if network.prefixlen == 0:
        raise ValueError("would trust everybody: each client could then choose its own address")
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return ip_network(f"{mapped}/{network.prefixlen - 96}")
    return network


class TrustedProxies:
    """Who is believed when it says for whom it asks."""

    def __init__(self, entries: Sequence[str]) -> None:
        """Prepare; entries are those of `parse_trusted`."""
        trusted = [parse_trusted(entry) for entry in entries]
        self._unix = UNIX in trusted
        self._networks = [network for network in trusted if not isinstance(network, str)]
        self._trusts = lru_cache(MAX_KNOWN)(self._is_in_a_network)

    def client(self, peer: str | None, forwarded: Sequence[str]) -> str | None:
        """The address that a request counts for, as text: an IPv4 address, or an IPv6 network of 64 bits.

        Args:
            peer: Address of the other end of the connection; None for a Unix socket.
            forwarded: Values of ``X-Forwarded-For``, field by field, as they came.

        Returns:
            None for a request that has none.
        """
        address = None if peer is None else _parse(peer)
        if self._unix if peer is None else self._trusts(address):
            return self._behind(forwarded)
        return None if address is None else _text(address)

    def _behind(self, forwarded: Sequence[str]) -> str | None:
        """The client that a trusted proxy speaks of."""
        address = None
        for count, hop in enumerate(_from_the_right(forwarded)):
            address = _parse(hop)
            if address is None or count == MAX_HOPS:  # the proxy does not know it either
                return None
            if not self._trusts(address):
                break
        return None if address is None else _text(address)  # all trusted: the farthest is the client

    def _is_in_a_network(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _from_the_right(forwarded: Sequence[str]) -> Iterator[str]:
    """Hops, the nearest first; empty ones are none."""
    for field in reversed(forwarded):
        for hop in reversed(field.split(",")):
            if text := hop.strip(" \t"):
                yield text


def _parse(hop: str) -> Address | None:
    """Read one hop: an address, perhaps with a port, in brackets or quotes; None for anything else."""
    return _read(hop) if len(hop) <= _MAX_HOP else None


@lru_cache(MAX_KNOWN)
def _read(hop: str) -> Address | None:
    text = hop.strip('"')
    match = _IPV4_PORT.fullmatch(text) or _BRACKETS.fullmatch(text)
    try:
        address = ip_address((match[1] if match else text).partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _text(address: Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))
