"""What an operator can set about who may read: the section ``auth``.

Rule: nothing left out, empty or misspelt lets anybody in. What two keys say together is judged in `conflicts`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, Strict, WithJsonSchema
from yarl import URL

from sse_gateway.section import Section
from sse_gateway.values import Duration, Flag, PositiveDuration, Text, mask_secret

MIN_KEY_BYTES = 32
"""Of `auth.secret`: what HS256 asks for. A shorter one can be guessed from one token, on the attacker's own machine.

Source: RFC 7518 section 3.2.
"""

RESERVED_PARAMETERS = ("channel", "replay", "wrap", "last_event_id", "lastEventId")
"""Query parameters that mean something else."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_PARAMETER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_URL = re.compile(r"(https?)://((?:[A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:[/?][!-~]*)?")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_OF_THE_CONNECTION = ("connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade")


def _check_key(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value()
    if 0 < len(value.encode()) < MIN_KEY_BYTES:
        raise ValueError(f"must have at least {MIN_KEY_BYTES} bytes: make one with `openssl rand -base64 48`")
    if value.lstrip().startswith(("-----BEGIN", "ssh-", "{")):
        raise ValueError("is a public or private key, which anybody may have: name its file as auth.public_key_file")
    return secret


def _check_text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty: null is none")
    return text


def _check_path(path: Path) -> Path:
    if path == Path():
        raise ValueError("must not be empty: null is none")
    return path


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("must be a name as HTTP allows it, of letters, digits, - and _")
    return name


def _check_header(name: str) -> str:
    if name.lower() == "cookie":
        raise ValueError("must not be Cookie: name the cookies, in auth.callback.cookies")
    if name.lower() in _OF_THE_CONNECTION:
        raise ValueError("belongs to the connection and is not passed on")
    return _check_name(name)


def _check_parameter(name: str) -> str:
    if not _PARAMETER.fullmatch(name) or name in RESERVED_PARAMETERS:
        raise ValueError(f"must be of letters, digits, _ . - and none of {', '.join(RESERVED_PARAMETERS)}")
    return name


def _check_url(url: str) -> str:
    try:
        is_url = _URL.fullmatch(url) is not None and URL(url, encoded=True).host is not None
    except ValueError:  # a port beyond 65535, brackets around what is no address
        is_url = False
    if not is_url:
        raise ValueError("must be an http:// or https:// address, without user, password and fragment")
    return url


def _check_secure_url(url: str) -> str:
    match = _URL.fullmatch(_check_url(url))
    if match is None or (match[1] != "https" and match[2] not in _LOOPBACK):
        raise ValueError("must begin with https://: whoever sits in between could give us keys of his own")
    return url


Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
Word = Annotated[Text, AfterValidator(_check_text)]
KeyFile = Annotated[Path, AfterValidator(_check_path)]
Name = Annotated[Text, AfterValidator(_check_name)]
HeaderName = Annotated[Text, AfterValidator(_check_header)]
Parameter = Annotated[Text, AfterValidator(_check_parameter)]
HttpUrl = Annotated[Text, AfterValidator(_check_url)]
SecureUrl = Annotated[Text, AfterValidator(_check_secure_url)]
TokenSecret = Annotated[
    SecretStr, AfterValidator(_check_key), PlainSerializer(mask_secret), WithJsonSchema({"type": "string"})
]


class TokenFromSettings(Section):
    """Where a token is looked for. Two that differ are refused."""

    header: Flag = True
    """Authorization: Bearer. What a page's fetch, and every other program, sends."""
    cookie: Name | None = "__Host-sse"
    """Name of a cookie, null: none. Browsers take __Host- only with Secure and Path=/, and only for this very host."""
    query: Parameter | None = None
    """Name of a query parameter, null: none. Proxies write it into their logs: see docs/authentication.md."""


class CallbackSettings(Section):
    """The application, asked once for each new client."""

    url: HttpUrl | None = None
    """Where it is asked, with a GET. No redirect is followed."""
    timeout_s: PositiveDuration = Field(default="2s", alias="timeout", validate_default=True)
    """How long one answer may take. It is asked twice at most; then new streams are refused for now."""
    headers: tuple[HeaderName, ...] = ("Authorization",)
    """Headers passed on. A client that sends none of them, and none of the cookies, is refused unasked."""
    cookies: tuple[Name, ...] = ()
    """Cookies passed on."""
    concurrency: Annotated[int, Strict(), Field(ge=1, le=10_000)] = 64
    """Questions under way at once, of each worker; more wait for their turn as long as an answer may take."""
    cache_s: Duration = Field(default="5s", alias="cache", validate_default=True)
    """How long an answer stands for the same credentials, 0s: not at all."""


class AuthSettings(Section):
    """Who may read. Has no default: anonymous access is said aloud."""

    mode: Literal["none", "jwt", "callback"]
    """none: everyone may read every channel that a rule covers. jwt: who has a token. callback: the application says."""
    algorithms: tuple[Algorithm, ...] = ("HS256",)
    """Of signatures that are accepted: HS… with secret; RS… PS… ES… EdDSA with a public key."""
    secret: TokenSecret = Field(default="", validate_default=True)
    """The key of HS…: at least 32 bytes. A secret."""
    public_key_file: KeyFile | None = None
    """A PEM file with the public key of RS… PS… ES… or EdDSA."""
    jwks_url: SecureUrl | None = None
    """Where the issuer publishes its keys; fetched every five minutes, and for a token with a new key id."""
    audience: Word | None = None
    """What a token's aud has to name. null: anything."""
    issuer: Word | None = None
    """What a token's iss has to be. null: anything."""
    channels_claim: Word = "channels"
    """The claim that lists the channels: names, and prefixes that end in a star."""
    max_lifetime_s: Duration = Field(default="0s", alias="max_lifetime", validate_default=True)
    """What is left of a token's life at most, or it is refused; 0s: no limit. So long a revocation holds, 0s: for good."""
    token_from: TokenFromSettings = Field(default_factory=TokenFromSettings)
    callback: CallbackSettings = Field(default_factory=CallbackSettings)

    @property
    def longest_life_s(self) -> float:
        """`max_lifetime_s`, infinite where there is no limit."""
        return self.max_lifetime_s or math.inf

    @property
    def uses_cookies(self) -> bool:
        """Whether what a browser sends by itself may let a client in; what an application accepts is not known here."""
        return self.mode == "callback" or (self.mode == "jwt" and self.token_from.cookie is not None)
