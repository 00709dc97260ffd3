"""nginx with the shipped file, in front of a real gateway or of a socket that a test plays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.nginx import nginxes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.nginx import StartNginx


@pytest.fixture
def start_nginx() -> Iterator[StartNginx]:
    """Start nginxes that end with the test."""
    with nginxes() as start:
        yield start
