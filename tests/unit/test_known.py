"""What is remembered of credentials."""

from __future__ import annotations

from sse_gateway.known import KNOWN_BYTES, Known


def test_it_is_remembered_until_its_end() -> None:
    """And then it is gone."""
    known = Known[str](b"salt")
    digest = known.digest(["token"])
    assert known.get(digest, 0.0) is None
    known.put(digest, "ann", until=10.0, size=5)

    assert known.get(digest, 9.9) == "ann"
    assert known.get(digest, 10.0) is None
    assert len(known) == 0


def test_digests_are_of_their_texts_and_their_memory() -> None:
    """Two rows of texts run together in none; two memories have nothing in common; any text has one."""
    known = Known[str](b"salt")
    assert known.digest(["a", "b"]) == known.digest(["a", "b"])
    assert len({known.digest(parts) for parts in (["a", "b"], ["ab"], ["a", "b", ""], ["", "ab"], ["\udcff"])}) == 5
    assert known.digest(["a"]) != Known[str](b"pepper").digest(["a"])


def test_the_oldest_gives_way() -> None:
    """To entries, and to bytes (I5)."""
    known = Known[int](b"salt", most=3, most_bytes=5 * KNOWN_BYTES)
    digests = [known.digest([str(number)]) for number in range(5)]
    for number in range(4):
        known.put(digests[number], number, until=9.0, size=0)
    assert [known.get(digest, 0.0) for digest in digests] == [None, 1, 2, 3, None]
    known.put(digests[1], 11, until=9.0, size=0)  # anew: it is the youngest now
    known.put(digests[4], 4, until=9.0, size=3 * KNOWN_BYTES)
    assert [known.get(digest, 0.0) for digest in digests] == [None, 11, None, None, 4]
    known.put(digests[0], 0, until=9.0, size=9 * KNOWN_BYTES)
    assert len(known) == 0


def test_it_can_be_forgotten() -> None:
    """Also what is not there."""
    known = Known[str](b"salt")
    digest = known.digest(["token"])
    known.put(digest, "ann", until=10.0, size=5)
    known.forget(digest)
    known.forget(digest)
    assert known.get(digest, 0.0) is None
