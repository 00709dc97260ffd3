"""One schedule of the whole cluster, from one seed: nodes, people, publishers, faults, and the clock.

Everything happens at a virtual time, in an order that the seed alone decides. `play` runs a
schedule to its end and raises what broke.
"""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import contextmanager
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Any

from sse_gateway.reader import Phase
from tests.support.cluster_client import Person
from tests.support.cluster_faults import PROFILES, Chaos
from tests.support.cluster_ledger import Ledger
from tests.support.cluster_messages import HEADS, Setup, bounds_of
from tests.support.cluster_node import Node
from tests.support.cluster_parts import Parts
from tests.support.cluster_redis import Redis
from tests.support.cluster_transport import Transport
from tests.support.cluster_witness import Witness
from tests.support.world import BrokenPromiseError, ensure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sse_gateway.decisions import How

GRACE_S = 5.0
"""A node further behind may be thought to hold another log."""

HEAL_S = 30.0
"""Virtual seconds in which everything must be well again after the last fault."""

TIDY = 20
"""Schedules whose rest may lie about: some megabytes."""


class Run:
    """One schedule under way.

    Attributes:
        rng: All its chances.
        now: Its clock, seconds.
        ledger: What the oracle knows.
        redis: The server.
        transport: Of snapshots.
        nodes: Processes that live.
        people: Roam.
        counts: What happened.
        lines: The trace, if it is wanted.
    """

    def __init__(
        self, seed: int, parts: Parts | None = None, profile: str = "", *, tracing: bool = False, taping: bool = False
    ) -> None:
        self.rng = rng = Random(seed)
        self.now = 100.0
        self.profile = profile or rng.choices(list(PROFILES), [kind.weight for kind in PROFILES.values()])[0]
        self.chaos = Chaos(self, PROFILES[self.profile])
        self.setup = Setup(rng, calm=not self.chaos.kinds)
        self.ledger = Ledger(HEADS)
        self.redis = Redis(self.ledger, rng, lambda: self.now)
        self.transport = Transport(self)
        self.secret = rng.choice([b"", b"secret"])
        self.nodes: list[Node] = []
        self._born: list[Node] = []
        self.people: list[Person] = []
        self.counts: Counter[str] = Counter()
        self.left = 0
        self.lines: list[str] | None = [] if tracing else None
        self._taping = taping
        self._parts = parts or Parts()
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0
        self._publishes = True
        self._hosts = rng.choice([1, 2, 3])
        self._latency = rng.choice([0.001, 0.004, 0.02])
        self._rate = rng.choice([8.0, 15.0, 30.0])
        self._spread = rng.choice([0.0, 0.05, 0.5, 2.0])
        self._duration = rng.uniform(5, 11)

    # The clock.

    def at(self, time: float, action: Callable[..., object], *arguments: object) -> None:
        """Have something happen at a time."""
        self._number = number = self._number + 1
        heappush(self._heap, (time, number, action, arguments))

    def after(self, seconds: float, action: Callable[..., object], *arguments: object) -> None:
        """Have something happen later."""
        self._number = number = self._number + 1
        heappush(self._heap, (self.now + seconds, number, action, arguments))

    def run_until(self, end: float) -> None:
        """Let everything happen that is due before a time."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, action, arguments = heappop(heap)
            action(*arguments)
        self.now = end

    def latency(self) -> float:
        """Time that bytes take."""
        return self.rng.random() * self._latency

    def trace(self, *words: object) -> None:
        """Say what happens, if somebody wants to know."""
        if self.lines is not None:
            self.lines.append(f"{self.now:9.3f} @{self.ledger.head:<4} " + " ".join(map(str, words)))

    # The whole.

    def play(self) -> None:
        """Run from the start to the end."""
        rng = self.rng
        for _ in range(rng.choice([2, 2, 3, 3, 4, 5])):
            self.after(rng.random() * self._spread, self.start_node, 0)
        if self.chaos.kinds and rng.random() < 0.15:
            for _ in range(rng.choice([1, 2])):
                self.after(rng.random() * self._spread, self.start_node, 1)
        for number in range(rng.choice([4, 6, 9])):
            witness = Witness(self.ledger, self.setup.names(), calm=not self.chaos.kinds)
            witness.tape = [] if self._taping else None
            stays = rng.choice([[0.1, 0.5, 2.0], [2.0, 5.0], [0.05, 0.2]])
            person = Person(self, number, witness, stays=stays, slow=rng.random() < 0.25)
            self.people.append(person)
            self.after(rng.random() * 2, person.connect)
        self.after(rng.random(), self._publish)
        self.chaos.begin()
        self.run_until(self.now + self._duration)
        self._heal()
        self._end()

    def _publish(self) -> None:
        """A burst of a random size, and the next one later."""
        if not self._publishes:
            return
        size = self.rng.choice([1, 1, 1, 2, 5, 20])
        for _ in range(size):
            self.publish_one()
        self.after(self.rng.expovariate(self._rate / 5), self._publish)

    def publish_one(self) -> None:
        """Publish one message, if Redis takes it."""
        if not self.redis.is_up:
            return
        message = self.setup.draw()
        patterns = self.setup.patterns(message.channel)
        entry = self.redis.publish(message.channel, message.payload, patterns)
        self.counts["published"] += 1
        if message.plan is not None:
            self.ledger.add(entry, message.plan)

    # Nodes.

    def start_node(self, family: int) -> Node:
        """Start a process."""
        kit = self.setup.kit(family, self.rng.randrange(self._hosts))
        for rule in kit.table.rules[:4]:
            self.ledger.widen(rule.index, bounds_of(rule))
        self.ledger.is_tight |= kit.limits.channels < 100_000 or kit.limits.window_bytes < 1 << 30
        node = Node(self, kit, self._parts)
        self.trace("start", node, "host", kit.host)
        self.nodes.append(node)
        self._born.append(node)
        return node

    def any_node(self) -> Node | None:
        """Any that takes new streams."""
        nodes = [node for node in self.nodes if node.is_synced]
        return self.rng.choice(nodes) if nodes else None

    def synced(self, node: Node, epoch: str, how: How) -> None:
        """A node has the log."""
        self.trace("synced", node, epoch, how)
        self.counts[how] += 1
        if how == "joined":
            node.rejoined_at = self.now
            for client in node.clients.values():
                client.stream.is_new = True

    def epoch_began(self, node: Node, name: str, text: str, before: str | None) -> None:
        """A node has begun an epoch: was there a reason?"""
        is_first = name not in self.ledger.starts
        start = self.ledger.note_start(node.kit.family, name, text, before)
        self.trace("epoch", node, name, start)
        if not is_first:
            return
        self.counts["epochs"] += 1
        if self.ledger.is_faulty:
            return
        if start.kind == "DIVERGED" and self.chaos.longest_lag_s > GRACE_S:
            return  # a node so slow is taken for one that counts otherwise
        ensure(start.kind == "CONFIRM", "an epoch without a cause:", start)
        at = self.ledger.entries[start.place].at
        objectors = [other for other in self.nodes if other.kit.family == start.family and other.objects_to(name, at)]
        ensure(not objectors, "an epoch, though the log was held by", *objectors, start)
        ensure(self.chaos.kinds or len(self.ledger.breaks[start.family]) == 1, "a second epoch, without a fault")

    # The end.

    def forget(self) -> None:
        """Take the dead world apart: its parts hold each other, and the collector does not look at events at all."""
        for node in self._born:
            node.hub.history.clear()
            for part in (node.hub, node.replica, node):
                part.__dict__.clear()
        for person in self.people:
            for client in person.clients:
                client.__dict__.clear()
            person.__dict__.clear()
        self._heap.clear()
        self.transport.__dict__.clear()

    def _heal(self) -> None:
        """All faults end, and everything becomes well."""
        self.chaos.end()
        for person in self.people:
            person.settle()
        families = {node.kit.family for node in self.nodes} | {0}
        for family in sorted(families):
            if not any(node.kit.family == family for node in self.nodes):
                self.start_node(family)
        self._wait_for_peace("before the last events")
        for _ in range(5):
            self.publish_one()
        self._publishes = False
        self.run_until(self.now + 0.3)
        self._wait_for_peace("after the last events")
        self.run_until(self.now + 0.3)
        for person in self.people:
            person.witness.now = self.now
            person.witness.judge_current(self.ledger.head, "at the end", person)
            ensure(not person.witness.debts, "never told (I2):", person.witness.debts[:5], person)

    def _wait_for_peace(self, *when: object) -> None:
        deadline = self.now + HEAL_S
        while (why := self._unrest()) and self.now < deadline:
            self.run_until(self.now + 0.1)
        ensure(not why, why, *when)

    def _unrest(self) -> str:
        """What is not well yet."""
        for node in self.nodes:
            if not node.is_synced:
                return f"{node} is {node.replica.role}"
            link = node.connection
            if link is None or not link.is_open or link.is_deaf or link.items:
                return f"{node} has not read everything"
        for family in sorted({node.kit.family for node in self.nodes}):
            heads = {node.head for node in self.nodes if node.kit.family == family}
            if len(heads) > 1:
                return f"two logs: {sorted(heads)}"
        for person in self.people:
            if person.client is None or person.client.reader.phase is not Phase.LIVE:
                return f"{person} is not current"
            if person.client.reader.outbox is not None:
                return f"{person} is not writable"
        return ""

    def _end(self) -> None:
        """Everybody leaves, and all that was borrowed is returned."""
        for person in self.people:
            person.leave()
        self.run_until(self.now + 4.0)
        for node in self.nodes:
            hub, tally = node.hub, node.hub.tally
            left = (hub.readers, hub.audiences, tally.queue_bytes, tally.pass_bytes, len(hub.lagging),
                    len(hub.history.cuts), len(node.clients))  # fmt: skip
            ensure(not any(left), "left behind:", node, left)
            ensure(tally.opened == sum(tally.closed.values()), "opened", tally.opened, tally.closed)
        self.counts["deliveries"] = sum(person.witness.events for person in self.people)
        self.counts["served"] = self.transport.served
        self.counts["untold"] = sum(person.witness.untold for person in self.people)
        for person in self.people:
            for reason, count in person.witness.gaps.items():
                self.counts[f"gap {reason}"] += count


@contextmanager
def uncollected() -> Iterator[Callable[[], None]]:
    """Switch the collector off, which finds nothing while a schedule is played.

    Yields:
        To be called between schedules: every now and then it collects what they have left.
    """
    played = 0

    def tidy() -> None:
        nonlocal played
        played += 1
        if played % TIDY == 0:
            gc.collect()

    was_on = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield tidy
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def fails(
    seed: int, parts: Parts | None = None, profile: str = "", counts: Counter[str] | None = None
) -> Exception | None:
    """What a schedule fails with, or None; adds what happened to `counts`."""
    run = Run(seed, parts, profile)
    try:
        run.play()
    except Exception as error:  # noqa: BLE001 - whatever fails is the finding
        return error
    finally:
        run.forget()
        if counts is not None:
            counts.update(run.counts)
    return None


__all__ = ["BrokenPromiseError", "Run", "fails", "uncollected"]
