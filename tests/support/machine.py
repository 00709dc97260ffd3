"""A scratch machine to follow a guide on: this one's files, and everything written thrown away.

A mount namespace with overlays over the directories that guides write to, a network of its own
(so that 80, 443, 6379 and 8080 are free), and its own processes, which end with it. There is no
init: ``systemctl``, ``journalctl`` and ``apt-get`` are `tests.support.systemctl`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support import systemctl
from tests.support.gateway_process import poll

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).parents[2]
_WRITTEN = ("/etc", "/opt", "/run", "/var")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # a fresh root's, and not ours
_COMMANDS = ("systemctl", "journalctl", "apt-get")

_SET_UP = """
mount -t tmpfs scratch "$1"
for directory in {directories}; do
    mkdir -p "$1/upper$directory" "$1/work$directory"
    mount -t overlay overlay -o "lowerdir=$directory,upperdir=$1/upper$directory,workdir=$1/work$directory" "$directory"
done
ip link set lo up
echo ready
exec sleep infinity
"""


def why_not(*packages: str) -> str:
    """Why there can be no such machine here, or nothing."""
    missing = [name for name in ("unshare", "nsenter", "ip", *packages) if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"GUIDES NOT FOLLOWED: missing {' '.join(missing)}"
    if os.geteuid() != 0:
        return "GUIDES NOT FOLLOWED: they are for root, and this is not root"
    if subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False).returncode != 0:
        return "GUIDES NOT FOLLOWED: this root may not make namespaces"
    return ""


def blocks(guide: Path) -> list[str]:
    """The blocks of a guide that are to be pasted."""
    return re.findall(r"(?ms)^```sh\n(.*?)^```$", guide.read_text(encoding="utf-8"))


class Machine:
    """One scratch machine; ends with `close`."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="machine-"))
        self._directory.chmod(0o755)
        set_up = _SET_UP.format(directories=" ".join(_WRITTEN))
        options = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        mounted = self._directory / "scratch"
        mounted.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", *options, "sh", "-euc", set_up, "sh", str(mounted)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": _PATH},
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", "the machine did not start"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self._init = children.read_text(encoding="ascii").strip()
        self._background: list[subprocess.Popen[bytes]] = []
        self._provide_commands()

    def _provide_commands(self) -> None:
        for name in _COMMANDS:
            command = self._directory / name
            command.write_text(f'#!/bin/sh\nexec {sys.executable} {systemctl.__file__} {name} "$@"\n', encoding="utf-8")
            command.chmod(0o755)

    def _enter(self, *, own_network: bool) -> list[str]:
        network = ["--net"] if own_network else []
        return ["nsenter", "--target", self._init, "--mount", "--pid", *network, f"--wd={ROOT}"]

    @property
    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "LANG", "LC_", "HOME"))}
        return {**kept, "PATH": f"{self._directory}:{_PATH}"}

    def run(self, script: str, *, own_network: bool = True, timeout_s: float = 90) -> tuple[int, str]:
        """Run a script as root's shell would, ending at the first command that fails: its code, and its output."""
        done = subprocess.run(
            [*self._enter(own_network=own_network), "sh", "-euc", script],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stdout

    def start(self, command: Sequence[str]) -> None:
        """Run something in the background until the machine ends."""
        process = subprocess.Popen(
            [*self._enter(own_network=True), *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self._background.append(process)

    def wait(self, script: str, what: str) -> None:
        """Wait until a script succeeds."""
        poll(lambda: self.run(script)[0] == 0, timeout_s=10, what=what)

    def close(self) -> None:
        """End all processes, and with them the namespaces; what was written is gone. Idempotent."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        for process in self._background:
            process.wait(10)
        shutil.rmtree(self._directory, ignore_errors=True)
