"""The form of tokens, and what their claims have to say."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from sse_gateway.errors import AccessError
from sse_gateway.reasons import AccessFailure
from sse_gateway.tokens import LEEWAY_S, MAX_TEXT, MAX_TOKEN, Expected, parse_token, read_claims

NOW = 1_800_000_000.0


def b64(data: bytes | str) -> str:
    """Base64url without padding."""
    raw = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def token(header: object, payload: str = "{}", signature: bytes = b"s") -> str:
    """A token that nobody has signed."""
    text = header if isinstance(header, str) else json.dumps(header)
    return f"{b64(text)}.{b64(payload)}.{b64(signature)}"


def expected(audience: str | None = None, issuer: str | None = None, claim: str = "channels") -> Expected:
    """What claims have to say."""
    return Expected(audience, issuer, claim, 3600.0, lambda subject, token: (subject, token))


def why(call: Any) -> AccessFailure:
    """What a call is refused for."""
    with pytest.raises(AccessError) as caught:
        call()
    return caught.value.why


def judged(claims: object, **wanted: Any) -> AccessFailure:
    """What some claims are refused for."""
    return why(lambda: read_claims(json.dumps(claims).encode(), expected(**wanted), NOW))


def test_a_token_is_taken_apart() -> None:
    """What was signed is as it came."""
    text = token({"alg": "HS256", "kid": "k1", "typ": "JWT", "jku": "https://evil.example"}, '{"a":1}', b"\xff\xfe")
    found = parse_token(text)

    assert (found.algorithm, found.key_id) == ("HS256", "k1")
    assert found.signed == text.rpartition(".")[0].encode()
    assert (found.payload, found.signature) == (b'{"a":1}', b"\xff\xfe")
    assert parse_token(token({"alg": "none"})).key_id is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a.b",
        "a.b.",
        "..",
        "a.b.c.d",
        token({"alg": "HS256"}) + "=",
        token({"alg": "HS256"}) + "\n",
        token({"alg": "HS256"}).replace(".", ". ", 1),
        token({"alg": "HS256"}).rpartition(".")[0] + ".A",  # no base64 has a length of one
        token("[]"),
        token("null"),
        token("{"),
        token('{"alg":"HS256"}x'),
        token('{"alg":' + "[" * 2000),
        token({}),
        token({"alg": None}),
        token({"alg": ["HS256"]}),
        token({"alg": "HS256", "kid": 1}),
        token({"alg": "HS256", "kid": "x" * (MAX_TEXT + 1)}),
        token({"alg": "HS256", "crit": ["exp"]}),
        token({"alg": "HS256", "crit": []}),
        token({"alg": "HS256", "b64": False}),
        token({"alg": "HS256"}, "x" * MAX_TOKEN),
        b64(b'{"alg":"\xff"}') + ".e30.c2ln",
        "é.é.é",
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    """Whatever it is; nothing of it is believed."""
    assert why(lambda: parse_token(text)) is AccessFailure.MALFORMED


@given(st.text())
def test_any_text_is_a_token_or_refused(text: str) -> None:
    """Nothing else comes of it."""
    for candidate in (text, f"{b64(text.encode(errors='replace'))}.e30.c2ln"):
        try:
            parse_token(candidate)
        except AccessError as error:
            assert error.why is AccessFailure.MALFORMED  # noqa: PT017 - most texts are none, some are


def test_claims_give_access() -> None:
    """Until their end, to what they list, in the name of their subject."""
    claims = {"exp": NOW + 60.5, "sub": "ann", "jti": "t1", "channels": ["a", "b*"], "nbf": NOW, "iat": int(NOW)}
    access = read_claims(json.dumps(claims).encode(), expected(), NOW)

    identity = access.identity
    assert (identity.expires_at, identity.subject, identity.token) == (NOW + 60.5, "ann", "t1")
    assert identity.marks == ("ann", "t1")
    assert [name for name in ("a", "ab", "b", "b:*", "c") if access.grant.covers(name)] == ["a", "b", "b:*"]


def test_who_is_granted_nothing_may_read_nothing() -> None:
    """A token without the claim, or with an empty one, is good for what is public."""
    nothing: tuple[dict[str, list[str]], ...] = ({}, {"channels": []}, {"other": ["*"]})
    for channels in nothing:
        access = read_claims(json.dumps({"exp": NOW + 1} | channels).encode(), expected(), NOW)
        assert not access.grant.covers("a")
        assert (access.identity.subject, access.identity.token) == ("", "")
    named = read_claims(b'{"exp": 1800000001, "chan": ["a"]}', expected(claim="chan"), NOW)
    assert named.grant.covers("a")


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b'{"exp":NaN}', b'{"exp":1e400}', b"\xff", b"[" * 5000])
def test_claims_are_an_object(payload: bytes) -> None:
    """Of JSON, as the standard has it."""
    assert why(lambda: read_claims(payload, expected(), NOW)) is AccessFailure.MALFORMED


@pytest.mark.parametrize(
    ("claims", "failure"),
    [
        ({}, AccessFailure.MALFORMED),
        ({"exp": None}, AccessFailure.MALFORMED),
        ({"exp": str(int(NOW) + 60)}, AccessFailure.MALFORMED),
        ({"exp": True}, AccessFailure.MALFORMED),
        ({"exp": [NOW + 60]}, AccessFailure.MALFORMED),
        ({"exp": 1e308}, AccessFailure.MALFORMED),
        ({"exp": 10**400}, AccessFailure.MALFORMED),
        ({"exp": -(10**400)}, AccessFailure.MALFORMED),
        ({"exp": NOW}, AccessFailure.EXPIRED),
        ({"exp": 0}, AccessFailure.EXPIRED),
        ({"exp": -1.5}, AccessFailure.EXPIRED),
        ({"exp": NOW + 3601}, AccessFailure.LIFETIME),
        ({"exp": NOW + 1, "nbf": NOW + LEEWAY_S + 1}, AccessFailure.EARLY),
        ({"exp": NOW + 1, "iat": NOW + LEEWAY_S + 1}, AccessFailure.EARLY),
        ({"exp": NOW + 1, "nbf": "now"}, AccessFailure.MALFORMED),
        ({"exp": NOW + 1, "iat": None}, AccessFailure.MALFORMED),
        ({"exp": NOW + 1, "sub": 1}, AccessFailure.MALFORMED),
        ({"exp": NOW + 1, "sub": "x" * (MAX_TEXT + 1)}, AccessFailure.MALFORMED),
        ({"exp": NOW + 1, "jti": []}, AccessFailure.MALFORMED),
        ({"exp": NOW + 1, "channels": "a"}, AccessFailure.CHANNELS),
        ({"exp": NOW + 1, "channels": [1]}, AccessFailure.CHANNELS),
        ({"exp": NOW + 1, "channels": {"*": True}}, AccessFailure.CHANNELS),
        ({"exp": NOW + 1, "aud": 1}, AccessFailure.MALFORMED),
        ({"exp": NOW + 1, "aud": [1]}, AccessFailure.MALFORMED),
    ],
)
def test_bad_claims_are_refused(claims: dict[str, object], failure: AccessFailure) -> None:
    """Each for its own reason."""
    assert judged(claims) is failure


def test_the_issuers_clock_may_be_a_little_ahead() -> None:
    """The beginning has leeway, the end has none."""
    claims = {"exp": NOW + 0.1, "nbf": NOW + LEEWAY_S, "iat": NOW + LEEWAY_S, "aud": []}
    assert read_claims(json.dumps(claims).encode(), expected(), NOW).identity.expires_at == NOW + 0.1


@pytest.mark.parametrize("claims", [{"aud": "somebody"}, {"aud": ["a", "b"]}, {"iss": "them"}])
def test_audience_and_issuer_are_not_judged_where_none_is_configured(claims: dict[str, object]) -> None:
    """An identity provider sets them whether or not anybody asked."""
    assert read_claims(json.dumps({"exp": NOW + 1} | claims).encode(), expected(), NOW).identity.expires_at == NOW + 1


@pytest.mark.parametrize(
    ("claims", "failure"),
    [
        ({"aud": "us", "iss": "them"}, None),
        ({"aud": ["others", "us"], "iss": "them"}, None),
        ({"iss": "them"}, AccessFailure.AUDIENCE),
        ({"aud": [], "iss": "them"}, AccessFailure.AUDIENCE),
        ({"aud": "US", "iss": "them"}, AccessFailure.AUDIENCE),
        ({"aud": ["others"], "iss": "them"}, AccessFailure.AUDIENCE),
        ({"aud": "us"}, AccessFailure.ISSUER),
        ({"aud": "us", "iss": "them/"}, AccessFailure.ISSUER),
        ({"aud": "us", "iss": ["them"]}, AccessFailure.ISSUER),
    ],
)
def test_audience_and_issuer_are_compared_exactly(claims: dict[str, object], failure: AccessFailure | None) -> None:
    """Where they are configured."""
    payload = json.dumps({"exp": NOW + 1} | claims).encode()
    if failure is None:
        read_claims(payload, expected("us", "them"), NOW)
    else:
        assert why(lambda: read_claims(payload, expected("us", "them"), NOW)) is failure
