"""Settings from the environment: ``SSE_GATEWAY__SECTION__KEY``.

Rules:
    - A variable replaces the value of the file, which is then not judged; problems name the variable.
    - A variable for one value holds it as in YAML (quotes allowed), but nothing in it is syntax;
      one for a list or a section holds YAML: ``[a, b]``, ``{host: ::1}``.
    - ``…__CHANNELS__0__QUEUE__POLICY`` reaches into a list; the index after the last one appends.
    - ``…__FILE`` names a file that holds a secret; one newline at its end is not part of it.
    - A variable with the prefix that sets nothing is a problem: a misspelt override must not be silent.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pydantic import SecretStr

from sse_gateway.document import Document, Key, Place, Problem, Value, read_scalar, read_value
from sse_gateway.settings import DEFAULT_RULE, Settings, item_of, keys_of

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "SSE_GATEWAY__"

_FILE = "FILE"
_MAX_SECRET_BYTES = 1 << 16


def apply_overrides(document: Document, env: Mapping[str, str]) -> None:
    """Put the values of the environment into `document`, which keeps the problems."""
    names = (name for name in env if name.startswith(PREFIX))
    for name in sorted(names, key=_order):
        place = Place(f"env {name}")
        segments = name.removeprefix(PREFIX).split("__")
        found = _find(segments)
        if found is not None:
            _override(document, found, place, env[name])
        elif segments[-1] == _FILE and (found := _find(segments[:-1])) and _is_secret(found[1]):
            _override_secret(document, found[0], place, env)
        else:
            document.problems.append(Problem(place, _name(segments), _unknown(segments)))


def _order(name: str) -> list[tuple[int, str]]:
    """Sections before what is in them, and list items in their order."""
    return [(int(word), "") if _is_index(word) else (0, word) for word in name.split("__")]


def _find(segments: list[str]) -> tuple[Key, object] | None:
    """The key that the words of a variable name, and the shape of its value."""
    shape: object = Settings
    key: Key = ()
    for word in segments:
        name: str | int
        if _is_index(word) and item_of(shape) is not None:
            name, shape = int(word), item_of(shape)
        elif word == word.upper() and word.lower() in keys_of(shape):
            name, shape = word.lower(), keys_of(shape)[word.lower()]
        else:
            return None
        key = (*key, name)
    return key, shape


def _is_secret(shape: object) -> bool:
    """Whether a value of this shape is a secret, or one that may be left out."""
    return shape is SecretStr or any(SecretStr in get_args(inner)[:1] for inner in get_args(shape))


def _is_index(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < 6


def _name(segments: list[str]) -> str:
    """The key that the words seem to mean."""
    return ".".join(segments).lower() or "(none)"


def _unknown(segments: list[str]) -> str:
    """What to say of a variable that sets nothing."""
    if segments[-1] == _FILE and segments[1:] and _find(segments[:-1]):
        return "is not a secret: set its value, without __FILE"
    return "unknown key: no setting has this name"


def _override(document: Document, found: tuple[Key, object], place: Place, text: str) -> None:
    """Put one value; `found` is its key and its shape."""
    key, shape = found
    document.claim(key, place)
    structured = bool(keys_of(shape)) or item_of(shape) is not None
    _put(document, key, read_value(document, key, text) if structured else read_scalar(text))


def _override_secret(document: Document, key: Key, place: Place, env: Mapping[str, str]) -> None:
    """Put a secret that a file holds."""
    name = place.origin.removeprefix("env ")
    twin = name.removesuffix(f"__{_FILE}")
    document.claim(key, place)
    if twin in env:
        document.report(key, f"is given twice: {twin} is set too")
        return
    try:
        _put(document, key, _read_secret(Path(env[name])))
    except OSError as error:
        document.report(key, f"the file of the secret cannot be read: {error.strerror}")
    except ValueError:
        document.report(key, f"the file of the secret must be UTF-8 text of at most {_MAX_SECRET_BYTES} bytes")


def _read_secret(path: Path) -> str:
    """The text of a secret's file.

    Raises:
        OSError: Not to be read.
        ValueError: Too large, not UTF-8, or no file name.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_SECRET_BYTES + 1)
    if len(data) > _MAX_SECRET_BYTES:
        raise ValueError
    return data.decode().removesuffix("\n").removesuffix("\r")


def _put(document: Document, key: Key, value: Value) -> None:
    """Set a value, with the sections and lists around it."""
    try:
        document.value = _with(document.value, key, value)
    except IndexError as error:
        document.report(key, f"an index too far: {error}")
    except TypeError:
        pass  # the file has something else in the way, and that is reported when it is judged


def _with(tree: Value, key: Key, value: Value) -> Value:
    """`tree` with `value` at `key`.

    Raises:
        IndexError: A list would have a hole.
        TypeError: Neither a section nor a list is where one has to be.
    """
    if not key:
        return value
    name, rest = key[0], key[1:]
    if isinstance(name, str) and isinstance(tree, dict | None):
        members = tree or {}
        return {**members, name: _with(members.get(name, _default(name, rest)), rest, value)}
    if isinstance(name, int) and isinstance(tree, list | None):
        items = tree or []
        if name > len(items):
            raise IndexError(f"the next of this list is {len(items)}")
        inner = items[name] if name < len(items) else None
        return [*items[:name], _with(inner, rest, value), *items[name + 1 :]]
    raise TypeError


def _default(name: str, rest: Key) -> Value:
    """What a key that the file leaves out holds before something inside it is set."""
    return [dict(DEFAULT_RULE)] if name == "channels" and rest else None
