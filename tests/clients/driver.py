"""Runs the adapter of a client, and reads what it reports.

An adapter is a program. It takes a URL and the cursor to resume from, or ""; it does nothing by
itself that its client does not do; and it says what the client tells it, one JSON object a line:
``event`` (type, data, id), ``error`` (trouble, after which the client may go on) and ``end`` (the
client will do nothing more), with which it exits.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.gateway_process import poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.clients.table import Client

ROOT = Path(__file__).parents[2]
"""Where adapters run."""

DEADLINE_S = 15.0
"""How long a test waits for what must come; the default backoff of some clients is in it."""

_PAUSE_S = 0.1
"""Between two adapters, where the gateway may not be there at all."""


@dataclass(frozen=True, slots=True)
class Report:
    """One thing that an adapter said.

    Attributes:
        kind: ``event``, ``error`` or ``end``.
        type: Event type.
        data: Data of an event.
        id: The cursor that the client would resume from, as far as it tells; else "".
        text: What an error or the end is about.
    """

    kind: str
    type: str = ""
    data: str = ""
    id: str = ""
    text: str = ""

    @property
    def own(self) -> bool:
        """Whether it is one of the gateway's own events."""
        return self.type.startswith("gateway.")


class Following:
    """A client at work on one URL.

    Args:
        client: Whose adapter to run.
        url: What it follows.
        cursor: Where it begins; "" for now.
        again: Start the adapter anew, with the last cursor it told, whenever its client has
            ended: what the user of a client that does not come back by itself has to do.
    """

    def __init__(self, client: Client, url: str, *, cursor: str = "", again: bool = False) -> None:
        self.reports: list[Report] = []
        self._client = client
        self._url = url
        self._cursor = cursor
        self._again = again
        self._closed = threading.Event()
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._lock = threading.Lock()
        self._process = self._start()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._client.command, self._url, self._cursor, *self._client.options],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(ROOT), "NODE_NO_WARNINGS": "1"},
        )

    def _read(self) -> None:
        while True:
            assert self._process.stdout is not None
            with self._process.stdout as lines:
                for line in lines:
                    self._take(line)
            self._process.wait()
            if not self._again or self._closed.wait(_PAUSE_S):
                return
            with self._lock:
                if not self._closed.is_set():
                    self._process = self._start()

    def _take(self, line: str) -> None:
        report = Report(**json.loads(line))
        self._cursor = report.id or self._cursor
        self.reports.append(report)

    @property
    def events(self) -> list[Report]:
        """The events so far that are not the gateway's own."""
        return [report for report in list(self.reports) if report.kind == "event" and not report.own]

    @property
    def data(self) -> list[str]:
        """The data of `events`."""
        return [event.data for event in self.events]

    @property
    def ended(self) -> bool:
        """Whether the client has ended, at least once."""
        return bool(self.of_kind("end"))

    def of_kind(self, kind: str) -> list[Report]:
        """Return the reports of a kind."""
        return [report for report in list(self.reports) if report.kind == kind]

    def of_type(self, type_: str) -> list[Report]:
        """Return the events of a type."""
        return [report for report in list(self.reports) if report.type == type_]

    def wait(self, probe: Callable[[], object], what: str) -> None:
        """Wait until `probe` returns something true."""
        try:
            poll(probe, timeout_s=DEADLINE_S, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.reports[-8:]}\n{self._complained()}") from None

    def _complained(self) -> str:
        """Return the newest of what the adapter wrote to stderr."""
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace")[-2_000:]

    def wait_type(self, type_: str, count: int = 1) -> Report:
        """Wait for the event of a type that is the `count`-th of it."""
        self.wait(lambda: len(self.of_type(type_)) >= count, f"{count} {type_}")
        return self.of_type(type_)[count - 1]

    def wait_data(self, data: str) -> None:
        """Wait for an event with this data."""
        self.wait(lambda: data in self.data, f"event {data[:40]}")

    def wait_kind(self, kind: str) -> None:
        """Wait for a report of a kind."""
        self.wait(lambda: self.of_kind(kind), kind)

    def close(self) -> None:
        """End the adapter. Idempotent."""
        with self._lock:
            self._closed.set()
            self._process.kill()
        self._reader.join(DEADLINE_S)
        self._complaints.close()


@contextlib.contextmanager
def following(client: Client, url: str, *, cursor: str = "", again: bool = False) -> Iterator[Following]:
    """Run a client for the length of a ``with`` block."""
    followed = Following(client, url, cursor=cursor, again=again)
    try:
        yield followed
    finally:
        followed.close()
