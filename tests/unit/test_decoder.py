from __future__ import annotations

import json

import pytest

from sse_gateway.decoder import decode
from sse_gateway.errors import MessageError
from sse_gateway.events import Publication
from sse_gateway.reasons import Format, RejectReason

LIMIT = 1_048_576


def envelope(payload: bytes) -> Publication:
    """Decode under a `json` rule."""
    return decode(payload, Format.JSON, LIMIT)


def refusal(payload: bytes, format_: Format = Format.JSON, max_bytes: int = LIMIT) -> RejectReason:
    """The reason for which a payload is refused."""
    with pytest.raises(MessageError) as caught:
        decode(payload, format_, max_bytes)
    return caught.value.reason


@pytest.mark.parametrize("payload", [b"", b" x", b"a\nb\r\nc", b"\xef\xbb\xbfx", b'{"data":1}', "ä\u2028\x85".encode()])
def test_under_text_the_payload_is_the_data(payload: bytes) -> None:
    """Byte for byte, whatever it looks like (X2, X4)."""
    assert decode(payload, Format.TEXT, LIMIT) == Publication(payload)


@pytest.mark.parametrize("format_", list(Format))
def test_a_payload_over_the_limit_is_refused_by_size(format_: Format) -> None:
    """The limit itself is still taken (X6)."""
    payload = b'{"data":1}'
    assert decode(payload, format_, len(payload)).data
    assert refusal(payload, format_, len(payload) - 1) is RejectReason.SIZE


@pytest.mark.parametrize("bad", [b"\x80", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x82", b"\xf4\x90\x80\x80"])
@pytest.mark.parametrize("frame", [b"%b", b'{"data":"%b"}', b'{"data":1,"x":"%b"}', b'{"data":1}%b'])
def test_a_payload_that_is_not_utf_8_is_refused_wherever_the_fault_lies(bad: bytes, frame: bytes) -> None:
    """Overlong, surrogate, lone, truncated; the whole payload is checked before the envelope (X5)."""
    assert refusal(frame % bad) is RejectReason.ENCODING
    assert refusal(frame % bad, Format.TEXT) is RejectReason.ENCODING


def test_a_string_is_sent_as_its_characters() -> None:
    """Escapes are resolved, also those of astral characters and line ends."""
    assert envelope(b'{"data":"plain"}') == Publication(b"plain")
    assert envelope(rb'{"data":"a\nb\u00e4\ud83d\ude00\u0000"}') == Publication("a\nbä😀\0".encode())
    assert envelope(b'{"data":""}') == Publication(b"")


@pytest.mark.parametrize(
    "value",
    [
        b"null",
        b"true",
        b"1.50",
        b"1e400",
        b"9" * 400,
        b"[1, 2]",
        b'{"a" : 1,\n "a":2}',
        b"{}",
        b'{"id":"\\ud83d\\ude00"}',
    ],
)
def test_anything_but_a_string_is_sent_as_its_json_text_untouched(value: bytes) -> None:
    """Not re-encoded: spaces, digits and inner duplicates stay as published (X8)."""
    assert envelope(b'{"data": ' + value + b" }") == Publication(value, is_text=False)


def test_all_fields_of_the_envelope_are_read() -> None:
    """Type, id and the publisher's clock."""
    payload = b'{"data":"x","event":"price","id":"k-1","ts":1700000000.25}'
    assert envelope(payload) == Publication(b"x", "price", is_text=True, id="k-1", ts=1700000000.25)
    assert envelope(b'{"data":1,"event":"message","ts":7}') == Publication(b"1", is_text=False, ts=7.0)


def test_unknown_keys_are_ignored() -> None:
    """They may hold anything that is JSON."""
    assert envelope(b'{"v":[{"data":1}],"data":"x","\\u00e4":null,"":"\\""}') == Publication(b"x")
    assert envelope('{"ä":1,"data":"x"}'.encode()) == Publication(b"x")


@pytest.mark.parametrize(
    "payload",
    [
        b'{"data":1,"data":2}',
        b'{"data":1,"data":1}',
        b'{"data":1,"id":"a","id":"b"}',
        b'{"data":1,"x":1,"x":1}',
        b'{"x":1,"data":1,"x":2}',
        b'{"x":12,"data":1,"x":1}',
        b'{"x":1,"data":1,"\\u0078":1}',
        b'{"data":1,"d\\u0061ta":1}',
        b'{"":1,"data":1,"b":2,"":3}',
        b' { "data" : "a,}" , "y" : "}" ,\n"y" : "}" } ',
    ],
)
def test_a_key_given_twice_is_refused(payload: bytes) -> None:
    """Known or unknown, equal or not, spelled alike or with escapes (X8)."""
    assert refusal(payload) is RejectReason.ENVELOPE


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("keys", [1, 2, 3, 4, 40])
def test_spaces_and_escapes_are_not_duplicates(keys: int, indent: int | None) -> None:
    """Every spelling of an envelope whose keys differ is taken."""
    members: dict[str, object] = {"data": {"data": 'x}\\",'}, "id": "k", "ts": 1.5, "ü\n": [1, {"a": 2}]}
    members |= {f"k{number}": number for number in range(keys)}
    chosen = dict(list(members.items())[:keys])
    for ascii_only in (True, False):
        text = json.dumps(chosen, indent=indent, ensure_ascii=ascii_only)
        assert json.loads(envelope(f"\n{text}\t".encode()).data) == members["data"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"x",
        b"[]",
        b"null",
        b'"data"',
        b"{}",
        b'{"event":"x"}',
        b'{"data":1',
        b'{"data":1} x',
        b'{"data":1,}',
        b'{"data":NaN}',
        b'{"data":01}',
        b'{"data":"a\nb"}',
        b'{"data":["a\nb"]}',
        b'{"data":"\\ud800"}',
        b'{"data":["\\udc00\\ud800"]}',
        b'{"data":"\\x"}',
        b'{"data":1,"event":null}',
        b'{"data":1,"event":1}',
        b'{"data":1,"event":"\\ud800"}',
        b'{"data":1,"id":null}',
        b'{"data":1,"id":7}',
        b'{"data":1,"ts":null}',
        b'{"data":1,"ts":true}',
        b'{"data":1,"ts":"1"}',
        b'{"data":1,"ts":1e400}',
        b'{"data":1,"ts":NaN}',
        b'\xef\xbb\xbf{"data":1}',
    ],
)
def test_what_is_not_the_envelope_is_refused(payload: bytes) -> None:
    """Broken JSON, a missing data, a member of the wrong type, a lone surrogate, a byte order mark (X8)."""
    assert refusal(payload) is RejectReason.ENVELOPE


@pytest.mark.parametrize(
    "value", ["x", "ä" * 64, "x" * 128, "a b", "data: x", "zero\u200bwidth\ufeff", "gateway", "Gateway.x"]
)
def test_a_type_or_id_of_up_to_128_bytes_is_taken(value: str) -> None:
    """Format characters are allowed: they cannot end a line (X3)."""
    publication = envelope(json.dumps({"data": 1, "event": value, "id": value}).encode())
    assert (publication.type, publication.id) == (value, value)


@pytest.mark.parametrize("value", ["", "x" * 129, "ä" * 65, "a\rb", "a\nb", "a\0", "\x1f", "\x7f", "\x80", "\x9f"])
@pytest.mark.parametrize("key", ["event", "id"])
def test_an_ill_formed_type_or_id_is_refused(key: str, value: str) -> None:
    """Nothing that a line could end in, or that a browser would ignore, gets through (I7, X3)."""
    assert refusal(json.dumps({"data": 1, key: value}).encode()) is RejectReason.TYPE


@pytest.mark.parametrize("value", ["gateway.open", "gateway."])
def test_the_gateways_own_types_are_refused_from_publishers(value: str) -> None:
    """No publisher can tell a client that there was a gap; as an id the word is free."""
    assert refusal(json.dumps({"data": 1, "event": value}).encode()) is RejectReason.TYPE
    assert envelope(json.dumps({"data": 1, "id": value}).encode()).id == value


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_is_bounded_the_same_on_every_node(opening: bytes, closing: bytes) -> None:
    """The bound is a number, not what the caller's stack has left; beyond it the fault is `internal` (I9, X8)."""
    for levels, fits in ((511, True), (512, False), (900, False), (100_000, False)):
        payload = b'{"data":' + opening * levels + b"1" + closing * levels + b"}"
        if fits:
            assert not envelope(payload).is_text
        else:
            assert refusal(payload) is RejectReason.INTERNAL


def test_many_brackets_are_not_deep_nesting() -> None:
    """Long lists and brackets inside strings do not count as levels."""
    assert len(envelope(b'{"data":[' + b",".join([b"[{}]"] * 1000) + b"]}").data) == 5001
    assert envelope(b'{"data":"' + b'[{\\"' * 1000 + b'"}').is_text
