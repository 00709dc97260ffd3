from __future__ import annotations

import pytest

from sse_gateway.errors import StoreError
from sse_gateway.stored import VERSION, Keys, Row, Seal, decode, encode

KEYS = Keys("sse-gateway", "default", "f1ngerpr1nt")


def test_keys_name_cluster_fingerprint_and_epoch() -> None:
    """So that nobody reads a store that is not his."""
    base = b"sse-gateway:default:f1ngerpr1nt:"
    assert (KEYS.lease, KEYS.epochs) == (base + b"lease", base + b"epochs")
    assert KEYS.state("e") == base + b"e:state"
    assert KEYS.channels("e") == base + b"e:channels"
    assert KEYS.ring("e", 3) == base + b"e:ring:3"
    assert KEYS.window("e", "näme:x") == base + b"e:window:" + "näme:x".encode()


def test_what_was_sealed_is_read_again() -> None:
    """The version comes first."""
    place = Seal(b"key").at(b"where")
    value = place.seal(b"7", b"body")
    assert value[0] == VERSION
    assert place.open(b"7", value) == b"body"
    assert place.head(b"7", b"body") + b"body" == value


def test_nothing_is_read_that_was_changed_or_moved() -> None:
    """Every bit, the key, the field, and the log's key are in the seal."""
    place = Seal(b"key").at(b"where")
    value = place.seal(b"7", b"body")
    for at in range(8 * len(value)):
        damaged = bytearray(value)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(StoreError):
            place.open(b"7", bytes(damaged))
    for other, field in ((Seal(b"key").at(b"elsewhere"), b"7"), (place, b"8"), (Seal(b"other").at(b"where"), b"7")):
        with pytest.raises(StoreError, match="damaged"):
            other.open(field, value)


def test_another_version_is_said_to_be_one() -> None:
    """So that an operator knows that it is a newer gateway's."""
    place = Seal(b"key").at(b"where")
    with pytest.raises(StoreError, match="of version 2, not 1"):
        place.open(b"", b"\x02whatever")
    with pytest.raises(StoreError, match="empty"):
        place.open(b"", b"")


def test_a_body_of_another_shape_is_refused() -> None:
    """Whatever msgspec makes of it."""
    assert decode(encode(Row(1, 2, True, 3)), Row) == Row(1, 2, True, 3)
    for body in (b"", b"\xc1", encode([1]), encode(["x", 2, True, 3])):
        with pytest.raises(StoreError, match="damaged"):
            decode(body, Row)
    with pytest.raises(StoreError, match="damaged"):
        decode(b"\x94" + b"\xa1\xff" + b"\x02\xc3\x03", Row)
