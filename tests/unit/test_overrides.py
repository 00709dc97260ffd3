from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sse_gateway.document import Document, Place, Value
from sse_gateway.overrides import apply_overrides

if TYPE_CHECKING:
    from pathlib import Path


def overlay(value: Value, **env: str) -> Document:
    """A document of a file with `value` and of an environment; names come without their prefix."""
    document = Document(Place("gw.yaml", 1, 1))
    document.value = value
    apply_overrides(document, {f"SSE_GATEWAY__{name}": text for name, text in env.items()})
    return document


def sentences(document: Document) -> list[str]:
    """The problems of a document."""
    return [str(problem) for problem in document.problems]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("WORKERS", "1", {"workers": 1}),
        ("LISTEN__PORT", "8081", {"listen": {"port": 8081}}),
        ("REDIS__CONNECT_TIMEOUT", "2s", {"redis": {"connect_timeout": "2s"}}),
        ("LISTEN__HOST", "::1", {"listen": {"host": "::1"}}),
        ("LISTEN__UNIX", "null", {"listen": {"unix": None}}),
        ("CORS__ORIGINS", "[https://a.example, https://b.example]", {"cors": {"origins": ["https://a.example", "https://b.example"]}}),
        ("CORS__ORIGINS__0", "https://a.example", {"cors": {"origins": ["https://a.example"]}}),
        ("LISTEN", "{host: '::1', port: 80}", {"listen": {"host": "::1", "port": 80}}),
        ("CHANNELS__0__STRIP_PREFIX", "", {"channels": [{"pattern": "sse:*", "strip_prefix": ""}]}),
        ("CHANNELS__0__PATTERN", "*", {"channels": [{"pattern": "*", "strip_prefix": "sse:"}]}),
        ("CHANNELS__1__PATTERN", "b:*", {"channels": [{"pattern": "sse:*", "strip_prefix": "sse:"}, {"pattern": "b:*"}]}),
        ("CHANNELS__0__PREFIX", "false", {"channels": [{"pattern": "sse:*", "strip_prefix": "sse:", "prefix": False}]}),
    ],
)  # fmt: skip
def test_any_key_can_be_set_where_the_file_has_nothing(name: str, text: str, expected: Value) -> None:
    """Sections are made, and a rule that the file leaves out is the default one."""
    document = overlay({}, **{name: text})
    assert document.value == expected
    assert not document.problems


def test_the_environment_wins_over_the_file() -> None:
    """Only the value it names changes, and that one's place."""
    rules: Value = [{"pattern": "a:*"}, {"pattern": "b:*", "queue": {"policy": "latest", "max_events": 5}}]
    document = overlay({"channels": rules, "workers": 1}, CHANNELS__1__QUEUE__POLICY="disconnect", WORKERS="2")
    expected = [{"pattern": "a:*"}, {"pattern": "b:*", "queue": {"policy": "disconnect", "max_events": 5}}]
    assert document.value == {"channels": expected, "workers": 2}
    assert str(document.place(("workers",))) == "env SSE_GATEWAY__WORKERS"
    assert str(document.place(("channels", 1, "queue", "policy"))) == "env SSE_GATEWAY__CHANNELS__1__QUEUE__POLICY"


def test_a_section_is_set_before_what_is_inside_it() -> None:
    """The order of the environment does not matter; list items come in their own order."""
    document = overlay(
        {"listen": {"unix": "/old"}, "channels": None, "cors": {"origins": ["old"]}},
        LISTEN__PORT="1",
        LISTEN="{host: '::1'}",
        CHANNELS__10__PATTERN="k",
        **{f"CHANNELS__{index}__PATTERN": "abcdefghij"[index] for index in range(9, -1, -1)},
        CORS__ORIGINS__1="b",
        CORS__ORIGINS="[a]",
    )
    assert document.value == {
        "listen": {"host": "::1", "port": 1},
        "channels": [{"pattern": letter} for letter in "abcdefghijk"],
        "cors": {"origins": ["a", "b"]},
    }
    assert not document.problems


@pytest.mark.parametrize(
    "name", ["FOO", "LISTEN__FOO", "LISTEN__PORT__X", "CHANNELS__X", "CHANNELS__0__FOO", "CORS__0", "listen__port", "", "__", "FILE"]
)  # fmt: skip
def test_a_variable_that_sets_nothing_is_a_problem(name: str) -> None:
    """A misspelt override must not be silent; other variables are none of ours."""
    (problem,) = sentences(overlay({}, **{name: "hunter2"}))
    assert problem.startswith(f"env SSE_GATEWAY__{name}: ")
    assert problem.endswith("unknown key: no setting has this name")
    document = Document(Place("gw.yaml", 1, 1))
    apply_overrides(document, {"SSE_GATEWAY_CONFIG": "x", "PATH": "x"})
    assert document.value == {}
    assert not document.problems


def test_an_index_that_would_leave_a_hole_is_a_problem() -> None:
    """It says which index is next."""
    document = overlay({"channels": [{"pattern": "a"}]}, CHANNELS__2__PATTERN="c")
    (problem,) = sentences(document)
    assert problem == (
        "env SSE_GATEWAY__CHANNELS__2__PATTERN: channels.2.pattern: an index too far: the next of this list is 1"
    )


@pytest.mark.parametrize("value", [{"listen": 5}, {"listen": [1]}, {"listen": "text"}])
def test_what_is_in_the_way_in_the_file_stays(value: Value) -> None:
    """Its own problem is told when the values are judged."""
    assert overlay(value, LISTEN__PORT="1").value == value


def test_a_list_that_is_a_mapping_in_the_file_stays() -> None:
    """Its own problem is told when the values are judged."""
    assert overlay({"channels": {"a": 1}}, CHANNELS__0__PATTERN="x").value == {"channels": {"a": 1}}


def test_yaml_that_cannot_be_read_is_a_problem_of_the_variable() -> None:
    """Lists and sections are YAML, with all that is refused there."""
    syntax, duplicate = sentences(overlay({}, CORS__ORIGINS="[a", LISTEN="{port: 1, port: 2}"))
    assert syntax.startswith("env SSE_GATEWAY__CORS__ORIGINS: cors.origins: is not YAML: did not find expected ','")
    assert duplicate == ("env SSE_GATEWAY__LISTEN: listen.port: duplicate key; the first is at env SSE_GATEWAY__LISTEN")


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"redis://:p@h\n", "redis://:p@h"),
        (b"redis://:p@h\r\n", "redis://:p@h"),
        (b"x\n\n", "x\n"),
        (b" x ", " x "),
        (b"12", "12"),
        (b"", ""),
    ],
)
def test_a_secret_is_read_from_a_file_as_it_is(tmp_path: Path, content: bytes, secret: str) -> None:
    """One newline at its end is not part of it; nothing in it is YAML."""
    file = tmp_path / "secret"
    file.write_bytes(content)
    document = overlay({"redis": {"url": "redis://old"}}, REDIS__URL__FILE=str(file))
    assert document.value == {"redis": {"url": secret}}
    assert document.place(("redis", "url")).origin == "env SSE_GATEWAY__REDIS__URL__FILE"
    assert not overlay({}, PERSISTENCE__URL__FILE=str(file)).problems  # a secret that may be left out


def test_a_secret_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    """Not there, not text, too large, given twice, or not a secret."""
    file = tmp_path / "secret"
    start = "env SSE_GATEWAY__REDIS__URL__FILE: redis.url: "
    missing = overlay({}, REDIS__URL__FILE=str(file))
    assert sentences(missing) == [start + "the file of the secret cannot be read: No such file or directory"]
    assert missing.is_spoiled(("redis", "url"))
    for content in (b"\xff", b"x" * 70_000):
        file.write_bytes(content)
        assert sentences(overlay({}, REDIS__URL__FILE=str(file))) == [
            start + "the file of the secret must be UTF-8 text of at most 65536 bytes"
        ]
    twice = sentences(overlay({}, REDIS__URL__FILE=str(file), REDIS__URL="redis://h"))
    assert twice == [start + "is given twice: SSE_GATEWAY__REDIS__URL is set too"]
    assert sentences(overlay({}, LISTEN__PORT__FILE=str(file))) == [
        "env SSE_GATEWAY__LISTEN__PORT__FILE: listen.port.file: is not a secret: set its value, without __FILE"
    ]
