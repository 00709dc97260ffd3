"""The command line: what each command says, and with which code it exits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import jwt
import pytest

from sse_gateway import __version__
from sse_gateway.cli import _serve, commands, main
from sse_gateway.errors import ConfigError
from tests.support.valkey import Link, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.valkey import Valkey


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server of its own."""
    with running(tmp_path) as server:
        yield server


def code_of(*words: str) -> int:
    """Run one command in this process and return its exit code."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # `serve` changes it for the rest of its process
    try:
        with pytest.raises(SystemExit) as ended:
            main(words)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = ended.value.code
    assert isinstance(code, int)
    return code


def run(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run one command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sse_gateway", *words], input=stdin, capture_output=True, timeout=60, check=False
    )


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Version and help are output, and success."""
    assert code_of("--version") == 0
    assert capsys.readouterr().out == f"sse-gateway {__version__}\n"
    assert code_of("--help") == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("serve", "check-config", "demo", "publish", "tail"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Usage:"),
        (("sing",), "No such command 'sing'"),
        (("serve",), "--config"),
        (("check-config",), "FILE"),
        (("demo", "--port", "0"), "--port"),
        (("publish", "a"), "DATA"),
        (("publish", "a", "x", "--event", "gateway.gap"), "reserved event type"),
        (("publish", "a", "-", "--event", "gateway.gap"), "reserved event type"),
        (("publish", "a", "-", "--id", "1"), "same key"),
        (("publish", "a", "x", "--redis", "http://127.0.0.1"), "redis://"),
        (("publish", "a\udcff", "x"), "CHANNEL"),
        (("publish", "a", "\udcff"), "not UTF-8"),
        (("tail", "127.0.0.1:8080"), "http://"),
        (("tail", "http://127.0.0.1/", "--last-event-id", "a\nb"), "--last-event-id"),
        (("tail", "http://127.0.0.1/", "--token", "a\rb"), "--token"),
    ],
)
def test_wrong_use_is_64(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong use is said on standard error, with a code that scripts can tell from failure."""
    assert code_of(*words) == 64
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out


def test_check_config_prints_the_effective_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good file is shown with defaults, and without its secrets."""
    file = tmp_path / "gateway.yaml"
    file.write_text("auth: {mode: none}\nredis: {url: 'redis://user:hunter2@localhost'}\n")
    assert code_of("check-config", str(file)) == 0
    shown = capsys.readouterr().out
    assert "heartbeat: 15s" in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize("command", [("check-config",), ("serve", "--config")])
def test_bad_configuration_is_78_with_every_problem(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All problems at once, each a line that an editor can follow; nothing is started."""
    file = tmp_path / "gateway.yaml"
    file.write_text("listne: {}\nstream: {retry: soon}\n")
    assert code_of(*command, str(file)) == 78
    captured = capsys.readouterr()
    problems = captured.err.splitlines()
    assert len(problems) == 3
    assert all(line.startswith(f"{file}:") for line in problems)
    assert not captured.out


def test_a_missing_file_is_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there is bad configuration, said with its name."""
    assert code_of("check-config", str(tmp_path / "none.yaml")) == 78
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("check-config",), ("serve", "--config")])
def test_a_directory_is_78(command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever cannot be read is bad configuration: systemd does not start it again and again."""
    assert code_of(*command, str(tmp_path)) == 78
    assert capsys.readouterr().err == f"{tmp_path}:1:1: file: cannot be read: Is a directory\n"


def test_demo_says_a_busy_port(valkey: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    """A port that is taken is said with the way out."""
    assert code_of("demo", "--port", str(valkey.port)) == 78
    assert f"cannot listen on 127.0.0.1:{valkey.port}: " in (said := capsys.readouterr().err)
    assert "--port" in said


def test_demo_says_a_redis_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A Redis that does not answer is said with its address, without its password."""
    port = free_port()
    assert code_of("demo", "--port", str(free_port()), "--redis", f"redis://:secret@127.0.0.1:{port}") == 1
    assert f"127.0.0.1:{port}" in (said := capsys.readouterr().err)
    assert "secret" not in said
    assert code_of("demo", "--port", str(free_port()), "--redis", "http://127.0.0.1") == 78


def test_publish_counts_subscribers(valkey: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    """The count is output; that nobody listens is a warning, not a failure."""
    assert code_of("publish", "demo:a", "x", "--redis", valkey.url) == 0
    captured = capsys.readouterr()
    assert captured.out == "published to 0 subscriber(s)\n"
    assert "nobody is subscribed to 'demo:a'" in captured.err
    reader = Link(valkey.port)
    try:
        reader.call("PSUBSCRIBE", "demo:*")
        assert code_of("publish", "demo:a", "x", "--event", "t", "--id", "k", "--redis", valkey.url) == 0
        assert capsys.readouterr() == ("published to 1 subscriber(s)\n", "")
        message = reader.read()
        assert isinstance(message, list)
        assert json.loads(message[3]) == {"data": "x", "event": "t", "id": "k"}
    finally:
        reader.close()


def test_publish_reads_lines_as_they_come(valkey: Valkey) -> None:
    """With `-` each line is published when it is complete, and the last one without a line end too."""
    reader = Link(valkey.port)
    try:
        reader.call("SUBSCRIBE", "a")
        process = subprocess.Popen(
            [sys.executable, "-m", "sse_gateway", "publish", "a", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"SSE_GATEWAY__REDIS__URL": valkey.url},
        )
        assert process.stdin is not None
        process.stdin.write(b"one\r\ntw")
        process.stdin.flush()
        assert reader.read() == [b"message", b"a", b"one"]  # standard input is still open
        output, _ = process.communicate(b"o\n\nend", timeout=30)
        assert [reader.read() for _ in range(3)] == [[b"message", b"a", data] for data in (b"two", b"", b"end")]
        assert (process.returncode, output) == (0, b"published 4 message(s)\n")
    finally:
        reader.close()


def test_publish_stops_at_a_line_the_gateway_would_refuse(valkey: Valkey) -> None:
    """A bad line ends the command; what was published is said."""
    ended = run("publish", "a", "-", "--redis", valkey.url, stdin=b"one\n\xff\nthree\n")
    assert ended.returncode == 64
    assert ended.stdout == b"published 1 message(s)\n"
    assert ended.stderr.count(b"nobody is subscribed") == 1
    assert b"not UTF-8" in ended.stderr


def test_publish_without_redis_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    """A Redis that does not answer is a failure with its address."""
    port = free_port()
    assert code_of("publish", "a", "x", "--redis", f"redis://127.0.0.1:{port}") == 1
    assert f"cannot connect to Redis at redis://127.0.0.1:{port}" in capsys.readouterr().err


def test_output_nobody_reads_ends_quietly(valkey: Valkey) -> None:
    """`| head` ends the command, without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "sse_gateway", "publish", "a", "x", "--redis", valkey.url],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr.count(b"\n")) == (1, 0)


def test_what_nobody_foresaw_is_70(capsys: pytest.CaptureFixture[str]) -> None:
    """An unexpected exception is shown in full, with the code for it."""

    def fail() -> None:
        raise ZeroDivisionError

    commands.add_command(click.Command("fail", callback=fail))
    try:
        assert code_of("fail") == 70
    finally:
        del commands.commands["fail"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_server_that_fails_logs_it_and_is_70(capfd: pytest.CaptureFixture[str]) -> None:
    """I9: what a server did not foresee is one log line and ends it; bad configuration stays what it is."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def refuse() -> None:
        await asyncio.sleep(0)
        raise ConfigError(["no"])

    async def end() -> None:
        await asyncio.sleep(0)

    assert _serve("info", "json", fail) == 70
    [line] = capfd.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "process.failed"
    assert "ZeroDivisionError" in json.loads(line)["exception"]
    with pytest.raises(ConfigError):
        _serve("info", "json", refuse)
    assert _serve("info", "json", end) == 0
    assert not capfd.readouterr().err


def test_a_closed_standard_error_ends_nothing(tmp_path: Path) -> None:
    """Without it a socket would get its number, and the loop abort the process at the end."""
    file = tmp_path / "bad.yaml"
    file.write_text("auth: {mode: none}\nredis: {url: 'redis://127.0.0.1:1'}\n")
    command = f"exec {sys.executable} -m sse_gateway check-config {file} 2>&- <&-"

    process = subprocess.run(["/bin/sh", "-c", command], stdout=subprocess.PIPE, timeout=30, check=False)

    assert process.returncode == 0
    assert b"mode: none" in process.stdout


SECRET = "0123456789abcdef" * 2


@pytest.fixture
def by_secret(tmp_path: Path, valkey: Valkey) -> Path:
    """A configuration with a secret, and a Redis of its own."""
    file = tmp_path / "gateway.yaml"
    auth = f"auth: {{mode: jwt, secret: {SECRET}, audience: us, issuer: them, channels_claim: may, max_lifetime: 1d}}"
    file.write_text(f"redis: {{url: '{valkey.url}'}}\ncluster: {{name: cli}}\n{auth}\n")
    return file


def test_token_makes_what_the_gateway_accepts(by_secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output, and nothing else, so that a shell can keep it."""
    words = ("--channels", "a,b*", "--subject", "ann", "--ttl", "5m")
    assert code_of("token", "--config", str(by_secret), *words) == 0
    text = capsys.readouterr().out.strip()
    claims = jwt.decode(text, SECRET, ["HS256"], audience="us", issuer="them")
    assert (claims["may"], claims["sub"]) == (["a", "b*"], "ann")
    assert claims["exp"] - claims["iat"] == 300
    assert claims["jti"]


def test_token_takes_its_secret_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or a file that it names; never from the command line, where everybody sees it."""
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv("SSE_GATEWAY__AUTH__SECRET__FILE", str(tmp_path / "secret"))
    assert code_of("token", "--channels", "a") == 0
    assert jwt.decode(capsys.readouterr().out.strip(), SECRET, ["HS256"])["channels"] == ["a"]
    monkeypatch.setenv("SSE_GATEWAY__AUTH__ALGORITHMS", "[HS512]")
    assert code_of("token", "--channels", "a") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert jwt.get_unverified_header(shown.out.strip())["alg"] == "HS512"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--channels", ""), 64, "a channel is 1 to 256 bytes"),
        (("--channels", "a,,b"), 64, "a channel is 1 to 256 bytes"),
        (("--channels", "a", "--subject", "\udcff"), 64, "--subject must be UTF-8"),
        (("--channels", "a", "--ttl", "1"), 64, "needs a unit"),
        (("--channels", "a", "--ttl", "0s"), 64, "more than 0s"),
        (("--channels", "a", "--ttl", "2d"), 64, "at most 1d (auth.max_lifetime)"),
        ((), 64, "Missing option '--channels'"),
    ],
)
def test_token_refuses_what_the_gateway_would(
    words: tuple[str, ...], code: int, said: str, by_secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a sentence."""
    assert code_of("token", "--config", str(by_secret), *words) == code
    assert said in capsys.readouterr().err


def test_token_needs_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any, and where the gateway has a public key only."""
    assert code_of("token", "--channels", "a") == 78
    assert "mode jwt needs a key" in capsys.readouterr().err
    file = tmp_path / "gateway.yaml"
    for auth in ("{mode: none}", "{mode: jwt, jwks_url: 'https://a.example/k', algorithms: [RS256]}"):
        file.write_text(f"auth: {auth}\n")
        assert code_of("token", "--config", str(file), "--channels", "a") == 78
        assert "auth.secret: tokens are made with it" in capsys.readouterr().err


def test_revoke_says_how_many_were_told(by_secret: Path, valkey: Valkey, capsys: pytest.CaptureFixture[str]) -> None:
    """And that whoever starts later will know, where nobody was; names are not to be read off the list."""
    assert code_of("revoke", "--config", str(by_secret), "--subject", "ann") == 0
    shown = capsys.readouterr()
    assert shown.out == "revoked for 1d; 0 process(es) of cluster 'cli' were told\n"
    assert "those that start will find it in the list" in shown.err
    with contextlib.closing(Link(valkey.port)) as link:
        link.call("SUBSCRIBE", "__sse_gateway:cli")
        assert code_of("revoke", "--config", str(by_secret), "--token", "t1", "--for", "1h") == 0
        assert "1 process(es)" in capsys.readouterr().out
        assert b"revoke 1 t" in str(link.read()).encode()
    members = valkey.link.call("ZRANGE", "__sse_gateway:cli:revoked", 0, -1)
    assert isinstance(members, list)
    assert len(members) == 2
    assert not any(b"ann" in member for member in members)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a --subject, or a --token by its id"),
        (("--subject", ""), "name a --subject"),
        (("--subject", "a" * 257), "--subject must be UTF-8 of at most 256 characters"),
        (("--subject", "\udcff"), "--subject must be UTF-8"),
        (("--token", "\udcff"), "--token must be UTF-8"),
        (("--token", "eyJhbGciOiJIUzI1NiJ9.e30.x"), "is a token itself: give its id"),
        (("--subject", "a", "--for", "2d"), "at most 1d (auth.max_lifetime)"),
        (("--subject", "a", "--for", "x"), "must be a duration"),
    ],
)
def test_revoke_refuses_what_would_not_hold(
    words: tuple[str, ...], said: str, by_secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong use is 64."""
    assert code_of("revoke", "--config", str(by_secret), *words) == 64
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("auth", "words", "said"),
    [
        ("{mode: none}", ("--subject", "a"), "there are no tokens"),
        ("{mode: callback, callback: {url: 'http://a/'}}", ("--subject", "a", "--token", "t"), "use --subject"),
    ],
)
def test_revoke_refuses_what_its_mode_does_not_know(
    auth: str, words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else it would say that something was revoked, and nothing would be."""
    file = tmp_path / "gateway.yaml"
    file.write_text(f"auth: {auth}\n")
    assert code_of("revoke", "--config", str(file), *words) == 64
    assert said in capsys.readouterr().err


def test_revoke_fails_aloud(
    by_secret: Path, valkey: Valkey, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full list, and a Redis that is not there: nothing was revoked, and that is said."""
    monkeypatch.setattr("sse_gateway.revoke.MAX_REVOCATIONS", 1)
    assert code_of("revoke", "--config", str(by_secret), "--subject", "ann") == 0
    assert code_of("revoke", "--config", str(by_secret), "--subject", "bob") == 1
    assert "nothing was revoked: the list is full (1 revocations)" in capsys.readouterr().err
    valkey.kill()
    assert code_of("revoke", "--config", str(by_secret), "--subject", "ann") == 1
    assert "nothing is sure to be revoked" in capsys.readouterr().err
