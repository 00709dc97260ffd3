"""The proxies of docs/proxies.md with the files of examples/proxies, in front of a real gateway."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.gateway_process import configuration, poll
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Address, Stream
    from tests.support.valkey import Valkey

FILES = Path(__file__).parents[2] / "examples" / "proxies"
STREAM = {"Accept": "text/event-stream"}
PROXIES = {
    "haproxy": ("haproxy.cfg", "8002", ["haproxy", "-q", "-f"]),
    "caddy": ("Caddyfile", "8001", ["caddy", "run", "--adapter", "caddyfile", "--config"]),
}


@pytest.fixture(params=sorted(PROXIES))
def proxied(
    request: pytest.FixtureRequest, gateways: Gateways, valkey: Valkey, tmp_path: Path, connect: Connect
) -> Iterator[tuple[Address, GatewayProcess]]:
    """A proxy with its shipped file, changed in nothing but the ports, and the gateway behind it."""
    name, port, command = PROXIES[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed: apt-get install {command[0]}")
    config = configuration(valkey.url)
    gateway = gateways.start(config)
    public = free_port()
    ports = {port: str(public), "8080": str(config["listen"]["port"])}
    for file in FILES.iterdir():
        text = re.sub("|".join(ports), lambda found: ports[found[0]], file.read_bytes().decode())
        (tmp_path / file.name).write_bytes(text.encode())
    environment = {"HOME": str(tmp_path), "PATH": "/usr/sbin:/usr/bin:/bin"}
    process = subprocess.Popen(
        [shutil.which(command[0]) or "", *command[1:], name],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = ("127.0.0.1", public)
    try:
        poll(lambda: _answers(connect, address), timeout_s=10, what=f"{command[0]} listening")
        yield address, gateway
    finally:
        process.kill()
        process.wait()


def _answers(connect: Connect, address: Address) -> Stream | None:
    try:
        return connect(address, "/events/up", headers=STREAM).wait_head()
    except (OSError, AssertionError):
        return None


def test_an_event_arrives_and_a_resume_brings_the_rest(
    proxied: tuple[Address, GatewayProcess], valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Through the proxy a stream begins at once, events come one by one, and a reconnect misses nothing."""
    address, _ = proxied
    target = f"/events/{channel}"
    stream = connect(address, target, headers=STREAM)
    stream.wait_open()
    valkey.publish(f"sse:{channel}", "one")
    stream.wait_data("one")
    assert stream.headers.get("Content-Encoding") is None
    stream.close()

    valkey.publish(f"sse:{channel}", "two")
    resumed = connect(address, target, headers={**STREAM, "Last-Event-ID": str(stream.last_id)})
    resumed.wait_data("two")

    assert resumed.data == ["two"]


def test_while_the_gateway_is_away_a_stream_is_refused_with_200(
    proxied: tuple[Address, GatewayProcess], connect: Connect
) -> None:
    """Whoever accepts a stream gets the gateway's own refusal, since EventSource gives up on a 5xx; others get that."""
    address, gateway = proxied
    gateway.stop()
    stream = connect(address, "/events/a", headers=STREAM)
    stream.wait_for(lambda it: it.ended or None, what="the end of the response")
    other = connect(address, "/events/a", headers={"Accept": "application/json"}).wait_head()

    assert stream.status == 200
    assert [block.type for block in stream.blocks] == ["gateway.unavailable"]
    assert other.status in {502, 503}
