"""The house keeps its shape: who may import whom, and what every module owes."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parent.parent / "sse_gateway"

LAYERS: dict[int, frozenset[str]] = {
    0: frozenset({"__init__", "channels", "cursor", "errors", "events", "grants", "reasons"}),
    1: frozenset(
        {
            "addresses",
            "census",
            "audience",
            "audiences",
            "turns",
            "backlog",
            "batch",
            "checkpoints",
            "control",
            "credentials",
            "cut",
            "deadlines",
            "decisions",
            "decoder",
            "delivery",
            "frames",
            "history",
            "hold",
            "known",
            "origins",
        }
        | {
            "intake",
            "joining",
            "lagging",
            "limits",
            "log",
            "opening",
            "outbox",
            "placement",
            "reader",
            "replay",
            "revocations",
            "snapshot",
        }
        | {"mirror", "recollection", "role", "stored", "stored_ring"}
        | {"subscription", "tally", "timeline", "tokens", "window"}
    ),
    2: frozenset({"admission", "hub", "offers", "recall", "replica"}),
    3: frozenset(
        {
            "acceptor",
            "admin",
            "aggregate",
            "auth_settings",
            "authority",
            "bounds",
            "callback",
            "census_memory",
            "connections",
            "problems",
            "config",
            "conflicts",
            "document",
            "handover",
            "http",
            "jwks",
            "keys",
            "link",
            "listeners",
            "logs",
            "member",
        }
        | {
            "metrics",
            "orders",
            "overrides",
            "parts",
            "persistence",
            "place",
            "primary",
            "quantities",
            "readiness",
            "redis_login",
            "redis_url",
            "rejections",
            "revoked",
            "section",
            "sentinels",
            "server",
            "settings",
            "side_link",
            "source",
            "store",
            "stream",
            "turnstile",
        }
        | {"streams", "signals", "systemd", "values", "verifier"}
    ),
    4: frozenset(
        {"__main__", "child", "cli", "demo", "demo_relay", "demo_samples", "demo_site", "demo_valkey"}
        | {"gateway", "generation", "mint", "publish", "revoke", "supervisor", "tail", "worker"}
    ),
}
"""Every module has a layer; imports point down or sideways."""

CORE = (0, 1, 2)
"""Layers that get bytes and the time from outside, and never wait."""

NOT_IN_CORE = frozenset(
    {
        "aiohttp",
        "asyncio",
        "hiredis",
        "logging",
        "os",
        "prometheus_client",
        "random",
        "redis",
        "socket",
        "time",
        "uvloop",
    }
)
NOWHERE = frozenset({"marshal", "pickle", "shelve"})

SOURCES = {path.stem: path.read_text() for path in sorted(PACKAGE.glob("*.py"))}
CORE_MODULES = sorted(name for layer in CORE for name in LAYERS[layer] if name != "__init__")


def layer_of(name: str) -> int:
    """The layer that a module stands in."""
    (layer,) = [layer for layer, names in LAYERS.items() if name in names]
    return layer


def imports_of(name: str, *, at_run_time: bool = False) -> Iterator[str]:
    """Dotted names that a module imports, also inside functions.

    Args:
        name: The module.
        at_run_time: Leave out what only a type checker sees.
    """
    tree = ast.parse(SOURCES[name])
    guarded = {
        id(node)
        for guard in ast.walk(tree)
        if at_run_time and isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for statement in guard.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def siblings_of(name: str, *, at_run_time: bool = False) -> set[str]:
    """Modules of this package that a module imports."""
    found = set()
    for dotted in imports_of(name, at_run_time=at_run_time):
        package, _, rest = dotted.partition(".")
        if package == PACKAGE.name:
            head = rest.partition(".")[0]
            found.add(head if head in SOURCES else "__init__")
    return found


def test_every_module_has_one_layer() -> None:
    """The table of layers names every module, once."""
    named = [name for names in LAYERS.values() for name in names]

    assert sorted(named) == sorted(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_down(name: str) -> None:
    """A module knows its own layer and those below, also where only its types are meant."""
    assert [other for other in siblings_of(name) if layer_of(other) > layer_of(name)] == []


def test_no_import_cycles() -> None:
    """Modules are imported in one order."""
    TopologicalSorter({name: siblings_of(name, at_run_time=True) for name in SOURCES}).prepare()


@pytest.mark.parametrize("name", CORE_MODULES)
def test_core_is_pure(name: str) -> None:
    """The core has no loop, no clock, no dice, no sockets and no log of its own."""
    assert {dotted.partition(".")[0] for dotted in imports_of(name)} & NOT_IN_CORE == set()


@pytest.mark.parametrize("name", CORE_MODULES)
def test_core_is_tested_alone(name: str) -> None:
    """Every module of the core has unit tests of its own (their coverage: `tests.coverage_by_module`)."""
    assert (PACKAGE.parent / "tests" / "unit" / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_unpickles(name: str) -> None:
    """Nothing reads a format that can run code."""
    assert {dotted.partition(".")[0] for dotted in imports_of(name)} & NOWHERE == set()


@pytest.mark.parametrize("name", SOURCES)
def test_exceptions_to_the_tools_are_named(name: str) -> None:
    """Whoever silences a tool says which of its rules."""
    silenced = re.findall(r"# (?:noqa|type: ignore).*", SOURCES[name])

    assert [text for text in silenced if not re.match(r"# (noqa: [A-Z]+\d+|type: ignore\[[a-z-]+\])", text)] == []
