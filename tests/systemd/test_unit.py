"""The shipped unit: valid, closed, and its numbers fit the gateway's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sse_gateway.cli import EXIT_CONFIG
from sse_gateway.config import Settings, effective_yaml, load_settings
from sse_gateway.generation import SPARE_S
from sse_gateway.stream import LINGER_S
from sse_gateway.streams import RESERVED_DESCRIPTORS
from sse_gateway.supervisor import WATCHDOG_S

UNIT = Path(__file__).parents[2] / "systemd" / "sse-gateway.service"
TEXT = UNIT.read_text(encoding="utf-8")
SETTINGS = Settings.model_validate({"auth": {"mode": "none"}})
MAX_EXPOSURE_TENTHS = 12

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="UNIT NOT ANALYSED: it needs systemd-analyze (apt-get install systemd)",
)


def value(key: str) -> str:
    """The one value of a directive."""
    (found,) = re.findall(rf"(?m)^{key}=(.*)$", TEXT)
    assert isinstance(found, str)
    return found


def seconds(key: str) -> int:
    """The one value of a directive, a time."""
    return int(value(key).removesuffix("s"))


@needs_systemd
def test_systemd_takes_it_without_a_word(tmp_path: Path) -> None:
    """``systemd-analyze verify`` says nothing at all, once the program is where the unit says."""
    program = tmp_path / "sse-gateway"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(TEXT.replace("/opt/sse-gateway/bin/sse-gateway", str(program)), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_it_is_closed() -> None:
    """The exposure that systemd computes stays at 1.2 of 10 or below."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MAX_EXPOSURE_TENTHS}", "--no-pager"]
    done = subprocess.run([*command, str(UNIT)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_its_numbers_fit_the_gateways() -> None:
    """A stop has time for the drain and the last words; there is a descriptor for every stream."""
    assert seconds("TimeoutStopSec") >= SETTINGS.shutdown.drain_s + max(2 * LINGER_S + 5, SPARE_S)
    assert int(value("LimitNOFILE")) >= SETTINGS.limits.connections + RESERVED_DESCRIPTORS


def test_no_memory_is_written_to_disk() -> None:
    """It holds secrets."""
    assert value("LimitCORE") == "0"


def test_secrets_come_as_credentials(tmp_path: Path) -> None:
    """The lines that are ready to be used name keys that take a file, and the files hold what is in effect."""
    text = TEXT.replace("#LoadCredential", "LoadCredential").replace("#Environment", "Environment")
    credentials = dict(re.findall(r"(?m)^LoadCredential=([a-z-]+):(/etc/sse-gateway/[a-z-]+)$", text))
    variables = dict(re.findall(r"(?m)^Environment=(SSE_GATEWAY__\w+__FILE)=%d/([a-z-]+)$", text))
    assert credentials.keys() == set(variables.values())
    (tmp_path / "gw.yaml").write_text("auth: {mode: jwt}\n")
    secrets = {"redis-url": "redis://:hunter2@h"}
    for name in credentials:
        (tmp_path / name).write_text(secrets.get(name, "hunter2" * 8) + "\n")
    env = {variable: str(tmp_path / name) for variable, name in variables.items()}
    settings = load_settings(tmp_path / "gw.yaml", env)

    assert settings.admin.token.get_secret_value() == settings.auth.secret.get_secret_value() == "hunter2" * 8
    assert settings.redis.url.get_secret_value() == "redis://:hunter2@h"
    assert "hunter2" not in effective_yaml(settings)


def test_workers_are_the_supervisors_business() -> None:
    """It is told to stop and to reload, and one of them may be killed without the rest."""
    assert value("KillMode") == "mixed"
    assert value("ExecReload") == "/bin/kill -HUP $MAINPID"
    assert value("OOMPolicy") == "continue"
    assert seconds("WatchdogSec") == WATCHDOG_S


def test_it_restarts_after_everything_but_a_bad_configuration() -> None:
    """The exit code that prevents a restart is the command's; only the main process's code counts."""
    assert value("Restart") == "always"
    assert value("RestartPreventExitStatus") == str(EXIT_CONFIG)
    assert value("StartLimitIntervalSec") == "0"
    assert "ExecStartPre=/" not in TEXT


def test_it_is_told_when_the_gateway_is_ready() -> None:
    """The type, and the process that may tell."""
    assert (value("Type"), value("NotifyAccess")) == ("notify", "main")
