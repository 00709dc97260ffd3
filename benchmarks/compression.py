"""What compression of streams would save and take, shared or for each connection: ``python -m benchmarks.compression``.

Shared: a batch is compressed once for its audience, as raw deflate that ends with a full flush, so that it is right for every client,
whenever it came. Own: each connection has a compressor, which remembers what it has sent (`Content-Encoding: gzip` as
proxies do it). Prints tables in Markdown; docs/decisions/0023-no-compression.md has them, and the conclusion.
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from sse_gateway.frames import chunk

if TYPE_CHECKING:
    from collections.abc import Callable

LEVEL = 1
"""The cheapest: what is compressed again and again is small."""

SIZES = {"200 bytes": 200, "1 KB": 1_000, "64 KB": 65_536}
"""Of an event, about."""

HEAD_BYTES, ITEM_BYTES = 80, 60
"""About what each of its items takes, and all that stands around them."""

BATCHES = (1, 10)
"""Events that go out together."""

EVENTS = 100
CONNECTIONS = 1_000
AUDIENCES = (1, 10, 1_000)
REPEATS = 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def compressor() -> zlib._Compress:
    """Return one for raw deflate, or for what follows gzip's head: they are the same."""
    return zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)


def event(size: int, number: int, draw: random.Random) -> bytes:
    """Return a frame with JSON of about so many bytes: keys and words that come again, numbers and names that do not."""
    items = [
        {"sku": f"{draw.getrandbits(48):012x}", "price": draw.randrange(10**6) / 100, "state": "available"}
        for _ in range((size - HEAD_BYTES) // ITEM_BYTES)
    ]
    data = json.dumps({"shop": "north", "items": items}).encode()
    return b"id: 0123456789abcdef-%d-%012x\ndata: %b\n\n" % (number, draw.getrandbits(48), data)


def shared(batch: bytes) -> bytes:
    """Compress a batch for everybody."""
    one = compressor()
    return one.compress(batch) + one.flush(zlib.Z_FULL_FLUSH)


def own(one: zlib._Compress, batch: bytes) -> bytes:
    """Compress a batch for the client whose compressor it is."""
    return one.compress(batch) + one.flush(zlib.Z_SYNC_FLUSH)


def cpu_us(work: Callable[[], object], times: int) -> float:
    """Return the CPU time of one of so many calls' worth of work: the median of several tries."""
    found = []
    for _ in range(REPEATS):
        begun = time.thread_time_ns()
        work()
        found.append((time.thread_time_ns() - begun) / times / 1000)
    return statistics.median(found)


def resident_bytes() -> int:
    """Return this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def bytes_per_connection(events: list[bytes]) -> float:
    """Return what a compressor of its own takes for each connection that has been sent some events."""
    gc.collect()
    before = resident_bytes()
    held = [compressor() for _ in range(CONNECTIONS)]
    for one in held:
        for frame in events:
            own(one, frame)
    return (resident_bytes() - before) / CONNECTIONS


def ratio(batches: list[bytes], compressed: list[bytes]) -> float:
    """Return bytes after / before, as they go out: with the length and end of their HTTP chunk."""
    return sum(len(chunk(one)) for one in compressed) / sum(len(chunk(one)) for one in batches)


def row(name: str, size: int) -> str:
    """Measure events of one size; return their line of the first table."""
    draw = random.Random(size)
    events = [event(size, number, draw) for number in range(EVENTS)]
    cells = []
    for count in BATCHES:
        batches = [b"".join(events[at : at + count]) for at in range(0, EVENTS, count)]
        cells.append(f"{ratio(batches, [shared(one) for one in batches]):.2f}")
    one = compressor()
    cells.append(f"{ratio(events, [own(one, frame) for frame in events]):.2f}")
    shared_us = cpu_us(lambda: [shared(frame) for frame in events], EVENTS)
    kept = compressor()
    own_us = cpu_us(lambda: [own(kept, frame) for frame in events], EVENTS)
    cells += [f"{shared_us / count:,.2f}" for count in AUDIENCES]
    cells += [f"{own_us:,.1f}", f"{bytes_per_connection(events[:10]) / 1024:,.0f}"]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> int:
    """Print the table."""
    heads = [
        "events of JSON",
        *(f"shared, batches of {count}: after / before" for count in BATCHES),
        "own: after / before",
    ]
    heads += [f"shared by {count:,}: CPU, us per client and event" for count in AUDIENCES]
    heads += ["own: CPU, us per client and event", "own: resident KiB per client"]
    print(f"| {' | '.join(heads)} |\n|---{'|---:' * (len(heads) - 1)}|")
    for name, size in SIZES.items():
        print(row(name, size), flush=True)
    print(
        f"\nzlib {zlib.ZLIB_RUNTIME_VERSION}, level {LEVEL}; one event at a time but where it says otherwise. Shared takes no memory per client."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
