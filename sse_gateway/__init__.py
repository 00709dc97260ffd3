"""SSE gateway: plain Redis PUBLISH in, resumable Server-Sent Events out.

The package is built in layers; imports point down, and layers 0 to 2 do no I/O:

    4 root        cli  supervisor (generation  child)  worker  gateway  publish  tail  demo (demo_site  demo_relay  demo_samples  demo_valkey)
    3 adapters    source  link  primary (place  sentinels)  server (redis_login)  member  handover (parts)
                  http  stream  streams  metrics  aggregate  admin  listeners  orders  logs  systemd
                  config (settings  document  values  overrides  conflicts  quantities  redis_url)
    2 core        hub  replica  offers
    1 mechanisms  intake  decoder  log  window  timeline  history  frames
                  audience  audiences  turns  outbox  delivery  opening  replay  hold  placement  reader  subscription  tally
                  control  checkpoints  decisions  joining  cut  snapshot
    0 vocabulary  cursor  channels  events  reasons  errors
"""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("sse-gateway")
