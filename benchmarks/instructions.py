"""Counts the core's instructions for an event, and for each stream that it goes to: ``python -m benchmarks.instructions``.

Needs valgrind (callgrind). The core alone, without a loop and without sockets: each write goes to /dev/null, whose way through the kernel
callgrind does not see. What is counted twice, with few events and with more, is taken off: the start, and opening the streams.
The numbers are of one Python and one build of it; they are good for comparing two versions of the core
(docs/decisions/0022-batches-are-shared.md), and say nothing of memory that is cold.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.parts import ROOT, python
from sse_gateway.channels import QueueBounds, Rule, RuleTable, WindowBounds
from sse_gateway.hub import Hub
from sse_gateway.limits import Limits
from sse_gateway.reader import Reader, framing_of
from sse_gateway.reasons import Format, GapReason, Policy
from sse_gateway.subscription import parse_subscription

if TYPE_CHECKING:
    from sse_gateway.reasons import CloseReason

STREAMS = 1_000
FEW, MORE = 10, 30
"""Events of the two counts."""

WARM = 5
"""Events before: the interpreter adapts its code to what it meets."""

PAYLOAD = b"x" * 100
CASES = {
    "for each stream, an event to one audience": "channel=load",
    "for each stream, the same to as many audiences of one stream each": "channel=load&channel=own-{}",
}

LIMITS = Limits(
    channels=100_000,
    window_bytes=512 << 20,
    queue_bytes=512 << 20,
    message_bytes=1 << 20,
    heartbeat_s=15.0,
    write_timeout_s=30.0,
)
WINDOW, QUEUE = WindowBounds(1_000, 300, 4 << 20), QueueBounds(2_000, 4 << 20, Policy.DROP_OLDEST)
RULE = Rule(0, "*", "", Format.TEXT, prefix=True, window=WINDOW, queue=QUEUE, replay_on_connect=0)


class Sink:
    """A socket that takes everything and forgets it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def wait_writable(self) -> None:
        """Never called: it is always writable."""

    def replayed(self, size: int) -> None:
        """Nothing was."""

    def abort(self, reason: CloseReason) -> None:
        """Nobody does."""


def deliver(query: str, streams: int, events: int) -> None:
    """Open streams, and have events delivered to them, each by itself."""
    rules = RuleTable([RULE])
    hub = Hub(rules, LIMITS, b"key", os.write)
    hub.begin_epoch("epoch0000000", GapReason.SOURCE, 0.0)
    null = os.open("/dev/null", os.O_WRONLY)
    for number in range(streams):
        subscription = parse_subscription(None, query.format(number), None, rules, 64)
        reader = Reader(Sink(null), subscription.follow, framing_of(chunked=True, wrapped=False), 3_000)
        hub.attach(reader, subscription, b"", 0.0)
    for _ in range(WARM + events):
        hub.publish(b"*", b"load", PAYLOAD, 0.0, 0.0)
        hub.flush(0.0)
        while hub.is_busy:
            hub.step(0.0)
            hub.observe(0.0)


def counted(query: str, streams: int, events: int) -> int:
    """Return the instructions of a process that does so.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={Path(directory) / 'out'}"]
        command += python("benchmarks.instructions", "--streams", streams, "--deliver", query, events)
        fixed = {"PYTHONHASHSEED": "0"}  # where things lie in dictionaries is not to differ
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | fixed)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(done.stderr[-2000:])
    return int(found[1])


def main() -> int:
    """Count, and print a table; or be what is counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--streams", type=int, default=STREAMS, help="default %(default)s")
    parser.add_argument("--deliver", nargs=2, metavar=("QUERY", "EVENTS"), help="deliver events, and count nothing")
    args = parser.parse_args()
    if args.deliver:
        deliver(args.deliver[0], args.streams, int(args.deliver[1]))
        return 0
    if shutil.which("valgrind") is None:
        print("needs valgrind (Debian: apt-get install valgrind)", file=sys.stderr)
        return 70
    print("| | instructions |\n|---|---:|")
    few, more = (counted("", 0, events) for events in (100 * FEW, 100 * MORE))
    print(
        f"| an event to nobody: counted, hashed, encoded, held | {(more - few) / (MORE - FEW) / 100:,.0f} |", flush=True
    )
    for name, query in CASES.items():
        few, more = (counted(query, args.streams, events) for events in (FEW, MORE))
        print(f"| {name} | {(more - few) / (MORE - FEW) / args.streams:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
