from __future__ import annotations

from sse_gateway.role import Role


def test_the_places_of_a_node() -> None:
    """As `docs/cluster.md` lists them."""
    assert list(Role.__members__) == ["OFFLINE", "JOINING", "BUFFERING", "SYNCED", "LEFT"]
