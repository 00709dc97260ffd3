from __future__ import annotations

import re

import pytest

from sse_gateway.cursor import CHECK_LENGTH, EPOCH_LENGTH, UNVERIFIABLE, Cursor, parse_cursor

EPOCH = "0a1b2c3d4e5f"
CHECK = "0123456789ab"


@pytest.mark.parametrize("offset", [0, 1, 10, 2**63])
def test_a_cursor_is_read_back_from_its_text(offset: int) -> None:
    """Text and value lead to each other."""
    cursor = Cursor(EPOCH, offset, CHECK)
    assert str(cursor) == f"{EPOCH}-{offset}-{CHECK}"
    assert parse_cursor(str(cursor)) == cursor


def test_a_cursor_forces_no_preflight() -> None:
    """At most 48 bytes, none but digits, small letters and dashes, so a line can hold it too (I7)."""
    text = str(Cursor("z" * EPOCH_LENGTH, 2**63, "f" * CHECK_LENGTH))
    assert len(text) <= 48
    assert re.fullmatch("[0-9a-z-]+", text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        UNVERIFIABLE,
        "garbage",
        f"{EPOCH}-1",
        f"{EPOCH}-01-{CHECK}",
        f"{EPOCH}--1-{CHECK}",
        f"{EPOCH}-+1-{CHECK}",
        f"{EPOCH}-1-{CHECK}\n",
        f" {EPOCH}-1-{CHECK}",
        f"{EPOCH.upper()}-1-{CHECK}",
        f"{EPOCH}-1-{CHECK[:-1]}g",
        f"{EPOCH}-{'9' * 20}-{CHECK}",
        f"{EPOCH}-\u0661-{CHECK}",
        f"{EPOCH}-1-{CHECK}-1",
        f"{EPOCH}-1-\0{CHECK}",
    ],
)
def test_anything_else_is_no_cursor(text: str) -> None:
    """Nothing is repaired or guessed; the position that never verifies is not one either (I10)."""
    assert parse_cursor(text) is None
