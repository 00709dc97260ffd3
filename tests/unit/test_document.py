from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st

from sse_gateway.document import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    Document,
    Place,
    Value,
    name_of,
    read_document,
    read_scalar,
    read_value,
)
from sse_gateway.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def read(folder: Path, text: str | bytes) -> Document:
    """The document of a file with `text`."""
    path = folder / "gw.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_document(path)


def problems(folder: Path, text: str | bytes) -> list[str]:
    """Every problem of a file with `text`, without the folder's name."""
    try:
        found = [str(problem) for problem in read(folder, text).problems]
    except ConfigError as error:
        found = list(error.problems)
    return [problem.removeprefix(f"{folder}/") for problem in found]


def test_values_know_their_places(tmp_path: Path) -> None:
    """Line and column, from 1, of a key or a list item; of the nearest thing around it for what is not there."""
    document = read(tmp_path, "a: 1\nb:\n  é: {c: [x, y]}\n")
    assert document.value == {"a": 1, "b": {"é": {"c": ["x", "y"]}}}
    assert str(document.place(("b", "é", "c", 1))).endswith("gw.yaml:3:14")
    assert document.place(("b", "é", "nothing")).brief == "line 3"
    assert (document.place(("z",)).line, document.place(("z",)).column) == (1, 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-7", -7),
        ("65536", 65536),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("True", "True"),
        ("012", "012"),
        ("0o12", "0o12"),
        ("0x1F", "0x1F"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("1.5", "1.5"),
        (".inf", ".inf"),
        ("2026-01-01", "2026-01-01"),
        ("<<", "<<"),
        ("=", "="),
        ("9" * 5000, "9" * 5000),
        ("'true'", "true"),
        ('"12"', "12"),
        ("|-\n  12", "12"),
    ],
)
def test_only_plain_true_false_null_and_decimal_numbers_are_not_text(tmp_path: Path, text: str, value: Value) -> None:
    """YAML 1.1's other booleans, octal and base-60 numbers, floats and dates mean what they look like: text."""
    document = read(tmp_path, f"a: {text}\n")
    assert document.value == {"a": value}
    assert type(document.value["a"]) is type(value)
    assert not document.problems


def test_a_duplicate_key_names_both_lines(tmp_path: Path) -> None:
    """The first value stays, and problems inside the second are still found."""
    document = read(tmp_path, "log: {level: info}\nlog: {level: [1, 2], level: 2, x: *y}\n")
    assert document.value == {"log": {"level": "info"}}
    assert [str(problem).partition(":")[2] for problem in document.problems] == [
        "2:1: log: duplicate key; the first is at line 1",
        "2:22: log.level: duplicate key; the first is at line 2",
        "2:32: log.x: aliases are not accepted; quote the value if it is text that begins with *",
    ]
    assert document.place(("log", "level")).line == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &hunter2 [x]\nb: *hunter2", ["1:1: a: anchors are", "2:1: b: aliases are"]),
        ("a: &x {b: *x}", ["1:1: a: anchors are", "1:8: a.b: aliases are"]),
        ("a: !!python/object/apply:os.system [hunter2]", ["1:1: a: tags are"]),
        ("a: !!python/name:hunter2 ''", ["1:1: a: tags are"]),
        ("a: !hunter2", ["1:1: a: tags are"]),
        ("a: !!str 012", ["1:1: a: tags are"]),
        ("? [hunter2, {a: b}]\n: x", ["1:3: (key): a key must be plain text"]),
        ("? {a: b}\n: x", ["1:3: (key): a key must be plain text"]),
        ("&a k: 1", ["1:1: (key): a key must be plain text"]),
        ("!!str k: 1", ["1:1: (key): a key must be plain text"]),
        ("a: &a 1\n*a : 2", ["1:1: a: anchors are", "2:1: (key): a key must be plain text"]),
    ],
)
def test_anchors_aliases_tags_and_odd_keys_are_problems(tmp_path: Path, text: str, expected: list[str]) -> None:
    """Each is told at its line, none is followed, and what was written is not quoted."""
    found = problems(tmp_path, text)
    for problem, start in zip(found, expected, strict=False):
        assert problem.startswith(f"gw.yaml:{start}")
    assert len(found) >= len(expected)
    assert "hunter2" not in "".join(found)


def test_problems_before_the_end_of_sense_are_kept(tmp_path: Path) -> None:
    """A syntax error does not hide what was found above it."""
    assert len(problems(tmp_path, "a: 1\na: 2\nb: *c\nd: [\n")) == 3


def test_an_alias_bomb_stays_small(tmp_path: Path) -> None:
    """Nothing is expanded."""
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    document = read(tmp_path, "\n".join(lines))
    assert isinstance(document.value, dict)
    assert document.value["a59"] == [None, None]


@pytest.mark.parametrize("text", ["a: " + "[" * 1_000_000, "{a: " * 200_000, "- " * 500_000, "? " * 500_000])
def test_nesting_is_refused_before_anything_recurses(tmp_path: Path, text: str) -> None:
    """A million levels end like the seventeenth."""
    *_, problem = problems(tmp_path, text)
    assert problem.endswith(f"yaml: nested more than {MAX_DEPTH} levels deep")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "1:1: file: is empty"),
        ("# nothing\n", "1:1: file: is empty"),
        ("---\n", "1:1: file: is empty"),
        ("null", "1:1: file: is empty"),
        ("- a\n", "1:1: file: must be a mapping"),
        ("hunter2", "1:1: file: must be a mapping"),
        ("a: 1\n---\nb: 2\n", "2:1: yaml: only one document"),
        ("a: 1\nb: [\n", "3:1: yaml: "),
        ("a: b: hunter2", "1:5: yaml: mapping values"),
        ("a: @hunter2", "1:4: yaml: "),
        ("a: %hunter2", "1:4: yaml: "),
        ("\ta: 1", "1:1: yaml: "),
        ("a: 'x", "1:6: yaml: "),
        ("a: x\nb: é\x01", "2:5: yaml: control characters"),
        ("%TAG hunter2\n---\na: 1", "1:"),
        (b"a: 1\n\xc3\xa9\xff: 2", "2:2: file: is not UTF-8"),
        ("a: 1".encode("utf-16"), "1:1: file: is not UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), "1:1: file: is larger than 1 MiB"),
    ],
)
def test_what_cannot_be_read_is_one_problem_with_its_place(tmp_path: Path, text: str | bytes, start: str) -> None:
    """Syntax, encoding, size and shape are told like any other problem, and nothing is quoted."""
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(f"gw.yaml:{start}")
    assert "hunter2" not in problem


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b"])
def test_a_file_that_cannot_be_opened_is_a_problem(tmp_path: Path, name: str) -> None:
    """Not there, a folder, no name at all."""
    with pytest.raises(ConfigError, match=":1:1: file: cannot be read: "):
        read_document(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    assert read(tmp_path, b"\xef\xbb\xbfa: 1").value == {"a": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ""),
        ("true", True),
        ("8080", 8080),
        ("null", None),
        ("sse:", "sse:"),
        ("*", "*"),
        ("[ab]*", "[ab]*"),
        ("{a}", "{a}"),
        ("a # b", "a # b"),
        ("&a", "&a"),
        ("!x", "!x"),
        ("'12'", "12"),
        ('"a\\tb"', "a\tb"),
        ("'it", "'it"),
        ("'a': b", "'a': b"),
        ("'\udcff'", "'\udcff'"),
    ],
)
def test_a_single_value_is_plain_or_quoted_and_never_syntax(text: str, value: Value) -> None:
    """What YAML would take for a mapping, an alias or a comment is text."""
    assert read_scalar(text) == value


def test_a_value_from_elsewhere_has_the_place_it_came_from() -> None:
    """Its problems lie there too, whether it can be read or not."""
    document = Document(Place("gw.yaml", 1, 1))
    document.claim(("cors", "origins"), Place("env X"))
    assert read_value(document, ("cors", "origins"), "[a, *b]") == ["a", None]
    assert read_value(document, ("cors", "origins"), "[a") is None
    assert read_value(document, ("cors", "origins"), "[b") is None  # told once
    assert [str(problem).partition(";")[0] for problem in document.problems] == [
        "env X: cors.origins.1: aliases are not accepted",
        "env X: cors.origins: is not YAML: did not find expected ',' or ']' while parsing a flow sequence",
    ]
    assert document.place(("cors",)).brief == "env X"


def test_a_claim_forgets_what_was_known_of_the_value(tmp_path: Path) -> None:
    """What the file said of it, and that it was wrong, no longer counts."""
    document = read(tmp_path, "a: {b: *c}\n")
    assert document.is_spoiled(("a", "b", "d"))
    document.claim(("a", "b"), Place("env X"))
    assert not document.is_spoiled(("a", "b", "d"))
    assert document.place(("a", "b")) == Place("env X")
    assert document.place(("a",)).line == 1


def test_a_key_that_is_no_plain_word_is_not_shown() -> None:
    """It may be a URL with a password whose colon slipped."""
    assert name_of(("channels", 0, "max_age")) == "channels.0.max_age"
    assert name_of(("redis", "redis://:hunter2@h")) == "redis.(key)"
    assert name_of(()) == "file"


@given(st.one_of(st.text(), st.text(alphabet="ab:-[]{}&*!|>'\"#%@`?, \n\t")))
def test_any_text_is_a_value_or_a_problem(text: str) -> None:
    """Nothing else comes out of the reader."""
    document = Document(Place("env X"))
    value = read_value(document, (), text)
    assert value is None or not any("is not YAML" in problem.text for problem in document.problems)
