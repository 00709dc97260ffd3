"""The two install guides, followed word by word on a scratch machine: every block that is to be pasted is run.

What cannot be had without an init is played: apt-get installs nothing, systemctl starts the unit's
own ExecStart line as nobody with a notify socket. The journal is what the gateway writes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.gateway_process import poll
from tests.support.machine import ROOT, Machine, blocks, why_not
from tests.support.valkey import binary

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SYSTEMD_GUIDE = ROOT / "systemd" / "README.md"
NGINX_GUIDE = ROOT / "nginx" / "README.md"
CURL_TIMED_OUT = 28  # the guides end a stream with --max-time
CURL = "curl --silent --no-buffer --max-time 2 --cacert /etc/nginx/sse-gateway.pem"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine on which Debian's packages are installed, and Redis runs as after its installation."""
    reason = why_not("curl", "openssl", "systemd-analyze")
    if not reason and not Path("/usr/lib/python3").exists():
        reason = "GUIDES NOT FOLLOWED: no python3 from Debian (apt-get install python3-venv)"
    if reason:
        pytest.skip(reason)
    scratch = Machine()
    try:
        if scratch.run("python3 -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 11))'")[0] != 0:
            pytest.skip("GUIDES NOT FOLLOWED: no Python 3.11 with venv (apt-get install python3-venv)")
        redis = binary("redis") or binary("valkey")
        scratch.start([str(redis), "--save", "", "--bind", "127.0.0.1"])
        yield scratch
    finally:
        scratch.close()


def follow(machine: Machine, block: str) -> str:
    """Run one block: what it says. Only installing from the registry needs the world outside."""
    code, output = machine.run(block, own_network="pip install" not in block, timeout_s=600)
    allowed = {0, CURL_TIMED_OUT} if "--max-time" in block.splitlines()[-1] else {0}
    assert code in allowed, f"exit code {code}:\n{block}\n{output}"
    return output


def steps(machine: Machine, guide: Path) -> list[str]:
    """Follow a guide: what each block says. A block goes on after a stream that curl ends by its --max-time."""
    said = []
    for block in blocks(guide):
        lines = block.splitlines(keepends=True)
        streams = [index for index, line in enumerate(lines) if "--max-time" in line]
        parts, begun = [], 0
        for index in streams:
            parts.append("".join(lines[begun : index + 1]))
            begun = index + 1
        parts.append("".join(lines[begun:]))
        said.append("".join(follow(machine, part) for part in parts if part))
    return said


def journal(machine: Machine, event: str) -> list[dict[str, object]]:
    """The lines of the gateway's journal that have this event."""
    _, text = machine.run("journalctl --unit sse-gateway --lines 100000")
    return [record for record in map(json.loads, text.splitlines()) if record["event"] == event]


@pytest.fixture(scope="module")
def installed(machine: Machine) -> list[str]:
    """Follow systemd/README.md once: what each block said."""
    return steps(machine, SYSTEMD_GUIDE)


@pytest.fixture(scope="module")
def behind_nginx(machine: Machine, installed: list[str]) -> list[str]:
    """Go on with nginx/README.md."""
    assert installed
    if shutil.which("nginx", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("NGINX'S GUIDE NOT FOLLOWED: no nginx (apt-get install nginx)")
    machine.start(["nginx"])  # as after its installation
    machine.wait("test -s /run/nginx.pid", "nginx as Debian starts it")
    return steps(machine, NGINX_GUIDE)


def test_the_gateway_is_installed_and_serves(machine: Machine, installed: list[str]) -> None:
    """The unit is verified in its place, the service says that it is ready, and curl gets the event."""
    *_, service, proof = installed
    assert service == ""
    assert '"ready":true' in proof.replace(" ", "")
    assert "data: Hello\n" in proof
    assert proof.index("event: gateway.open") < proof.index("data: Hello")
    (started,) = journal(machine, "gateway.started")
    assert started["listen"] == "127.0.0.1:8080"


def test_events_come_over_https(machine: Machine, behind_nginx: list[str]) -> None:
    """An event comes to curl through nginx, over HTTP/2, and the log has the stream's line, without its query."""
    assert journal(machine, "gateway.started")
    proof = behind_nginx[-1]
    assert "data: Hello through nginx\n" in proof
    assert proof.endswith("\n")
    log = proof.splitlines()[-1]
    assert '"GET /events/hello HTTP/2.0" 200 upstream=200' in log
    assert "replay" not in log


def test_both_can_be_restarted(machine: Machine, behind_nginx: list[str]) -> None:
    """While the gateway is away a stream is told later; after both have been restarted events come again."""
    assert behind_nginx
    url = "https://localhost/events/again?replay=1"
    assert machine.run("systemctl stop sse-gateway") == (0, "")
    _, away = machine.run(f"{CURL} -H 'Accept: text/event-stream' '{url}'")
    assert away.startswith("event: gateway.unavailable\n")
    assert machine.run("systemctl start sse-gateway; systemctl restart nginx")[0] == 0
    machine.wait("curl --fail --silent http://127.0.0.1:9080/readyz", "readiness")
    machine.run("/opt/sse-gateway/bin/sse-gateway publish sse:again 'Here again'")
    _, stream = machine.run(f"{CURL} '{url}'")

    assert "data: Here again\n" in stream


def test_it_can_be_reloaded(machine: Machine, installed: list[str]) -> None:
    """The unit's own command makes new workers take over."""
    assert installed
    assert machine.run("systemctl reload sse-gateway")[0] == 0
    machine.wait("journalctl --unit sse-gateway --lines 100000 | grep -q reload.done", "reload")
    assert len(journal(machine, "gateway.started")) == len(journal(machine, "gateway.stopped")) + 1


def test_the_journal_has_a_line_for_each_stream(machine: Machine, behind_nginx: list[str]) -> None:
    """As many ends as there were streams: the guides' two, and those that this test opens, of three channels each."""
    assert behind_nginx

    def ends(*, channels: int) -> int:
        return sum(record["channels"] == channels for record in journal(machine, "stream.closed"))

    for _ in range(3):
        machine.run(f"{CURL} 'https://localhost/events?channel=a&channel=b&channel=c'")
    machine.wait(
        "curl --silent http://127.0.0.1:9080/metrics | grep -qx 'sse_gateway_connections{worker=\"0\"} 0.0'",
        "no streams",
    )
    poll(lambda: ends(channels=3) >= 3, timeout_s=10, what="lines of three streams")

    assert ends(channels=3) == 3
    assert ends(channels=1) >= 2
