"""Tokens of every kind for tests, keys to sign them with, and configurations that ask for them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

SECRET: Final = "of tests, as long as HS512 wants it: " + "0123456789" * 4

RSA_KEY: Final = rsa.generate_private_key(65537, 2048)
OTHER_RSA_KEY: Final = rsa.generate_private_key(65537, 2048)

EC_KEY: Final = ec.generate_private_key(ec.SECP256R1())
ED_KEY: Final = ed25519.Ed25519PrivateKey.generate()


def wall() -> float:
    """Unix seconds, which is what tokens are about."""
    return time.time()  # noqa: TID251 - as the docstring says


def b64(data: bytes | str) -> str:
    """Base64url without padding."""
    raw = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def pem(key: PublicKeyTypes) -> str:
    """A public key as PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def claims(*channels: str, ttl_s: float = 60.0, **more: Any) -> dict[str, Any]:
    """Claims that are good for some channels; a claim given as None is left out."""
    found = {"exp": int(wall() + ttl_s), "channels": list(channels), **more}
    return {name: value for name, value in found.items() if value is not None}


def token(*channels: str, key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **more: Any) -> str:
    """A token as an issuer makes it; further keywords are those of `claims`."""
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(*channels, **more), key, algorithm, headers=headers)


def forged(header: object, payload: object, secret: bytes | None = None) -> str:
    """A token as an attacker makes it: any header, any payload, signed with any bytes by HMAC, or not at all."""
    texts = [part if isinstance(part, str) else json.dumps(part) for part in (header, payload)]
    signed = ".".join(map(b64, texts))
    signature = b"" if secret is None else hmac.digest(secret, signed.encode(), hashlib.sha256)
    return f"{signed}.{b64(signature)}"


def jwt_auth(**keys: Any) -> dict[str, Any]:
    """The section ``auth`` for tokens by secret."""
    return {"mode": "jwt", "secret": SECRET, **keys}
