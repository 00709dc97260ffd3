from __future__ import annotations

import dataclasses

import pytest

from sse_gateway.events import Publication


def test_a_publication_is_text_of_the_default_type_unless_told() -> None:
    """Data alone is enough."""
    publication = Publication(b"x")
    assert (publication.type, publication.is_text, publication.id, publication.ts) == ("message", True, None, None)


def test_a_publication_does_not_change() -> None:
    """Windows and queues share one object; nobody may write to it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Publication(b"x").data = b"y"  # type: ignore[misc]  # the point of the test
