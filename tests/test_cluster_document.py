"""What `docs/cluster.md` says of the protocol is what the code does: messages, states, times, bounds, rights."""

from __future__ import annotations

import ast
import importlib
import re
from typing import TYPE_CHECKING

import pytest

from sse_gateway import control, role
from sse_gateway.config import load_settings
from sse_gateway.control import Control, Ignored, Kind
from sse_gateway.decisions import How
from tests.integration.test_access import REVOKING
from tests.integration.test_handover import PRIVILEGES
from tests.integration.test_source import LEAST_PRIVILEGE
from tests.integration.test_store import PRIVILEGES as STORE_PRIVILEGES
from tests.support.documents import DOCS, PACKAGE, PAGES, code, read, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import Enum
    from pathlib import Path

CLUSTER = read(DOCS / "cluster.md")
BOUNDED = ("checkpoints", "control", "handover", "hold", "joining", "member", "offers", "parts", "replica")
"""Modules whose every number is in the table."""

BESIDES = {"cut.SLICE_BYTES", "streams.LOG_WAIT_S"}
"""Numbers of other modules that are in it."""

UNITS = {"ms": 0.001, "s": 1, "KiB": 1024, "MiB": 1024 * 1024, "": 1}


def fields_of(kind: Kind) -> list[str]:
    """The names that the docstring below a kind gives to its fields."""
    (found,) = re.findall(rf'^    {kind} = "{kind}"\n    """([a-z, ]+):', read(PACKAGE / "control.py"), re.MULTILINE)
    return str(found).split(", ")


def test_every_message_is_in_the_table() -> None:
    """Each kind, with its fields in their order."""
    rows = table(
        "cluster.md", "message", "fields", "who says it, and when", "what it changes where it stands in the log"
    )
    assert [(code(row[0])[0], code(row[1])) for row in rows] == [(kind.value, fields_of(kind)) for kind in Kind]


def test_the_messages_that_are_shown_are_read() -> None:
    """At least one of each kind; by a node of their cluster, each once, and a second time by nobody."""
    lines = re.findall(rf"^{control.PROTOCOL_VERSION} (?:{'|'.join(Kind)}) .*$", CLUSTER, re.MULTILINE)
    reader = Control("0" * 12, lines[0].split()[2])
    read_ones = [reader.read(line.encode()) for line in lines]
    assert {message.kind for message in read_ones if message is not None} == set(Kind)
    assert None not in read_ones
    assert [reader.read(line.encode()) for line in lines] == [None] * len(lines)
    assert reader.ignored == dict.fromkeys(Ignored, 0) | {Ignored.STALE: len(lines)}


@pytest.mark.parametrize(
    ("header", "members"),
    [
        (("reason", "the message", "look at"), Ignored),
        (("how", "the epoch came to be ours"), How),
    ],
)
def test_closed_sets_are_in_tables(header: tuple[str, ...], members: type[Enum]) -> None:
    """A row for each member, and no other."""
    assert sorted(code(row[0])[0] for row in table("cluster.md", *header)) == sorted(m.value for m in members)


def test_the_states_are_in_the_table() -> None:
    """Each role of a replica, in the order in which a node goes through them."""
    assert [code(row[0])[0] for row in table("cluster.md", "state", "means")] == list(role.Role.__members__)


def numbers_of(module: str) -> Iterator[str]:
    """The public constants of a module that are numbers or pairs of numbers."""
    for node in ast.parse(read(PACKAGE / f"{module}.py")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            value = getattr(importlib.import_module(f"sse_gateway.{module}"), name)
            if not name.startswith("_") and isinstance(value, int | float | tuple) and name.isupper():
                yield f"{module}.{name}"


def quantity(cell: str) -> list[float]:
    """One number, or two with ``to`` between them, and their unit."""
    match = re.fullmatch(r"([\d.,]+)(?: to ([\d.,]+))?(?: (\w+))?", cell)
    assert match is not None, cell
    return [float(text.replace(",", "")) * UNITS[match[3] or ""] for text in match.group(1, 2) if text]


def test_times_and_bounds_are_those_of_the_code() -> None:
    """Each constant of the protocol's modules has a row, and the row its value."""
    rows = table("cluster.md", "what", "value", "constant", "and then")
    told = {code(row[2])[0]: quantity(row[1]) for row in rows}
    assert len(told) == len(rows)
    assert {name for module in BOUNDED for name in numbers_of(module)} | BESIDES == told.keys()
    for constant, values in told.items():
        module, name = constant.split(".")
        value = getattr(importlib.import_module(f"sse_gateway.{module}"), name)
        expected = value if isinstance(value, tuple) else (value,)
        unit = 1000 if name.endswith("_MS") else 1
        assert [number * unit for number in values] == pytest.approx(expected), constant


def test_the_pictures_speak_the_protocol() -> None:
    """Words in capitals between nodes are messages, commands of Redis, or states."""
    pictures = re.findall(r"```mermaid\n(.*?)```", CLUSTER, re.DOTALL)
    words = set(re.findall(r"\b[A-Z]{4,}\b", "".join(pictures)))
    assert len(pictures) >= 7
    assert set(Kind) <= words
    assert words - set(Kind) <= set(role.Role.__members__) | {"PUBLISH", "PSUBSCRIBE", "MARK", "SIGHUP"}
    assert all(picture.startswith("sequenceDiagram\n") and ";" not in picture for picture in pictures)


def test_events_and_metrics_for_operators_exist() -> None:
    """What the page tells operators to look at is in the tables of all events and all metrics."""
    events = {code(row[0])[0] for row in table("operations.md", "event", "level", "fields", "means")}
    metrics = {code(row[0])[0] for row in table("metrics.md", "name", "type", "labels", "meaning")}
    told = [row[0] for row in table("cluster.md", "event in the log", "means", "do")]
    assert {name for cell in told for name in code(cell)} <= events
    assert {name for row in table("cluster.md", "metric", "on one log") for name in code(row[0])} <= metrics


def test_the_access_rule_is_the_one_that_is_tried() -> None:
    """What the page grants is what the tests of the link and of the hand-over make do with."""
    lines = re.findall(r"^ACL SETUSER gateway (.+)$", read(DOCS / "operations.md"), re.MULTILINE)
    follow, hand_over, revoke, store = (line.replace(":default", ":test") for line in lines)
    follow, hand_over, revoke, store = (line.replace(":default", ":test") for line in lines)
    assert set(f"{follow} {hand_over} {revoke} {store}".split()) == set(LEAST_PRIVILEGE.split())
    assert f"{follow.partition('+')[0]}{hand_over}" == PRIVILEGES
    assert revoke == REVOKING.format(cluster="test")
    assert f"{follow.partition('+')[0]}{store}" == STORE_PRIVILEGES


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```yaml\nredis:" in read(page)], ids=lambda page: page.name
)
def test_examples_of_configuration_are_valid(page: Path, tmp_path: Path) -> None:
    """A configuration that is shown can be copied, and serves."""
    for text in re.findall(r"```yaml\n(redis:.*?)```", read(page), re.DOTALL):
        file = tmp_path / "example.yaml"
        file.write_text(text)
        load_settings(file, {})
