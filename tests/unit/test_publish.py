"""Publishing from the command line: the payload, and a PUBLISH that is sent once."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import hiredis
import pytest

from sse_gateway.errors import MessageError, SourceError
from sse_gateway.publish import Publisher, encode_payload
from tests.support.valkey import Link, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def answering(reply: bytes | None) -> Iterator[tuple[int, list[bytes]]]:
    """Run a server that agrees to everything and answers PUBLISH with `reply`, or by hanging up.

    Yields:
        Its port, and the names of the commands it got; complete once the block has ended.
    """
    names: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            with link:
                reader = hiredis.Reader()
                while data := link.recv(65_536):
                    reader.feed(data)
                    while (command := reader.gets()) is not False:
                        names.append(command[0])
                        if command[0] == b"PUBLISH" and reply is None:
                            break
                        link.sendall(reply if reply and command[0] == b"PUBLISH" else b"+OK\r\n")
                    else:
                        continue
                    break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], names
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_plain_data_is_sent_as_it_is() -> None:
    """Without type and key the payload is the data, byte for byte."""
    assert encode_payload(b'{"x": 1}\r\n') == b'{"x": 1}\r\n'
    assert encode_payload(b"") == b""


@pytest.mark.parametrize(
    ("event", "key", "expected"),
    [
        ("price", None, {"data": '1 "€"', "event": "price"}),
        (None, "k-1", {"data": '1 "€"', "id": "k-1"}),
        ("price", "k-1", {"data": '1 "€"', "event": "price", "id": "k-1"}),
    ],
)
def test_type_or_key_makes_an_envelope(event: str | None, key: str | None, expected: dict[str, str]) -> None:
    """Data is always a string in the envelope, whatever it looks like."""
    assert json.loads(encode_payload('1 "€"'.encode(), event=event, id_=key)) == expected


@pytest.mark.parametrize(
    ("event", "key"), [("gateway.gap", None), ("", None), ("a\nb", None), ("x" * 129, None), (None, ""), (None, "\x85")]
)
def test_what_the_gateway_refuses_is_not_sent(event: str | None, key: str | None) -> None:
    """Reserved and ill-formed types and keys are refused before they reach Redis."""
    with pytest.raises(MessageError):
        encode_payload(b"x", event=event, id_=key)


def test_data_must_be_utf8() -> None:
    """The gateway would refuse it."""
    with pytest.raises(MessageError, match="byte 1"):
        encode_payload(b"a\xff")


@pytest.mark.parametrize("url", ["http://h", "redis://:pass word@h", "redis+sentinel://h:26379/mymaster", "secret"])
def test_other_urls_are_refused_without_quoting_them(url: str) -> None:
    """No part of a wrong URL is shown: any may be a password."""
    with pytest.raises(ValueError, match=r"must|has") as refused:
        Publisher(url)
    assert "pass" not in str(refused.value).replace("password", "")
    assert "secret" not in str(refused.value)


def test_subscribers_are_counted(tmp_path: Path) -> None:
    """The message arrives as published, and the count is Redis' own."""
    with running(tmp_path) as server:
        reader = Link(server.port)
        try:
            reader.call("PSUBSCRIBE", "demo:*")
            with Publisher(server.url) as publisher:
                assert publisher.publish("demo:ä", b"\x00one") == 1
                assert publisher.publish("other", b"two") == 0
            assert reader.read() == [b"pmessage", b"demo:*", "demo:ä".encode(), b"\x00one"]
        finally:
            reader.close()


def test_no_server_is_said_with_its_place_and_without_its_password() -> None:
    """The sentence names where, never the password."""
    port = free_port()
    with (
        pytest.raises(SourceError, match=rf"cannot connect to Redis at redis://user:\*\*\*@127.0.0.1:{port}") as lost,
        Publisher(f"redis://user:secret@127.0.0.1:{port}"),
    ):
        pass
    assert "secret" not in str(lost.value)


def test_an_error_reply_is_said() -> None:
    """What Redis answers reaches the person."""
    with answering(b"-NOPERM no permission\r\n") as (port, _):
        publisher = Publisher(f"redis://127.0.0.1:{port}?protocol=2")
        with publisher, pytest.raises(SourceError, match=r"refused the message: .*no permission"):
            publisher.publish("a", b"x")


def test_a_lost_reply_is_not_repeated() -> None:
    """After a lost reply PUBLISH is not sent again, and the doubt is said."""
    with answering(None) as (port, received):
        publisher = Publisher(f"redis://127.0.0.1:{port}?protocol=2")
        with publisher, pytest.raises(SourceError, match="may or may not"):
            publisher.publish("a", b"x")
    assert received.count(b"PUBLISH") == 1
