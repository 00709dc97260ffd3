"""What kind of server answers, and whether it can carry the promise.

Rules:
    1. A log can be counted where every subscriber sees every message in one order: on one primary of
       Redis or Valkey. Whoever gives another order, or may drop a message without ending the
       connection, is told apart here; many of them call themselves Redis.
    2. Cluster mode is a mistake that no retry mends, and ends the process (`ConfigError`). All else
       may be another server in a moment (a failover, an address that moves): not ready, and tried
       again (`SourceError`).
    3. With `redis.unordered` anybody will do but a replica, which loses messages in a live connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sse_gateway.errors import ConfigError, SourceError
from sse_gateway.link import text_of
from sse_gateway.redis_login import log_in

if TYPE_CHECKING:
    from sse_gateway.link import Link

ORDERED = frozenset({"redis", "valkey"})
"""Servers whose PUBLISH has one order for all."""

LOOKALIKES = {
    "dragonfly_version": "Dragonfly",
    "garnet_version": "Garnet",
    "kvrocks_version": "Kvrocks",
    "mvcc_depth": "KeyDB",
    "rlec_version": "Redis Enterprise",
}
"""Who is given away by which field of INFO."""

_KEYDB = "keydb-server"  # its executable
_WAY_OUT = "use Redis or Valkey, or set redis.unordered: true and run one node without a lasting log"


@dataclass(frozen=True, slots=True)
class Server:
    """What identifies the process behind a connection.

    Attributes:
        kind: As it says, or as it is known.
        version: As it says.
        run_id: Changes with every start; empty if it does not say.
    """

    kind: str
    version: str
    run_id: str


async def greet(link: Link, *, unordered: bool = False) -> Server:
    """Log in, and judge the server.

    Args:
        link: Newly connected.
        unordered: Whether one that gives no order will do.

    Raises:
        ConfigError: It cannot carry the promise whatever we do.
        SourceError: It cannot, or not now.
    """
    hello = await log_in(link)
    kind, version, mode = (text_of(hello.get(key, b"")) for key in (b"server", b"version", b"mode"))
    if mode == "sentinel":
        raise SourceError("this is a sentinel: name it in a URL of the form redis+sentinel://host:port/service")
    if mode == "cluster" and not unordered:
        problem = (
            "redis.url: the server runs in Cluster mode, where no two subscribers see the same order; "
            "use a standalone primary (with Sentinel if you like), or redis.unordered: true"
        )
        raise ConfigError([problem])
    await _check_loading(link)
    await _check_role(link, unordered=unordered)
    info = await _info(link)
    kind = _known_as(info) or kind
    if not unordered:
        _check_order(kind, info)
    return Server(kind, version, info.get("run_id", ""))


async def _check_loading(link: Link) -> None:
    try:
        await link.call(b"PING")
    except SourceError as error:
        if str(error).startswith("LOADING"):
            raise
        # -MISCONF (disk error) and the like do not concern PUBLISH


async def _check_role(link: Link, *, unordered: bool) -> None:
    """Refuse all but a primary.

    Raises:
        SourceError: The server is none.
    """
    try:
        role = await link.call(b"ROLE")
    except SourceError as error:
        if unordered and str(error).startswith("ERR unknown command"):
            return
        raise
    if not isinstance(role, list) or role[:1] != [b"master"]:
        raise SourceError("the server is a replica, not a primary: it may lose messages without a word")


async def _info(link: Link) -> dict[str, str]:
    """What the server tells of itself; KeyDB tells what it is in a section of its own."""
    said = [text_of(await link.call(b"INFO", section)) for section in (b"server", b"keydb")]
    lines = (line.partition(":") for text in said for line in text.splitlines())
    return {key: value for key, colon, value in lines if colon}


def _known_as(info: dict[str, str]) -> str:
    """The name of a look-alike that is known; empty for others."""
    if info.get("executable", "").endswith(_KEYDB):
        return "KeyDB"
    return next((name for field, name in LOOKALIKES.items() if field in info), "")


def _check_order(kind: str, info: dict[str, str]) -> None:
    """Refuse a server whose order is not known to be one for all.

    Raises:
        SourceError: It says what is missing.
    """
    if kind in LOOKALIKES.values():
        raise SourceError(f"the server is {kind}, where subscribers need not see the same order: {_WAY_OUT}")
    if kind not in ORDERED:
        raise SourceError(f"the server calls itself {kind!r}, and its order is not known to be one for all: {_WAY_OUT}")
    mode = info.get("redis_mode") or info.get("server_mode") or "standalone"
    if mode != "standalone":
        raise SourceError(f"the server runs in {mode} mode behind an address that denies it: {_WAY_OUT}")
    if not info.get("run_id"):
        raise SourceError(f"the server does not tell its run id, so a restart could not be seen: {_WAY_OUT}")
