"""The clients, and what each of them does otherwise than the standard says.

Every column is held to what the client does by a test: a quirk that goes away fails it as well
as one that appears. ``docs/clients.md`` says nothing of a client that is not in this table.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tests.clients.driver import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE: Final = ROOT / "tests" / "clients"
BUILD: Final = HERE / "build"


class Tool(StrEnum):
    """What runs an adapter; the value is the program to look for."""

    NODE = "node"
    PYTHON = "python"
    GO = "go"
    JAVA = "mvn"
    CURL = "curl"


class After(StrEnum):
    """What a client may come back from, by itself."""

    CUT = "cut"
    """The connection was reset in the middle."""
    END = "end"
    """The response ended as it should."""
    AWAY = "away"
    """Nobody listened."""
    NO_CONTENT = "204"
    NOT_FOUND = "404"
    UNAVAILABLE = "503"


class CutEvent(StrEnum):
    """What becomes of an event in which the connection is cut, once the client has resumed."""

    WHOLE = "whole"
    """It comes, once, as the standard has it."""
    LOST = "lost"
    """The client took the id for seen as soon as its line had come."""
    TRUNCATED = "truncated"
    """What had come of it was taken for all of it."""


LINES: Final = MappingProxyType(
    {
        "two lines": "a\nb",
        "empty line inside": "a\n\nb",
        "CRLF and CR": "a\r\nb\rc",
        "line end last": "a\n",
        "line end first": "\na",
        "only a line end": "\n",
        "looks like fields": "a\nevent: x\nid: 1\nretry: 1\n: comment\ndata: y",
    }
)
"""Texts of several lines, by name."""

CHARACTERS: Final = MappingProxyType(
    {
        "empty": "",
        "one space": " ",
        "leading space": " x",
        "leading spaces": "  x",
        "trailing space": "x ",
        "leading tab": "\tx",
        "U+2028, U+2029, U+0085": "a\u2028b\u2029c\x85d",
        "VT, FF, FS, RS": "a\x0bb\x0cc\x1cd\x1ee",
        "beyond the BMP": "👩\u200d🚀 𝄞 é e\u0301",
        "byte order mark": "\ufeffx",
        "NUL": "a\0b",
        "leading colon": ":x",
    }
)
"""Texts of one line, by name."""

LONG: Final = (60_000, 140_000, 900_000)
"""Characters of one line."""

_ALL: Final = frozenset(After)
_NEVER: Final[frozenset[After]] = frozenset()
_NO_STATUS: Final = frozenset({After.CUT, After.END, After.AWAY})
_NO_LEADING_EMPTY: Final = {"line end first": "a", "only a line end": ""}


@dataclass(frozen=True, slots=True)
class Client:
    """One client.

    Attributes:
        name: As its users know it.
        version: The one that was tried.
        tool: What it needs.
        command: Its adapter.
        options: Arguments after the URL and the cursor.
        returns: What it comes back from by itself; the rest ends it.
        alters: Names of texts that it delivers otherwise, and what it makes of them.
        longest: The largest of `LONG` that it can read.
        cut_event: What becomes of an event in which the connection is cut.
        keeps_cursor: A temporary refusal leaves the cursor with which it began alone.
    """

    name: str
    version: str
    tool: Tool
    command: tuple[str, ...]
    options: tuple[str, ...] = ()
    returns: frozenset[After] = _NEVER
    alters: Mapping[str, str] = field(default_factory=dict)
    longest: int = LONG[-1]
    cut_event: CutEvent = CutEvent.WHOLE
    keeps_cursor: bool = True


def _node(name: str, *flags: str) -> tuple[str, ...]:
    return ("node", *flags, str(HERE / "node" / f"{name}.mjs"))


def _python(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"tests.clients.python.{name}_adapter")


def _java(name: str) -> tuple[str, ...]:
    classes = f"{BUILD / 'java' / 'classes'}:{BUILD / 'java' / 'lib'}/*"
    # Started often, for a moment: the first compiler is enough.
    return ("java", "-XX:TieredStopAtLevel=1", "-cp", classes, f"adapters.{name}")


CLIENTS: Final = (
    Client("eventsource", "4.1.1", Tool.NODE, _node("eventsource"), returns=_NO_STATUS),
    Client(
        "Node's EventSource",
        "20.20.2",
        Tool.NODE,
        _node("node-builtin", "--experimental-eventsource"),
        returns=_NO_STATUS,
    ),
    Client(
        "eventsource-client",
        "1.2.0",
        Tool.NODE,
        _node("eventsource-client"),
        returns=_ALL - {After.NO_CONTENT},
    ),
    Client(
        "launchdarkly-eventsource (npm)",
        "2.2.0",
        Tool.NODE,
        _node("launchdarkly-eventsource"),
        returns=_NO_STATUS | {After.UNAVAILABLE},
    ),
    Client(
        "fetch-event-source",
        "2.0.1",
        Tool.NODE,
        _node("fetch-event-source"),
        # Node's fetch takes a reset for the end of a response that says `Connection: close`.
        returns=_ALL - {After.CUT, After.END},
        alters={**_NO_LEADING_EMPTY, "byte order mark": "x"},
    ),
    Client(
        "fetch-event-source, onclose throws",
        "2.0.1",
        Tool.NODE,
        _node("fetch-event-source"),
        options=("--throw-on-close",),
        returns=_ALL,
        alters={**_NO_LEADING_EMPTY, "byte order mark": "x"},
        cut_event=CutEvent.LOST,
    ),
    Client("httpx-sse", "0.4.3", Tool.PYTHON, _python("httpx_sse")),
    Client("sseclient-py", "1.9.0", Tool.PYTHON, _python("sseclient_py")),
    Client("launchdarkly-eventsource (PyPI)", "1.7.4", Tool.PYTHON, _python("launchdarkly"), returns=_ALL),
    Client(
        "aiohttp-sse-client2",
        "0.3.0",
        Tool.PYTHON,
        _python("aiohttp_sse_client2"),
        returns=frozenset({After.END}),
        alters={
            "line end last": "a",
            "only a line end": "",
            "one space": "",
            "leading space": "x",
            "leading spaces": "x",
        },
        longest=LONG[1],
    ),
    Client("curl", "7.88.1", Tool.CURL, _python("curl")),
    Client(
        "r3labs/sse",
        "2.10.0",
        Tool.GO,
        (str(BUILD / "go" / "r3labs"),),
        returns=_ALL - {After.END},
        longest=LONG[0],
        cut_event=CutEvent.TRUNCATED,
    ),
    Client(
        "r3labs/sse, larger buffer",
        "2.10.0",
        Tool.GO,
        (str(BUILD / "go" / "r3labs"),),
        options=("--buffer",),
        returns=_ALL - {After.END},
        cut_event=CutEvent.TRUNCATED,
    ),
    Client(
        "tmaxmax/go-sse",
        "0.11.0",
        Tool.GO,
        (str(BUILD / "go" / "tmaxmax"),),
        returns=_NO_STATUS,
        longest=LONG[0],
        keeps_cursor=False,
    ),
    Client(
        "tmaxmax/go-sse, buffer and URL",
        "0.11.0",
        Tool.GO,
        (str(BUILD / "go" / "tmaxmax"),),
        options=("--careful",),
        returns=_NO_STATUS,
    ),
    Client("okhttp-sse", "5.5.1", Tool.JAVA, _java("OkHttpSse")),
    Client("okhttp-eventsource", "4.3.0", Tool.JAVA, _java("LaunchDarkly"), returns=_ALL),
)
