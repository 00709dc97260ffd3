"""Cursors that are not ours: never an HTTP error, never resumed on their word, always told in the stream."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.support.gateway_process import CONNECTIONS, configuration, rule
from tests.support.lateness import lateness
from tests.support.raw_client import position
from tests.support.streams import head, kinds, resume, settle

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

UNVERIFIABLE = "0-0-0"

GARBAGE = {
    "a word": "garbage",
    "a number": "17",
    "a negative number": "-1",
    "the id that never verifies": UNVERIFIABLE,
    "dashes": "--",
    "a colon": "abcdefghijkl:5:0123456789ab",
    "leading zeros": "abcdefghijkl-007-0123456789ab",
    "a negative offset": "abcdefghijkl--7-0123456789ab",
    "an offset of 2**64": f"abcdefghijkl-{2**64}-0123456789ab",
    "an offset of 2**63": f"abcdefghijkl-{2**63}-0123456789ab",
    "a huge offset": f"abcdefghijkl-{'9' * 3000}-0123456789ab",
    "4 KB": "x" * 4_096,
    "upper case": "ABCDEFGHIJKL-7-0123456789AB",
    "unicode": "héllo-☃-\U0001f600",
    "Arabic digits": "abcdefghijkl-٣-0123456789ab",
    "braces": '{"id": "<script>"}',
    "a mercure id": "urn:uuid:5e94c686-2c0b-4f9b-958c-92ccc3bbb4eb",
    "percent signs": "%00%0a%",
    "too long a check": "abcdefghijkl-7-0123456789abcdef",
}


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run one gateway for this module."""
    return module_gateways.start(configuration(valkey.url, rule("sse:greet:*", replay_on_connect=2), rule("sse:*")))


def altered(cursor: str, *, offset: int = 0, check_digit: bool = False, epoch: bool = False) -> str:
    """Return a well-formed cursor that differs in one part."""
    name, place, digest = cursor.split("-")
    if check_digit:
        digest = ("0" if digest[0] != "0" else "1") + digest[1:]
    if epoch:
        name = ("a" if name[0] != "a" else "b") + name[1:]
    return f"{name}-{int(place) + offset}-{digest}"


@pytest.mark.parametrize("where", ["header", "query"])
@pytest.mark.parametrize("cursor", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_garbage_cursor_is_told_in_the_stream(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, cursor: str, where: str
) -> None:
    """A cursor that is none of ours is never an HTTP error: a gap comes first, then live events."""
    if where == "header":
        stream = resume(connect, gateway, f"/{channel}", cursor)
    else:
        stream = connect(gateway, f"/events/{channel}?last_event_id={quote(cursor, safe='')}")
    first = stream.wait_open()
    stream.wait_type("gateway.gap")
    valkey.publish(f"sse:{channel}", "live")
    stream.wait_data("live")

    assert (first.id, first.json()["replay"]) == (UNVERIFIABLE, "gap")
    (gap,) = stream.gaps
    # Of a well-formed cursor nobody can say whether it is foreign or made up.
    assert gap.json()["reason"] in {"cursor", "epoch"}
    assert (gap.json()["channels"], gap.json()["missed"]) == ([channel], None)
    assert kinds(stream) == ["gateway.open", "gateway.gap", "live"]
    assert position(gap.id or "")


@pytest.mark.parametrize("cursor", [b"\xff\xfe", b"caf\xe9", b"\x80-\x81-\x82"])
def test_bytes_that_are_no_text_are_a_garbage_cursor(
    gateway: GatewayProcess, connect: Connect, channel: str, cursor: bytes
) -> None:
    """A header that is not even UTF-8 is a cursor that is none of ours."""
    request = b"GET /events/%b HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nLast-Event-ID: %b\r\n\r\n"
    stream = connect(gateway, "", raw=request % (channel.encode(), cursor))
    stream.wait_type("gateway.gap")

    assert stream.gaps[0].json()["reason"] == "cursor"


def test_a_word_is_a_gap_of_the_cursor(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """What is not of our form has the reason `cursor`."""
    stream = resume(connect, gateway, f"/{channel}", "garbage")

    assert stream.wait_type("gateway.gap").json()["reason"] == "cursor"


def test_a_cursor_with_another_hash_is_not_resumed(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """I10: a cursor whose check does not verify is told, and nothing is replayed on its word."""
    cursor = head(connect, gateway, channel)
    valkey.publish(f"sse:{channel}", "before")
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"/{channel}", altered(cursor, check_digit=True))
    first = stream.wait_open()
    stream.wait_type("gateway.gap")
    valkey.publish(f"sse:{channel}", "live")
    stream.wait_data("live")

    assert first.id == UNVERIFIABLE
    assert [block.json()["reason"] for block in stream.gaps] == ["cursor"]
    assert stream.data == ["live"]


def test_a_cursor_of_an_unknown_epoch_gets_all_there_is(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A client of a log unknown here cannot have had anything of this one: it gets what the window holds."""
    cursor = head(connect, gateway, channel)
    valkey.publish_many([(f"sse:{channel}", str(number)) for number in range(5)])
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"/{channel}", altered(cursor, epoch=True))
    stream.wait_data("4")

    assert (stream.blocks[0].id, stream.blocks[0].json()["replay"]) == (UNVERIFIABLE, "gap")
    assert kinds(stream) == ["gateway.open", "gateway.gap", "0", "1", "2", "3", "4"]
    assert stream.gaps[0].json() == {"reason": "epoch", "channels": [channel], "missed": None}


@pytest.mark.parametrize(
    ("name", "query", "expected"), [("", "", []), ("", "&replay=2", ["3", "4"]), ("greet:", "", ["3", "4"])]
)
def test_behind_a_gap_of_the_cursor_a_client_is_as_one_without(
    gateway: GatewayProcess,
    valkey: Valkey,
    connect: Connect,
    channel: str,
    name: str,
    query: str,
    expected: list[str],
) -> None:
    """After `cursor` a stream goes on as without one: at the head, or with the replay asked for or configured."""
    name = f"{name}{channel}"
    valkey.publish_many([(f"sse:{name}", str(number)) for number in range(5)])
    settle(valkey, gateway)
    stream = connect(gateway, f"/events?channel={name}{query}", headers={"Last-Event-ID": "garbage"})
    stream.wait_type("gateway.gap")
    valkey.publish(f"sse:{name}", "live")
    stream.wait_data("live")

    assert kinds(stream) == ["gateway.open", "gateway.gap", *expected, "live"]


def test_the_gap_of_a_garbage_cursor_is_told_once(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """The id of that gap resumes without another."""
    stream = resume(connect, gateway, f"/{channel}", "garbage")
    gap = stream.wait_type("gateway.gap")
    valkey.publish(f"sse:{channel}", "missed")
    resumed = resume(connect, gateway, f"/{channel}", gap.id)
    resumed.wait_data("missed")

    assert kinds(resumed) == ["gateway.open", "missed"]
    assert resumed.blocks[0].json()["replay"] == "complete"


def test_a_cursor_from_the_future_is_held_and_then_told(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A cursor ahead of the log gets its headers at once and its answer within five seconds or so."""
    cursor = altered(head(connect, gateway, channel), offset=1_000_000)
    with lateness() as late:
        began = time.monotonic()
        stream = resume(connect, gateway, f"/{channel}", cursor).wait_head()
        told_at_once = time.monotonic() - began
        first = stream.wait_open()
        took = time.monotonic() - began
    stream.wait_type("gateway.gap")
    valkey.publish(f"sse:{channel}", "live")
    stream.wait_data("live")

    assert told_at_once < 1 + late.total_s
    assert 4 <= took <= 7 + late.total_s
    assert (first.id, first.json()["replay"]) == (UNVERIFIABLE, "gap")
    assert [block.json()["reason"] for block in stream.gaps] == ["cursor"]
    assert kinds(stream) == ["gateway.open", "gateway.gap", "live"]


def test_a_held_client_may_leave(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """A client that leaves while its cursor is held leaves nothing behind."""
    cursor = altered(head(connect, gateway, channel), offset=1_000_000)
    stream = resume(connect, gateway, f"/{channel}", cursor).wait_head()
    stream.reset()

    gateway.wait_metric(CONNECTIONS, 0)
