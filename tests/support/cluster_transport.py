"""How snapshots travel in the simulation: in blocks, late, twice, or not to the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sse_gateway.decisions import Fetch, Serve
    from tests.support.cluster_node import Node
    from tests.support.cluster_run import Run

AHEAD = 4
"""Blocks that wait for a joiner before the server goes on."""

PATIENCE_S = 2.0
LOOK_S = 0.7
"""Longest time between two looks at a node that stands still."""
"""So long it waits."""


class Shelf:
    """What lies between a server and a joiner.

    Attributes:
        blocks: Put there so far.
        taken: Fetched so far.
        via: ``unix`` or ``list``.
        is_gone: Nothing more can be fetched.
    """

    def __init__(self, via: str) -> None:
        self.blocks: list[bytes] = []
        self.taken = 0
        self.via = via
        self.is_gone = False


class Job:
    """One snapshot that is being served.

    Attributes:
        node: Who serves.
        order: What.
        ends_after: The transport fails after so many blocks.
        pause_s: Time between two blocks.
        repeats: How likely a block is sent twice.
        is_stopped: Nobody wants it any more.
        waits: For so long nobody has fetched anything.
    """

    def __init__(self, node: Node, order: Serve, ends_after: int, pause_s: float, repeats: float) -> None:
        self.node = node
        self.order = order
        self.ends_after = ends_after
        self.pause_s = pause_s
        self.repeats = repeats
        self.is_stopped = False
        self.waits = 0.0


class Transport:
    """All transfers.

    Attributes:
        is_bad: Transfers that begin now are slow, lossy, or send blocks twice.
        served: Transfers served to their end.
    """

    def __init__(self, run: Run) -> None:
        self.is_bad = False
        self.served = 0
        self._run = run
        self._shelves: dict[str, Shelf] = {}
        self._jobs: dict[tuple[str, str], Job] = {}
        self._fetching: set[tuple[str, str]] = set()

    def serve(self, node: Node, order: Serve) -> None:
        """Begin to hand over."""
        rng = self._run.rng
        self._run.trace("serve", node, order.token, order.via)
        job = Job(node, order, 10_000, rng.choice([0.001, 0.005]), 0.0)
        if self.is_bad:
            job.ends_after = rng.choice([0, 1, 2, 3, 10_000])
            job.pause_s = rng.choice([0.001, 0.05, 0.3, 0.7])
            job.repeats = rng.choice([0.0, 0.0, 0.3])
        self._jobs[node.name, order.token] = job
        self._shelf(order.token, order.via)
        self._run.after(job.pause_s, self._push, job)
        for joiner in self._run.nodes:
            if order.via == "unix" and joiner.name == order.joiner:  # who pushes need not wait for the log
                self._begin(joiner, order.token)

    def fetch(self, node: Node, order: Fetch) -> None:
        """Begin to get."""
        self._shelf(order.token, order.via)
        self._begin(node, order.token)

    def _begin(self, node: Node, token: str) -> None:
        if (node.name, token) not in self._fetching:
            self._fetching.add((node.name, token))
            self._run.after(0.002, self._pull, node, token)

    def stop(self, node: Node, token: str) -> None:
        """End what a node serves or fetches under a token. Idempotent."""
        self._fetching.discard((node.name, token))
        job = self._jobs.pop((node.name, token), None)
        if job is not None:
            job.is_stopped = True

    def left(self, node: Node) -> None:
        """A node is gone, and with it what only it had."""
        for name, token in [key for key in self._jobs if key[0] == node.name]:
            job = self._jobs.pop((name, token))
            job.is_stopped = True
            if job.order.via == "unix":
                self._shelves[token].is_gone = True
        self._fetching = {key for key in self._fetching if key[0] != node.name}

    def flush_lists(self) -> None:
        """Redis has begun anew, and has nothing any more."""
        for shelf in self._shelves.values():
            shelf.is_gone |= shelf.via == "list"

    def _shelf(self, token: str, via: str) -> Shelf:
        return self._shelves.setdefault(token, Shelf(via))

    def _push(self, job: Job) -> None:
        """Put the next block down."""
        if job.is_stopped:
            return
        wait = job.node.stopped_until - self._run.now
        shelf = self._shelves[job.order.token]
        if (wait > 0 or len(shelf.blocks) - shelf.taken >= AHEAD) and job.waits < PATIENCE_S:
            pause_s = min(max(wait, job.pause_s), LOOK_S)  # it may be let go on earlier
            job.waits += pause_s
            self._run.after(pause_s, self._push, job)
            return
        is_cut_off = job.waits >= PATIENCE_S or (job.order.via == "list" and job.node.connection is None)
        job.waits = 0.0
        block = None if is_cut_off or not job.ends_after else next(job.order.blocks, None)
        if block is None or shelf.is_gone:
            self.stop(job.node, job.order.token)
            self.served += block is None and not is_cut_off
            job.node.served(job.order.token)
            return
        if block:
            job.ends_after -= 1
            shelf.blocks += [block] * (1 + (self._run.rng.random() < job.repeats))
        self._run.after(job.pause_s, self._push, job)

    def _pull(self, node: Node, token: str) -> None:
        """Get the next block."""
        shelf = self._shelves[token]
        if (node.name, token) not in self._fetching or shelf.is_gone:
            return
        wait = node.stopped_until - self._run.now
        if wait <= 0 and shelf.taken < len(shelf.blocks):
            shelf.taken += 1
            if not node.serve_block(token, shelf.blocks[shelf.taken - 1]):
                self._fetching.discard((node.name, token))
                return
        self._run.after(min(max(wait, 0.004), LOOK_S), self._pull, node, token)
