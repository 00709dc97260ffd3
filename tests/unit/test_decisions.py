from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING

import pytest

from sse_gateway.control import Kind
from sse_gateway.decisions import Fetch, How, Leave, Publish, Serve, Stop, Synced

if TYPE_CHECKING:
    from sse_gateway.decisions import Decision

DECISIONS: list[Decision] = [
    Publish(Kind.VETO, b"payload"),
    Serve("token", "joiner", "list", iter([b"block"])),
    Fetch("token", "unix"),
    Stop("token"),
    Synced("epoch", How.JOINED),
    Leave(60.0),
]


@pytest.mark.parametrize("decision", DECISIONS)
def test_decisions_are_values(decision: Decision) -> None:
    """A decision cannot be changed by whoever carries it out."""
    name = next(iter(type(decision).__match_args__))

    with pytest.raises(FrozenInstanceError):
        setattr(decision, name, None)


def test_how() -> None:
    """How an epoch came to be ours is one word of a closed set, for the log."""
    assert [str(how) for how in How] == ["claimed", "joined", "switched"]
