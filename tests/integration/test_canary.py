"""A token is nowhere but where its client put it: a canary in every place, in flows that succeed and that fail, and then a search."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

from sse_gateway import verifier
from tests.support.access import SECRET, forged, jwt_auth, token
from tests.support.gateway_process import configuration, rule
from tests.support.inprocess import in_process
from tests.support.issuer import issuing, json_answer
from tests.support.nginx import nginxes

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.conftest import Connect
    from tests.support.gateway_process import Gateways
    from tests.support.raw_client import Address
    from tests.support.valkey import Valkey

CANARY = "canary-c4n4ry"
PLACES = ("header", "cookie", "query")


def flows() -> list[str]:
    """Tokens, each with the canary inside, as text or as what base64url makes of it."""
    good = token("a", sub=CANARY, jti=CANARY)
    return [
        good,
        token("b", sub=CANARY),
        token("a", sub=CANARY, ttl_s=-5.0),
        token("a", sub=CANARY, key="another secret, which is long enough for it: 0123456789abcdefghij"),
        forged({"alg": "none", "kid": CANARY}, {"sub": CANARY}),
        forged({"alg": CANARY}, {"sub": CANARY}, SECRET.encode()),
        forged({"alg": "HS256"}, CANARY, SECRET.encode()),
        CANARY,
        f"{CANARY}.{CANARY}.{CANARY}",
        f"{CANARY}\u00e4" + "x" * 9000,
    ]


def needles(texts: list[str]) -> list[str]:
    """What must be found nowhere: the canary, and the parts of every token."""
    parts = {part for text in texts for part in text.split(".") if len(part) > 12}
    return [CANARY, SECRET, *sorted(parts)]


def ask(connect: Connect, door: Address, place: str, text: str) -> bytes:
    """Ask with a token in some place; returns what came, but for a stream's own events."""
    headers = {"Authorization": f"Bearer {text}"} if place == "header" else {}
    if place == "cookie":
        headers["Cookie"] = f"__Host-sse={text}"
    # For the tokens that stand nowhere, a request target with as much of the canary in other places.
    query = f"?token={text.replace(chr(0xE4), '%C3%A4')}" if place == "query" else f"?unknown={CANARY}"
    stream = connect(door, f"/events/a{query}", headers=headers)
    stream.wait_head()
    stream.read_available()
    return bytes(stream.body) + str(stream.headers.fields).encode()


def test_no_token_is_written_anywhere(valkey: Valkey, gateways: Gateways, connect: Connect) -> None:
    """Not in our log at its finest level, nor nginx's, metrics, health, or any answer (A11)."""
    auth = jwt_auth(token_from={"query": "token"})
    gateway = gateways.start(configuration(valkey.url, rule("sse:*"), auth=auth, log={"level": "debug"}))
    texts = flows()
    answers = []
    with nginxes() as start:
        nginx = start(gateway.address, edits={"rate=20r/s": "rate=2000r/s"})
        for door in (gateway.address, nginx.address):
            for place in PLACES:
                answers += [ask(connect, door, place, text) for text in texts]
            two = connect(door, f"/events/a?token={texts[1]}", headers={"Authorization": f"Bearer {texts[0]}"})
            assert two.wait_head().status == 400
            cut = connect(
                door, "", raw=f"GET /events/a?token={texts[0]} HTTP/1.1\r\nHost: x\r\nA{chr(0)}: b\r\n\r\n".encode()
            )
            cut.wait_head()
        written = [nginx.read_log(), nginx.read_log("sse-gateway-error.log"), nginx.read_log("access.log")]
    written += [gateway.admin(path)[2] for path in ("/metrics", "/readyz", "/healthz")]
    written += [gateway.admin("/metrics", accept="application/openmetrics-text")[2]]
    command = [sys.executable, "-m", "sse_gateway", "check-config", str(gateway.config_file)]
    written.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert gateway.stop() == 0
    written += [json.dumps(gateway.logs), "".join(gateway.stray_output)]
    told = b"".join(answers).decode(errors="replace")
    assert "access.refused" in written[-2]
    for needle in needles(texts):
        assert not [text for text in written if needle in text], needle
        assert needle not in told, needle


def test_nothing_of_a_question_is_written_either(valkey: Valkey, gateways: Gateways, connect: Connect) -> None:
    """Nor what the application is asked with, and what it answers."""
    with issuing() as issuer:
        callback = {"url": f"{issuer.url}?{CANARY}", "cookies": ["session"], "timeout": "1s", "cache": "0s"}
        auth = {"mode": "callback", "callback": callback}
        gateway = gateways.start(configuration(valkey.url, auth=auth, log={"level": "debug"}))
        headers = {"Authorization": f"Bearer {CANARY}", "Cookie": f"session={CANARY}"}
        for answer in (
            json_answer({"channels": ["a"], "expires_in": 60, "subject": CANARY}),
            json_answer({"channels": [CANARY, 1], "expires_in": 60}),
            (200, {}, CANARY.encode()),
            (500, {CANARY: CANARY}, CANARY.encode()),
            (401, {}, CANARY.encode()),
        ):
            issuer.answer = answer
            stream = connect(gateway, "/events/a", headers=headers)
            stream.wait_head()
            assert CANARY not in f"{stream.headers.fields}{stream.body!r}"
        shown = gateway.admin("/metrics")[2]
    assert gateway.stop() == 0
    assert CANARY not in json.dumps(gateway.logs) + shown + "".join(gateway.stray_output)


def test_a_traceback_shows_no_token(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours while a token is judged: logged with its place, and without what was judged (I9)."""

    def broken(_: str) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(verifier, "parse_token", broken)
    with in_process(asyncio.new_event_loop, tmp_path, auth=jwt_auth()) as server:
        stream = connect(server.address, f"/events/a?x={CANARY}", headers={"Authorization": f"Bearer {CANARY}"})
        assert stream.wait_head().status == 500
        assert CANARY not in f"{stream.headers.fields}{stream.body!r}"
    failures = [record.exc_info[1] for record in caplog.records if record.exc_info and record.exc_info[1]]
    logged = "".join("".join(traceback.format_exception(failure)) for failure in failures) + caplog.text
    assert "a fault of ours" in logged
    assert "Traceback" in logged
    assert CANARY not in logged
