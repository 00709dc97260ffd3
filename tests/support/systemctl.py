"""As much of systemd and apt as a guide needs on a machine without an init. Run as a program.

It takes a unit's ExecStart line as it stands, makes its RuntimeDirectory, runs it as nobody with a
notify socket, and waits for READY=1. What the unit writes is its journal.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_UNITS = Path("/etc/systemd/system")
_STATE = Path("/run/played")
_READY_S = 20
_STOP_S = 30


class RefusedError(Exception):
    """What the real command would have complained of."""


def _directive(unit: str, key: str) -> str:
    path = _UNITS / f"{unit}.service"
    if not path.exists():
        raise RefusedError(f"Unit {unit}.service could not be found.")
    found = re.findall(rf"(?m)^{key}=(.*)$", path.read_text(encoding="utf-8"))
    if len(found) != 1:
        raise RefusedError(f"{path} has {len(found)} lines {key}=")
    return str(found[0])


def _journal(unit: str) -> Path:
    return _STATE / f"{unit}.journal"


def _running(unit: str) -> int | None:
    try:
        pid = int((_STATE / f"{unit}.pid").read_text(encoding="ascii"))
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2][0]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else pid  # the machine's first process reaps nobody


def _start(unit: str) -> None:
    if _running(unit) is not None:
        return
    if _directive(unit, "Type") != "notify":
        raise RefusedError(f"{unit} is not of Type=notify")
    command = shlex.split(_directive(unit, "ExecStart"))
    runtime = Path("/run") / _directive(unit, "RuntimeDirectory")
    runtime.mkdir(exist_ok=True)
    shutil.chown(runtime, "nobody", "nogroup")
    notify = _STATE / "notify"
    notify.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, _journal(unit).open("ab") as journal:
        manager.bind(str(notify))
        notify.chmod(0o777)
        process = subprocess.Popen(
            command,
            user="nobody",
            group="nogroup",
            extra_groups=[],
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "NOTIFY_SOCKET": str(notify), "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=journal,
            stderr=journal,
            start_new_session=True,
        )
        (_STATE / f"{unit}.pid").write_text(str(process.pid), encoding="ascii")
        _await_ready(manager, process, unit)


def _await_ready(manager: socket.socket, process: subprocess.Popen[bytes], unit: str) -> None:
    manager.settimeout(0.1)
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RefusedError(f"{unit} ended with {process.returncode}:\n{_journal(unit).read_text(encoding='utf-8')}")
        try:
            lines = manager.recv(4096).decode().split("\n")
        except TimeoutError:
            continue
        if "READY=1" in lines:
            return
    raise RefusedError(f"{unit} did not say READY=1 within {_READY_S} s")


def _reload(unit: str) -> None:
    pid = _running(unit)
    if pid is None:
        raise RefusedError(f"{unit}.service is not active, cannot reload.")
    subprocess.run(shlex.split(_directive(unit, "ExecReload").replace("$MAINPID", str(pid))), check=True)


def _stop(unit: str) -> None:
    pid = _running(unit)
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    while _running(unit) is not None:
        if time.monotonic() > deadline:
            raise RefusedError(f"{unit} did not stop within {_STOP_S} s")
        time.sleep(0.05)


def _nginx(verb: str) -> None:
    if verb in {"stop", "restart"}:
        subprocess.run(["nginx", "-s", "stop"], check=True)
        while Path("/run/nginx.pid").exists():
            time.sleep(0.05)
    if verb == "reload":
        subprocess.run(["nginx", "-s", "reload"], check=True)
    if verb in {"start", "restart"}:
        subprocess.run(["nginx"], check=True)


def _systemctl(words: list[str]) -> None:
    verb, *units = [word for word in words if not word.startswith("--")]
    if verb == "daemon-reload" and not units:
        return
    (unit,) = units
    if unit == "nginx":
        _nginx(verb)
        return
    if verb in {"stop", "restart"}:
        _stop(unit)
    if verb == "reload":
        _reload(unit)
        return
    if verb == "enable":
        _directive(unit, "WantedBy")
    if verb in {"start", "restart"} or (verb == "enable" and "--now" in words):
        _start(unit)
    elif verb == "status":
        if _running(unit) is None:
            raise RefusedError(f"{unit} is not running")
    elif verb not in {"enable", "stop"}:
        raise RefusedError(f"Unknown command verb {verb}.")


def _journalctl(words: list[str]) -> None:
    unit, count = words[words.index("--unit") + 1], int(words[words.index("--lines") + 1])
    lines = _journal(unit).read_text(encoding="utf-8").splitlines()
    sys.stdout.write("".join(f"{line}\n" for line in lines[-count:]))


def _apt_get(words: list[str]) -> None:
    """Install nothing: what a guide asks for is here, or its test is skipped."""
    if words[0] not in {"update", "install"}:
        raise RefusedError(f"E: Invalid operation {words[0]}")


def main(name: str, words: list[str]) -> int:
    """Do as the command of that name would."""
    _STATE.mkdir(mode=0o755, exist_ok=True)
    try:
        {"systemctl": _systemctl, "journalctl": _journalctl, "apt-get": _apt_get}[name](words)
    except RefusedError as refused:
        sys.stderr.write(f"{refused}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
