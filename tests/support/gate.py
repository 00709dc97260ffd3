"""A gate that workers wait at before they load: whoever is to be missing is missing for as long as the test wants."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_WAIT = """
import pathlib, sys, time

closed = pathlib.Path(__file__).with_name("closed")
while "sse_gateway.worker" in sys.orig_argv and closed.exists():
    time.sleep(0.01)
"""


class Gate:
    """The gate of one gateway; open, until it is closed.

    Attributes:
        environment: What the gateway is to be started with.
    """

    def __init__(self, directory: Path) -> None:
        """Build it.

        Args:
            directory: An empty one of its own.
        """
        (directory / "sitecustomize.py").write_text(_WAIT, encoding="utf-8")
        self.environment: Mapping[str, str] = {"PYTHONPATH": str(directory)}
        self._closed = directory / "closed"

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Let no worker that is started go on for the length of a ``with`` block."""
        self._closed.touch()
        try:
            yield
        finally:
            self._closed.unlink()
