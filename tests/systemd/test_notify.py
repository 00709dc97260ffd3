"""What the service manager is told: a real gateway, and a socket that plays systemd."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.gateway_process import configuration, poll
from tests.support.lateness import lateness
from tests.support.notify import Manager, manager

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Connect
    from tests.support.gateway_process import Gateways
    from tests.support.valkey import Valkey

WATCHDOG_S = 1.0
BLOCK_S = 1.5

# The gateway as `serve` runs it, and one callback more in its loop, which blocks that.
BLOCKED = f"""
import asyncio, os, pathlib, sys, time
from sse_gateway.config import load_settings
from sse_gateway.gateway import run

def block():
    print(time.monotonic(), flush=True)
    time.sleep({BLOCK_S})
    print(time.monotonic(), flush=True)

settings = load_settings(pathlib.Path(sys.argv[1]), os.environ)
asyncio.run(run(settings, started=lambda: asyncio.get_running_loop().call_later(1.2, block)))
"""


@pytest.fixture
def systemd() -> Iterator[Manager]:
    """Play systemd."""
    with manager() as played:
        yield played


def test_the_life_of_a_service(gateways: Gateways, own_valkey: Valkey, systemd: Manager, connect: Connect) -> None:
    """Ready once the listeners are open, then what it does, and at the end that it stops."""
    own_valkey.kill()
    gateway = gateways.start(configuration(own_valkey.url), ready=False, environment=systemd.environment())
    systemd.wait("READY=1", "STATUS=waiting for Redis")
    own_valkey.start()
    systemd.wait("STATUS=waiting for Redis", "STATUS=live")
    own_valkey.kill()
    systemd.wait("STATUS=live", "STATUS=waiting for Redis")
    own_valkey.start()
    gateway.wait_ready()
    systemd.wait("STATUS=live", "STATUS=waiting for Redis", "STATUS=live")
    stream = connect(gateway, "/events/a")
    stream.wait_open()
    assert gateway.stop() == 0
    systemd.wait("STOPPING=1", "STATUS=draining")

    assert systemd.lines[-2:] == ["STOPPING=1", "STATUS=draining"]
    assert systemd.lines.count("READY=1") == 1
    assert systemd.pings() == []  # the unit asks for none here


def test_a_reload_is_told(gateways: Gateways, valkey: Valkey, systemd: Manager) -> None:
    """That it begins, with the time that systemd wants, and that it is over, whatever came of it."""
    gateway = gateways.start(configuration(valkey.url), environment=systemd.environment())
    systemd.wait("STATUS=live")
    begun = time.monotonic()
    gateway.reload()
    systemd.wait("READY=1", "STATUS=live", "RELOADING=1", "STATUS=reloading", "READY=1", "STATUS=live", timeout_s=20)
    gateway.reload("nonsense")
    systemd.wait("RELOADING=1", "READY=1", "RELOADING=1", "READY=1", "STATUS=live", timeout_s=20)
    (first, _) = (int(line.partition("=")[2]) for line in systemd.lines if line.startswith("MONOTONIC_USEC="))

    assert begun <= first / 1_000_000 <= time.monotonic()


def test_both_listeners_are_open_when_it_says_ready(gateways: Gateways, own_valkey: Valkey, systemd: Manager) -> None:
    """Whatever starts after the unit can connect at once, even while Redis is away."""
    own_valkey.kill()
    config = configuration(own_valkey.url)
    gateways.start(config, environment=systemd.environment(), alive=False)
    systemd.wait("READY=1")
    for section in ("listen", "admin"):
        socket.create_connection(("127.0.0.1", config[section]["port"]), timeout=1).close()


def test_the_watchdog_is_fed_at_half_its_time(gateways: Gateways, valkey: Valkey, systemd: Manager) -> None:
    """Twice as often as it must be, and not more: the median, since a busy machine delays one or the other."""
    gateways.start(configuration(valkey.url), environment=systemd.environment(watchdog_s=WATCHDOG_S))
    pings = systemd.wait_pings(7, since=0.0)
    pause = statistics.median(later - earlier for earlier, later in itertools.pairwise(pings[1:]))

    assert WATCHDOG_S / 2 - 0.2 < pause < WATCHDOG_S


def state_of(pid: int) -> str:
    """The state of a process, a letter."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2][0]


def test_a_stopped_process_feeds_no_watchdog(gateways: Gateways, valkey: Valkey, systemd: Manager) -> None:
    """SIGSTOP: silence for longer than the watchdog's time; afterwards it is fed again."""
    gateway = gateways.start(configuration(valkey.url), environment=systemd.environment(watchdog_s=WATCHDOG_S))
    systemd.wait_pings(1, since=0.0)
    gateway.signal(signal.SIGSTOP)
    poll(lambda: state_of(gateway.pid) == "T", timeout_s=5, what="process that is stopped")
    stopped = systemd.catch_up()  # what was on its way
    with pytest.raises(AssertionError, match="no 1 pings"):
        systemd.wait_pings(1, since=stopped, timeout_s=1.5 * WATCHDOG_S)
    gateway.signal(signal.SIGCONT)
    systemd.wait_pings(2, since=stopped)


def test_a_loop_that_does_not_turn_feeds_no_watchdog(valkey: Valkey, systemd: Manager, tmp_path: Path) -> None:
    """The process lives, its other threads run, but the loop is held up: no ping until it turns again."""
    file = tmp_path / "sse-gateway.yaml"
    file.write_text(json.dumps(configuration(valkey.url)))
    environment = {**os.environ, **systemd.environment(watchdog_s=WATCHDOG_S)}
    command = [sys.executable, "-c", BLOCKED, str(file)]
    with (
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process,
        lateness() as late,
    ):
        assert process.stdout is not None
        begun, ended = float(process.stdout.readline()), float(process.stdout.readline())
        after = systemd.wait_pings(2, since=ended)
        process.terminate()
        assert process.wait(10) == 0

    assert [when for when in systemd.pings() if when < begun]
    known = begun + WATCHDOG_S / 2  # what was on its way has been written down by then; a loop that turns says more
    assert [when for when in systemd.pings() if known < when < ended] == []
    assert after[0] - ended < WATCHDOG_S + late.total_s
