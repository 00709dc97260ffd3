"""Who gets in, to what, and for how long: attacks on tokens and requests, against the running gateway, direct and through nginx."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from tests.support.access import (
    EC_KEY,
    ED_KEY,
    OTHER_RSA_KEY,
    RSA_KEY,
    SECRET,
    b64,
    claims,
    forged,
    jwt_auth,
    pem,
    token,
    wall,
)
from tests.support.gateway_process import STREAM_CLOSED, configuration, poll, rule
from tests.support.inprocess import in_process
from tests.support.lateness import lateness
from tests.support.nginx import nginxes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Address, Stream
    from tests.support.valkey import Valkey

TEN_YEARS_S = 3650 * 86_400.0
REFUSED = "sse_gateway_access_refused_total"
REALM = 'Bearer realm="sse-gateway"'
REVOKING = "+zadd +zrevrange +zcard +zremrangebyscore +expire ~__sse_gateway:{cluster}:revoked"
"""What the gateway's user, and that of `revoke`, may do beyond following."""

PUBLIC_PEM = pem(RSA_KEY.public_key())
NOW = int(wall())
LASTING_S = 3600.0
"""Of the tokens that are made when this file is read: their tests come much later perhaps."""


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """A gateway that asks for tokens by secret, in all three places, of one audience and issuer."""
    rules = (
        rule("sse:open:*", access="public"),
        rule("sse:shut:*", prefix=False),
        rule("sse:*", window={"max_events": 9}),
    )
    auth = jwt_auth(audience="us", issuer="them", max_lifetime="7d", token_from={"query": "token"})
    return module_gateways.start(configuration(valkey.url, *rules, auth=auth))


@pytest.fixture(scope="module")
def asymmetric(valkey: Valkey, module_gateways: Gateways, tmp_path_factory: pytest.TempPathFactory) -> GatewayProcess:
    """A gateway that verifies with a public RSA key."""
    file = tmp_path_factory.mktemp("key") / "issuer.pem"
    file.write_text(PUBLIC_PEM)
    auth = {"mode": "jwt", "public_key_file": str(file), "algorithms": ["RS256", "PS256"]}
    return module_gateways.start(configuration(valkey.url, auth=auth))


@pytest.fixture(scope="module", params=["direct", "nginx"])
def door(request: pytest.FixtureRequest, gateway: GatewayProcess) -> Iterator[Address]:
    """The way in: the gateway's own port, or nginx with the shipped file."""
    if request.param == "direct":
        yield gateway.address
        return
    with nginxes() as start:
        yield start(gateway.address, edits={"rate=20r/s": "rate=2000r/s"}).address


def good(*channels: str, **more: Any) -> str:
    """A token that `gateway` accepts."""
    return token(*channels, **{"aud": "us", "iss": "them", "ttl_s": LASTING_S, **more})


def bearer(text: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {text}"}


def answer(stream: Stream) -> tuple[int, str | None, Any]:
    """Status, challenge and problem of a refusal."""
    stream.wait_for(lambda s: s.ended, what="whole refusal")
    assert stream.headers.get("Content-Type") == "application/problem+json"
    return stream.status, stream.headers.get("WWW-Authenticate"), json.loads(stream.body)


def header(**fields: object) -> dict[str, object]:
    """A token's header."""
    return {"alg": "HS256", "typ": "JWT", **fields}


def sound(**more: Any) -> dict[str, Any]:
    """Claims that `gateway` accepts, some of them replaced, or left out if None."""
    return claims("a", **{"aud": "us", "iss": "them", "ttl_s": LASTING_S, **more})


KEY = SECRET.encode()
ATTACKS: dict[str, tuple[str, str]] = {
    # A1: no signature
    "alg none": (forged(header(alg="none"), sound()), "malformed"),
    "alg none, signed": (forged(header(alg="none"), sound(), KEY), "algorithm"),
    "alg None": (forged(header(alg="None"), sound(), KEY), "algorithm"),
    "alg nOnE": (forged(header(alg="nOnE"), sound(), KEY), "algorithm"),
    "alg empty": (forged(header(alg=""), sound(), KEY), "algorithm"),
    "alg null": (forged(header(alg=None), sound(), KEY), "malformed"),
    "alg list": (forged(header(alg=["HS256"]), sound(), KEY), "malformed"),
    "alg missing": (forged({"typ": "JWT"}, sound(), KEY), "malformed"),
    "empty signature": (good("a").rpartition(".")[0] + ".", "malformed"),
    "no signature": (good("a").rpartition(".")[0], "malformed"),
    "cut signature": (good("a")[:-4], "signature"),
    "two signatures": (good("a") + "." + good("a").rpartition(".")[2], "malformed"),
    "another claim": (
        good("a").split(".")[0] + "." + b64(json.dumps(sound())) + "." + good("b").split(".")[2],
        "signature",
    ),
    # A2: another kind of key
    "wrong secret": (forged(header(), sound(), b"x" * 40), "signature"),
    "empty secret": (forged(header(), sound(), b""), "signature"),
    "another HS": (jwt.encode(sound(), SECRET, "HS512"), "algorithm"),
    "RS256": (jwt.encode(sound(), RSA_KEY, "RS256"), "algorithm"),
    "ES256": (jwt.encode(sound(), EC_KEY, "ES256"), "algorithm"),
    "EdDSA": (jwt.encode(sound(), ED_KEY, "EdDSA"), "algorithm"),
    # A3: the header names a key
    "jwk": (forged(header(jwk={"kty": "oct", "k": b64(b"x" * 32)}), sound(), b"x" * 32), "signature"),
    "jku": (forged(header(jku="http://127.0.0.1:1/keys"), sound(), b"x" * 32), "signature"),
    "x5u": (forged(header(x5u="http://127.0.0.1:1/"), sound(), b"x" * 32), "signature"),
    "kid path": (forged(header(kid="../../dev/null"), sound(), b""), "signature"),
    "kid SQL": (forged(header(kid="' UNION SELECT 'x"), sound(), b"x"), "signature"),
    "kid long": (forged(header(kid="k" * 5000), sound(), KEY), "malformed"),
    "kid number": (forged(header(kid=1), sound(), KEY), "malformed"),
    # A4 is about claims
    "exp past": (forged(header(), sound(exp=NOW - 1), KEY), "expired"),
    "exp missing": (forged(header(), sound(exp=None), KEY), "malformed"),
    "exp text": (forged(header(), sound(exp=str(NOW + 60)), KEY), "malformed"),
    "exp true": (forged(header(), sound(exp=True), KEY), "malformed"),
    "exp NaN": (forged(header(), json.dumps(sound(exp=float("nan"))), KEY), "malformed"),
    "exp infinite": (forged(header(), json.dumps(sound(exp=float("inf"))), KEY), "malformed"),
    "exp 1e308": (forged(header(), sound(exp=1e308), KEY), "malformed"),
    "exp of 400 digits": (forged(header(), sound(exp=10**400), KEY), "malformed"),
    "exp far": (forged(header(), sound(exp=NOW + 40 * 86_400), KEY), "lifetime"),
    "nbf future": (good("a", nbf=NOW + 3000), "early"),
    "iat future": (good("a", iat=NOW + 3000), "early"),
    "aud missing": (good("a", aud=None), "audience"),
    "aud wrong": (good("a", aud="others"), "audience"),
    "aud list, wrong": (good("a", aud=["others", "Us"]), "audience"),
    "aud number": (forged(header(), sound(aud=1), KEY), "malformed"),
    "iss missing": (good("a", iss=None), "issuer"),
    "iss wrong": (good("a", iss="them2"), "issuer"),
    "crit": (forged(header(crit=["exp"]), sound(), KEY), "malformed"),
    "crit b64": (forged(header(crit=["b64"], b64=False), sound(), KEY), "malformed"),
    "channels text": (forged(header(), sound(channels="a"), KEY), "channels"),
    "channels of numbers": (forged(header(), sound(channels=["a", 1]), KEY), "channels"),
    "claims a list": (forged(header(), [], KEY), "malformed"),
    "claims no JSON": (forged(header(), "a", KEY), "malformed"),
    "claims deep": (forged(header(), '{"exp":' + "[" * 2500, KEY), "malformed"),
    "header deep": (forged("[" * 3000, sound(), KEY), "malformed"),
    "long": (good("a", filler="x" * 8200), "malformed"),
    "garbage": ("garbage", "malformed"),
    "nothing": ("", "malformed"),
    "spaces": ("a b c", "malformed"),
    "bytes": ("\u00ff\u00fe.\u00e4.\u00f6", "malformed"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_bad_token_is_refused(door: Address, gateway: GatewayProcess, connect: Connect, name: str) -> None:
    """401, in the same words whatever was wrong; the reason is counted here, and told to nobody (A1 to A4, A12)."""
    text, reason = ATTACKS[name]
    before = gateway.metric(REFUSED, reason=reason)
    told = answer(connect(door, "/events/a", headers=bearer(text)))

    problem = {"type": "about:blank", "title": "Unauthorized", "status": 401, "detail": "a valid token is needed"}
    assert told == (401, f'{REALM}, error="invalid_token"', problem)
    assert gateway.metric(REFUSED, reason=reason) == before + 1


RSA_ATTACKS = {
    "signed by HMAC with the PEM": forged(header(), claims("a", ttl_s=LASTING_S), PUBLIC_PEM.encode()),
    "the same without its last newline": forged(header(), claims("a", ttl_s=LASTING_S), PUBLIC_PEM.strip().encode()),
    "said to be RS256": forged(header(alg="RS256"), claims("a", ttl_s=LASTING_S), PUBLIC_PEM.encode()),
    "another key": jwt.encode(claims("a", ttl_s=LASTING_S), OTHER_RSA_KEY, "RS256"),
    "RS512 of the right key": jwt.encode(claims("a", ttl_s=LASTING_S), RSA_KEY, "RS512"),
    "another key, in the header": jwt.encode(
        claims("a", ttl_s=LASTING_S),
        OTHER_RSA_KEY,
        "RS256",
        headers={"jwk": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER_RSA_KEY.public_key()))},
    ),
}


@pytest.mark.parametrize("name", RSA_ATTACKS)
def test_a_public_key_is_no_secret(asymmetric: GatewayProcess, connect: Connect, name: str) -> None:
    """What anybody can sign, nobody is let in by (A2, A3)."""
    assert answer(connect(asymmetric, "/events/a", headers=bearer(RSA_ATTACKS[name])))[0] == 401
    for algorithm in ("RS256", "PS256"):
        text = jwt.encode(claims("a"), RSA_KEY, algorithm)
        connect(asymmetric, "/events/a", headers=bearer(text)).wait_open().json()


@pytest.mark.parametrize(
    ("granted", "target", "status"),
    [
        (["a"], "/events/a", 200),
        (["a*"], "/events/abc", 200),
        (["a*"], "/events/a*", 200),
        (["*"], "/events/a%2A", 200),
        (["a", "b"], "/events?channel=a&channel=b", 200),
        ([], "/events/open:1", 200),
        ([], "/events/a", 403),
        (["a"], "/events/b", 403),
        (["a"], "/events?channel=a&channel=b", 403),
        (["a"], "/events?channel=open:1&channel=a&channel=b", 403),
        (["a"], "/events/A", 403),
        (["a"], "/events/a%20", 403),
        (["a"], "/events/a*", 403),
        (["a:b", "a:c"], "/events/a:*", 403),
        (["ab*"], "/events/a*", 403),
        (["open:*"], "/events/o*", 403),
        (["a"], "/events/shut:*", 403),
        (["shut:*"], "/events/shut:*", 404),
        (["shut:*"], "/events/shut:1", 200),
        (["a"], "/events/a?channel=b", 400),
        (["a"], "/events?channel=a&replay=1&replay=2", 400),
    ],
)
def test_all_of_a_request_is_granted_or_none(
    door: Address, connect: Connect, granted: list[str], target: str, status: int
) -> None:
    """400 before 401, 401 before 403, 403 before 404: nobody learns of a channel that he may not read."""
    stream = connect(door, target, headers=bearer(good(*granted)))
    if status == 200:
        stream.wait_open()
    else:
        assert answer(stream)[0] == status
    assert connect(door, target, method="HEAD", headers=bearer(good(*granted))).wait_head().status == status
    alone = connect(door, target).wait_head().status
    assert alone == (status if status == 400 or target == "/events/open:1" else 401)


def test_without_a_token_the_challenge_names_no_error(door: Address, connect: Connect) -> None:
    """As the standard has it: there is nothing wrong with a token that is not there."""
    assert answer(connect(door, "/events/a"))[:2] == (401, REALM)
    assert answer(connect(door, "/events/a", headers={"Authorization": "Basic YTpi"}))[:2] == (401, REALM)
    told = answer(connect(door, "/events/a", headers=bearer(good("b"))))
    assert told[:2] == (403, f'{REALM}, error="insufficient_scope"')


@pytest.mark.parametrize(
    ("places", "status"),
    [
        ({"header": "A"}, 200),
        ({"cookie": "A"}, 200),
        ({"query": "A"}, 200),
        ({"header": "A", "cookie": "A", "query": "A"}, 200),
        ({"header": "A", "cookie": "B"}, 400),
        ({"header": "B", "query": "A"}, 400),
        ({"cookie": "A", "query": "x"}, 400),
        ({"cookie": "A; __Host-sse=A"}, 200),
        ({"cookie": "A; __Host-sse=B"}, 400),
        ({"cookie": '"A"'}, 200),
        ({"cookie": ""}, 401),
        ({"query": "A&token=B"}, 400),
        ({"query": "A&token=A"}, 400),
        ({"query": ""}, 401),
    ],
)
def test_one_token_counts(door: Address, connect: Connect, places: dict[str, str], status: int) -> None:
    """In any of the places; two that differ are refused, whatever they are worth (A10, A13)."""
    made = {"A": good("a", jti="A"), "B": good("a", jti="B")}

    def filled(place: str) -> str:
        return re.sub(r"\b[AB]\b", lambda match: made[match[0]], places[place])

    headers = {"Cookie": f"theme=dark; __Host-sse={filled('cookie')}"} if "cookie" in places else {}
    headers |= bearer(filled("header")) if "header" in places else {}
    query = f"?token={filled('query')}" if "query" in places else ""
    stream = connect(door, f"/events/a{query}", headers=headers)
    assert stream.wait_head().status == status


def test_replay_is_allowed_by_the_token_that_asks(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A cursor opens nothing: whoever may no longer read a channel does not get what he missed on it (A8, A9)."""
    stream = connect(gateway, f"/events/{channel}", headers=bearer(good(channel)))
    stream.wait_open()
    valkey.publish(f"sse:{channel}", "secret")
    cursor = stream.wait_data("secret").id
    valkey.publish(f"sse:{channel}", "more")
    for target in (f"/events/{channel}", f"/events/{channel[:-1]}*", f"/events?channel={channel}&channel=open:1"):
        headers = {**bearer(good("other")), "Last-Event-ID": str(cursor)}
        assert answer(connect(gateway, target, headers=headers))[0] == 403
    elsewhere = connect(gateway, "/events/open:1?replay=all", headers={"Last-Event-ID": "0-0-0"})
    assert elsewhere.wait_open().json()["channels"] == ["open:1"]


def test_a_prefix_does_not_grow_beyond_its_grant(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Channels that appear later are inside or are not shown; rules without prefixes never are (I11)."""
    inside = connect(gateway, f"/events/{channel}x*", headers=bearer(good(f"{channel}x*")))
    everything = connect(gateway, "/events/*", headers=bearer(good("*")))
    public = connect(gateway, "/events/open:*")
    for stream in (inside, everything, public):
        stream.wait_open()
    for name in (
        f"{channel}y",
        f"{channel}x",
        f"shut:{channel}",
        f"open:{channel}",
        f"{channel}xx",
        f"open:{channel}end",
    ):
        valkey.publish(f"sse:{name}", name)

    everything.wait_data(f"open:{channel}end")
    public.wait_data(f"open:{channel}end")
    inside.wait_data(f"{channel}xx")
    assert inside.data == [f"{channel}x", f"{channel}xx"]
    assert public.data == [f"open:{channel}", f"open:{channel}end"]
    assert f"shut:{channel}" not in everything.data


def test_a_stream_ends_with_its_token(gateway: GatewayProcess, connect: Connect) -> None:
    """Within a second, in a word; the next request with it is 401, also where it had been verified (A6)."""
    ends = int(wall()) + 3
    text = good("a", exp=ends)
    streams = [connect(gateway, "/events/a", headers=bearer(text)) for _ in range(3)]
    lasting = connect(gateway, "/events/a", headers=bearer(good("a")))
    with lateness() as late:
        for stream in streams:
            assert stream.wait_type("gateway.close").json() == {"reason": "expired"}
            stream.wait_end()
            assert 0 <= wall() - ends < 1 + late.total_s
    assert answer(connect(gateway, "/events/a", headers=bearer(text)))[0] == 401
    assert len(gateway.wait_log(STREAM_CLOSED, count=3, reason="expired")) == 3
    lasting.wait_open()


def test_the_wall_clock_may_be_set(tmp_path: Path, connect: Connect) -> None:
    """Forward, and streams end whose time that clock says is over; back, and none ends before its time."""
    with in_process(asyncio.new_event_loop, tmp_path, auth=jwt_auth()) as server:
        stream = connect(server.address, "/events/a", headers=bearer(token("a", ttl_s=600)))
        later = connect(server.address, "/events/a", headers=bearer(token("a", ttl_s=7200)))
        stream.wait_open()
        later.wait_open()
        for seconds in (-86_400, 300, 3600):
            server.call(partial(server.streams.expire, server.streams.now(), wall() + seconds, None))
            assert server.closed() == ({"expired": 1} if seconds > 600 else {})
        assert stream.wait_type("gateway.close").json() == {"reason": "expired"}


def test_a_revocation_reaches_everybody(own_valkey: Valkey, gateways: Gateways, connect: Connect) -> None:
    """All workers, nodes of another fingerprint, a node that starts later, and all of them after a restart (A7)."""
    first = configuration(own_valkey.url, auth=jwt_auth(), cluster={"secret": "0123456789abcdef"})
    first["workers"] = 2
    second = {
        **configuration(own_valkey.url, rule("sse:*", format="json"), auth=jwt_auth()),
        "cluster": first["cluster"],
    }
    nodes = [gateways.start(first), gateways.start(second)]
    anns, one, other = (
        token("a", sub="ann", jti="t1"),
        token("a", sub="eve", jti="t2", ttl_s=TEN_YEARS_S),
        token("a", sub="eve", jti="t3"),
    )
    streams = [
        connect(node, "/events/a", headers=bearer(text)) for text in (anns, one) for node in nodes for _ in "1234"
    ]
    kept = [connect(node, "/events/a", headers=bearer(other)) for node in nodes]
    for stream in (*streams, *kept):
        stream.wait_open()
    revoke(nodes[0], "--subject", "ann", "--token", "t2")
    with lateness() as late:
        begun = time.monotonic()
        for stream in streams:
            assert stream.wait_type("gateway.close").json() == {"reason": "revoked"}
        assert time.monotonic() - begun < 2 + late.total_s

    for node in nodes:
        assert answer(connect(node, "/events/a", headers=bearer(anns)))[0] == 401
        assert answer(connect(node, "/events/a", headers=bearer(one)))[0] == 401
        connect(node, "/events/a", headers=bearer(other)).wait_open()
        node.stop()
    again = gateways.start(second)
    assert again.metric("sse_gateway_revocations") == 2
    assert answer(connect(again, "/events/a", headers=bearer(one)))[0] == 401


def test_nodes_put_back_what_redis_has_lost(own_valkey: Valkey, gateways: Gateways, connect: Connect) -> None:
    """Redis may forget, or all gateways may, but not both at once."""
    config = configuration(own_valkey.url, auth=jwt_auth())
    gateway = gateways.start(config)
    text = token("a", sub="ann")
    revoke(gateway, "--subject", "ann", "--for", "1h")
    poll(lambda: gateway.metric("sse_gateway_revocations") == 1, timeout_s=20, what="revocation")
    name = f"__sse_gateway:{config['cluster']['name']}:revoked"
    assert own_valkey.link.call("ZCARD", name) == 1
    own_valkey.link.call("DEL", name)
    own_valkey.kill_subscribers()
    poll(lambda: own_valkey.link.call("ZCARD", name) == 1, timeout_s=20, what="list that is whole again")
    gateway.wait_ready()
    assert answer(connect(gateway, "/events/a", headers=bearer(text)))[0] == 401


def test_the_access_rule_is_enough(own_valkey: Valkey, gateways: Gateways) -> None:
    """For the gateway and for the command; without it the gateway does not get ready, and says what is missing."""
    url = own_valkey.url.replace("://", "://gateway:secret@")
    config = configuration(url, auth=jwt_auth())
    cluster = config["cluster"]["name"]
    follow = f"on >secret resetkeys resetchannels -@all +ping +role +info +psubscribe +publish &sse:* &__sse_gateway:{cluster}"
    own_valkey.link.call("ACL", "SETUSER", "gateway", *follow.split())
    gateway = gateways.start(config, ready=False)
    needed = f"(needed: +zadd +zrevrange +expire ~__sse_gateway:{cluster}:revoked)"
    gateway.wait_until(
        lambda: any(needed in line["reason"] for line in gateway.records("source.unavailable")),
        40,
        f"{needed} in the log",
    )
    own_valkey.link.call("ACL", "SETUSER", "gateway", *REVOKING.format(cluster=cluster).split())
    gateway.wait_ready()
    revoke(gateway, "--subject", "ann")
    gateway.wait_metric("sse_gateway_revocations", 1)


def test_nobody_else_can_revoke(own_valkey: Valkey, gateways: Gateways, connect: Connect) -> None:
    """With a secret, what does not carry it is ignored, on the channel and in the list (D13)."""
    secret = {"secret": "0123456789abcdef"}
    config = configuration(own_valkey.url, auth=jwt_auth(), cluster=secret)
    gateway = gateways.start(config)
    stream = connect(gateway, "/events/a", headers=bearer(token("a", sub="ann")))
    stream.wait_open()
    own_valkey.publish(f"__sse_gateway:{config['cluster']['name']}", f"revoke 1 s{'0' * 32} {NOW + 600}")
    gateway.wait_metric("sse_gateway_revocations_ignored_total", 1)
    assert gateway.metric("sse_gateway_revocations") == 0
    assert not stream.eof


def revoke(gateway: GatewayProcess, *options: str) -> None:
    """Revoke as an operator does."""
    command = [sys.executable, "-m", "sse_gateway", "revoke", "--config", str(gateway.config_file), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "were told" in done.stdout
