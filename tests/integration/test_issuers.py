"""Keys that an issuer publishes, and an application that is asked: what is temporary stays temporary, and nothing lets anybody in."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sse_gateway.errors import ConfigError, TemporaryError
from sse_gateway.jwks import PublishedKeys
from sse_gateway.keys import key_of_file, secret_key
from sse_gateway.tokens import parse_token
from tests.support.access import EC_KEY, ED_KEY, OTHER_RSA_KEY, RSA_KEY, pem, token
from tests.support.gateway_process import configuration, poll
from tests.support.issuer import issuing, json_answer, key_set
from tests.support.lateness import lateness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.issuer import Issuer
    from tests.support.raw_client import Address, Stream
    from tests.support.valkey import Valkey

ALGORITHMS = ["RS256", "ES256", "EdDSA"]
FETCHES = "sse_gateway_jwks_fetches_total"
ANSWERS = "sse_gateway_callback_answers_total"
ANN = {"channels": ["a", "b*"], "expires_in": 600, "subject": "ann"}


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """A server for the test alone."""
    with issuing() as made:
        yield made


def published(valkey: Valkey, gateways: Gateways, issuer: Issuer) -> GatewayProcess:
    """A gateway that gets its keys there."""
    auth = {"mode": "jwt", "jwks_url": issuer.url, "algorithms": ALGORITHMS}
    return gateways.start(configuration(valkey.url, auth=auth), ready=False)


def asking(valkey: Valkey, gateways: Gateways, issuer: Issuer, **keys: Any) -> GatewayProcess:
    """A gateway that asks there about each client."""
    callback = {"url": issuer.url, "cookies": ["session"], "timeout": "5s", "cache": "0s", **keys}
    return gateways.start(configuration(valkey.url, auth={"mode": "callback", "callback": callback}))


def status(connect: Connect, gateway: GatewayProcess | Address, text: str, target: str = "/events/a") -> int:
    """How a request with a token is answered, by somebody who is no EventSource."""
    headers = {"Authorization": f"Bearer {text}", "Accept": "application/json"}
    stream = connect(gateway, target, headers=headers)
    return stream.wait_head().status


def test_published_keys_verify(valkey: Valkey, gateways: Gateways, connect: Connect, issuer: Issuer) -> None:
    """Of each kind, by their ids; what is unfit among them is left out, and takes nothing else with it."""
    document = key_set(r=RSA_KEY, e=EC_KEY, d=ED_KEY)
    private = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER_RSA_KEY)) | {"kid": "private"}
    shared = {"kty": "oct", "k": "x" * 43, "kid": "shared", "alg": "HS256"}
    encrypting = document["keys"][0] | {"kid": "enc", "use": "enc"}
    other = document["keys"][0] | {"kid": "rs512", "alg": "RS512"}
    document["keys"] += [
        private,
        shared,
        encrypting,
        other,
        {"kid": "broken", "kty": "RSA", "n": "!", "e": "AQAB"},
        1,
        {},
    ]
    issuer.answer = json_answer(document)
    gateway = published(valkey, gateways, issuer)
    gateway.wait_ready()
    gateway.wait_metric("sse_gateway_jwks_keys", 3)

    for key, algorithm, kid in ((RSA_KEY, "RS256", "r"), (EC_KEY, "ES256", "e"), (ED_KEY, "EdDSA", "d")):
        assert status(connect, gateway, token("a", key=key, algorithm=algorithm, kid=kid)) == 200
    assert status(connect, gateway, token("a", key=EC_KEY, algorithm="ES256")) == 200  # the only one of its kind
    assert status(connect, gateway, token("a", key=RSA_KEY, algorithm="RS256", kid="e")) == 401
    for kid in ("private", "shared", "enc", "rs512", "broken", "unknown"):
        key = OTHER_RSA_KEY if kid == "private" else RSA_KEY
        assert status(connect, gateway, token("a", key=key, algorithm="RS256", kid=kid)) == 401
    assert len(issuer.requests) <= 2  # at the start, and once for all those unknown keys


def test_a_key_is_known_from_its_first_token_on(
    valkey: Valkey, gateways: Gateways, connect: Connect, issuer: Issuer
) -> None:
    """Also if we looked of ourselves a moment ago; unknown keys make us look no second time (A3)."""
    issuer.answer = json_answer(key_set(one=RSA_KEY))
    gateway = published(valkey, gateways, issuer)
    gateway.wait_metric(FETCHES, 1, outcome="ok", timeout_s=30)
    gateway.wait_ready()
    issuer.answer = json_answer(key_set(one=RSA_KEY, two=OTHER_RSA_KEY))
    assert status(connect, gateway, token("a", key=OTHER_RSA_KEY, algorithm="RS256", kid="two")) == 200
    assert status(connect, gateway, token("a", key=OTHER_RSA_KEY, algorithm="RS256", kid="three")) == 401
    assert len(issuer.requests) == 2


def test_a_key_that_was_withdrawn_lets_nobody_in(
    valkey: Valkey, gateways: Gateways, connect: Connect, issuer: Issuer
) -> None:
    """Nor one that was replaced by another under its id; what was verified with it and remembered makes no difference."""
    issuer.answer = json_answer(key_set(one=RSA_KEY, two=RSA_KEY))
    gateway = published(valkey, gateways, issuer)
    gateway.wait_ready()
    one, two = (token("a", key=RSA_KEY, algorithm="RS256", kid=kid) for kid in ("one", "two"))
    assert [status(connect, gateway, text) for text in (one, two, one)] == [200, 200, 200]
    issuer.answer = json_answer(key_set(two=OTHER_RSA_KEY, e=EC_KEY))
    assert status(connect, gateway, token("a", key=EC_KEY, algorithm="ES256", kid="e")) == 200
    assert [status(connect, gateway, text) for text in (one, two)] == [401, 401]


def test_a_new_key_is_found_and_the_last_good_ones_stay(
    valkey: Valkey, gateways: Gateways, connect: Connect, issuer: Issuer
) -> None:
    """While there are no keys everything is temporary; an issuer that fails later takes none away (A3)."""
    issuer.answer = json_answer({}, 503)
    gateway = published(valkey, gateways, issuer)
    gateway.wait_log("jwks.failed")
    assert gateway.unready_reasons() == ["source"]
    first = token("a", key=RSA_KEY, algorithm="RS256", kid="one")
    assert status(connect, gateway, first) == 503
    stream = connect(gateway, "/events/a", headers={"Authorization": f"Bearer {first}", "Accept": "text/event-stream"})
    assert stream.wait_type("gateway.unavailable").json() == {"reason": "source"}

    issuer.answer = json_answer(key_set(one=RSA_KEY))
    gateway.wait_metric(FETCHES, 1, outcome="ok", timeout_s=30)
    gateway.wait_ready()
    assert status(connect, gateway, first) == 200
    issuer.close()
    assert status(connect, gateway, first) == 200
    assert status(connect, gateway, token("a", key=RSA_KEY, algorithm="RS256", kid="one", sub="ann")) == 200


NONSENSE = {
    "no keys": json_answer({"keys": []}),
    "a list": json_answer([]),
    "too many": json_answer({"keys": [{}] * 65}),
    "broken": (200, {}, b"{"),
    "deep": (200, {}, b"[" * 100_000),
    "large": (200, {}, b" " * 300_000),
    "compressed": (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b" + b"\0" * 50),
    "elsewhere": (302, {"Location": "https://issuer.example/"}, b""),
    "not found": (404, {}, b""),
}


async def test_nonsense_from_the_issuer_is_no_key(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, without quoting any of it; nobody is let in by it, and nobody is locked out for good."""
    keys = PublishedKeys(issuer.url, ALGORITHMS)
    stranger = parse_token(token("a", key=RSA_KEY, algorithm="RS256", kid="one"))
    with pytest.raises(TemporaryError):
        await keys.find(stranger)  # nobody was asked before: the one look of this half minute
    for number, answer in enumerate(NONSENSE.values(), start=2):
        issuer.answer = answer
        await keys._fetch()
        assert (len(keys), keys.fetches["failed"], len(issuer.requests)) == (0, number, number)
        with pytest.raises(TemporaryError):
            await keys.find(stranger)
    assert "issuer.example" not in caplog.text
    issuer.answer = json_answer(key_set(one=RSA_KEY))
    await keys._fetch()
    (await keys.find(stranger)).verify(stranger)


def test_the_application_is_asked(valkey: Valkey, gateways: Gateways, connect: Connect, issuer: Issuer) -> None:
    """With what is listed, and nothing else; what it says is granted, for as long as it says."""
    issuer.answer = json_answer(ANN)
    gateway = asking(valkey, gateways, issuer)
    headers = {"Authorization": "Bearer opaque", "Cookie": "theme=dark; session=s1; other=o", "X-Secret": "x"}
    for target, expected in (
        ("/events/a", 200),
        ("/events/b*", 200),
        ("/events/c", 403),
        ("/events?channel=a&channel=c", 403),
    ):
        assert connect(gateway, target, headers=headers).wait_head().status == expected
    asked = issuer.requests[-1]
    assert (asked["Authorization"], asked["Cookie"]) == ("Bearer opaque", "session=s1")
    assert set(asked) <= {"Host", "Authorization", "Cookie", "Accept", "Accept-Encoding", "User-Agent"}

    before = len(issuer.requests)
    for bare in ({}, {"Cookie": "theme=dark"}, {"Cookie": "session="}):
        assert connect(gateway, "/events/a", headers=bare).wait_head().status == 401
    assert len(issuer.requests) == before  # who shows nothing is not asked about

    issuer.answer = json_answer(ANN | {"expires_in": 1e308})
    assert connect(gateway, "/events/a", headers=headers).wait_head().status == 200
    issuer.answer = json_answer(ANN | {"expires_in": 1.5})
    with lateness() as late:
        begun = time.monotonic()
        stream = connect(gateway, "/events/a", headers=headers)
        assert stream.wait_type("gateway.close").json() == {"reason": "expired"}
        assert 1.4 < time.monotonic() - begun < 3.5 + late.total_s


def test_the_applications_no_is_passed_on(valkey: Valkey, gateways: Gateways, connect: Connect, issuer: Issuer) -> None:
    """And remembered like its yes."""
    gateway = asking(valkey, gateways, issuer, cache="1m")
    for told in (401, 403):
        issuer.answer = json_answer({"channels": ["*"], "expires_in": 60}, told)
        assert status(connect, gateway, f"x{told}") == told
        assert status(connect, gateway, f"x{told}") == told
    assert len(issuer.requests) == 2


NO_ANSWERS = {
    "500": json_answer(ANN, 500),
    "404": json_answer(ANN, 404),
    "redirect": (302, {"Location": "/elsewhere"}, b""),
    "204": json_answer(ANN, 204),
    "empty": (200, {}, b""),
    "no JSON": (200, {}, b"<html>"),
    "a list": json_answer([ANN]),
    "no channels": json_answer({"expires_in": 600}),
    "no lifetime": json_answer({"channels": ["*"]}),
    "lifetime zero": json_answer(ANN | {"expires_in": 0}),
    "lifetime text": json_answer(ANN | {"expires_in": "600"}),
    "channels text": json_answer(ANN | {"channels": "*"}),
    "channels wrong": json_answer(ANN | {"channels": [""]}),
    "subject number": json_answer(ANN | {"subject": 1}),
    "subject long": json_answer(ANN | {"subject": "x" * 300}),
    "large": (200, {}, json.dumps(ANN).encode() + b" " * 70_000),
    "deep": (200, {}, b'{"channels":' + b"[" * 5000),
}


def test_whatever_is_no_answer_lets_nobody_in(
    valkey: Valkey, gateways: Gateways, connect: Connect, issuer: Issuer
) -> None:
    """It fails closed, for now: a second try, and then a refusal that the client comes back from."""
    gateway = asking(valkey, gateways, issuer, timeout="500ms")
    for number, (name, answer) in enumerate(NO_ANSWERS.items()):
        issuer.answer = answer
        assert status(connect, gateway, f"token{number}") == 503, name
    assert len(issuer.requests) == 2 * len(NO_ANSWERS)
    assert gateway.metric(ANSWERS, outcome="failed") == 2 * len(NO_ANSWERS)
    assert gateway.metric(ANSWERS, outcome="ok") == 0
    issuer.gate.clear()  # it hangs
    with lateness() as late:
        begun = time.monotonic()
        assert status(connect, gateway, "slow") == 503
        assert time.monotonic() - begun < 5 + late.total_s
    issuer.gate.set()
    issuer.close()
    assert status(connect, gateway, "gone") == 503
    assert gateway.metric("sse_gateway_access_refused_total", reason="unavailable") == len(NO_ANSWERS) + 2


def test_questions_are_bounded_and_answers_remembered(
    valkey: Valkey, gateways: Gateways, connect: Connect, issuer: Issuer
) -> None:
    """One question about the same credentials at a time, so many about others; a storm asks once."""
    issuer.answer = json_answer(ANN)
    gateway = asking(valkey, gateways, issuer, concurrency=3, cache="1m", timeout="15s")
    issuer.gate.clear()
    same = [ask(connect, gateway, "same") for _ in range(8)]
    poll(lambda: len(issuer.requests) == 1, timeout_s=20, what="question")
    others = [ask(connect, gateway, f"other{number}") for number in range(8)]
    poll(lambda: issuer.most == 3, timeout_s=20, what="three questions")
    issuer.gate.set()
    for stream in (*same, *others):
        stream.wait_open()
    assert issuer.most == 3
    assert len(issuer.requests) == 9
    assert status(connect, gateway, "same") == 200
    assert len(issuer.requests) == 9
    assert gateway.metric("sse_gateway_access_checks_total", outcome="remembered") == 1


def ask(connect: Connect, gateway: GatewayProcess, text: str) -> Stream:
    """Ask for a stream, and wait for nothing."""
    return connect(gateway, "/events/a", headers={"Authorization": f"Bearer {text}"})


def test_a_key_that_fits_nothing_refuses_the_start(valkey: Valkey, gateways: Gateways, tmp_path: Path) -> None:
    """78, and a sentence; nothing of the file is quoted (A5)."""
    private = RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    files = {
        "missing": (None, "cannot be read"),
        "empty": ("", "is not a public key in PEM"),
        "private": (private, "is a private key"),
        "garbage": ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "is not a public key in PEM"),
        "curve": (pem(EC_KEY.public_key()), "a key of the curve secp256r1 does not fit auth.algorithms: RS256"),
        "edwards": (pem(ED_KEY.public_key()), "does not fit auth.algorithms: RS256"),
        "short": (pem(rsa.generate_private_key(65537, 1024).public_key()), "at least 2048 are needed"),  # noqa: S505
    }
    for name, (text, sentence) in files.items():
        file = tmp_path / name
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigError, match=sentence) as caught:
            key_of_file(file, ["RS256"])
        assert "AAAA" not in str(caught.value)
    with pytest.raises(ConfigError, match="is a public key"):
        secret_key(pem(EC_KEY.public_key()), ["HS256"])
    auth = {"mode": "jwt", "public_key_file": str(tmp_path / "curve"), "algorithms": ["RS256"]}
    gateway = gateways.start(configuration(valkey.url, auth=auth), alive=False)
    assert gateway.wait_exit(30) == 78
    assert any("secp256r1" in line for line in gateway.stray_output)
