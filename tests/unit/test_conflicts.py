from __future__ import annotations

from typing import Any

import pytest

from sse_gateway.conflicts import Conflict, find_conflicts
from sse_gateway.settings import Settings


def conflicts(**sections: Any) -> list[Conflict]:
    """The conflicts of settings that are sound key by key."""
    return list(find_conflicts(Settings.model_validate({"auth": {"mode": "none"}} | sections)))


def rules(*pairs: tuple[str, str]) -> list[Conflict]:
    """The conflicts of rules, each a pattern and its `strip_prefix`."""
    return conflicts(channels=[{"pattern": pattern, "strip_prefix": prefix} for pattern, prefix in pairs])


def test_the_defaults_agree() -> None:
    """Nothing to say."""
    assert not conflicts()


@pytest.mark.parametrize(
    ("listen", "admin"),
    [
        ({"port": 9080}, {}),
        ({}, {"port": 8080}),
        ({"host": "0.0.0.0", "port": 9080}, {}),  # noqa: S104 - compared, not bound
        ({"host": "127.0.0.1", "port": 9080}, {"host": "::", "anonymous": True}),
        ({"host": "localhost", "port": 9080}, {}),
        ({"host": "Gw.example", "port": 9080}, {"host": "gw.EXAMPLE", "token": "t" * 16}),
        ({"host": "0:0::1", "port": 9080}, {"host": "::1"}),
    ],
)
def test_the_admin_listener_is_not_the_public_one(listen: dict[str, Any], admin: dict[str, Any]) -> None:
    """The same port and host, whatever its spelling; an address for all is every host."""
    (conflict,) = conflicts(listen=listen, admin=admin)
    assert conflict.keys == (("admin", "port"), ("listen", "port"))


def test_two_listeners_need_two_sockets() -> None:
    """One path cannot be both; a path and a port can."""
    (conflict,) = conflicts(listen={"unix": "/run/gw.sock"}, admin={"unix": "/run/gw.sock"})
    assert conflict.keys == (("admin", "unix"), ("listen", "unix"))
    assert not conflicts(listen={"unix": "/run/a"}, admin={"unix": "/run/b"})
    assert not conflicts(listen={"unix": "/run/a"}, admin={"port": 8080})
    admin = {"host": "192.0.2.2", "port": 80, "token": "t" * 16}
    assert not conflicts(listen={"host": "192.0.2.1", "port": 80}, admin=admin)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gw.example", "fe80::1%eth0"])  # noqa: S104 - not bound
def test_an_admin_listener_that_others_reach_has_a_token_or_says_that_it_has_none(host: str) -> None:
    """Beyond loopback nothing is open to everybody by leaving something out."""
    (conflict,) = conflicts(admin={"host": host})
    assert conflict.keys == (("admin", "host"),)
    assert not conflicts(admin={"host": host, "token": "t" * 16})
    assert not conflicts(admin={"host": host, "anonymous": True})


@pytest.mark.parametrize("admin", [{"host": "127.8.9.1"}, {"host": "::1"}, {"host": "localhost"}, {"unix": "/run/a"}])
def test_an_admin_listener_on_loopback_needs_no_token(admin: dict[str, Any]) -> None:
    """Nor one on a Unix socket, which has its own permissions."""
    assert not conflicts(admin=admin)


def test_each_worker_needs_a_connection() -> None:
    """They share `limits.connections`."""
    (conflict,) = conflicts(workers=3, limits={"connections": 2})
    assert conflict.keys == (("workers",), ("limits", "connections"))
    assert not conflicts(workers=2, limits={"connections": 2})
    assert not conflicts(workers="auto", limits={"connections": 1})


@pytest.mark.parametrize("section", ["listen", "admin"])
def test_a_unix_socket_takes_the_place_of_host_and_port(section: str) -> None:
    """Both together say two things; a `unix` of null says nothing."""
    found = conflicts(**{section: {"unix": "/run/gw.sock", "host": "::1", "port": 7}})
    assert [conflict.keys[0] for conflict in found] == [(section, "host"), (section, "port")]
    assert not conflicts(**{section: {"unix": None, "host": "::1", "port": 7}})


@pytest.mark.parametrize(
    "pattern", ["__*", "__sse_gateway:x", r"\__*", "[_]_?", "_[_]*", "__", "*" + "x*" * 1001]
)  # fmt: skip
def test_a_pattern_that_can_deliver_nothing_is_a_mistake(pattern: str) -> None:
    """Channels that begin with ``__`` are never delivered."""
    (conflict,) = rules((pattern, ""))
    assert conflict.keys == (("channels", 0, "pattern"),)
    assert "matches no channel" in conflict.text


@pytest.mark.parametrize("pattern", ["*", "_*", "?_*", "_", "[^a]*", "[_a]*", "a__*", "é*"])
def test_a_pattern_that_can_deliver_something_is_none(pattern: str) -> None:
    """Even where it matches reserved channels too."""
    assert not rules((pattern, ""))


def test_an_empty_pattern_is_a_mistake() -> None:
    """It would match no channel."""
    (conflict,) = rules(("", ""))
    assert "must not be empty" in conflict.text


@pytest.mark.parametrize(
    ("pattern", "prefix"), [("sse:*", "sse:"), ("sse:*", "ss"), (r"a\*b*", "a*b"), (r"\a\b?", "ab"), ("é*", "é")]
)
def test_the_literal_head_may_begin_with_the_prefix(pattern: str, prefix: str) -> None:
    """Escapes are resolved before they are compared."""
    assert not rules((pattern, prefix))


@pytest.mark.parametrize(
    ("pattern", "prefix"), [("sse:*", "sse:x"), ("*", "a"), ("[a]b*", "a"), (r"a\*b*", r"a\*"), ("a?", "ab")]
)
def test_the_literal_head_must_begin_with_the_prefix(pattern: str, prefix: str) -> None:
    """Else some channels of the rule would not have it."""
    (conflict,) = rules((pattern, prefix))
    assert conflict.keys == (("channels", 0, "strip_prefix"), ("channels", 0, "pattern"))
    assert "must begin with strip_prefix" in conflict.text


@pytest.mark.parametrize("pattern", ["sse:", r"s\se:"])
def test_something_must_be_left_for_clients(pattern: str) -> None:
    """A channel without a name could not be asked for."""
    (conflict,) = rules((pattern, "sse:"))
    assert "nothing would be left" in conflict.text


def test_two_rules_have_two_patterns() -> None:
    """Every pair is judged, and told at the later rule."""
    found = rules(("a*", ""), ("b*", ""), ("a*", ""), ("a*", ""))
    assert [conflict.keys for conflict in found] == [
        (("channels", 2, "pattern"), ("channels", 0, "pattern")),
        (("channels", 3, "pattern"), ("channels", 0, "pattern")),
        (("channels", 3, "pattern"), ("channels", 2, "pattern")),
    ]


@pytest.mark.parametrize(
    "pairs",
    [
        [("a:*", "a:"), ("b:*", "b:")],
        [("a:*", ""), ("x:a:*", "x:")],
        [("*", ""), ("sse:*", "sse:")],
        [("a:[0-5]*", "a:"), ("b:[5-9]*", "b:")],
        [(r"\a:x", "a:"), ("b:?", "b:")],
    ],
)
def test_names_of_rules_with_different_prefixes_must_not_meet(pairs: list[tuple[str, str]]) -> None:
    """A client that asks for one name must get one channel."""
    (conflict,) = rules(*pairs)
    assert conflict.keys == (("channels", 1, "pattern"), ("channels", 0, "pattern"))
    assert "the same name" in conflict.text


@pytest.mark.parametrize(
    "pairs",
    [
        [("sse:audit:*", "sse:"), ("sse:*", "sse:")],
        [("a:news:*", "a:"), ("b:sport:*", "b:")],
        [("a:[0-4]*", "a:"), ("b:[5-9]*", "b:")],
        [("a:?", "a:"), ("b:??", "b:")],
        [(r"a\*:x*", "a*:"), ("b:y*", "b:")],
    ],
)
def test_names_that_cannot_meet_are_fine(pairs: list[tuple[str, str]]) -> None:
    """One prefix gives back one channel, and so do names that differ."""
    assert not rules(*pairs)


def test_a_rule_that_is_wrong_by_itself_meets_no_other() -> None:
    """One mistake is told once."""
    assert len(rules(("*", "x"), ("sse:*", "sse:"))) == 1


def test_no_bound_is_below_the_largest_message() -> None:
    """A message that no queue or window could hold would be lost at once."""
    window, queue = {"max_bytes": "512KiB"}, {"max_bytes": "1MiB"}
    channels = [{"pattern": "a:*", "window": window, "queue": queue}, {"pattern": "b:*"}]
    found = conflicts(channels=channels, limits={"message_size": "2MiB"})
    assert [conflict.keys for conflict in found] == [
        (("limits", "message_size"), ("channels", 0, "queue", "max_bytes")),
        (("limits", "message_size"), ("channels", 0, "window", "max_bytes")),
    ]
    assert found[0].text == "message_size (2MiB) must not be above a queue's max_bytes (1MiB)"
    assert not conflicts(channels=channels, limits={"message_size": "512KiB"})


SECRET = "0123456789abcdef" * 2
KEY = {"mode": "jwt", "secret": SECRET}
ASKED = {"url": "http://app.example/who"}


@pytest.mark.parametrize(
    ("auth", "keys"),
    [
        (KEY, []),
        ({"mode": "jwt", "public_key_file": "/k.pem", "algorithms": ["RS256", "ES256", "EdDSA", "PS512"]}, []),
        ({"mode": "jwt", "jwks_url": "https://issuer.example/keys", "algorithms": ["RS256"]}, []),
        ({"mode": "callback", "callback": ASKED}, []),
        ({"mode": "none", "secret": SECRET}, ["secret"]),
        ({"mode": "none", "public_key_file": "/k.pem", "jwks_url": "https://a/"}, ["public_key_file", "jwks_url"]),
        ({"mode": "none", "callback": ASKED}, ["url"]),
        (KEY | {"callback": ASKED}, ["url"]),
        ({"mode": "callback", "callback": ASKED, "secret": SECRET}, ["secret"]),
        ({"mode": "jwt"}, ["mode"]),
        (KEY | {"jwks_url": "https://issuer.example/keys"}, ["secret"]),
        (KEY | {"algorithms": []}, ["algorithms"]),
        (KEY | {"algorithms": ["HS256", "RS256"]}, ["algorithms"]),
        (KEY | {"algorithms": ["RS256"]}, ["algorithms"]),
        ({"mode": "jwt", "public_key_file": "/k.pem"}, ["algorithms"]),
        (KEY | {"token_from": {"header": False, "cookie": None}}, ["token_from"]),
        (KEY | {"token_from": {"header": False}}, []),
        (KEY | {"token_from": {"header": False, "cookie": None, "query": "token"}}, []),
        ({"mode": "callback"}, ["mode"]),
        ({"mode": "callback", "callback": ASKED | {"headers": []}}, ["headers"]),
        ({"mode": "callback", "callback": ASKED | {"headers": [], "cookies": ["sid"]}}, []),
    ],
)
def test_there_is_one_way_to_know_a_client(auth: dict[str, Any], keys: list[str]) -> None:
    """Whatever is left out, empty or too much is said; none of it means that anybody may read."""
    assert [conflict.keys[0][-1] for conflict in conflicts(auth=auth)] == keys


def test_where_nobody_is_asked_nothing_is_private() -> None:
    """A rule that is meant to be private beside `mode: none` is a mistake; a public one is none."""
    rule = {"pattern": "a*", "access": "private"}
    (conflict,) = conflicts(channels=[{"pattern": "b*", "access": "public"}, rule])
    assert conflict.keys == (("channels", 1, "access"), ("auth", "mode"))
    assert not conflicts(channels=[rule], auth=KEY)
