"""Signed tokens (JWT): their form, and what their claims say.

The signature is checked in between, by `keys`.

Rules:
    1. The header is believed in nothing but which of our keys and listed algorithms to try: keys, addresses and
       certificates in it are not looked at, and what it calls critical (``crit``) is refused.
    2. A token without an end is refused, and so is one whose claims have not the form that the standard gives them.
    3. Audience and issuer are judged where we have been told ours; whoever signs for several, sets them.
    4. It ends when it says, to the second; only its beginning is judged with leeway.

Source: RFC 7515, RFC 7519, RFC 8725.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from sse_gateway.errors import AccessError
from sse_gateway.grants import NOTHING, Access, Identity, read_grant
from sse_gateway.reasons import AccessFailure

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TOKEN = 8192
"""Characters; a longer token is refused unread. Browsers send cookies of up to 4,096."""

MAX_TEXT = 256
"""Characters of a key's id, a subject, a token's id."""

LEEWAY_S = 10.0
"""How far the issuer's clock may be ahead of ours."""

MAX_TIME = 1e12
"""Unix seconds: far beyond any clock, and whatever is above it (or no number at all) is no time."""

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)", re.ASCII)

_decoder = msgspec.json.Decoder(dict[str, object])


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it came, nothing of it verified.

    Attributes:
        algorithm: As its header says.
        key_id: Likewise; None if it names no key.
        signed: What the signature is over.
        payload: The claims, as JSON.
        signature: The signature.
    """

    algorithm: str
    key_id: str | None
    signed: bytes
    payload: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Expected:
    """What claims have to say.

    Attributes:
        audience: One of ``aud``; None: anything.
        issuer: ``iss``; None: anything.
        channels_claim: Name of the claim with the grant.
        max_lifetime_s: What may be left of its life; infinite: as much as it says.
        marks: Digests of a subject and a token's id, for revocations.
    """

    audience: str | None
    issuer: str | None
    channels_claim: str
    max_lifetime_s: float
    marks: Callable[[str, str], tuple[str, ...]]


def parse_token(text: str) -> Token:
    """Take a token apart.

    Raises:
        AccessError: It is none.
    """
    match = _COMPACT.fullmatch(text) if len(text) <= MAX_TOKEN else None
    if match is None:
        raise AccessError(AccessFailure.MALFORMED)
    header = _object(_decoded(match[1]))
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(key_id, str | None) or len(key_id or "") > MAX_TEXT:
        raise AccessError(AccessFailure.MALFORMED)
    if "crit" in header or header.get("b64", True) is not True:
        raise AccessError(AccessFailure.MALFORMED)
    return Token(algorithm, key_id, text[: match.end(2)].encode(), _decoded(match[2]), _decoded(match[3]))


def read_claims(payload: bytes, expected: Expected, now: float) -> Access:
    """Judge the claims of a token whose signature is right.

    Args:
        payload: As JSON.
        expected: What they have to say.
        now: Unix seconds.

    Raises:
        AccessError: They do not.
    """
    claims = _object(payload)
    expires_at = _times(claims, expected.max_lifetime_s, now)
    _check_parties(claims, expected)
    subject, token = _text(claims, "sub"), _text(claims, "jti")
    listed = claims.get(expected.channels_claim)
    try:
        grant = NOTHING if listed is None else read_grant(listed)
    except ValueError:
        raise AccessError(AccessFailure.CHANNELS) from None
    return Access(Identity(expires_at, subject, token, expected.marks(subject, token)), grant)


def _times(claims: dict[str, object], max_lifetime_s: float, now: float) -> float:
    expires_at = _number(claims.get("exp"))
    if expires_at <= now:
        raise AccessError(AccessFailure.EXPIRED)
    if expires_at > now + max_lifetime_s:
        raise AccessError(AccessFailure.LIFETIME)
    for name in ("nbf", "iat"):
        if name in claims and _number(claims[name]) > now + LEEWAY_S:
            raise AccessError(AccessFailure.EARLY)
    return expires_at


def _check_parties(claims: dict[str, object], expected: Expected) -> None:
    audience = claims.get("aud", [])
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise AccessError(AccessFailure.MALFORMED)
    if expected.audience is not None and expected.audience not in named:
        raise AccessError(AccessFailure.AUDIENCE)
    if expected.issuer is not None and claims.get("iss") != expected.issuer:
        raise AccessError(AccessFailure.ISSUER)


def _number(value: object) -> float:
    """A time: a number that is one, and no truth value."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_TIME:
        return float(value)
    raise AccessError(AccessFailure.MALFORMED)


def _text(claims: dict[str, object], name: str) -> str:
    value = claims.get(name, "")
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        return value
    raise AccessError(AccessFailure.MALFORMED)


def _object(data: bytes) -> dict[str, object]:
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise AccessError(AccessFailure.MALFORMED) from None


def _decoded(text: str) -> bytes:
    """Source: RFC 7515 section 2: base64url without padding."""
    try:
        return binascii.a2b_base64(text.encode().translate(_TO_BASE64) + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        raise AccessError(AccessFailure.MALFORMED) from None


_TO_BASE64 = bytes.maketrans(b"-_", b"+/")
