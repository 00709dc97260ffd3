"""Makes tokens for development, as an application would for its users."""

from __future__ import annotations

import secrets
import warnings
from typing import TYPE_CHECKING

import jwt
from jwt.warnings import InsecureKeyLengthWarning

from sse_gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.auth_settings import AuthSettings


def mint(auth: AuthSettings, channels: Sequence[str], subject: str | None, ttl_s: float, now: float) -> str:
    """Make a token that a gateway with these settings accepts.

    Args:
        auth: Settings with the secret.
        channels: Names, and prefixes that end in a star.
        subject: Whose it is; None for nobody's.
        ttl_s: How long it lives.
        now: Unix seconds.

    Raises:
        ConfigError: There is no secret to sign with.
    """
    if auth.mode != "jwt" or not auth.secret.get_secret_value():
        problem = "auth.secret: tokens are made with it; with a public key they are made where the private one is"
        raise ConfigError([problem])
    claims: dict[str, object] = {
        "sub": subject,
        "iss": auth.issuer,
        "aud": auth.audience,
        "iat": int(now),
        "exp": int(now + ttl_s),
        "jti": secrets.token_hex(8),
        auth.channels_claim: list(channels),
    }
    given = {name: value for name, value in claims.items() if value is not None}
    with warnings.catch_warnings():  # about secrets that are long enough here, and not for HS512
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)
        return jwt.encode(given, auth.secret.get_secret_value(), auth.algorithms[0])
