"""The command ``sse-gateway``.

Rules:
    - Exit codes: 0 clean stop, 1 a client command could not do its work, 64 usage, 70 internal
      error, 78 bad configuration.
    - Every message names the place and the remedy, and shows no secret.
    - What a command needs is imported when it runs: ``--help`` and ``check-config`` load no server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import click

from sse_gateway import __version__
from sse_gateway.errors import ConfigError, GatewayError, MessageError
from sse_gateway.signals import HANDLED

# ruff: noqa: PLC0415 - see the rule above on what is imported when

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from sse_gateway.tail import Tone

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 64
EXIT_INTERNAL = 70
EXIT_CONFIG = 78

_LOG_FLUSH_S = 2.0
"""Longest wait for the last log lines at the end; beyond, they are lost."""

_log = logging.getLogger(__name__)

_config_file = click.Path(path_type=Path)  # whether it can be read is said by whoever reads it, as bad configuration

_redis_option = click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    envvar="SSE_GATEWAY__REDIS__URL",
    help="redis://, rediss:// or unix://; also from SSE_GATEWAY__REDIS__URL, which keeps a password out of `ps`.",
)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code.

    Args:
        args: Words after the program's name; those of the process by default.
    """
    _open_standard_descriptors()
    try:
        code = commands.main(args, prog_name="sse-gateway", standalone_mode=False) or EXIT_OK
    except click.UsageError as error:
        error.show()
        code = EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):  # Ctrl-C is how a follower is meant to end
        code = EXIT_OK
    except ConfigError as error:
        click.echo("\n".join(error.problems), err=True)  # as they are: editors follow FILE:LINE:COL
        code = EXIT_CONFIG
    except MessageError as error:
        _complain(f"the gateway would refuse this message: {error}")
        code = EXIT_USAGE
    except GatewayError as error:
        _complain(str(error))
        code = EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the last place there is
        _complain("internal error, please report this:\n" + "".join(traceback.format_exception(error)).rstrip())
        code = EXIT_INTERNAL
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sse-gateway", message="%(prog)s %(version)s")
def commands() -> None:
    """Redis channels in, resumable Server-Sent Events out."""


@commands.command()
@click.option("--config", "file", required=True, type=_config_file, help="YAML; see config/sse-gateway.yaml.")
def serve(file: Path) -> int:
    """Run the gateway until SIGTERM or SIGINT."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # loading takes a second: what comes meanwhile is not lost
    from sse_gateway.config import load_settings
    from sse_gateway.supervisor import Supervisor

    settings = load_settings(file, os.environ)
    return _serve(settings.log.level, settings.log.format, lambda: Supervisor(file, settings, os.environ).run())


@commands.command("check-config")
@click.argument("file", type=_config_file)
def check_config(file: Path) -> None:
    """Print the effective settings, secrets masked, or every problem of FILE."""
    from sse_gateway.config import effective_yaml, load_settings

    click.echo(effective_yaml(load_settings(file, os.environ)), nl=False)


@commands.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Of the live page.")
@click.option("--redis", "redis_url", metavar="URL", help="Use this Redis rather than the demo's own Valkey.")
def demo(port: int, redis_url: str | None) -> int:
    """Run gateway, Valkey, a sample publisher and a live page, until Ctrl-C."""
    from sse_gateway.demo import run_demo

    return _serve("warning", "text", lambda: run_demo(port, redis_url, click.echo))


@commands.command()
@click.argument("channel")
@click.argument("data")
@click.option("--event", metavar="TYPE", help="Event type; needs a rule with `format: json`.")
@click.option("--id", "id_", metavar="KEY", help="Idempotency key; needs a rule with `format: json`.")
@_redis_option
def publish(channel: str, data: str, event: str | None, id_: str | None, redis_url: str | None) -> None:
    """Publish DATA, or each line of the standard input if it is `-`, to the Redis CHANNEL."""
    from sse_gateway.publish import Publisher, encode_payload

    if data == "-" and id_ is not None:
        raise click.UsageError("--id with `-` would give every line the same key, and only one would be delivered")
    if not channel.isprintable():  # a byte that is not UTF-8 arrives as a surrogate
        raise click.UsageError("CHANNEL has a character that no client could ask for")
    lines = sys.stdin.buffer if data == "-" else None
    payload = encode_payload(_bytes(data), event=event, id_=id_)  # also with `-`: judges --event before the first line
    try:
        publisher = Publisher(redis_url or "redis://127.0.0.1:6379")
    except ValueError as error:
        raise click.UsageError(f"--redis {error}") from None
    with publisher:
        if lines is None:
            _publish_one(lambda: publisher.publish(channel, payload), channel)
        else:
            _publish_lines(lines, lambda line: publisher.publish(channel, encode_payload(line, event=event)), channel)


@commands.command()
@click.argument("url")
@click.option("--last-event-id", default="", metavar="ID", help="Resume after this id.")
@click.option("--token", envvar="SSE_GATEWAY_TOKEN", help="Sent as a bearer token; also from SSE_GATEWAY_TOKEN.")
def tail(url: str, last_event_id: str, token: str | None) -> None:
    """Follow a stream in the terminal; resumes by itself, shows gaps, ends with Ctrl-C."""
    from sse_gateway.tail import check_url, follow

    try:
        check_url(url)
    except ValueError as error:
        raise click.UsageError(f"URL {error}") from None
    for name, value in (("--last-event-id", last_event_id), ("--token", token or "")):
        if not value.isprintable():
            raise click.UsageError(f"{name} has a character that no header may have")
    asyncio.run(follow(url, _write_line, last_event_id=last_event_id, token=token))


@commands.command()
@click.option("--channels", required=True, metavar="'A,B*'", help="What it may read: names, and prefixes with a star.")
@click.option("--ttl", default="1h", show_default=True, help="How long it lives.")
@click.option("--subject", metavar="S", help="Whose it is.")
@click.option("--config", "file", type=_config_file, help="Of the gateway; else its environment: see below.")
def token(channels: str, ttl: str, subject: str | None, file: Path | None) -> None:
    """Make a token for development, signed with the gateway's secret.

    Without --config the secret comes from SSE_GATEWAY__AUTH__SECRET, or the file that SSE_GATEWAY__AUTH__SECRET__FILE names.
    """
    from sse_gateway.config import load_environment, load_settings
    from sse_gateway.grants import read_grant
    from sse_gateway.mint import mint

    auth = (load_environment(os.environ) if file is None else load_settings(file, os.environ)).auth
    lifetime_s = _duration("--ttl", ttl, auth.longest_life_s)
    _check_claim("--subject", subject)
    names = channels.split(",")
    try:
        read_grant(names)
    except ValueError as error:
        raise click.UsageError(f"--channels: {error}") from None
    click.echo(mint(auth, names, subject, lifetime_s, _now()))


@commands.command()
@click.option("--config", "file", required=True, type=_config_file, help="Of the gateway, or any of its cluster.")
@click.option("--subject", metavar="S", help="Whose tokens: their claim sub.")
@click.option("--token", "token_id", metavar="JTI", help="The id of one token: its claim jti. Not the token itself.")
@click.option(
    "--for",
    "lasts",
    metavar="1h",
    help="How long it holds; by default auth.max_lifetime, and where that is 0s, for good.",
)
def revoke(file: Path, subject: str | None, token_id: str | None, lasts: str | None) -> None:
    """Revoke tokens: streams end within seconds, on all nodes, and new ones are refused."""
    from sse_gateway.config import load_settings
    from sse_gateway.quantities import format_duration
    from sse_gateway.revocations import FOR_GOOD_S
    from sse_gateway.revoke import revoke as tell

    if not subject and not token_id:
        raise click.UsageError("name a --subject, or a --token by its id")
    _check_claim("--subject", subject)
    _check_claim("--token", token_id)
    if token_id and token_id.startswith("eyJ") and token_id.count(".") == 2:
        raise click.UsageError("--token: is a token itself: give its id, the claim jti")
    settings = load_settings(file, os.environ)
    if settings.auth.mode == "none":
        raise click.UsageError("auth.mode is none: there are no tokens, and whoever reaches the gateway may read")
    if settings.auth.mode == "callback" and token_id:
        raise click.UsageError(
            "--token: with auth.mode callback tokens have no id that the gateway knows: use --subject"
        )
    longest_s = settings.auth.longest_life_s
    hold_s = longest_s if lasts is None else _duration("--for", lasts, longest_s)
    now = _now()
    told = asyncio.run(tell(settings, subject or None, token_id or None, int(now + min(hold_s, FOR_GOOD_S)) + 1, now))
    span = f"for {format_duration(hold_s)}" if hold_s < FOR_GOOD_S else "for good"
    click.echo(f"revoked {span}; {told} process(es) of cluster {settings.cluster.name!r} were told")
    if told == 0:
        _complain("no gateway of this cluster is connected to this Redis: those that start will find it in the list")


def _duration(option: str, text: str, most_s: float) -> float:
    from sse_gateway.quantities import format_duration, parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.UsageError(f"{option} {error}") from None
    if seconds == 0:
        raise click.UsageError(f"{option} must be more than 0s")
    if seconds > most_s:
        raise click.UsageError(f"{option} must be at most {format_duration(most_s)} (auth.max_lifetime)")
    return seconds


def _check_claim(option: str, text: str | None) -> None:
    """Refuse what no token that is accepted can say.

    Raises:
        click.UsageError: It is too long, or bytes that are not UTF-8.
    """
    from sse_gateway.tokens import MAX_TEXT

    if text and (len(text) > MAX_TEXT or any("\ud800" <= letter <= "\udfff" for letter in text)):
        raise click.UsageError(f"{option} must be UTF-8 of at most {MAX_TEXT} characters: no token has another")


def _now() -> float:
    return time.time()  # noqa: TID251 - a command's only look at the clock


def _open_standard_descriptors() -> None:
    """Let none of the first three be a socket's, here or in a worker: libuv aborts the process when it closes one."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - it takes no keyword
        if descriptor == 2:
            sys.stderr = os.fdopen(descriptor, "w", closefd=False)
    os.close(descriptor)


def _serve(level: str, format_: str, run: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run a server with its log in place; whatever it did not foresee is logged and ends it."""
    import uvloop

    from sse_gateway.logs import configure_logging, log_event

    logs = configure_logging(level, format_)
    try:
        uvloop.run(run())
    except GatewayError:
        raise
    except Exception as error:  # noqa: BLE001 - I9: logged, and the process ends
        log_event(_log, logging.CRITICAL, "process.failed", exc=error)
        return EXIT_INTERNAL
    finally:
        logs.close(_LOG_FLUSH_S)
    return EXIT_OK


def _publish_one(send: Callable[[], int], channel: str) -> None:
    receivers = send()
    click.echo(f"published to {receivers} subscriber(s)")
    if receivers == 0:
        _warn_nobody(channel)


def _publish_lines(lines: BinaryIO, send: Callable[[bytes], int], channel: str) -> None:
    """Publish line by line as they come; the count is told at the end, also of a broken one."""
    count = 0
    warned = False
    try:
        for line in lines:
            receivers = send(line.removesuffix(b"\n").removesuffix(b"\r"))
            count += 1
            if receivers == 0 and not warned:
                _warn_nobody(channel)
                warned = True
    finally:
        click.echo(f"published {count} message(s)")


def _warn_nobody(channel: str) -> None:
    _complain(
        f"nobody is subscribed to {channel!r}: is the gateway running on this Redis, and does a rule's pattern match?"
    )


def _write_line(line: str, tone: Tone) -> None:
    """Events and gaps are output; remarks on the connection are not."""
    from sse_gateway.tail import Tone

    match tone:
        case Tone.EVENT:
            click.echo(line)
        case Tone.GAP:
            click.secho(line, fg="yellow", bold=True)
        case Tone.NOTICE:
            click.secho(line, dim=True, err=True)


def _bytes(text: str) -> bytes:
    """The bytes of an argument as the shell gave them."""
    return text.encode("utf-8", "surrogateescape")


def _complain(sentence: str) -> None:
    click.echo(f"sse-gateway: {sentence}", err=True)
