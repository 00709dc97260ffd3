"""Log lines: their form, and that logging never waits for whoever reads them."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import pytest

from sse_gateway.logs import (
    MAX_RECORDS,
    MAX_VALUE,
    LogHandle,
    _write_descriptor,
    change_logging,
    configure_logging,
    dropped_records,
    log_event,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = logging.getLogger("sse_gateway.test")

HOSTILE = [
    "a\nb",
    "a\r\nts=2026 level=error",
    "\x1b[31mred\x1b[0m",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2028\u2029\x85",
    '" event="forged',
    "a=b c=d",
    "\x00\x7f",
    "back\\slash",
    "%s %d",
    "\ud800",
]


@contextmanager
def captured(format_: str = "json", level: str = "info") -> Iterator[tuple[io.StringIO, LogHandle]]:
    """Log into memory; the text is complete once the handle is closed."""
    stream = io.StringIO()
    handle = configure_logging(level, format_, stream)
    try:
        yield stream, handle
    finally:
        assert handle.close(5)


@contextmanager
def piped(format_: str = "json", *, blocking: bool = True) -> Iterator[tuple[BinaryIO, LogHandle]]:
    """Log into a pipe; at the end the reader leaves first, so that a stuck writer gets free."""
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    with os.fdopen(writer, "w") as near:
        handle = configure_logging("info", format_, near)
        with os.fdopen(reader, "rb") as far:
            yield far, handle
        assert handle.close(5)


def test_json_line_has_time_level_logger_event_and_fields() -> None:
    """An event becomes one JSON line: when, how grave, who, what, and its facts."""
    with captured() as (stream, _):
        log_event(LOG, logging.INFO, "stream.closed", reason="client", channels=("a", "b"), lag_s=0.25, missed=None)
    [line] = stream.getvalue().splitlines()
    fact = json.loads(line)
    assert fact.pop("ts").endswith("Z")
    assert fact == {
        "level": "info",
        "logger": "sse_gateway.test",
        "event": "stream.closed",
        "reason": "client",
        "channels": ["a", "b"],
        "lag_s": 0.25,
        "missed": None,
    }


def test_text_line_reads_like_words() -> None:
    """The text form is the same facts as `name=value`, quoted only where it must be."""
    with captured("text") as (stream, _):
        log_event(LOG, logging.WARNING, "source.lost", reason="no route", channels=("a", "b c"), count=3, live=False)
    time, rest = stream.getvalue().rstrip("\n").split(" ", 1)
    assert len(time) == len("2026-01-01T00:00:00.000Z")
    assert rest == (
        'warning sse_gateway.test source.lost reason="no route" channels="[\\"a\\",\\"b c\\"]" count=3 live=false'
    )


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("format_", ["json", "text"])
def test_no_value_ends_its_line_or_reaches_the_terminal(format_: str, value: str) -> None:
    """I7: whatever a client or publisher sends stays one printable value of one line."""
    with captured(format_) as (stream, _):
        log_event(LOG, logging.INFO, "request.refused", channel=value, names=[value])
        LOG.info("request.refused", extra={"fields": {value: 1}})
        logging.getLogger("aiohttp.server").warning("bad request %s", value)
    text = stream.getvalue()
    assert text.count("\n") == 3
    assert all(line.isprintable() for line in text.split("\n"))
    if format_ == "json":
        assert json.loads(text.split("\n")[0])["channel"] == value
        assert json.loads(text.split("\n")[2])["message"] == f"bad request {value}"


@pytest.mark.parametrize("value", ['" event="forged', "a=b c=d", "x level=error"])
def test_text_values_start_no_field_of_their_own(value: str) -> None:
    """I7: a value with spaces or equals signs is one quoted word."""
    with captured("text") as (stream, _):
        log_event(LOG, logging.INFO, "request.refused", channel=value)
    assert stream.getvalue().rstrip("\n").split(" channel=", 1)[1] == json.dumps(value)


def test_every_line_of_a_process_can_say_which_it_is() -> None:
    """Fields of the process stand in each line, libraries' and the log's own too."""
    stream = io.StringIO()
    handle = configure_logging("info", "json", stream, fields={"worker": 3})
    log_event(LOG, logging.INFO, "stream.closed", reason="client")
    logging.getLogger("aiohttp").warning("odd")
    log_event(LOG, logging.INFO, "stream.closed", what=Broken())
    log_event(LOG, logging.INFO, "stream.closed")
    assert handle.close(5)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {line["event"] for line in lines} == {"stream.closed", "log.message", "logs.dropped"}
    assert {line["worker"] for line in lines} == {3}


def test_level_and_format_can_change() -> None:
    """As a reload may want; where logging is not configured nothing happens."""
    change_logging("debug", "json")
    with captured() as (stream, handle):
        log_event(LOG, logging.INFO, "x.first")
        change_logging("warning", "text")
        log_event(LOG, logging.INFO, "x.second")
        log_event(LOG, logging.WARNING, "x.third")
        assert handle.dropped == 0
    first, third = stream.getvalue().splitlines()
    assert json.loads(first)["event"] == "x.first"
    assert third.endswith("warning sse_gateway.test x.third")


def test_lines_of_two_processes_do_not_tear_each_other() -> None:
    """Into a pipe that is full again and again: whole lines are written in pieces that a pipe keeps together."""
    reader, writer = os.pipe()
    lines = [f"{number:04} {'x' * 300}\n".encode() for number in range(1000)]
    with os.fdopen(reader, "rb") as far:
        writers = [threading.Thread(target=_write_descriptor, args=(writer, b"".join(lines))) for _ in range(2)]
        for thread in writers:
            thread.start()
        read = [far.readline() for _ in range(2000)]
        for thread in writers:
            thread.join(5)
    os.close(writer)
    assert sorted(read) == sorted(lines * 2)


def test_fields_cannot_replace_the_head() -> None:
    """A field named like the head of a line is left out, not believed."""
    with captured() as (stream, _):
        LOG.error("stream.failed", extra={"fields": {"ts": "never", "event": "forged", "n": 1}})
    fact = json.loads(stream.getvalue())
    assert (fact["event"], fact["n"], fact["ts"] == "never") == ("stream.failed", 1, False)


def test_exception_is_one_string() -> None:
    """A traceback travels inside its line."""
    with captured() as (stream, _):
        try:
            int("two\nlines")
        except ValueError as error:
            log_event(LOG, logging.ERROR, "process.failed", exc=error)
            LOG.exception("library failed", stack_info=True)
    ours, theirs = (json.loads(line) for line in stream.getvalue().splitlines())
    assert ours["exception"].endswith("invalid literal for int() with base 10: 'two\\nlines'\n")
    assert theirs["event"] == "log.message"
    assert theirs["message"] == "library failed"
    assert "test_exception_is_one_string" in theirs["stack"]


def test_unusual_values_are_written_as_text() -> None:
    """What JSON does not have becomes text; what is too long keeps both ends."""
    with captured() as (stream, _):
        log_event(
            LOG, logging.INFO, "x.y", nan=float("nan"), where={"port": 1}, kind=int, long="a" * MAX_VALUE + "b" * 9
        )
    fact = json.loads(stream.getvalue())
    assert fact["nan"] == "nan"
    assert fact["where"] == {"port": 1}
    assert fact["kind"] == "<class 'int'>"
    assert fact["long"].startswith("aaa")
    assert fact["long"].endswith("a" + "b" * 9)
    assert len(fact["long"]) < MAX_VALUE + 10


class Broken:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError


def test_unprintable_object_is_counted_and_harms_nobody() -> None:
    """A record that cannot be formatted is a dropped line, not an exception in the caller."""
    with captured() as (stream, handle):
        log_event(LOG, logging.INFO, "x.y", value=Broken())
        log_event(LOG, logging.INFO, "x.z")
    first, *rest = (json.loads(line)["event"] for line in stream.getvalue().splitlines())
    assert first == "x.z"
    assert rest == ["logs.dropped"]
    assert handle.dropped == 1


def test_levels_and_warnings() -> None:
    """Debug lines are off at info, for us and for libraries; Python's warnings are records."""
    with captured() as (stream, _):
        log_event(LOG, logging.DEBUG, "stream.opened")
        logging.getLogger("asyncio").debug("noise")
        logging.getLogger("aiohttp.access").info("GET /?token=secret")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=False)  # catch_warnings put its own display in place
            logging.captureWarnings(capture=True)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["logger"] == "py.warnings"
    with captured(level="debug") as (stream, _):
        log_event(LOG, logging.DEBUG, "stream.opened")
    assert json.loads(stream.getvalue())["level"] == "debug"


def test_close_restores_the_root_logger() -> None:
    """After close the process logs as before, and closing again does nothing."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with captured() as (_, handle):
        assert dropped_records() == 0
    assert (root.level, list(root.handlers)) == before
    assert handle.close(5)


def test_a_pipe_nobody_reads_blocks_nobody() -> None:
    """I4, I5: with a full pipe lines are dropped and counted; callers and close go on."""
    with piped() as (far, handle):
        for number in range(MAX_RECORDS * 2):
            log_event(LOG, logging.INFO, "line.written", number=number)
        assert dropped_records() == handle.dropped > 0
        assert not handle.close(0.05)
        assert handle.dropped >= MAX_RECORDS  # what waited counts too
        assert json.loads(far.readline())["number"] == 0


def test_the_queue_is_bounded_in_size() -> None:
    """I5: long lines are dropped before there are many of them."""
    with piped("text") as (_, handle):
        for _ in range(1000):
            log_event(LOG, logging.INFO, "line.written", value="x" * MAX_VALUE)
        assert 300 < handle.dropped < 700


def test_dropped_lines_are_told_once_there_is_room() -> None:
    """The count of dropped lines is itself a line, as soon as one can be written."""
    with piped() as (far, handle):
        while not handle.dropped:
            log_event(LOG, logging.INFO, "line.written")
        told = next(line for line in far if b"logs.dropped" in line)
        assert json.loads(told)["total"] > 0


def test_a_reader_that_left_costs_lines_only() -> None:
    """A broken pipe is counted; the process goes on."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as near:
        handle = configure_logging("info", "json", near)
        log_event(LOG, logging.INFO, "line.written")
        assert handle.close(5)
        assert handle.dropped == 1


def test_a_non_blocking_descriptor_is_waited_for() -> None:
    """Where someone made the descriptor non-blocking, lines are neither lost nor torn."""
    with piped(blocking=False) as (far, handle):
        for number in range(3000):
            log_event(LOG, logging.INFO, "line.written", number=number)
        numbers = [json.loads(far.readline())["number"] for _ in range(3000)]
        assert numbers == list(range(3000))
        assert handle.close(5)
