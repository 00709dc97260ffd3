from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sse_gateway.quantities import (
    MAX_DURATION_S,
    MAX_SIZE_BYTES,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15s", 15.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("250ms", 0.25),
        ("2d", 172_800.0),
        ("0s", 0.0),
        ("24d", 2_073_600.0),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    """Every unit counts in seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("number", [15, 0])
def test_a_duration_without_a_unit_is_told_to_have_one(number: int) -> None:
    """The remedy names the number that was written, as a number or as text."""
    for value in (number, str(number)):
        with pytest.raises(ValueError, match=f"needs a unit: write {number}s"):
            parse_duration(value)


@pytest.mark.parametrize(
    "value", ["", "15 s", "1.5s", "-1s", "015s", "15S", "1h30m", "15s\n", "hunter2", True, None, [15], 1.5]
)
def test_other_durations_are_refused_without_being_quoted(value: object) -> None:
    """What is no duration may be a secret in the wrong place."""
    with pytest.raises(ValueError, match="must be a duration") as caught:
        parse_duration(value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["25d", "9999999999999d"])
def test_a_duration_is_at_most_24_days(text: str) -> None:
    """More does not fit where the kernel and browsers keep it."""
    with pytest.raises(ValueError, match="at most 24d"):
        parse_duration(text)


@given(st.integers(0, round(MAX_DURATION_S * 1000)))
def test_a_duration_is_read_back_as_it_is_written(milliseconds: int) -> None:
    """Writing loses nothing down to the millisecond."""
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (15.0, "15s"), (300.0, "5m"), (90.0, "90s"), (0.25, "250ms")]
)
def test_a_duration_is_written_in_its_largest_unit(seconds: float, text: str) -> None:
    """People read small numbers best."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "size"), [("64KiB", 65_536), ("4MiB", 4_194_304), ("1GiB", 1 << 30), ("100", 100), (10, 10), ("7B", 7)]
)
def test_a_size_is_a_number_and_a_binary_unit_or_bytes(value: object, size: int) -> None:
    """Every unit counts in bytes."""
    assert parse_size(value) == size


@pytest.mark.parametrize(
    ("text", "remedy"), [("64KB", "64KiB"), ("4M", "4MiB"), ("1gb", "1GiB"), ("64 KiB", "64KiB"), ("64kib", "64KiB")]
)
def test_other_units_are_told_the_binary_one(text: str, remedy: str) -> None:
    """Some read KB as 1000 bytes and some as 1024, so neither is guessed."""
    with pytest.raises(ValueError, match=f"write {remedy}"):
        parse_size(text)


@pytest.mark.parametrize("value", ["", "x", "1.5MiB", "-2", -1, True, None, {}, "010", "hunter2"])
def test_other_sizes_are_refused_without_being_quoted(value: object) -> None:
    """What is no size may be a secret in the wrong place."""
    with pytest.raises(ValueError, match="must be a size") as caught:
        parse_size(value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", [0, "0MiB", "1025GiB", MAX_SIZE_BYTES + 1])
def test_a_size_is_from_one_byte_to_1024_gib(value: object) -> None:
    """A bound of nothing, or of more than any machine has, is a slip."""
    with pytest.raises(ValueError, match="from 1 byte to 1024GiB"):
        parse_size(value)


@given(st.integers(1, MAX_SIZE_BYTES))
def test_a_size_is_read_back_as_it_is_written(size: int) -> None:
    """Writing loses no byte."""
    assert parse_size(format_size(size)) == size
