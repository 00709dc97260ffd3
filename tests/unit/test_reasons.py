from __future__ import annotations

import errno
import json
import re
from typing import TYPE_CHECKING

import pytest

from sse_gateway.reasons import (
    CloseReason,
    DropReason,
    Format,
    GapReason,
    Policy,
    Refusal,
    RejectReason,
    Replay,
    Unavailable,
)

if TYPE_CHECKING:
    from enum import StrEnum

SETS: list[type[StrEnum]] = [
    Policy,
    Format,
    GapReason,
    Replay,
    CloseReason,
    Unavailable,
    Refusal,
    DropReason,
    RejectReason,
]


@pytest.mark.parametrize("reasons", SETS)
def test_every_reason_is_a_plain_word(reasons: type[StrEnum]) -> None:
    """Fit for a metric label, a log line and the stream, each told by one member only."""
    words = [str(reason) for reason in reasons]
    assert all(re.fullmatch("[a-z_]+", word) for word in words)
    assert json.loads(json.dumps(list(reasons))) == words
    assert len(reasons.__members__) == len(set(words))


def test_the_words_of_the_stream_are_these() -> None:
    """Clients compare them: a new one is a change of the protocol."""
    assert {*GapReason} == {"window", "overflow", "source", "epoch", "cursor"}
    assert {*Replay} == {"none", "complete", "gap"}
    assert {*Unavailable} == {"draining", "full", "source"} == {refusal.told for refusal in Refusal}
    assert {"drain", "max_age", "expired", "revoked", "error"} <= {*CloseReason}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ConnectionResetError(), "client"), (BrokenPipeError(), "client"), (OSError(errno.ETIMEDOUT, ""), "timeout")],
)
def test_who_takes_no_byte_times_out_whoever_notices(error: OSError, reason: str) -> None:
    """The kernel gives up a client after the same time as we."""
    assert CloseReason.of(error) == reason


def test_policies_stand_in_order_of_what_loses_least() -> None:
    """A stream under several rules takes the first of theirs."""
    assert list(Policy) == ["disconnect", "drop_oldest", "latest"]
