"""The shipped nginx file itself: it is valid, a linter finds nothing, and its numbers fit the gateway's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sse_gateway.config import Settings
from sse_gateway.connections import MAX_TARGET
from sse_gateway.frames import unavailable_frame
from sse_gateway.reasons import Unavailable
from tests.support.nginx import DEBIAN, HOSTILE, MISSING, SHIPPED, Nginx, executable

TEXT = SHIPPED.read_text(encoding="utf-8")
SETTINGS = Settings.model_validate({"auth": {"mode": "none"}})


def found(pattern: str) -> str:
    """The one place where a directive says something."""
    (value,) = set(re.findall(pattern, TEXT))
    assert isinstance(value, str)
    return value


@pytest.mark.skipif(executable() is None or shutil.which("openssl") is None, reason=MISSING)
@pytest.mark.parametrize("outer", [DEBIAN, HOSTILE], ids=["debian", "hostile"])
def test_nginx_takes_it_without_a_word(tmp_path: Path, outer: str) -> None:
    """``nginx -t`` has nothing to say but that all is well; newer ones, that there is another way to write `http2`."""
    lines = Nginx(tmp_path, ("127.0.0.1", 1), outer=outer).check().splitlines()
    said = [line for line in lines if 'directive is deprecated, use the "http2" directive' not in line]

    assert len(said) == 2, said
    assert said[0].endswith("syntax is ok")
    assert said[1].endswith("test is successful")


def test_gixy_finds_nothing() -> None:
    """The linter for nginx has no complaint of any severity."""
    gixy = shutil.which("gixy", path=str(Path(sys.executable).parent)) or shutil.which("gixy")
    if gixy is None:
        pytest.skip("NGINX FILE NOT LINTED: it needs gixy-ng (pip)")
    done = subprocess.run([gixy, "--format", "json", str(SHIPPED)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


def test_the_refusals_are_the_gateways_own() -> None:
    """But for the time, each is byte for byte what the gateway would send."""
    answers = [
        answer.replace('\\"', '"').replace("\\n", "\n").replace("$sse_gateway_retry", "7500").encode()
        for answer in re.findall(r'return 200 "(.*)";', TEXT)
    ]
    assert answers == [unavailable_frame(reason, 7500) for reason in (Unavailable.DRAINING, Unavailable.FULL)]


def test_the_times_of_refusals_are_the_gateways_own() -> None:
    """5 times the default `retry`, and ±50 % of that."""
    block = TEXT.partition("$sse_gateway_retry {")[2].partition("}")[0]
    times_ms = [int(line.split()[1].rstrip(";")) for line in block.splitlines() if line.strip()]
    expected_ms = 5 * 1000 * SETTINGS.stream.retry_s

    assert (min(times_ms), max(times_ms)) == (expected_ms * 0.5, expected_ms * 1.5)
    assert len(times_ms) == len(set(times_ms)) == 8


def test_the_bounds_fit_the_gateways() -> None:
    """Four heartbeats of silence; as much patience with a client; as long a line."""
    assert int(found(r"proxy_read_timeout (\d+)s;")) == 4 * SETTINGS.stream.heartbeat_s
    assert int(found(r"(?m)^ *send_timeout (\d+)s;")) == SETTINGS.stream.write_timeout_s
    assert int(found(r"large_client_header_buffers \d+ (\d+)k;")) * 1024 == MAX_TARGET
    assert found(r"(?m)^ *server 127\.0\.0\.1:(\d+);") == str(SETTINGS.listen.port)
    assert str(SETTINGS.admin.port) not in TEXT
