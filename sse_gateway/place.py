"""Where Redis is, as its URL says, and a connection to it.

Forms of the URL and their check: `redis_url`. What is behind its ``?`` are options::

    rediss://host?ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE
    redis+sentinel://…/service?sentinel_username=USER&sentinel_password=PASSWORD
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from sse_gateway.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_gateway.link import Link

_SENTINEL = "redis+sentinel://"
_SENTINEL_PORT = 26379
_UNANSWERED_MS = 5_000  # bytes that nobody acknowledges for so long end the connection, whatever the kernel's patience


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Place:
    """One server, and what it takes to get in.

    Attributes:
        address: Of TCP. No meaning where `path` is set.
        path: Of a Unix socket.
        user: Its name; empty for the default user.
        password: Empty for none.
        tls: The URL's options for it; None for none.
        database: Where keys are; messages are in none.
    """

    address: Address
    path: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    tls: dict[str, str] | None = None
    database: int = 0

    def at(self, address: Address) -> Place:
        """The same with another address."""
        return replace(self, address=address)


@dataclass(frozen=True, slots=True)
class Watch:
    """What sentinels watch.

    Attributes:
        service: Its name.
        sentinels: Where they are.
        user: Of the sentinels themselves; empty for the default user.
        password: Likewise; empty for none.
    """

    service: str
    sentinels: tuple[Address, ...]
    user: str = ""
    password: str = field(default="", repr=False)


def place_of(url: str) -> Place:
    """Read a URL; of one that names sentinels, all but the address, which they know."""
    if url.startswith(_SENTINEL):
        userinfo, _, _ = _split(url)[0].rpartition("@")
        url = f"redis://{userinfo}@sentinels"
    parts = urlsplit(url)
    options = _options(parts.query)
    return Place(
        Address(unquote(parts.hostname or ""), parts.port or 6379),
        unquote(parts.path) if parts.scheme == "unix" else "",
        unquote(parts.username or "") or options.get("username", ""),
        unquote(parts.password or "") or options.get("password", ""),
        options if parts.scheme == "rediss" else None,
        0 if parts.scheme == "unix" else int(parts.path.strip("/") or 0),
    )


def watch_of(url: str) -> Watch | None:
    """Read what a URL says of sentinels; None if it names none."""
    if not url.startswith(_SENTINEL):
        return None
    netloc, service, query = _split(url)
    options = _options(query)
    hosts = netloc.rpartition("@")[2]
    return Watch(
        unquote(service),
        tuple(_address(host) for host in hosts.split(",")),
        options.get("sentinel_username", ""),
        options.get("sentinel_password", ""),
    )


def _split(url: str) -> tuple[str, str, str]:
    """Who and where, the service, the options: `urlsplit` knows no lists of hosts."""
    rest, _, query = url.removeprefix(_SENTINEL).partition("?")
    netloc, _, service = rest.partition("/")
    return netloc, service, query


async def connect(place: Place, make: Callable[[], Link]) -> Link:
    """Open a connection.

    Args:
        place: Where to, and the link's credentials and database.
        make: Makes the link.

    Raises:
        OSError: Nobody is there.
        SourceError: A file of the URL cannot be used.
    """
    loop = asyncio.get_running_loop()
    if place.path:
        _, link = await loop.create_unix_connection(make, place.path)
    else:
        tls = None if place.tls is None else _tls(place.tls)
        transport, link = await loop.create_connection(make, place.address.host, place.address.port, ssl=tls)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)
    link.credentials = (place.user.encode(), place.password.encode())
    link.database = place.database
    return link


def _options(query: str) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(query).items()}


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        return Address(text.strip("[]"), _SENTINEL_PORT)
    return Address(host.strip("[]"), int(port))


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    """Verify certificate and name, always.

    Raises:
        SourceError: A file of the URL cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certfile := options.get("ssl_certfile"):
            context.load_cert_chain(certfile, options.get("ssl_keyfile"))
    except OSError as error:  # its text does not name the file
        raise SourceError(f"cannot use the certificate files of redis.url: {error}") from error
    return context
