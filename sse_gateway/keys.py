"""Keys that verify signatures, and the algorithms that each may be used with.

Rules:
    1. A key belongs to algorithms by its kind, not by what a token says: a public key is never a secret, an elliptic
       curve never another one.
    2. A key is made ready once; what is checked with every token is the signature.
    3. Keys that can be broken, or that nobody should have given us (private ones), are refused.

Source: RFC 8725 section 3.1, RFC 7518.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWK
from jwt.algorithms import get_default_algorithms
from jwt.exceptions import PyJWTError

from sse_gateway.errors import AccessError, ConfigError
from sse_gateway.reasons import AccessFailure
from sse_gateway.tokens import MAX_TEXT

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from sse_gateway.tokens import Token

MIN_RSA_BITS = 2048
"""A shorter key is refused."""

MAX_PEM_BYTES = 64 * 1024
"""Of a key's file; a longer one is refused."""

_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}

_implementations = get_default_algorithms()


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        material: As the library wants it.
        algorithms: That it may be used with.
    """

    material: Any
    algorithms: frozenset[str]

    def verify(self, token: Token) -> None:
        """Check a token's signature.

        Raises:
            AccessError: It is wrong, or another algorithm's.
        """
        if token.algorithm not in self.algorithms:
            raise AccessError(AccessFailure.KEY)
        if not _implementations[token.algorithm].verify(token.signed, self.material, token.signature):
            raise AccessError(AccessFailure.SIGNATURE)


def secret_key(secret: str, algorithms: Collection[str]) -> Key:
    """The key that issuer and gateway share.

    Raises:
        ConfigError: It is a public key in disguise.
    """
    try:
        material = _implementations["HS256"].prepare_key(secret.encode())
    except PyJWTError:
        raise ConfigError(["auth.secret: is a public key or a certificate: anybody could sign with it"]) from None
    return Key(material, frozenset(algorithms))


def key_of_file(path: Path, algorithms: Collection[str]) -> Key:
    """The public key of a PEM file.

    Raises:
        ConfigError: There is none in it that fits each of the algorithms.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"auth.public_key_file: cannot be read: {error.strerror}"]) from None
    if b"PRIVATE KEY" in data:
        raise ConfigError(
            ["auth.public_key_file: is a private key: give the public one, and keep this where tokens are made"]
        )
    try:
        material = load_pem_public_key(data) if len(data) <= MAX_PEM_BYTES else None
    except (ValueError, UnsupportedAlgorithm):
        material = None
    if material is None:
        raise ConfigError(["auth.public_key_file: is not a public key in PEM (-----BEGIN PUBLIC KEY-----)"])
    misfits = sorted(set(algorithms) - _fitting(material, algorithms))
    if misfits:
        raise ConfigError(
            [f"auth.public_key_file: {_kind(material)} does not fit auth.algorithms: {', '.join(misfits)}"]
        )
    return Key(material, frozenset(algorithms))


def keys_of_set(document: object, algorithms: Collection[str], max_keys: int) -> dict[str | None, Key]:
    """The usable keys of a JWK set, by their ids; None is the id of a key that has none.

    Keys of other kinds, for other uses, for other algorithms and without a sound form are left out.

    Raises:
        ValueError: It is no JWK set, or has too many keys.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > max_keys:
        raise ValueError(f"not a set of at most {max_keys} keys")
    keys: dict[str | None, Key] = {}
    for entry in entries:
        key = _key_of_entry(entry, algorithms) if isinstance(entry, dict) else None
        if key is not None:
            keys[entry.get("kid")] = key
    return keys


def _key_of_entry(entry: dict[str, Any], algorithms: Collection[str]) -> Key | None:
    key_id, algorithm = entry.get("kid"), entry.get("alg")
    if not isinstance(key_id, str | None) or len(key_id or "") > MAX_TEXT:
        return None
    if entry.get("use", "sig") != "sig" or "d" in entry or entry.get("kty") == "oct":
        return None
    try:
        material = PyJWK(entry).key
    except Exception:  # noqa: BLE001 - somebody else's key: whatever the library makes of it, it is none of ours
        return None
    wanted = algorithms if algorithm is None else set(algorithms) & {algorithm if isinstance(algorithm, str) else ""}
    fitting = _fitting(material, wanted)
    return Key(material, frozenset(fitting)) if fitting else None


def _fitting(material: object, algorithms: Collection[str]) -> set[str]:
    """Those of some algorithms that a key may be used with."""
    return {name for name in algorithms if _fits(material, name)}


def _fits(material: object, algorithm: str) -> bool:
    if isinstance(material, RSAPublicKey):
        return algorithm[:2] in {"RS", "PS"} and material.key_size >= MIN_RSA_BITS
    if isinstance(material, EllipticCurvePublicKey):
        return _CURVES.get(algorithm) == material.curve.name
    return isinstance(material, Ed25519PublicKey | Ed448PublicKey) and algorithm == "EdDSA"


def _kind(material: object) -> str:
    if isinstance(material, RSAPublicKey):
        return f"an RSA key of {material.key_size} bits (at least {MIN_RSA_BITS} are needed)"
    if isinstance(material, EllipticCurvePublicKey):
        return f"a key of the curve {material.curve.name}"
    return "this kind of key"
