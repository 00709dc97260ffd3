"""The link to Redis: what it takes for a primary, how it finds out that it is dead, and how it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sse_gateway.errors import ConfigError
from sse_gateway.source import Source
from tests.support.gateway_process import configuration, poll
from tests.support.lateness import lateness
from tests.support.proxy import FaultProxy, proxied
from tests.support.resp3_server import REPLICA, Recorder, Resp3Server, hello, info, message, push, resp3_server
from tests.support.valkey import Link, Valkey, binary, free_port, least_privilege, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

CLUSTER = "test"
CONTROL = f"__sse_gateway:{CLUSTER}"

LEAST_PRIVILEGE = " ".join(least_privilege(["sse:*"], CONTROL.rpartition(":")[2]))
"""All that the gateway's user needs, as the documents give it."""


class Following:
    """A source at work.

    Attributes:
        source: The source.
        recorder: What it brought.
        task: Its `run`.
    """

    def __init__(self, url: str, *, connect_s: float = 1.0, liveness_s: float = 1.0, pattern: str = "sse:*") -> None:
        self.recorder = Recorder()
        self.source = Source(
            url, [pattern], CONTROL, self.recorder, connect_timeout_s=connect_s, liveness_timeout_s=liveness_s
        )
        self.task = asyncio.create_task(self.source.run())

    async def until_live(self, count: int = 1, timeout_s: float = 20.0) -> None:
        """Wait until it is live for the count-th time."""
        await self.recorder.until(lambda r: r.calls.count("began") >= count and self.source.live, timeout_s=timeout_s)

    async def until_lost(self, count: int = 1, timeout_s: float = 20.0) -> None:
        """Wait until it has lost its link for the count-th time."""
        await self.recorder.until_call("lost", count, timeout_s=timeout_s)

    async def stays_live(self, seconds: float) -> None:
        """Wait that long for a loss that must not come."""
        with pytest.raises(TimeoutError):
            await self.until_lost(timeout_s=seconds)


@pytest.fixture
async def follow() -> AsyncIterator[Callable[..., Following]]:
    """Start sources that end with the test."""
    started: list[Following] = []

    def start(url: str, **settings: Any) -> Following:
        started.append(Following(url, **settings))
        return started[-1]

    yield start
    for following in started:
        following.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConfigError):
            await following.task


@pytest.fixture
async def server() -> AsyncIterator[Resp3Server]:
    """Run a scripted server."""
    async with resp3_server() as running_server:
        yield running_server


class Log:
    """What the source has logged: (event, fields), in order."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Event()

    def take(self, record: logging.LogRecord) -> bool:
        """Take a record down; a filter of the source's logger."""
        self.records.append((record.getMessage(), vars(record)["fields"]))
        self._news.set()
        return True

    def reasons(self, event: str) -> list[str]:
        """The reasons that were given with an event."""
        return [fields["reason"] for name, fields in self.records if name == event]

    async def until(self, event: str, part: str, *, timeout_s: float = 20.0) -> None:
        """Wait until an event was logged with a reason that has this in it."""
        async with asyncio.timeout(timeout_s):
            while not any(part in reason for reason in self.reasons(event)):
                self._news.clear()
                await self._news.wait()


@pytest.fixture
async def logged() -> AsyncIterator[Log]:
    """Take down what the source logs."""
    log, logger = Log(), logging.getLogger("sse_gateway.source")
    logger.setLevel(logging.INFO)
    logger.addFilter(log.take)
    yield log
    logger.removeFilter(log.take)
    logger.setLevel(logging.NOTSET)


# -- getting live


async def test_the_way_to_a_live_link(server: Resp3Server, follow: Callable[..., Following]) -> None:
    """Log in, judge the server, subscribe to everything at once, and begin where our marker comes back."""
    following = follow(server.url)
    await following.until_live()

    assert server.names()[:7] == ["HELLO", "PING", "ROLE", "INFO", "INFO", "PSUBSCRIBE", "PUBLISH"]
    assert server.commands[5][1:] == [b"sse:*", CONTROL.encode()]
    await server.send(message("sse:*", "sse:a", "hello"))
    await following.recorder.until_call("hello")
    assert following.source.attempts == 1


async def test_a_loading_server_is_waited_for(
    server: Resp3Server, follow: Callable[..., Following], logged: Log
) -> None:
    """While the server loads its data the source is not live, says why, and comes back."""
    ready, server.answers["PING"] = server.answers["PING"], b"-LOADING Redis is loading the dataset in memory\r\n"
    following = follow(server.url)
    await logged.until("source.unavailable", "LOADING")
    assert not following.source.live
    server.answers["PING"] = ready

    await following.until_live()


async def test_a_server_with_a_full_disk_will_do(server: Resp3Server, follow: Callable[..., Following]) -> None:
    """An error that concerns writes only does not keep the source from following."""
    server.answers["PING"] = b"-MISCONF Redis is configured to save RDB snapshots, but is unable to persist\r\n"

    await follow(server.url).until_live()


@pytest.mark.parametrize(
    ("command", "answer", "told"),
    [
        ("HELLO", b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `u`, `pw!`\r\n", "RESP3"),
        ("HELLO", b"-NOPROTO unsupported protocol version\r\n", "RESP3"),
        ("HELLO", b"*2\r\n$6\r\nserver\r\n$5\r\nredis\r\n", "RESP3"),
        ("HELLO", b"-WRONGPASS invalid username-password pair or user is disabled.\r\n", "WRONGPASS"),
        ("HELLO", b"-DENIED Redis is running in protected mode\r\n", "protected mode"),
        ("HELLO", b"-ERR max number of clients reached\r\n", "max number of clients"),
        ("HELLO", hello(server="dragonfly"), "'dragonfly'"),
        ("HELLO", hello(mode="sentinel"), "redis+sentinel://host:port/service"),
        ("ROLE", REPLICA, "replica"),
        ("ROLE", b"*1\r\n$8\r\nsentinel\r\n", "primary"),
        ("ROLE", b"-NOPERM User gw has no permissions to run the 'role' command\r\n", "'role'"),
        ("INFO", b"-NOPERM User gw has no permissions to run the 'info' command\r\n", "'info'"),
        ("INFO", b"$0\r\n\r\n", "run id"),
        ("PSUBSCRIBE", b"-NOPERM No permissions to access a channel\r\n", "cannot subscribe: NOPERM"),
        ("PUBLISH", b"-NOPERM No permissions to access a channel\r\n", f"publish to {CONTROL}: NOPERM"),
    ],
)
async def test_an_unfit_server_is_told_in_one_sentence(
    server: Resp3Server,
    follow: Callable[..., Following],
    logged: Log,
    command: str,
    answer: bytes,
    told: str,
) -> None:
    """Whatever the server lacks, the log says it, without a secret, and the source goes on trying."""
    fit, server.answers[command] = server.answers[command], answer
    following = follow(server.url.replace("://", "://u:pw!@"))
    await logged.until("source.unavailable", told)
    assert not following.source.live
    server.answers[command] = fit
    await following.until_live()

    assert "pw!" not in str(logged.records)
    assert server.commands[0] == [b"HELLO", b"3", b"AUTH", b"u", b"pw!", b"SETNAME", b"sse-gateway"]


async def test_a_cluster_ends_the_source(server: Resp3Server, follow: Callable[..., Following]) -> None:
    """Cluster mode is a mistake of the configuration: no retry can mend it."""
    server.answers["HELLO"] = hello(mode="cluster")
    following = follow(server.url)

    with pytest.raises(ConfigError, match="Cluster mode"):
        await asyncio.wait_for(following.task, 5)


@pytest.mark.parametrize("command", ["HELLO", "PING", "ROLE", "INFO", "PSUBSCRIBE", "PUBLISH"])
async def test_a_server_that_falls_silent_on_the_way_is_given_up(
    server: Resp3Server, follow: Callable[..., Following], logged: Log, command: str
) -> None:
    """Silence at any step is bounded by `connect_timeout`, told, and tried again."""
    answer = server.answers.pop(command)
    following = follow(server.url, connect_s=0.2)
    await logged.until("source.unavailable", "no answer within 0.2 s")
    server.answers[command] = answer

    await following.until_live()


async def test_a_marker_that_never_comes_back_is_given_up(
    server: Resp3Server, follow: Callable[..., Following], logged: Log
) -> None:
    """A server that takes our marker and delivers it to nobody is not live."""
    answer, server.answers["PUBLISH"] = server.answers["PUBLISH"], b":0\r\n"
    following = follow(server.url, connect_s=0.2)
    await logged.until("source.unavailable", "marker")
    server.answers["PUBLISH"] = answer

    await following.until_live()


@pytest.mark.parametrize("command", ["HELLO", "PING", "ROLE", "INFO", "PSUBSCRIBE", "PUBLISH"])
async def test_a_server_that_closes_on_the_way_is_tried_again_at_once(
    server: Resp3Server, follow: Callable[..., Following], command: str
) -> None:
    """A connection that ends at any step is noticed there and then, however long the time-outs are."""
    server.closes_after = {command}
    following = follow(server.url, connect_s=60, liveness_s=60)
    await server.until(lambda s: len(s.accepted_at) >= 3)
    server.closes_after = set()

    await following.until_live()


async def test_attempts_come_slower_and_at_random(server: Resp3Server, follow: Callable[..., Following]) -> None:
    """Back-off doubles up to a second, and every delay has jitter."""
    server.answers["PING"] = b"-LOADING\r\n"
    with lateness() as late:
        follow(server.url)
        await server.until(lambda s: len(s.accepted_at) >= 7, timeout_s=20)
    delays = [later - earlier for earlier, later in zip(server.accepted_at, server.accepted_at[1:], strict=False)]

    for delay, most in zip(delays, [0.2, 0.4, 0.8, 1.0, 1.0, 1.0], strict=True):
        assert most / 2 <= delay <= most + 0.5 + late.total_s, delays
    assert max(delays[3:]) - min(delays[3:]) > 0.001, delays


# -- losing it


@pytest.mark.parametrize(
    ("command", "answer", "told"),
    [
        ("ROLE", REPLICA, "demoted"),
        ("INFO", info("2" * 40), "run id"),
        ("PUBLISH", b"-NOPERM No permissions to access a channel\r\n", f"{CONTROL}: NOPERM"),
        ("PUBLISH", b"-READONLY You can't write against a read only replica.\r\n", "READONLY"),
    ],
)
async def test_a_server_that_becomes_unfit_is_left_within_a_second_or_so(
    server: Resp3Server,
    follow: Callable[..., Following],
    logged: Log,
    command: str,
    answer: bytes,
    told: str,
) -> None:
    """Role and run id are checked with every marker while the link is live."""
    following = follow(server.url, liveness_s=30)
    await following.until_live()
    fit, server.answers[command] = server.answers[command], answer
    with lateness() as late:
        began = time.monotonic()
        await following.until_lost()
        assert time.monotonic() - began < 1.5 + late.total_s
    await logged.until("source.lost", told)
    server.answers[command] = fit

    await following.until_live(2)
    assert following.source.losses == 1


async def test_silence_is_death(server: Resp3Server, follow: Callable[..., Following], logged: Log) -> None:
    """A server that answers nothing any more is left after `liveness_timeout`."""
    following = follow(server.url, liveness_s=0.4)
    await following.until_live()
    answers = dict(server.answers)
    with lateness() as late:
        began = time.monotonic()
        server.answers.clear()
        await following.until_lost()
        took = time.monotonic() - began

    assert 0.2 <= took <= 1.0 + 3 * late.total_s  # where the process stood still it is judged anew
    assert "nothing was heard" in logged.reasons("source.lost")[0]
    server.answers.update(answers)
    await following.until_live(2)


async def test_messages_alone_are_no_life(server: Resp3Server, follow: Callable[..., Following], logged: Log) -> None:
    """A link that brings others' messages and answers, but not our marker, is left after three times the time-out."""
    following = follow(server.url, liveness_s=0.3)
    await following.until_live()
    server.answers["PUBLISH"] = b":1\r\n"
    with lateness() as late:
        began = time.monotonic()
        while "lost" not in following.recorder.calls:
            await server.send(message("sse:*", "sse:a", "x"))
            with contextlib.suppress(TimeoutError):
                await following.until_lost(timeout_s=0.05)
        took = time.monotonic() - began

    assert 0.7 <= took <= 2 + 6 * late.total_s  # as above
    assert "marker" in logged.reasons("source.lost")[0]


async def test_a_paused_link_is_not_judged(server: Resp3Server, follow: Callable[..., Following]) -> None:
    """What we do not read we do not miss; when we read again, judgement begins anew."""
    following = follow(server.url, liveness_s=0.2)
    await following.until_live()
    began = time.monotonic()
    following.source.pause()
    await following.stays_live(1.0)
    following.source.resume()
    took = time.monotonic() - began
    await following.stays_live(0.5)

    assert 1.0 <= following.source.paused_s <= took
    assert following.source.live


async def test_a_gateway_that_stood_still_does_not_blame_the_server(
    server: Resp3Server, follow: Callable[..., Following]
) -> None:
    """After the process itself was stopped for longer than `liveness_timeout`, the link is heard before it is judged."""
    following = follow(server.url, liveness_s=0.3)
    await following.until_live()
    subprocess.run(["sleep", "1"], check=True)  # noqa: ASYNC221 - the loop stands still, which is the point

    await following.stays_live(0.6)


async def test_a_failing_handler_is_passed_on(server: Resp3Server, follow: Callable[..., Following]) -> None:
    """I9: an exception that nobody expected reaches who can end the process."""
    following = follow(server.url)
    following.recorder.poison = b"poison"
    await following.until_live()
    await server.send(message("sse:*", "sse:a", "poison"))
    await following.recorder.until_call("failed")

    assert isinstance(following.recorder.failures[0], ZeroDivisionError)


async def test_an_unsubscription_by_the_server_is_no_news(
    server: Resp3Server, follow: Callable[..., Following]
) -> None:
    """Pushes that mean nothing here are ignored."""
    following = follow(server.url)
    await following.until_live()
    await server.send(push("invalidate", "x") + message("sse:*", "sse:a", "mine"))

    await following.recorder.until_call("mine")


FAILING = """
import asyncio, os, sys
from pathlib import Path
from sse_gateway import cli
from sse_gateway.config import load_settings
from sse_gateway.gateway import Gateway

class Failing(Gateway):
    def source_message(self, *_):
        raise ZeroDivisionError("poison")

async def serve():
    await Failing(load_settings(Path(sys.argv[1]), os.environ)).run()

sys.exit(cli._serve("info", "json", serve))
"""


def test_an_unexpected_exception_ends_the_process(valkey: Valkey, tmp_path: Path) -> None:
    """I9: a message handler that fails in a way nobody foresaw ends the process with 70, and says where."""
    file = tmp_path / "sse-gateway.yaml"
    file.write_text(yaml.safe_dump(configuration(valkey.url, cluster={"name": "failing"})))
    process = subprocess.Popen(
        [sys.executable, "-c", FAILING, str(file)], stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        while process.poll() is None:  # what comes between its subscription and its first marker does not count yet
            valkey.publish("sse:a", "poison")
            time.sleep(0.02)
        _, output = process.communicate(timeout=10)
    finally:
        process.kill()

    assert process.returncode == 70
    assert "process.failed" in output
    assert "ZeroDivisionError" in output


# -- real servers


@pytest.fixture(params=["valkey", pytest.param("redis", marks=pytest.mark.redis)])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server of each kind, with a Unix socket too."""
    if binary(request.param) is None:
        pytest.skip(f"no {request.param} server on this machine")
    directory = tmp_path_factory.mktemp("r")
    options = ["--unixsocket", str(directory / "redis.sock")]
    with running(directory, kind=request.param, options=options) as server:
        yield server


def socket_path(real: Valkey) -> str:
    """Where a server's Unix socket is."""
    path = real.link.call("CONFIG", "GET", "unixsocket")
    assert isinstance(path, list)
    return bytes(path[1]).decode()


async def test_a_real_server_is_followed(real: Valkey, follow: Callable[..., Following]) -> None:
    """What is published to a real server comes in order, as it was published."""
    following = follow(real.url)
    await following.until_live()
    payloads = [f"{number} é\r\n\0".encode() for number in range(1_000)]
    real.publish_many([("sse:a", payload) for payload in payloads])
    await following.recorder.until(lambda r: len(r.messages) == 1_000)

    assert following.recorder.messages == [(b"sse:*", b"sse:a", payload) for payload in payloads]
    assert following.source.server is not None
    assert following.source.server.kind in {"redis", "valkey"}


async def test_a_unix_socket_is_followed(real: Valkey, follow: Callable[..., Following]) -> None:
    """A server is reached over its Unix socket."""
    following = follow(f"unix://{socket_path(real)}")
    await following.until_live()
    real.publish("sse:a", "hello")

    await following.recorder.until_call("hello")


async def test_a_demoted_primary_is_left(real: Valkey, follow: Callable[..., Following], logged: Log) -> None:
    """REPLICAOF on a live primary is noticed within a second or so; when it is promoted again a new run begins."""
    following = follow(real.url, liveness_s=5)
    await following.until_live()
    with lateness() as late:
        began = time.monotonic()
        real.link.call("REPLICAOF", "127.0.0.1", 1)
        await following.until_lost()
        assert time.monotonic() - began < 1.7 + late.total_s
    assert logged.reasons("source.lost")
    await logged.until("source.unavailable", "replica")
    real.link.call("REPLICAOF", "NO", "ONE")

    await following.until_live(2)


async def test_another_server_on_the_same_address_is_another_run(
    real: Valkey, follow: Callable[..., Following]
) -> None:
    """A server that was restarted is noticed, and a new run begins."""
    following = follow(real.url)
    await following.until_live()
    first = following.source.server
    real.restart()
    await following.until_live(2)

    assert following.source.server != first
    assert following.recorder.calls.count("lost") == 1


async def test_a_frozen_server_is_found(real: Valkey, follow: Callable[..., Following]) -> None:
    """A server that keeps its connections and says nothing is left within `liveness_timeout` and a check."""
    following = follow(real.url, liveness_s=0.6, connect_s=0.5)
    await following.until_live()
    with lateness() as late:
        began = time.monotonic()
        real.freeze()
        try:
            await following.until_lost()
        finally:
            real.thaw()
        assert time.monotonic() - began < 1.5 + 3 * late.total_s

    await following.until_live(2)


@pytest.mark.parametrize("lost", ["what Redis says", "what we say"])
async def test_a_half_open_connection_is_found(real: Valkey, follow: Callable[..., Following], lost: str) -> None:
    """A path that loses bytes one way, without a FIN, is left; the loss is one."""
    with proxied(("127.0.0.1", real.port)) as proxy:
        following = follow(f"redis://127.0.0.1:{proxy.port}", liveness_s=0.5, connect_s=0.5)
        await following.until_live()
        (proxy.to_client if lost == "what Redis says" else proxy.to_server).swallow = True
        await following.until_lost()
        heal(proxy)

        await following.until_live(2)
        assert following.source.losses == 1


def heal(proxy: FaultProxy) -> None:
    """Lose nothing any more."""
    proxy.reset_all()
    proxy.swallow(on=False)


async def test_the_least_privileged_user_will_do(real: Valkey, follow: Callable[..., Following]) -> None:
    """The access rule that the documents give is enough, and stays enough while the link lives."""
    real.link.call("ACL", "SETUSER", "gateway", *LEAST_PRIVILEGE.split())
    following = follow(real.url.replace("://", "://gateway:secret@"), liveness_s=0.6)
    await following.until_live()
    real.publish("sse:a", "hello")
    await following.recorder.until_call("hello")
    await following.recorder.until_call("round trip", 4)

    assert following.source.losses == 0
    assert following.source.attempts == 1


@pytest.mark.parametrize(
    ("without", "told"),
    [
        ("+psubscribe", "cannot subscribe: NOPERM"),
        ("+publish", f"publish to {CONTROL}: NOPERM"),
        ("&sse:*", "cannot subscribe: NOPERM"),
        (f"&{CONTROL}", "cannot subscribe: NOPERM"),
        ("+role", "NOPERM"),
        ("+info", "NOPERM"),
        (">secret", "WRONGPASS"),
    ],
)
async def test_a_missing_privilege_is_told(
    real: Valkey, follow: Callable[..., Following], logged: Log, without: str, told: str
) -> None:
    """Whichever part of the access rule is missing, the log says what the server refused."""
    rule = [word for word in LEAST_PRIVILEGE.split() if word != without]
    real.link.call("ACL", "SETUSER", "gateway", *rule)
    following = follow(real.url.replace("://", "://gateway:secret@"))

    await logged.until("source.unavailable", told)
    assert "secret" not in str(logged.records)
    real.link.call("ACL", "SETUSER", "gateway", without)
    await following.until_live()


async def test_a_password_with_any_character(real: Valkey, follow: Callable[..., Following]) -> None:
    """User and password are percent-decoded."""
    real.link.call("ACL", "SETUSER", "us:er", "on", ">p@ss/w%rd é", "allchannels", "+@all")

    await follow(real.url.replace("://", "://us%3Aer:p%40ss%2Fw%25rd%20%C3%A9@")).until_live()


async def test_a_password_for_the_default_user(real: Valkey, follow: Callable[..., Following], logged: Log) -> None:
    """Without a name the password is the default user's; without a password the server's demand is told."""
    real.config_set("requirepass", "letmein")
    await follow(real.url.replace("://", "://:letmein@")).until_live()
    follow(real.url)

    await logged.until("source.unavailable", "NOAUTH")


# -- TLS


def openssl(directory: Path, *words: str) -> None:
    """Run openssl in a directory."""
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a directory with our own authority (ca), another one (other), and a certificate for localhost."""
    directory = tmp_path_factory.mktemp("tls")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name in ("ca", "other"):
        openssl(
            directory, "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"
        )
    openssl(directory, "req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=redis")
    (directory / "names").write_text("subjectAltName=DNS:localhost\n")
    signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
    openssl(directory, "x509", "-req", "-in", "server.csr", "-out", "server.crt", *signing)
    openssl(directory, "x509", "-req", "-in", "server.csr", "-out", "expired.crt", "-days", "-1", *signing)
    return directory


@pytest.fixture
def tls_port(authority: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """Run Redis with TLS beside its plain port, and return the port for TLS; a parameter names the certificate."""
    if binary("redis") is None or shutil.which("openssl") is None:
        pytest.skip("no redis-server with TLS, or no openssl, on this machine")
    port = free_port()
    files = {"cert-file": getattr(request, "param", "server.crt"), "key-file": "server.key", "ca-cert-file": "ca.crt"}
    options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    for key, name in files.items():
        options += [f"--tls-{key}", str(authority / name)]
    with running(tmp_path, kind="redis", options=options):
        yield port


@pytest.mark.redis
async def test_tls_is_verified_against_our_authority(
    tls_port: int, authority: Path, follow: Callable[..., Following]
) -> None:
    """A server whose certificate our authority signed for its name is followed."""
    await follow(f"rediss://localhost:{tls_port}?ssl_ca_certs={authority / 'ca.crt'}").until_live()


@pytest.mark.redis
@pytest.mark.parametrize(
    ("host", "ca", "told"),
    [
        ("localhost", "other.crt", "CERTIFICATE_VERIFY_FAILED"),
        ("localhost", "", "CERTIFICATE_VERIFY_FAILED"),
        ("127.0.0.1", "ca.crt", "127.0.0.1"),
        ("localhost", "other.crt&ssl_cert_reqs=none&ssl_check_hostname=false", "CERTIFICATE_VERIFY_FAILED"),
        ("localhost", "missing.crt", "certificate files"),
        ("localhost", "names", "certificate files"),
    ],
    ids=[
        "wrong authority",
        "no authority",
        "wrong name",
        "verification cannot be put off",
        "no file",
        "no certificate",
    ],
)
async def test_tls_without_verification_is_refused(
    tls_port: int,
    authority: Path,
    follow: Callable[..., Following],
    logged: Log,
    host: str,
    ca: str,
    told: str,
) -> None:
    """A wrong authority and a wrong name are refused, and nothing in the URL turns that off."""
    query = f"?ssl_ca_certs={authority / ca}" if ca else ""
    url = f"rediss://{host}:{tls_port}{query}"
    following = follow(url)

    await logged.until("source.unavailable", told)
    assert not following.source.live


@pytest.mark.redis
@pytest.mark.parametrize("tls_port", ["expired.crt"], indirect=True)
async def test_an_expired_certificate_is_refused(
    tls_port: int, authority: Path, follow: Callable[..., Following], logged: Log
) -> None:
    """Though our authority has signed it, for this name."""
    following = follow(f"rediss://localhost:{tls_port}?ssl_ca_certs={authority / 'ca.crt'}")

    await logged.until("source.unavailable", "expired")
    assert not following.source.live


@pytest.mark.redis
async def test_tls_against_a_plain_port_is_told(
    tls_port: int, authority: Path, valkey: Valkey, follow: Callable[..., Following], logged: Log
) -> None:
    """TLS where there is none, and none where there is TLS, end in a sentence and a new attempt."""
    follow(f"rediss://localhost:{valkey.port}?ssl_ca_certs={authority / 'ca.crt'}")
    await logged.until("source.unavailable", "connecting: no answer")
    follow(f"redis://localhost:{tls_port}")

    await logged.until("source.unavailable", "Connection reset")


# -- Sentinel


@pytest.fixture
def sentinel(own_valkey: Valkey, tmp_path: Path) -> Iterator[int]:
    """Run a sentinel that watches `own_valkey` as ``events``, and return its port."""
    port = free_port()
    file = tmp_path / "sentinel.conf"
    file.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor events 127.0.0.1 {own_valkey.port} 1\n")
    process = subprocess.Popen(
        [str(binary("valkey")), str(file), "--sentinel"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        poll(lambda: answers(port), timeout_s=30, what="sentinel")
        yield port
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)


def answers(port: int) -> bool:
    """Whether a sentinel has found its primary."""
    try:
        with contextlib.closing(Link(port)) as link:
            return bool(link.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "events"))
    except OSError:
        return False


@pytest.mark.parametrize("hosts", ["127.0.0.1:{}", "127.0.0.1:1,127.0.0.1:{}", "localhost:{},127.0.0.1:1"])
async def test_sentinels_are_asked_for_the_primary(
    sentinel: int, own_valkey: Valkey, follow: Callable[..., Following], hosts: str
) -> None:
    """Any sentinel that answers names the primary, and the URL's password is the primary's."""
    own_valkey.link.call("ACL", "SETUSER", "gateway", *LEAST_PRIVILEGE.split())
    following = follow(f"redis+sentinel://gateway:secret@{hosts.format(sentinel)}/events", connect_s=3)
    await following.until_live()
    own_valkey.publish("sse:a", "hello")

    await following.recorder.until_call("hello")


async def test_a_service_that_no_sentinel_knows_is_told(
    sentinel: int, follow: Callable[..., Following], logged: Log
) -> None:
    """The log names the service."""
    follow(f"redis+sentinel://127.0.0.1:{sentinel}/nothing", connect_s=3)

    await logged.until("source.unavailable", "nothing")
