"""nchan in Debian's nginx: one worker, events by HTTP, as its README shows.

It is fed by POSTs on one kept-alive connection: its own Redis mode is a protocol between nchans and takes no plain
PUBLISH. Its messages are kept in memory as the gateway's window keeps them.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from benchmarks.parts import ROOT

if TYPE_CHECKING:
    from pathlib import Path

MODULE = "usr/lib/nginx/modules/ngx_nchan_module.so"

UNPACKED = ROOT / ".venv" / "nchan"
"""Where scripts/benchmarks unpacks Debian's package, with a file `version`: installed, it would be in every nginx of this machine."""

CONFIG = """
daemon off;
load_module {module};
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 19000; multi_accept on; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_buffer_size 128k;
    client_max_body_size 1m;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    nchan_shared_memory_size 512m;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/pub/(.+)$ {{
            nchan_publisher;
            nchan_channel_id $1;
            nchan_message_buffer_length 1000;
            nchan_message_timeout 5m;
        }}
        location ~ ^/events/(.+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
            nchan_eventsource_ping_interval 15;
        }}
    }}
}}
"""


def find_nginx() -> str | None:
    """Return Debian's nginx; it is in /usr/sbin, which is not in everybody's path."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def find_module() -> Path | None:
    """Return the module, unpacked or installed."""
    for root in (UNPACKED, ROOT.__class__("/")):
        if (root / MODULE).is_file():
            return root / MODULE
    return None


def version() -> str:
    """Return Debian's version of the module, and nginx's."""
    known = UNPACKED / "version"
    if known.is_file():
        return known.read_text().strip()
    command = ["dpkg-query", "--show", "--showformat", "${Version}", "libnginx-mod-nchan"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return done.stdout.strip() or "unknown"


def write_config(directory: Path, port: int) -> Path:
    """Write nginx's configuration."""
    config = directory / "nchan.conf"
    config.write_text(CONFIG.format(module=find_module(), directory=directory, port=port))
    return config
