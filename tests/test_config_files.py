"""The files that operators copy agree with the code."""

from __future__ import annotations

import json
from pathlib import Path

from sse_gateway.config import Settings, effective_yaml, load_settings, settings_schema
from sse_gateway.document import Key, read_document
from sse_gateway.settings import item_of, keys_of

CONFIG = Path(__file__).parent.parent / "config"
EXAMPLE = CONFIG / "sse-gateway.yaml"
SCHEMA = CONFIG / "sse-gateway.schema.json"


def every_key(shape: object, key: Key = ()) -> set[Key]:
    """The keys of a shape and of all inside it; a list has one item."""
    item = item_of(shape)
    if item is not None:
        return every_key(item, (*key, 0)) if keys_of(item) else set()
    inner = keys_of(shape)
    return {(*key, name) for name in inner}.union(*(every_key(inner[name], (*key, name)) for name in inner))


def test_the_example_is_the_defaults() -> None:
    """Loading it changes nothing; only `auth` has to be said."""
    assert load_settings(EXAMPLE, {}) == Settings.model_validate({"auth": {"mode": "none"}})


def test_the_example_shows_every_key_and_says_why() -> None:
    """Each key stands on a line of its own, and each section has a reason beside it."""
    places = read_document(EXAMPLE).places
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    expected = every_key(Settings)
    assert len(expected) > 50
    assert expected <= places.keys()
    assert len({places[key].line for key in expected}) == len(expected)
    undocumented = [key for key in expected if " # " not in lines[places[key].line - 1]]
    assert {key[-1] for key in undocumented} <= {
        "redis",
        "cluster",
        "stream",
        "limits",
        "shutdown",
        "cors",
        "port",
        "max_events",
    }


def test_the_example_writes_defaults_as_the_gateway_shows_them() -> None:
    """One spelling of each value, so that the two can be compared line by line."""
    lines = EXAMPLE.read_text(encoding="utf-8").replace('"', "").splitlines()
    example = {line.partition(" #")[0].strip().removeprefix("- ") for line in lines}
    for line in effective_yaml(load_settings(EXAMPLE, {})).replace("'", "").splitlines():
        assert line.startswith("#") or line.strip().removeprefix("- ") in example


def test_editors_find_the_schema() -> None:
    """The first line of the example names it, relative to itself."""
    first = EXAMPLE.read_text(encoding="utf-8").partition("\n")[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA.name}"


def test_the_schema_is_the_codes() -> None:
    """The committed file is what the code says, byte for byte."""
    expected = json.dumps(settings_schema(), indent=2, ensure_ascii=False) + "\n"
    assert SCHEMA.read_text(encoding="utf-8") == expected
