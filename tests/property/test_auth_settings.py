"""Nothing left out, empty or misspelt lets anonymous clients in: every way to write ``auth``, against who is then asked."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from sse_gateway.authority import make_authority
from sse_gateway.channels import RuleTable
from sse_gateway.config import load_settings
from sse_gateway.errors import ConfigError, RequestError, TemporaryError
from sse_gateway.reasons import AccessFailure
from tests.support.access import RSA_KEY, SECRET, pem, token, wall

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sse_gateway.authority import Authority
    from sse_gateway.settings import Settings

KEY = b"k" * 32

VALUES: dict[str, list[Any]] = {
    "mode": ["jwt", "callback", "", None, "JWT", "off", False, []],
    "algorithms": [["HS256"], ["RS256"], ["HS256", "RS256"], [], None, ["none"], [""], ""],
    "secret": [SECRET, "", None, "short", "\n" * 40],
    "public_key_file": ["KEY", "", None, "/nowhere"],
    "jwks_url": ["https://issuer.example/keys", "", None, "http://issuer.example/keys"],
    "audience": ["us", "", None],
    "issuer": ["them", "", None],
    "channels_claim": ["channels", "", None],
    "max_lifetime": ["1h", "0s", None],
    "token_from": [
        {"header": True},
        {"header": False},
        {"header": False, "cookie": None, "query": "token"},
        {"header": False, "cookie": None},
        {"cookie": ""},
        {"query": ""},
        {},
        None,
    ],
    "callback": [{"url": "http://127.0.0.1:1/"}, {"url": ""}, {"url": "http://127.0.0.1:1/", "headers": []}, {}, None],
}
SOUND: list[dict[str, Any]] = [
    {"mode": "jwt", "secret": SECRET},
    {"mode": "jwt", "public_key_file": "KEY", "algorithms": ["RS256"]},
    {"mode": "jwt", "jwks_url": "https://issuer.example/keys", "algorithms": ["RS256"]},
    {"mode": "callback", "callback": {"url": "http://127.0.0.1:1/", "timeout": "1ms"}},
]
GONE = "left out"
CHANGES = st.lists(
    st.sampled_from([(key, value) for key, values in VALUES.items() for value in [*values, GONE]]), max_size=3
)
RULES = st.sampled_from([None, "private"])


def loaded(directory: Path, auth: object, access: str | None) -> Settings | None:
    """The settings of a configuration; None for one that is refused."""
    (directory / "key.pem").write_text(pem(RSA_KEY.public_key()))
    text = json.dumps({"auth": auth, "channels": [{"pattern": "sse:*", "strip_prefix": "sse:", "access": access}]})
    file = directory / "gateway.yaml"
    file.write_text(text.replace('"KEY"', json.dumps(str(directory / "key.pem"))))
    try:
        return load_settings(file, {})
    except ConfigError:
        return None


def authority_of(settings: Settings, clock: Callable[[], float] = wall) -> Authority | None:
    """Who lets clients in; None for settings that are refused at the start."""
    try:
        return make_authority(settings, RuleTable(settings.rules), KEY, clock)
    except ConfigError:
        return None


def admitted(authority: Authority, asked: str, headers: dict[str, str], query: str = "") -> int:
    """200 for a request that is let in, or what it is refused with."""
    try:
        asyncio.run(authority.admit([asked], CIMultiDictProxy(CIMultiDict(headers)), query))
    except RequestError as error:
        return error.status
    except TemporaryError:
        return 503
    return 200


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.sampled_from(SOUND), CHANGES, RULES)
def test_no_configuration_lets_anonymous_clients_in(
    tmp_path_factory: pytest.TempPathFactory,
    sound: dict[str, Any],
    changes: list[tuple[str, Any]],
    access: str | None,
) -> None:
    """It is refused, or whoever shows nothing gets nothing, under any name."""
    auth = {key: value for key, value in {**sound, **dict(changes)}.items() if value != GONE}
    settings = loaded(tmp_path_factory.mktemp("c"), auth, access)
    if settings is None:
        return
    assert settings.auth.mode != "none"
    authority = authority_of(settings)
    if authority is None:
        return
    for asked in ("a", "a*", "*", "nowhere"):
        assert admitted(authority, asked, {}) == 401
        assert admitted(authority, asked, {"Cookie": "__Host-sse="}, "token=") == 401
        assert admitted(authority, asked, {"Authorization": "Bearer"}) in {401, 503}  # an application is asked


def test_sound_configurations_are_loaded(tmp_path: Path) -> None:
    """So that the test above is about something."""
    for sound in SOUND:
        settings = loaded(tmp_path, sound, None)
        assert settings is not None
        assert authority_of(settings) is not None


def test_all_that_is_left_out_is_closed(tmp_path: Path) -> None:
    """The negative: the same checks do see a configuration that lets everybody in, because it says so."""
    assert loaded(tmp_path, {}, None) is None
    assert loaded(tmp_path, None, None) is None
    assert loaded(tmp_path, {"mode": "none"}, "private") is None
    settings = loaded(tmp_path, {"mode": "jwt", "secret": SECRET}, "public")
    assert settings is not None
    authority = authority_of(settings)
    assert authority is not None
    assert admitted(authority, "a", {}) == 200
    assert admitted(authority, "nowhere*", {}) == 200  # by this one rule


def test_what_was_let_in_is_looked_at_again(tmp_path: Path) -> None:
    """A token that ends, or is revoked, while a request waits opens nothing."""
    settings = loaded(tmp_path, {"mode": "jwt", "secret": SECRET}, None)
    assert settings is not None
    now = [wall()]
    authority = authority_of(settings, lambda: now[0])
    assert authority is not None

    def let_in(subject: str) -> Any:
        headers = CIMultiDict({"Authorization": f"Bearer {token('a', sub=subject)}"})
        access = asyncio.run(authority.admit(["a"], CIMultiDictProxy(headers), ""))
        assert access is not None
        return access.identity

    ann, bob = let_in("ann"), let_in("bob")
    authority.recheck(ann)
    authority.heard(authority.revocations.write(ann.marks[0], int(now[0]) + 60))
    assert authority.take_news()
    assert not authority.take_news()
    with pytest.raises(RequestError) as caught:
        authority.recheck(ann)
    assert caught.value.status == 401
    authority.recheck(bob)
    now[0] += 61
    with pytest.raises(RequestError) as caught:
        authority.recheck(bob)
    assert caught.value.status == 401
    assert {reason: count for reason, count in authority.counts().refused.items() if count} == {
        AccessFailure.REVOKED: 1,
        AccessFailure.EXPIRED: 1,
    }
