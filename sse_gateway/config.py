"""The configuration: from a file and the environment to `Settings`, or to every problem at once.

A problem is one line, ``FILE:LINE:COL: key: what is wrong``, or ``env NAME: key: …`` for a value from
the environment. None of them quotes a value: it might be a secret in the wrong place.
"""

from __future__ import annotations

import copy
import difflib
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from sse_gateway.conflicts import find_conflicts
from sse_gateway.document import Document, Key, Place, name_of, read_document
from sse_gateway.errors import ConfigError
from sse_gateway.overrides import apply_overrides
from sse_gateway.quantities import format_size
from sse_gateway.settings import Settings, item_of, keys_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic_core import ErrorDetails

    from sse_gateway.auth_settings import AuthSettings
    from sse_gateway.conflicts import Conflict

__all__ = ["Settings", "effective_yaml", "load_settings", "settings_schema"]

_SENTENCES = {
    "missing": "is required",
    "model_type": "must be a mapping of keys",
    "tuple_type": "must be a list",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": "must be text: put it in quotes",
    "string_unicode": "must be UTF-8",
    "path_type": "must be a path",
    "enum": "must be {expected}",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}
"""pydantic's kinds of errors in our words."""

_NO_AUTH = "is required and has no default: write `auth: {mode: none}` if everyone may read everything"

_STAND_INS: dict[str, object] = {"auth": {"mode": "none"}, "mode": "none", "pattern": "*"}
"""What a required key holds while the rest is judged."""

_STAND_IN_ITEMS: dict[object, object] = {
    "channels": {"pattern": "*"},
    "origins": "https://stand-in.example",
    "trusted_proxies": "unix",
    "algorithms": "HS256",
    "headers": "Authorization",
    "cookies": "stand-in",
}
"""Likewise an item of a list."""


def load_settings(path: Path, env: Mapping[str, str]) -> Settings:
    """Read and judge a configuration.

    Args:
        path: A YAML file.
        env: The environment; ``SSE_GATEWAY__SECTION__KEY`` overrides the file.

    Raises:
        ConfigError: Every problem found, in the order of the file, those of the environment last.
    """
    return _load(read_document(path), env)


def load_environment(env: Mapping[str, str]) -> Settings:
    """Settings without a file: all that is not in the environment is at its default, but for tokens being asked for.

    Raises:
        ConfigError: As `load_settings`.
    """
    document = Document(Place("the environment"))
    document.value = {"auth": {"mode": "jwt"}}
    return _load(document, env)


def _load(document: Document, env: Mapping[str, str]) -> Settings:
    apply_overrides(document, env)
    settings = _judge(document)
    for conflict in find_conflicts(settings):
        _report_conflict(document, conflict)
    _judge_key_file(document, settings.auth)
    if document.problems:
        raise ConfigError([str(problem) for problem in sorted(document.problems, key=lambda p: _order(p.place))])
    return settings


def effective_yaml(settings: Settings) -> str:
    """The settings as a configuration that could be loaded again, every secret as ``***``."""
    tree = settings.model_dump(mode="json", by_alias=True)
    for listener in (tree["listen"], tree["admin"]):
        for name in ("host", "port") if listener["unix"] else ("unix",):
            del listener[name]
    # ASCII only: YAML folds some line breaks of Unicode, unless they are escaped.
    sections = {name: yaml.safe_dump({name: tree[name]}, sort_keys=False) for name in tree}
    sections["limits"] = f"# {_window_sum(settings)}\n{sections['limits']}"
    return "".join(sections.values())


def settings_schema() -> dict[str, object]:
    """The JSON Schema (2020-12) of the YAML file, for editors; it knows no rule that spans two keys."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | Settings.model_json_schema(by_alias=True)


def _window_sum(settings: Settings) -> str:
    """What all workers together may hold in their windows."""
    per_worker = settings.limits.window_memory_bytes
    workers = settings.worker_count
    total = format_size(workers * per_worker)
    return f"window_memory holds per worker: {workers} x {format_size(per_worker)} = {total}"


def _order(place: Place) -> tuple[bool, int, int, str]:
    return (not place.line, place.line, place.column, place.origin)


def _judge(document: Document) -> Settings:
    """The settings of `document`, which keeps the problems.

    A wrong value is reported, and then judging begins again with its default in its place, so that
    what remains can be judged as a whole. Each round takes away at least one value, and what is
    wrong at one level hides only what is inside.
    """
    tree = copy.deepcopy(document.value)
    while True:
        try:
            return Settings.model_validate(tree)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                document.report(detail["loc"], _sentence(detail))
                _mend(tree, detail)


def _sentence(detail: ErrorDetails) -> str:
    """What is wrong, in our words."""
    kind, key, context = detail["type"], detail["loc"], detail.get("ctx", {})
    if key == ("auth",) and kind == "missing":
        return _NO_AUTH
    if kind == "extra_forbidden":
        return _unknown(key)
    if detail["input"] is None:
        return "is empty: give it a value, or remove the key"
    if kind == "value_error":
        return str(context["error"])
    return _SENTENCES.get(kind, "is not valid").format(**context)


def _unknown(key: Key) -> str:
    """What to say of a key that no section has."""
    shape: object = Settings
    for word in key[:-1]:
        shape = item_of(shape) if isinstance(word, int) else keys_of(shape)[word]
    known = keys_of(shape)
    near = difflib.get_close_matches(str(key[-1]), known, n=1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known here: {', '.join(known)}"


def _mend(tree: Any, detail: ErrorDetails) -> None:  # noqa: ANN401 - whatever the file holds
    """Put something sound where a value is wrong, or nothing, so that its default holds."""
    *outer, last = detail["loc"]
    for word in outer:
        tree = tree[word]
    if isinstance(last, int):
        tree[last] = copy.deepcopy(_STAND_IN_ITEMS[outer[-1]])
    elif last in _STAND_INS and detail["type"] != "extra_forbidden":
        tree[last] = copy.deepcopy(_STAND_INS[last])
    else:
        del tree[last]


def _report_conflict(document: Document, conflict: Conflict) -> None:
    """Report it at the first of its keys that was written, unless a part of it is wrong by itself."""
    if any(map(document.is_spoiled, (*conflict.keys, *conflict.because))):
        return
    keys = sorted(conflict.keys, key=lambda key: key not in document.places)
    seen = "; ".join(f"compare {name_of(key)} ({_brief(document, key)})" for key in keys[1:])
    document.report(keys[0], f"{conflict.text}; {seen}" if seen else conflict.text, spoils=False)


def _judge_key_file(document: Document, auth: AuthSettings) -> None:
    """Judge what is in the file of the public key: part of the configuration, wherever it lies."""
    key: Key = ("auth", "public_key_file")
    if auth.mode != "jwt" or auth.public_key_file is None:
        return
    from sse_gateway.keys import key_of_file  # noqa: PLC0415 - cryptography takes its time, and few need it here

    try:
        key_of_file(auth.public_key_file, auth.algorithms)
    except ConfigError as error:
        document.report(key, error.problems[0].removeprefix("auth.public_key_file: "))


def _brief(document: Document, key: Key) -> str:
    return document.places[key].brief if key in document.places else "default"
