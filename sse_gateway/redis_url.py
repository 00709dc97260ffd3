"""The address of Redis as one URL: its form, and how it is shown.

Forms::

    redis://[user:password@]host[:port][/db]          rediss:// the same with TLS
    unix://[user:password@]/path/of/socket
    redis+sentinel://[user:password@]host[:port],host[:port],…/service

Rule: no message of this module quotes any part of a URL, because each part may be a password in
the wrong place.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel")

_URL = re.compile(r"([a-z+]+)://(?:[^/?#]*@)?([^/?#]*)(/[^?#]*)?(?:\?[^#]*)?")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?)(?::([0-9]{1,5}))?")
_DATABASE = re.compile(r"/?[0-9]{0,5}")
_SERVICE = re.compile(r"/[^/]+")
_UNSAFE = re.compile(r"[\s#\x00-\x20\x7f]")

_USERINFO = re.compile(r"(?<=://)[^/?#]*(?=@)")
_SECRET_PARAMETER = re.compile(r"(?<=[?&])([a-z_]*password=)[^&]*")

_ENCODE = "percent-encode / ? # @ and spaces in a password"


def check_redis_url(url: str) -> None:
    """Refuse what is not one of the forms.

    Raises:
        ValueError: With the form expected; never with a part of `url`.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError("must begin with redis://, rediss://, unix:// or redis+sentinel://")
    match = None if _UNSAFE.search(url) else _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"has a character that no URL may have; {_ENCODE}")
    _check_place(scheme, hosts=match[2], path=match[3] or "")


def mask_redis_url(url: str) -> str:
    """The URL with every secret in it as ``***``; still a URL of the same form."""
    return _SECRET_PARAMETER.sub(r"\1***", _USERINFO.sub(_mask_userinfo, url))


def _check_place(scheme: str, *, hosts: str, path: str) -> None:
    """Refuse an address that the scheme cannot have."""
    if scheme == "unix":
        if hosts or len(path) < 2:
            raise ValueError(f"must be unix:// and an absolute path, such as unix:///run/redis.sock; {_ENCODE}")
        return
    many = scheme == "redis+sentinel"
    if not all(map(_is_host, hosts.split(",") if many else [hosts])):
        raise ValueError(f"must name {'hosts' if many else 'one host'} and ports from 1 to 65535; {_ENCODE}")
    if many and not _SERVICE.fullmatch(path):
        raise ValueError("must end in / and the name of the service that the sentinels watch")
    if not many and not _DATABASE.fullmatch(path):
        raise ValueError(f"may have nothing but a database number behind the host; {_ENCODE}")


def _is_host(text: str) -> bool:
    """Whether `text` is ``host`` or ``host:port``."""
    match = _HOST.fullmatch(text)
    return match is not None and 1 <= int(match[2] or 1) <= 65535 and (match[1] is None or _is_ipv6(match[1]))


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _mask_userinfo(match: re.Match[str]) -> str:
    """``user:***``; a lone word may be a password whose colon was forgotten."""
    user, colon, _ = match[0].partition(":")
    return f"{user}:***" if colon else "***"
