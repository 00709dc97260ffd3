"""Servers and clients for tests that run the whole gateway. Nothing starts unless a test asks."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any, Protocol

import hypothesis
import pytest

from tests.support import gateway_process, valkey as valkey_support
from tests.support.raw_client import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Address
    from tests.support.valkey import Valkey


_NUMBERS = itertools.count(1)

# The same examples everywhere, and no clock that judges them: what fails, fails on every machine. Others are drawn with
# `--hypothesis-profile=chance --hypothesis-seed=N`.
_STEADY = hypothesis.settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("steady", _STEADY)
hypothesis.settings.register_profile("chance", _STEADY, derandomize=False)
hypothesis.settings.load_profile("steady")


class Connect(Protocol):
    """Opens a stream that is closed with the test."""

    def __call__(self, gateway: GatewayProcess | Address, target: str, **request: Any) -> Stream:
        """Send a request; the keywords are those of `Stream`."""


SERVER = os.environ.get("SSE_GATEWAY_TEST_SERVER", "valkey")
"""`valkey`, or `redis` for Debian's."""


def _directories(factory: pytest.TempPathFactory) -> Callable[[], Path]:
    # Short names: the path of a Unix socket is at most 108 bytes.
    return lambda: factory.mktemp("t")


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run one Valkey (or what `SSE_GATEWAY_TEST_SERVER` says) for all tests that do it no harm.

    They keep to channels of their own.
    """
    with valkey_support.running(tmp_path_factory.mktemp("valkey"), kind=SERVER) as server:
        valkey_support.SHARED.add(server.url)
        yield server


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server, as `valkey` does, that the test may break."""
    with valkey_support.running(tmp_path_factory.mktemp("valkey"), kind=SERVER) as server:
        yield server


@pytest.fixture(
    params=["valkey", pytest.param("redis", marks=pytest.mark.redis)],
)
def own_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server that the test may break: once Valkey, once Redis."""
    if valkey_support.binary(request.param) is None:
        pytest.skip(f"no {request.param} server on this machine")
    with valkey_support.running(tmp_path_factory.mktemp("server"), kind=request.param) as server:
        yield server


@pytest.fixture
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    """Start gateways that end with the test."""
    with gateway_process.gateways(_directories(tmp_path_factory)) as collection:
        yield collection


@pytest.fixture(scope="module")
def module_gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    """Start gateways that end with the module."""
    with gateway_process.gateways(_directories(tmp_path_factory)) as collection:
        yield collection


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open streams that are closed with the test; an id that two of them saw stood for one event."""
    opened: list[Stream] = []

    def open_stream(gateway: GatewayProcess | Address, target: str, **request: Any) -> Stream:
        address = gateway if isinstance(gateway, str | tuple) else gateway.address
        opened.append(Stream(address, target, **request))
        return opened[-1]

    yield open_stream
    for stream in opened:
        stream.close()
    events: dict[tuple[str | None, bool], str] = {}
    for stream in opened:
        for block in stream.events:
            assert events.setdefault((block.id, "wrap=1" in stream.target), block.data) == block.data, block


@pytest.fixture
def channel() -> str:
    """Make up a channel name that no other test uses, and that no other such name begins with."""
    return f"c{next(_NUMBERS)}."
