"""The first commands on every connection to Redis: who we are, that we speak RESP3, and where our keys are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.errors import SourceError

if TYPE_CHECKING:
    from sse_gateway.link import Link


async def log_in(link: Link) -> dict[bytes, object]:
    """Log in with the credentials of the URL, and choose its database.

    Returns:
        What the server says of itself.

    Raises:
        SourceError: The server refused, or does not know the command.
    """
    user, password = link.credentials
    auth = [b"AUTH", user or b"default", password] if password else []
    try:
        hello = await link.call(b"HELLO", b"3", *auth, b"SETNAME", b"sse-gateway")
    except SourceError as error:
        if not str(error).startswith(("ERR unknown command", "NOPROTO")):
            raise
        hello = None  # and not quoted: Redis 5 repeats the command, password and all
    if not isinstance(hello, dict):
        raise SourceError("the server does not speak RESP3: Redis 6 or later, or Valkey, is needed")
    if link.database and hello.get(b"mode") not in {b"cluster", b"sentinel"}:  # those are told apart by others
        await link.call(b"SELECT", b"%d" % link.database)
    return hello
