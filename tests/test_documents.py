"""The documents are true: names, defaults, numbers, commands and links are those of the code."""

from __future__ import annotations

import ast
import importlib
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.catalogue import SCENARIOS
from sse_gateway.cli import commands
from sse_gateway.config import Settings
from sse_gateway.gateway import Gateway
from sse_gateway.limits import Limits
from sse_gateway.metrics import ADDITIVE, PREFIX, SupervisorMetrics
from sse_gateway.reasons import (
    AccessFailure,
    CloseReason,
    DropReason,
    GapReason,
    Policy,
    Refusal,
    RejectReason,
    Replay,
    Unavailable,
)
from sse_gateway.settings import ChannelSettings, item_of, keys_of
from tests.support.documents import DOCS, PACKAGE, PAGES, ROOT, code, read, table, tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import StrEnum
    from pathlib import Path

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


class Counts:
    """A supervisor that has done nothing yet."""

    running = restarts = 0

    def __init__(self) -> None:
        self.reloads = {"ok": 0, "failed": 0}


async def test_the_metrics_are_those_of_the_code() -> None:
    """Name, type and labels of each, in the order in which they are shown; and the alerts use only these."""
    gateway = Gateway(Settings.model_validate({"auth": {"mode": "none"}}))
    shown = {
        family.name.removeprefix(PREFIX): (
            family.type,
            sorted({label for sample in family.samples for label in sample.labels} - {"le"}),
        )
        for family in gateway.metrics.registry.collect()
        if family.name.startswith(PREFIX) and not family.name.startswith(f"{PREFIX}process_")
    }
    rows = table("metrics.md", "name", "type", "labels", "meaning")
    told = {code(name)[0]: (kind, sorted(code(labels))) for name, kind, labels, _ in rows}
    assert told == shown
    assert list(told) == list(shown)
    assert len(rows) == len(told)
    supervised = table("metrics.md", "name", "type", "label", "meaning")
    own = [
        (family.name.removeprefix(PREFIX), family.type, sorted({label for s in family.samples for label in s.labels}))
        for family in SupervisorMetrics(Counts()).collect()
    ]
    assert [(code(name)[0], kind, sorted(code(label))) for name, kind, label, _ in supervised] == own
    used = set(
        re.findall(rf"\b{PREFIX}(\w+?)(?:_total|_bucket)?\b(?=[{{\[ ]|$)", read(DOCS / "metrics.md"), re.MULTILINE)
    )
    assert used - {""} <= told.keys() | {name for name, _, _ in own}
    gauges = {PREFIX + name for name, (kind, _) in told.items() if kind == "gauge"}
    assert {name for name in ADDITIVE if "process_" not in name} <= gauges


def settings(model: type[BaseModel], key: str = "") -> Iterator[tuple[str, FieldInfo, object]]:
    """Every key that holds a value, with its field and its default."""
    required: dict[Any, dict[str, Any]] = {Settings: {"auth": {"mode": "none"}}, ChannelSettings: {"pattern": "*"}}
    required |= {Settings.model_fields["auth"].annotation: {"mode": "none"}}
    defaults = model.model_validate(required.get(model, {})).model_dump(mode="json", by_alias=True)
    for name, field in model.model_fields.items():
        word = field.alias or name
        inner = item_of(field.annotation) or field.annotation
        if keys_of(inner):
            assert isinstance(inner, type)
            suffix = "[]." if item_of(field.annotation) else "."
            yield from settings(inner, f"{key}{word}{suffix}")
        else:
            yield f"{key}{word}", field, defaults[word]


def default(field: FieldInfo, value: object) -> str:
    """How the table shows a default."""
    if field.is_required():
        return "required"
    match value:
        case None:
            return "`null`"
        case bool():
            return f"`{str(value).lower()}`"
        case "":
            return '`""`'
        case _:
            return f"`{value}`"


def test_the_configuration_table_is_the_settings() -> None:
    """Key, default and meaning, in the order of the code."""
    expected = [[f"`{key}`", default(field, value), field.description] for key, field, value in settings(Settings)]
    assert table("configuration.md", "key", "default", "meaning") == expected


def logged() -> dict[str, tuple[str, set[str]]]:
    """The level and fields of every event that the code logs."""
    events: dict[str, tuple[str, set[str]]] = {}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(read(path))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "log_event"):
                continue
            _, level, event = node.args
            assert isinstance(level, ast.Attribute)
            assert isinstance(event, ast.Constant), f"{path.name}: an event's name is a constant"
            fields = {"exception" if word.arg == "exc" else str(word.arg) for word in node.keywords}
            before = events.get(str(event.value), (level.attr.lower(), set()))
            assert before[0] == level.attr.lower()
            events[str(event.value)] = level.attr.lower(), before[1] | fields
    return events


def test_the_log_events_are_those_of_the_code() -> None:
    """Name, level and fields of each; the log's own line about lost lines besides."""
    rows = table("operations.md", "event", "level", "fields", "means")
    told = {code(event)[0]: (level, set(code(fields))) for event, level, fields, _ in rows}
    assert told.pop("logs.dropped") == ("warning", {"total"})
    assert '"logs.dropped"' in read(PACKAGE / "logs.py")
    assert told == logged()


@pytest.mark.parametrize(
    ("document", "header", "reasons"),
    [
        ("protocol.md", ("reason", "means"), Unavailable),
        ("protocol.md", ("reason", "what happened", "what follows"), GapReason),
        ("publishing.md", ("reason", "the message"), RejectReason),
        ("operations.md", ("reason", "means", "do"), CloseReason),
        ("operations.md", ("reason", "reached", "do"), Refusal),
        ("operations.md", ("reason", "what it did", "do"), DropReason),
        ("operations.md", ("reason", "the client", "status"), AccessFailure),
    ],
)
def test_the_reasons_are_those_of_the_code(document: str, header: tuple[str, ...], reasons: type[StrEnum]) -> None:
    """A row for each member, and no other."""
    assert sorted(code(row[0])[0] for row in table(document, *header)) == sorted(reasons)


def test_outcomes_and_policies_are_named() -> None:
    """What `replay` says, and what a queue's policy may be, stand where a reader looks for them."""
    assert set(Replay) <= set(code(read(DOCS / "protocol.md").partition("**`replay`**")[2].partition("**Cursor.**")[0]))
    assert set(Policy) <= set(code(read(ROOT / "CHANGELOG.md")))


def test_exit_codes_are_those_of_the_code() -> None:
    """Each constant has its row."""
    module = importlib.import_module("sse_gateway.cli")
    codes = sorted(value for name, value in vars(module).items() if name.startswith("EXIT_"))
    assert [int(row[0]) for row in table("operations.md", "code", "means")] == codes


def test_the_bounds_of_memory_are_those_of_the_code() -> None:
    """Every number that names its constant has the constant's value."""
    text = read(DOCS / "memory.md")
    found = re.findall(r"([0-9,]+)(?: bytes| characters)?\s+\(`(\w+)\.([A-Z_]+)`\)", text)
    assert len(found) > 10
    for number, module, name in found:
        assert getattr(importlib.import_module(f"sse_gateway.{module}"), name) == int(number.replace(",", ""))
    assert "8 MiB (`limits.Limits.pass_bytes`)" in text
    assert Limits.__dataclass_fields__["pass_bytes"].default == 8 << 20


def test_the_invariants_are_tested_where_the_table_says() -> None:
    """The named modules exist, and the named tests cite the number."""
    rows = table("architecture.md", "", "rule", "kept in", "tested in")
    assert [row[0] for row in rows] == [f"I{number}" for number in range(1, 12)]
    for number, _, modules, tests in rows:
        assert all((PACKAGE / f"{module}.py").is_file() for module in code(modules))
        for test in code(tests):
            assert re.search(rf"\b{number}\b", read(ROOT / "tests" / test)), f"{test} does not cite {number}"


def test_the_layers_name_every_module() -> None:
    """No more and no fewer than there are."""
    text = read(DOCS / "architecture.md").partition("## Layers")[2].split("```")[1]
    named = set(re.findall(r"(?<= )[a-z_]+", re.sub(r"(?m)^\d \w+", "", text)))
    modules = {re.sub(r"^demo_\w+", "demo", path.stem) for path in PACKAGE.glob("*.py")}
    assert named == modules - {"__init__", "__main__"}


def test_threats_are_held_where_the_tables_say() -> None:
    """Each has modules that exist and tests that exist; or a reason, where there is no test."""
    header = ["", "threat", "what holds", "where", "tried by"]
    rows = [row for cells, found in tables("security.md") if cells == header for row in found]
    assert len(rows) > 50
    assert len({row[0] for row in rows}) == len(rows)
    for number, threat, holds, modules, tests in rows:
        assert threat
        assert len(holds) > 3
        assert all((PACKAGE / f"{module}.py").is_file() for module in code(modules)), number
        assert code(tests) or tests == "—", number
        for test in code(tests):
            file, _, name = test.partition("::")
            assert re.search(rf"(?m)^(async )?def {name}\(", read(ROOT / file)), f"{number}: no {test}"


def test_commands_exist() -> None:
    """Scripts can be run, subcommands are there, and the two commands stand in the README."""
    for path in PAGES:
        text = read(path)
        for script in re.findall(r"\bscripts/\w+", text):
            assert os.access(ROOT / script, os.X_OK), f"{path.name}: {script}"
        for fence in re.findall(r"```console\n(.*?)```", text, re.DOTALL) + code(text):
            for command in re.findall(r"\bsse-gateway ([a-z][a-z-]*)\b", fence):
                assert command in commands.commands, f"{path.name}: sse-gateway {command}"
    assert {"scripts/demo", "scripts/test"} <= set(
        re.findall(r"^\$ (scripts/\w+)", read(ROOT / "README.md"), re.MULTILINE)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    """Relative links resolve, and files of the repository that are named exist."""
    text = read(page)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for named in re.findall(r"`((?:tests|docs|config|sse_gateway|nginx|systemd|benchmarks)/[\w./-]*)`", text):
        assert (ROOT / named).exists(), named


def test_every_benchmark_is_explained_and_has_its_place_among_the_results() -> None:
    """A scenario without a row in its README cannot be asked for by a newcomer; one without marks would be measured for nothing."""
    explained = re.findall(r"^\| `(\w+)` \|", read(ROOT / "benchmarks" / "README.md"), re.MULTILINE)
    places = re.findall(r"<!-- measured (\w+) -->\n(?:.*\n)*?<!-- end \1 -->", read(DOCS / "performance.md"))
    assert set(SCENARIOS) <= set(explained), set(SCENARIOS) - set(explained)
    assert sorted(places) == sorted([*SCENARIOS, "about", "targets", "capacity"])


def test_decisions_are_listed() -> None:
    """The architecture's list is the folder, and each fits on a page."""
    text = read(DOCS / "architecture.md")
    for path in (DOCS / "decisions").glob("*.md"):
        assert f"(decisions/{path.name})" in text
        assert read(path).startswith(f"# {path.name[:4]}: ")
        assert len(read(path).splitlines()) <= 60


def test_documents_speak_of_this_repository_alone() -> None:
    """No address of a package registry, no path of somebody's machine, no page that a reader does not have."""
    foreign = re.compile(
        "|".join(["py" + r"pi\.", "python" + "hosted", "/wo" + "rk/", "/ro" + "ot/", "DESIGN" + r"\.md"])
    )
    folders = ["scripts", "config", "nginx", "systemd", ".ci", "sse_gateway", "docs"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in [*PAGES, *files, *ROOT.glob("*.lock"), ROOT / "pyproject.toml"]:
        if not {"__pycache__", ".mypy_cache"} & set(path.parts):
            assert not foreign.search(path.read_text(encoding="utf-8", errors="replace")), path
    for page in PAGES:
        assert not re.search(r"\bcontract\b|\bpart [12]\b|\b\d\.\d of\b", read(page)), page
