"""The repository's documents, as tests read them: pages, tables, words in backquotes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "sse_gateway"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "nginx").glob("*.md"), *(ROOT / "systemd").glob("*.md")]
)

Table = list[list[str]]


def read(path: Path) -> str:
    """The text of a file."""
    return path.read_text(encoding="utf-8")


def tables(name: str) -> Iterator[tuple[list[str], Table]]:
    """The tables of a document: the header's cells, and the rows'."""
    for block in re.findall(r"(?:^\|.*\n)+", read(DOCS / name), re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in block.splitlines()]
        yield [cell.strip() for cell in rows[0]], [[cell.strip() for cell in row] for row in rows[2:]]


def table(name: str, *header: str) -> Table:
    """The rows of the one table with this header."""
    (found,) = [rows for cells, rows in tables(name) if cells == list(header)]
    return found


def code(cell: str) -> list[str]:
    """The words in backquotes of a cell."""
    return re.findall(r"`([^`]+)`", cell)
