"""A real nginx with the file that we ship, unprivileged, in a directory of its own.

The file is changed in nothing but its paths, ports and the upstream's address, and in what a test
says aloud (`edits`). Around it stands an http context that a test may make hostile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest

from tests.support.gateway_process import poll
from tests.support.tunnel import Tunnel
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.support.raw_client import Address

SHIPPED: Final = Path(__file__).parents[2] / "nginx" / "sse-gateway.conf"
MISSING: Final = "NO NGINX TESTS: they need nginx and openssl (apt-get install nginx-light openssl)"

# Debian's own http context, as far as it concerns us.
DEBIAN: Final = """
    sendfile on;
    tcp_nopush on;
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    ssl_prefer_server_ciphers on;
    gzip on;
"""

# An http context in which everything that can hold an event back, or change an answer, does.
HOSTILE: Final = """
    sendfile on;
    tcp_nopush on;
    tcp_nodelay off;
    default_type application/octet-stream;
    gzip on;
    gzip_types *;
    gzip_proxied any;
    gzip_min_length 1;
    gzip_buffers 64 64k;
    postpone_output 64k;
    ssl_buffer_size 16k;
    proxy_buffering on;
    proxy_buffer_size 256k;
    proxy_buffers 16 256k;
    proxy_busy_buffers_size 512k;
    proxy_cache_path cache keys_zone=hostile:1m;
    proxy_cache hostile;
    proxy_cache_valid any 1m;
    proxy_cache_methods GET HEAD;
    proxy_cache_lock on;
    proxy_ignore_headers Cache-Control Expires X-Accel-Expires X-Accel-Buffering Set-Cookie Vary;
    proxy_set_header Accept-Encoding "gzip";
    proxy_read_timeout 1s;
    proxy_intercept_errors on;
    proxy_ignore_client_abort on;
    limit_rate 1k;
    limit_conn_status 503;
    expires 30d;
    error_page 404 500 502 503 504 /50x.html;
"""


def executable() -> str | None:
    """Find nginx, which Debian keeps where only root looks."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for localhost and 127.0.0.1: its file, and its key's."""
    certificate, key = directory / "sse-gateway.pem", directory / "sse-gateway.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


def replace(text: str, changes: Mapping[str, str]) -> str:
    """Replace every occurrence of each key; there must be one."""
    for old, new in changes.items():
        assert old in text, f"the shipped file has no {old!r}"
        text = text.replace(old, new)
    return text


class Nginx:
    """One nginx on loopback ports.

    Args:
        directory: An empty directory of its own.
        gateway: Where the gateway listens: (host, port), or the path of a Unix socket.
        outer: Directives of the http context around the shipped file.
        main: Directives of the main context.
        connections: Of a worker, both sides together.
        edits: What else is changed in the shipped file, for what would take too long or too many.

    Attributes:
        port: HTTPS.
        redirect_port: HTTP.
        certificate: Its own, which clients may trust.
    """

    def __init__(
        self,
        directory: Path,
        gateway: Address,
        *,
        outer: str = DEBIAN,
        main: str = "",
        connections: int = 1024,
        edits: Mapping[str, str] | None = None,
    ) -> None:
        self.port, self.redirect_port = free_port(), free_port()
        self.certificate, key = make_certificate(directory)
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._tunnel: Tunnel | None = None
        upstream = f"unix:{gateway}" if isinstance(gateway, str) else f"{gateway[0]}:{gateway[1]}"
        changes = {
            "server 127.0.0.1:8080;": f"server {upstream};",
            "listen [::]:443": f"listen 127.0.0.2:{self.port}",  # loopback alone, and CI may have no IPv6
            "listen [::]:80": f"listen 127.0.0.2:{self.redirect_port}",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{self.port} ssl http2;",
            "listen 80;": f"listen 127.0.0.1:{self.redirect_port};",
            "/etc/nginx/sse-gateway.pem": str(self.certificate),
            "/etc/nginx/sse-gateway.key": str(key),
            "/var/log/nginx/": f"{directory}/",
        }
        site = replace(SHIPPED.read_text(encoding="utf-8"), {**(edits or {}), **changes})
        site = site.replace(f"`listen 127.0.0.1:{self.port} ssl", "`listen 443 ssl")
        (directory / "site.conf").write_text(site, encoding="utf-8")
        temporary = " ".join(f"{kind}_temp_path {kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
        (directory / "nginx.conf").write_text(
            f"pid nginx.pid;\ndaemon off;\nworker_processes 1;\n{main}\n"
            f"events {{ worker_connections {connections}; }}\n"
            f"http {{\n    access_log access.log;\n    client_body_temp_path body;\n    {temporary}\n"
            f"{outer}\n    include site.conf;\n}}\n",
            encoding="utf-8",
        )

    @property
    def _command(self) -> list[str]:
        directory = str(self._directory)
        return [str(executable()), "-p", directory, "-c", f"{directory}/nginx.conf", "-e", f"{directory}/error.log"]

    def check(self) -> str:
        """``nginx -t``: what it says, which is two lines where nothing is wrong."""
        done = subprocess.run([*self._command, "-t"], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def start(self) -> None:
        """Start it; returns when it takes connections."""
        _disown(self._directory)
        user, group = ("nobody", "nogroup") if os.geteuid() == 0 else (None, None)
        extra: list[str] | None = None if user is None else []
        command = self._command
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, user=user, group=group, extra_groups=extra)
        poll(self._answers, timeout_s=30, what="nginx that takes connections")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.read_log("error.log")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        return False

    @property
    def pid(self) -> int:
        """The master process."""
        assert self._process is not None, "nginx is not running"
        return self._process.pid

    def workers(self) -> set[int]:
        """The worker processes."""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii")
            return {int(pid) for pid in children.split()}
        return set()

    def kill_workers(self) -> None:
        """``kill -9`` to every worker, which cuts all streams; the master starts new ones."""
        before = self.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        poll(lambda: self.workers() - before and not self.workers() & before, timeout_s=30, what="new worker")

    def reload(self) -> None:
        """``nginx -s reload``; returns when the new worker takes the connections and the old one no longer does."""
        before = self.workers()
        os.kill(self.pid, signal.SIGHUP)
        poll(lambda: self.workers() - before, timeout_s=30, what="new worker")
        poll(lambda: not any(map(_takes_connections, before)), timeout_s=30, what="old worker that shuts down")

    def read_log(self, name: str = "sse-gateway.log") -> str:
        """A log's text; none where nothing was logged."""
        path = self._directory / name
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """End it at once, workers too. Idempotent."""
        if self._process is None:
            return
        workers = self.workers()
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        for pid in workers:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start: same ports."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it and what belongs to it. Idempotent."""
        self.stop()
        if self._tunnel is not None:
            self._tunnel.close()
            self._tunnel = None

    @property
    def address(self) -> tuple[str, int]:
        """A plain port through which our own HTTP/1.1 client reaches it over TLS."""
        if self._tunnel is None:
            context = ssl.create_default_context(cafile=str(self.certificate))
            self._tunnel = Tunnel(("127.0.0.1", self.port), context)
        return self._tunnel.address

    def curl(self, target: str, *options: str, scheme: str = "https") -> list[str]:
        """The command line of a curl that trusts the certificate; it speaks HTTP/2 unless told otherwise."""
        port = self.port if scheme == "https" else self.redirect_port
        url = f"{scheme}://127.0.0.1:{port}{target}"
        return ["curl", "--silent", "--no-buffer", "--cacert", str(self.certificate), "--path-as-is", *options, url]


def _takes_connections(worker: int) -> bool:
    """Whether a worker is neither gone nor, as its title says, shutting down."""
    try:
        title = Path(f"/proc/{worker}/cmdline").read_bytes()
    except OSError:
        return False
    return title != b"" and b"shutting down" not in title


def _disown(directory: Path) -> None:
    """Give the directory to nobody, so that root's tests prove that nginx needs no root."""
    if os.geteuid() == 0:
        for path in [directory, *directory.iterdir()]:
            shutil.chown(path, "nobody", "nogroup")


class StartNginx(Protocol):
    """Starts an nginx that ends with the test."""

    def __call__(self, gateway: Address, **settings: Any) -> Nginx:
        """The keywords are those of `Nginx`."""


@contextlib.contextmanager
def nginxes() -> Iterator[StartNginx]:
    """Collect nginxes for the length of a ``with`` block; skips the test where there are none to be had."""
    if executable() is None or shutil.which("openssl") is None:
        pytest.skip(MISSING)
    with contextlib.ExitStack() as stack:

        def start(gateway: Address, **settings: Any) -> Nginx:
            # Not pytest's directory: nobody but its owner may enter that.
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nginx-")))
            directory.chmod(0o755)
            nginx = Nginx(directory, gateway, **settings)
            stack.callback(nginx.close)
            nginx.start()
            return nginx

        yield start
