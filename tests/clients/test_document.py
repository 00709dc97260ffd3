"""``docs/clients.md`` says of each client what the tests have found, and no more."""

from __future__ import annotations

from typing import Final

import pytest

from tests.clients.driver import ROOT
from tests.clients.table import CHARACTERS, CLIENTS, HERE, LINES, LONG, After, Client, CutEvent, Tool

DOCUMENT: Final = ROOT / "docs" / "clients.md"
MANIFESTS: Final = {
    Tool.NODE: HERE / "package-lock.json",
    Tool.GO: HERE / "go" / "go.mod",
    Tool.JAVA: HERE / "java" / "pom.xml",
}
CUT: Final = {CutEvent.WHOLE: "whole", CutEvent.LOST: "**lost**", CutEvent.TRUNCATED: "**truncated**"}


def row(client: Client) -> str:
    """Write the client's line of the table."""
    returns = ["back" if after in client.returns else "ends" for after in After]
    texts = "all" if not client.alters else f"all but {len(client.alters)}"
    lines = "900,000" if client.longest == LONG[-1] else f"**{client.longest:,}**"
    cursor = "kept" if client.keeps_cursor else "**lost**"
    cells = [client.name, client.version, *returns, CUT[client.cut_event], texts, lines, cursor]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_document_has_the_row_of_every_client(client: Client) -> None:
    """Versions, what it comes back from, what it alters: as in the table the tests are driven by."""
    assert row(client) in DOCUMENT.read_text().splitlines()


def test_the_document_has_no_other_rows() -> None:
    """A client that is not tried is not in the table."""
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.endswith(("| kept |", "| **lost** |"))]
    assert rows == [row(client) for client in CLIENTS]


@pytest.mark.parametrize("client", [c for c in CLIENTS if c.tool in MANIFESTS], ids=lambda client: client.name)
def test_the_version_is_the_pinned_one(client: Client) -> None:
    """For what is pinned beside the tests; Node itself is whatever runs them."""
    if client.name != "Node's EventSource":
        assert client.version in MANIFESTS[client.tool].read_text()


def test_every_text_that_a_client_alters_is_tried() -> None:
    """A name that no test publishes would be a claim without a test."""
    for client in CLIENTS:
        assert client.alters.keys() <= LINES.keys() | CHARACTERS.keys()
