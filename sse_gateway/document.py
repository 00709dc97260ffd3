"""A YAML file as values that know their places.

Rules:
    - YAML 1.2's plain scalars, not YAML 1.1's: ``true`` and ``false`` are the only booleans, whole
      numbers are decimal; ``no``, ``012``, ``1:30``, ``1.5`` and dates are text.
    - A duplicate key, an anchor, an alias or a tag is a problem: none has a use here, and each has
      a known attack (last one wins, expansion, object construction).
    - Built from libyaml's events, so that depth is bounded before anything recurses.
    - Every problem is kept, not just the first. No message quotes the file: it may hold secrets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from sse_gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Key = tuple[str | int, ...]
"""Where a value is: keys of mappings and indexes of lists, from the root."""

Value = None | bool | int | str | list["Value"] | dict[str, "Value"]

MAX_FILE_BYTES = 1 << 20
"""1 MiB: hundreds of rules with a comment each; a larger file is refused unread."""

MAX_DEPTH = 16
"""Levels of nesting: three times what the configuration has; deeper is refused at once."""

_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written.

    Attributes:
        origin: Name of the file, or ``env NAME``.
        line: From 1; 0 in the environment.
        column: From 1, in characters; 0 in the environment.
    """

    origin: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.origin}:{self.line}:{self.column}" if self.line else self.origin

    @property
    def brief(self) -> str:
        """The place as seen from the same file."""
        return f"line {self.line}" if self.line else self.origin


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        place: Where it was written.
        name: The key, with dots.
        text: What is wrong, and what to write instead.
    """

    place: Place
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.name}: {self.text}"


class Document:
    """A tree of values, the place of each, and what is wrong with it."""

    def __init__(self, root: Place) -> None:
        # The tree.
        self.value: Value = {}
        # The place of every key and list item; the root's is the start of the file.
        self.places: dict[Key, Place] = {(): root}
        # In the order found.
        self.problems: list[Problem] = []
        # Keys whose value is not what the operator meant: nothing more can be said about it.
        self.spoiled: set[Key] = set()

    def place(self, key: Key) -> Place:
        """The place of `key`, or of the nearest thing around it that was written."""
        while key not in self.places:
            key = key[:-1]
        return self.places[key]

    def report(self, key: Key, text: str, *, spoils: bool = True) -> None:
        """Note a problem at the place of `key`; one that `spoils` silences every later one in its value."""
        if self.is_spoiled(key):
            return
        self.problems.append(Problem(self.place(key), name_of(key), text))
        if spoils:
            self.spoiled.add(key)

    def claim(self, key: Key, place: Place) -> None:
        """Forget what was said of `key` and of what is inside: its value now comes from `place`."""
        inside = {other for other in (*self.places, *self.spoiled) if other[: len(key)] == key}
        self.spoiled -= inside
        for other in inside:
            self.places.pop(other, None)
        self.places[key] = place
        for length in range(1, len(key)):
            self.places.setdefault(key[:length], place)

    def is_spoiled(self, key: Key) -> bool:
        """Whether a value is already known to be wrong, as a whole or with what is around it."""
        return any(key[:length] in self.spoiled for length in range(len(key) + 1))


def name_of(key: Key) -> str:
    """A key with dots, as in ``channels.0.pattern``; what is no plain word may be a secret and is not shown."""
    return ".".join(word if _KEY.fullmatch(word) else "(key)" for word in map(str, key)) or "file"


def read_document(path: Path) -> Document:
    """Read a configuration file.

    Raises:
        ConfigError: Nothing can be said of the values: unreadable, too large, not UTF-8, not YAML,
            empty, not a mapping. Other problems are in the document.
    """
    document = Document(Place(str(path), 1, 1))
    try:
        text = _read_text(path)
        reader = _Reader(document, text, lambda line, column: Place(str(path), line, column))
        value = reader.read(())
    except _UnreadableError as error:
        document.problems.append(Problem(Place(str(path), error.line, error.column), error.name, error.text))
        raise ConfigError([str(problem) for problem in document.problems]) from None
    if not isinstance(value, dict):
        what = "is empty" if value is None else "must be a mapping of keys"
        document.report((), f"{what}; the shortest configuration is `auth: {{mode: none}}`")
        raise ConfigError([str(problem) for problem in document.problems])
    document.value = value
    return document


def read_value(document: Document, key: Key, text: str) -> Value:
    """Read a value that was given outside the file as YAML; problems are reported at the place of `key`."""
    place = document.place(key)
    try:
        return _Reader(document, text, lambda _line, _column: place).read(key)
    except _UnreadableError as error:
        document.report(key, f"is not YAML: {error.text}")
        return None


def read_scalar(text: str) -> Value:
    """Read one value that was given outside the file: quoted or plain as in YAML, but nothing in it is syntax.

    So ``sse:``, ``[ab]*`` and ``a # b`` are text. Empty text is text, not null.
    """
    if text[:1] not in {"'", '"'}:
        return resolve(text) if text else text
    scratch = Document(Place(""))
    value = read_value(scratch, (), text)
    return value if isinstance(value, str) and not scratch.problems else text


def resolve(text: str) -> Value:
    """What a plain scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    return int(text) if _INTEGER.fullmatch(text) else text


class _UnreadableError(Exception):
    """The text cannot be read on."""

    def __init__(self, text: str, *, line: int = 1, column: int = 1, name: str = "yaml") -> None:
        super().__init__(text)
        self.text, self.line, self.column, self.name = text, line, column, name


class _Reader:
    """Builds the values of one text, one event after the other."""

    def __init__(self, document: Document, text: str, locate: Callable[[int, int], Place]) -> None:
        self._document = document
        self._events = _events(text)
        self._locate = locate

    def read(self, key: Key) -> Value:
        """The value of the whole text, put at `key`; None for no text."""
        next(self._events)  # the start of the stream
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), key)
        next(self._events)  # the end of the document
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            line, column = _start(event)
            raise _UnreadableError("only one document is accepted", line=line, column=column)
        return value

    def _value(self, event: yaml.Event, key: Key) -> Value:
        if len(key) > MAX_DEPTH:
            line, column = _start(event)
            raise _UnreadableError(f"nested more than {MAX_DEPTH} levels deep", line=line, column=column)
        self._refuse_extras(event, key)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(key)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(key)
        if isinstance(event, yaml.ScalarEvent):
            return resolve(event.value) if event.implicit[0] else event.value
        return None  # an alias, which has been reported

    def _sequence(self, key: Key) -> Value:
        items: list[Value] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            item = (*key, len(items))
            self._document.places[item] = self._locate(*_start(event))
            items.append(self._value(event, item))
        return items

    def _mapping(self, key: Key) -> Value:
        members: dict[str, Value] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            place = self._locate(*_start(event))
            word = self._word(event, key, place)
            if word is None or word in members:
                if word is not None:
                    self._refuse_duplicate((*key, word), place)
                self._skip((*key, word or "(key)"))
                continue
            member = (*key, word)
            self._document.places[member] = place
            members[word] = self._value(next(self._events), member)
        return members

    def _word(self, event: yaml.Event, key: Key, place: Place) -> str | None:
        """The text of a key; None, and a problem, for what is none."""
        if isinstance(event, yaml.ScalarEvent) and event.anchor is None and event.tag is None:
            return event.value
        problem = Problem(place, name_of((*key, "(key)")), "a key must be plain text, without anchor, alias or tag")
        self._document.problems.append(problem)
        if not isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
            self._skip((*key, "(key)"), event)
        return None

    def _skip(self, key: Key, event: yaml.Event | None = None) -> None:
        """Read a value that nobody will use, for its end, and for problems of its own."""
        kept = self._document.places, set(self._document.spoiled)
        around = (key[:length] for length in range(len(key) + 1))
        self._document.places = {outer: self._document.place(outer) for outer in around}
        self._value(event or next(self._events), key)
        self._document.places, self._document.spoiled = kept

    def _refuse_duplicate(self, key: Key, place: Place) -> None:
        text = f"duplicate key; the first is at {self._document.place(key).brief}"
        self._document.problems.append(Problem(place, name_of(key), text))

    def _refuse_extras(self, event: yaml.Event, key: Key) -> None:
        """Report an alias, an anchor or a tag."""
        if isinstance(event, yaml.AliasEvent):
            self._document.report(key, "aliases are not accepted; quote the value if it is text that begins with *")
        elif getattr(event, "anchor", None) is not None:
            text = "anchors are not accepted; quote the value if it is text that begins with &"
            self._document.report(key, text, spoils=False)
        elif getattr(event, "tag", None) is not None:
            text = "tags are not accepted; quote the value if it is text that begins with !"
            self._document.report(key, text, spoils=isinstance(event, yaml.ScalarEvent))


def _read_text(path: Path) -> str:
    """The text of a file, its byte order mark removed."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise _UnreadableError(f"cannot be read: {reason}", name="file") from None
    if len(data) > MAX_FILE_BYTES:
        raise _UnreadableError(f"is larger than {MAX_FILE_BYTES >> 20} MiB", name="file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _line_column(data, error.start)
        raise _UnreadableError("is not UTF-8 from here on", line=line, column=column, name="file") from None


def _events(text: str) -> Iterator[yaml.Event]:
    """The events of a text; its errors as ours."""
    try:
        yield from yaml.parse(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        sentence = " ".join(part for part in (error.problem, error.context) if part)
        raise _UnreadableError(sentence, line=line, column=column) from None
    except yaml.reader.ReaderError as error:
        line, column = _line_column(text.encode(), error.position)
        raise _UnreadableError(str(error.reason), line=line, column=column) from None
    except UnicodeEncodeError:
        raise _UnreadableError("is not UTF-8") from None


def _start(event: yaml.Event) -> tuple[int, int]:
    """Line and column, from 1, of an event."""
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _line_column(data: bytes, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of a byte."""
    before: Sequence[bytes] = data[:offset].split(b"\n")
    return len(before), len(before[-1].decode(errors="replace")) + 1
