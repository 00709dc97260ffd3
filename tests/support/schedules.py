"""Random schedules for the core: publishers, clients and faults, each step from a number of its own.

A schedule is a seed for the configuration and a list of (kind, number). A step draws all it needs
from its number alone, so a schedule stays one when steps are taken out: `shrink` does that.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from random import Random
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote

from sse_gateway.batch import Joiner
from sse_gateway.delivery import SETTLED_BYTES
from sse_gateway.hub import Hub
from sse_gateway.log import Log
from sse_gateway.reader import Phase, Reader, framing_of
from sse_gateway.reasons import CloseReason, GapReason, RejectReason
from sse_gateway.subscription import parse_subscription
from tests.support.core import held_batches
from tests.support.judged import MAX_CHUNK, Client
from tests.support.messages import Plan, Publisher, Setup
from tests.support.oracle import UNVERIFIABLE, Asked, StreamCheck
from tests.support.world import BrokenPromiseError, Deliverable, World, ensure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sse_gateway.channels import Rule, RuleTable
    from sse_gateway.limits import Limits
    from tests.support.oracle import Known

Step: TypeAlias = tuple[str, int]
MakeHub: TypeAlias = "Callable[[RuleTable, Limits, bytes, Callable[[int, bytes], int]], Hub]"

KEY = b"k" * 16

KINDS = {
    "publish": 30, "flush": 4, "step": 30, "attach": 7, "resume": 9, "squeeze": 11, "relieve": 8, "drain": 14,
    "drain_all": 4, "cut_off": 1, "leave": 2, "farewell": 3, "tick": 7, "begin_epoch": 1, "reach": 2, "flood": 1,
    "burst": 3,
}  # fmt: skip
"""Kinds of steps and their weights."""


class Run:
    """One schedule under way.

    Attributes:
        hub: Under test.
        clients: All streams so far.
        step: Number of the current step.
    """

    def __init__(self, seed: int, make_hub: MakeHub = Hub) -> None:
        self.setup = self._setup(seed)
        self.hub = make_hub(self.setup.table, self.setup.limits, KEY, self._write)
        self.world = World(self.setup.table.rules, exact=self.setup.exact)
        self.now = 1000.0
        self.step = 0
        self.clients: list[Client] = []
        self.fds: set[int] = set()
        self.closed: Counter[CloseReason] = Counter()
        self.handed: Counter[str] = Counter()
        self.is_cut_off = False
        self.total_events = self.total_bytes = self.total_dropped = 0
        self._twin = Log(KEY)
        self._upcoming: deque[Plan] = deque()
        self._to_come: dict[str, None] = {}
        self._publisher = Publisher(self.setup)
        self._largest_pass = (0, 0)
        self._do_begin_epoch(Random(seed))

    def do(self, step: Step) -> None:
        """Do one step and judge what came of it."""
        self.step += 1
        kind, number = step
        getattr(self, f"_do_{kind}")(Random(number))
        self._settle()

    def finish(self, rng: Random) -> None:
        """Let faults end: every stream becomes current, any id can be resumed from, and all is returned."""
        self._quiesce()
        cuts = [(client, cut) for client in self.clients for cut in range(len(client.check.blocks) + 1)]
        closed = [(client, len(client.check.blocks)) for client in self.clients if client.check.closed]
        for client, cut in rng.sample(cuts, min(len(cuts), 5)) + rng.sample(closed, min(len(closed), 3)):
            self.step += 1
            self._resume_at(client, cut, rng, same=True)
            self._settle()
            self._quiesce()
        self._judge_heartbeats()
        for client in self._open():
            self.step += 1
            client.end(CloseReason.DRAIN)
            self._settle()
            ensure(client.check.is_complete, "not a clean end")
        self._judge_end()

    # Steps.

    def _do_publish(self, rng: Random) -> None:
        for _ in range(rng.choice([1, 1, 2, 3, 8])):
            self._publish(self._upcoming.popleft() if self._upcoming else self._publisher.draw(rng, self.now), rng)
        if rng.random() < 0.8:
            self.hub.flush(self.now)

    def _do_flush(self, _: Random) -> None:
        self.hub.flush(self.now)

    def _do_step(self, rng: Random) -> None:
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            self._step()

    def _do_attach(self, rng: Random) -> None:
        names = self._names(rng)
        bad = ["garbage", UNVERIFIABLE, "z" * 12 + "-5-" + "a" * 12, f"{self.world.epochs[-1][0]}-0-{'f' * 12}"]
        self._attach(names, rng.choice(bad) if rng.random() < 0.3 else None, rng)

    def _do_resume(self, rng: Random) -> None:
        if self.clients:
            client = rng.choice(self.clients)
            cut = rng.choice([len(client.check.blocks), rng.randint(0, len(client.check.blocks))])
            self._resume_at(client, cut, rng, same=rng.random() < 0.8)

    def _do_reach(self, rng: Random) -> None:
        """Attach with the cursor of messages that are yet to come."""
        cursor = ""
        while len(self._upcoming) < rng.randint(1, 4) or not cursor:
            plan = self._publisher.draw(rng, self.now)
            cursor = self._twin.append(plan.channel, plan.payload) if plan.rule else cursor
            self._upcoming.append(plan)
        epoch, offset, check = cursor.split("-")
        self._to_come[cursor] = None
        if rng.random() < 0.3:
            cursor = rng.choice([f"{epoch}-{offset}-{check[::-1]}", f"{epoch}-{2**62}-{check}"])
        self._attach(self._names(rng), cursor, rng)

    def _do_squeeze(self, rng: Random) -> None:
        if clients := self._open():
            rng.choice(clients).room = rng.choice([0, 0, 1, 7, 60, 300, 5000])

    def _do_relieve(self, rng: Random) -> None:
        if clients := self._open():
            client = rng.choice(clients)
            client.room = None if rng.random() < 0.5 else (client.room or 0) + rng.choice([1, 40, 500, 40_000])

    def _do_drain(self, rng: Random) -> None:
        if clients := [client for client in self._open() if client.waits]:
            rng.choice(clients).writable()

    def _do_drain_all(self, _: Random) -> None:
        for client in self._open():
            client.writable()

    def _do_cut_off(self, rng: Random) -> None:
        if clients := self._open():
            rng.choice(clients).is_cut_off = True

    def _do_leave(self, rng: Random) -> None:
        if clients := self._open():
            rng.choice(clients).abort(CloseReason.CLIENT)

    def _do_farewell(self, rng: Random) -> None:
        if clients := self._open():
            rng.choice(clients).end(rng.choice([CloseReason.DRAIN, CloseReason.MAX_AGE]))

    def _do_tick(self, rng: Random) -> None:
        self.now += rng.choice([0.1, 1.0, 1.0, 3.0, 6.0, 16.0, 40.0])
        self.world.expire(self.now)
        self.hub.tick(self.now, live=rng.random() < 0.8)
        for client in self._open():
            is_late = self.now - client.refused_at > self.hub.limits.write_timeout_s
            ensure(not (is_late and client.reader in self.hub.lagging), "still there after the write timeout")

    def _do_begin_epoch(self, rng: Random) -> None:
        name = "".join(rng.choices("0123456789abcdefghijklmnopqrstuvwxyz", k=12))
        reason = rng.choice([GapReason.SOURCE, GapReason.EPOCH])
        self._upcoming.clear()
        self._twin.begin_epoch(name, reason)
        self.world.begin_epoch(name, reason)
        self.hub.begin_epoch(name, reason, self.now)

    def _do_burst(self, rng: Random) -> None:
        """So much on one channel that a replay of it, or a drain, takes several chunks."""
        name = rng.choice(["audit:1", "l:1", "n1"])
        data = "x" * min(6000, self.setup.message_bytes - 180)
        for number in range(rng.choice([8, 30])):
            plan = self._publisher.text(name, f"{number} {data}")
            self._publish(self._upcoming.popleft() if self._upcoming else plan, rng)
        if rng.random() < 0.8:
            self.hub.flush(self.now)

    def _do_flood(self, rng: Random) -> None:
        """So many messages that the ring, or the index of a prefix, turns over."""
        if self.setup.floods:
            for _ in range(4200):
                self._publish(self._upcoming.popleft() if self._upcoming else Plan(
                    self.setup.table.rules[3], b"s:x*", b"", RejectReason.CHANNEL), rng)  # fmt: skip
        if self.setup.wide:
            for number in range(2300):
                self._publish(
                    self._upcoming.popleft() if self._upcoming else self._publisher.text(f"n{number % 40}", "w"), rng
                )
        self.hub.flush(self.now)

    # What the steps are made of.

    def _setup(self, seed: int) -> Setup:
        return Setup(seed)

    def _write(self, fd: int, data: bytes) -> int:
        client = next(
            (client for client in reversed(self.clients) if client.handle == fd and client.reason is None), None
        )
        ensure(client is not None, "written to a descriptor that is closed (I11)")
        assert client is not None
        return client.write(data)

    def _open(self) -> list[Client]:
        return [client for client in self.clients if client.reason is None]

    def _step(self) -> None:
        self.hub.step(self.now)
        self._measure()
        self.now += 0.001
        self.hub.observe(self.now)

    def _names(self, rng: Random) -> list[str]:
        names = ["audit:1", "audit:2", "j:1", "j:2", "l:1", "l:2", "n1", "n2", "n3"]
        names += ["*", "audit:*", "j*", "l:*", "n*", "au*", "zz*"]
        return rng.sample(names, rng.choice([1, 1, 1, 2, 3, 4]))

    def _framing(self, rng: Random) -> tuple[bool, bool]:
        """Whether a stream is wrapped, and whether it comes in chunks."""
        return rng.random() < 0.25, rng.random() < 0.7

    def _resume_at(self, client: Client, cut: int, rng: Random, *, same: bool) -> None:
        check = client.check
        cursor = check.blocks[cut - 1].id if cut else check.asked.cursor
        if not cut or (check.asked.cursor is None and not check.blocks):
            same = False
        names = list(check.asked.names) if same else self._names(rng)
        self._attach(names, cursor, rng, check.states[cut - 1] if same else None)

    def outcome(self, cursor: str | None) -> str:
        """What becomes of a cursor, as things stand: ``ahead`` if that is not known yet."""
        if cursor is None:
            return "fresh"
        epoch, _, rest = cursor.partition("-")
        index = next((i for i, known in enumerate(self.world.epochs) if known[0] == epoch), None)
        if cursor == UNVERIFIABLE or len(epoch) != 12 or index is None:
            return "epoch" if len(epoch) == 12 else "cursor"
        offset, _, check = rest.partition("-")
        position = self.world.epochs[index][1] + int(offset)
        if position > self.world.end_of(index):
            return "ahead" if index == len(self.world.epochs) - 1 else "epoch"
        if position < self.hub.log.floor:
            return "window"
        return "resume" if cursor in self._to_come or self.world.checks.get(position) == check else "cursor"

    def _attach(self, names: list[str], cursor: str | None, rng: Random, known: Known | None = None) -> None:
        bounds = self.setup.bounds(names)
        if bounds is None:
            return
        replay = rng.choice([None, None, None, 0, 1, 2, 10**9])
        asked = Asked(tuple(names), bounds.policy, cursor, frozenset({"?"}), replay, *self._framing(rng))
        query = "&".join(f"channel={quote(name)}" for name in names) + f"&wrap={int(asked.wrapped)}"
        query += "" if replay is None else f"&replay={replay}"
        subscription = parse_subscription(None, query, cursor, self.setup.table, 64)
        head = b"HTTP/1.1 200 OK\r\n\r\n"
        fd = min(set(range(3, len(self.fds) + 4)) - self.fds)
        client = Client(fd, StreamCheck(self.world, asked, head, known), head, bounds, self)
        client.reader = Reader(
            client, subscription.follow, framing_of(chunked=asked.chunked, wrapped=asked.wrapped), 3000
        )
        client.room = None if rng.random() < 0.6 else rng.choice([0, 5, 30, 200, 1000])
        self.fds.add(fd)
        self.clients.append(client)
        self.hub.attach(client.reader, subscription, head, self.now)

    def _publish(self, plan: Plan, rng: Random) -> None:
        hub, world, rule = self.hub, self.world, plan.rule
        patterns = [
            item.pattern for item in self.setup.table.rules if plan.channel.startswith(item.pattern[:-1].encode())
        ]
        for pattern in rng.sample(patterns, len(patterns)) or ["s:*"]:
            if rule is None or pattern != rule.pattern:
                head = hub.log.head
                answer = hub.publish(pattern.encode(), plan.channel, plan.payload, self.now, 1e9 + self.now)
                ensure(answer is None and hub.log.head == head, "a copy was counted")
                continue
            position = world.count()
            self._follow_twin(plan)
            duplicates = hub.tally.duplicates[rule.index]
            answer = hub.publish(pattern.encode(), plan.channel, plan.payload, self.now, 1e9 + self.now)
            ensure(hub.log.head == position, "miscounted")
            ensure(plan.rejected == (answer[1].reason if answer else None), "rejected:", answer, plan)
            if plan.rejected is None:
                self._note(plan, rule, position, is_duplicate=hub.tally.duplicates[rule.index] > duplicates)

    def _follow_twin(self, plan: Plan) -> None:
        """Keep the second log, which knows the cursors of what is to come, level with the first."""
        if self._twin.head - self._twin.epoch.base < self.world.head - self.world.epochs[-1][1]:
            self._twin.append(plan.channel, plan.payload)

    def _note(self, plan: Plan, rule: Rule, position: int, *, is_duplicate: bool) -> None:
        known = plan.key is not None and self.world.knows_key(plan.name, plan.key)
        if is_duplicate:
            ensure(known, "not a duplicate:", plan)
            return
        self._forget()
        ensure(not (known and self.world.is_exact), "a duplicate was delivered:", plan)
        event = Deliverable(position, plan.name, plan.type, plan.text, plan.value)
        self.world.add(event, rule, self.now)

    def _forget(self) -> None:
        """Whether channels were forgotten is the one thing that is asked of the core."""
        self.world.is_exact &= max(self.hub.history.marks) < 0

    # Judging.

    def _settle(self) -> None:
        self._forget()
        for client in self.clients:
            client.settle(self.step)
        self._audit()

    def _audit(self) -> None:
        """Counters and bounds, recomputed (I5, I8)."""
        hub, open_ = self.hub, self._open()
        waiting = [(client.bounds, client.reader.outbox) for client in open_]
        catchups = [client.reader.catchup for client in open_ if client.reader.catchup is not None]
        charged = sum(SETTLED_BYTES * len(catchup.settled) for catchup in catchups)
        queued = sum(len(outbox) for _, outbox in waiting if outbox is not None)
        ensure(hub.tally.queue_bytes == queued + charged, "queue_bytes")
        self._measure()
        for bounds, outbox in waiting:
            if outbox is None:
                continue
            ensure(outbox.count <= bounds.max_events + self._largest_pass[0], "queue", outbox.count)
            ensure(outbox.bytes <= bounds.max_bytes + self._largest_pass[1], "queue", outbox.bytes)
            ensure(len(outbox.chunk) <= max(MAX_CHUNK, 3 * self.setup.message_bytes) + 1000, "chunk", len(outbox.chunk))
            ensure(
                len(outbox.events) <= 2 * outbox.count + 16 + self._largest_pass[0], "superseded", len(outbox.events)
            )
        is_bounded = hub.tally.queue_bytes <= hub.limits.queue_bytes or not hub.lagging
        ensure(is_bounded, "queue_memory", hub.tally.queue_bytes)
        ensure(hub.readers == len(open_), "readers", hub.readers, len(open_))
        ensure(set(hub.lagging) <= {client.reader for client in open_}, "lagging after the end")
        served = {client.reader for client in open_ if client.waits}.union(hub._catching)
        ensure(served.issuperset(hub.lagging), "lagging, not waited for")
        members = sum(audience.size + len(audience.waiting) for audience in hub._audiences)
        ensure(members == len(open_), "members", members)
        ensure({reason: n for reason, n in hub.tally.closed.items() if n} == dict(self.closed), "closed", self.closed)

    def _measure(self) -> None:
        waiting = held_batches(self.hub)
        ensure(self.hub.tally.pass_bytes == sum(batch.size for batch in waiting), "pass_bytes")
        events, size = self._largest_pass
        # What waits in a round may go out joined, and wrapped.
        joiner = Joiner()
        self._largest_pass = (
            max(events, sum(len(batch.events) for batch in waiting)),
            max(size, sum(joiner.wrap(batch).size if batch.events else batch.size for batch in waiting)),
        )

    def _quiesce(self) -> None:
        """Faults stop, sockets drain, cursors ahead are given up: every stream is current."""
        self.hub.flush(self.now)
        self._settle()
        self.now += 5.0
        self.world.expire(self.now)
        self.hub.tick(self.now, live=True)
        self._settle()
        for _ in range(30_000):  # one write in each, at worst
            self.step += 1
            for client in self._open():
                client.room, client.is_cut_off = None, False
                client.writable()
            self._step()
            self._settle()
            if not self.hub.is_busy and not self.hub.lagging:
                break
        else:
            raise BrokenPromiseError("streams do not become current")
        for client in self._open():
            ensure(client.reader.phase is Phase.LIVE, "not live:", client.reader.phase)
            ensure(client.reader.outbox is None, "not writable")
            client.check.judge_current(self.world.head)

    def _judge_heartbeats(self) -> None:
        """After so much silence every stream hears something, and what it hears is where it stands."""
        self.now += self.hub.limits.heartbeat_s
        self.hub.tick(self.now, live=True)
        while self.hub.is_busy:
            self._step()
        self._settle()
        for client in self._open():
            last = client.check.blocks[-1]
            ensure(last.type == "gateway.heartbeat" and json.loads(last.data) == {"live": True}, "no heartbeat:", last)
            ensure(self.world.place(last.id) == self.world.head, "a heartbeat that lags:", last)

    def _judge_end(self) -> None:
        """All that was borrowed has been returned (I5, I8)."""
        hub, tally = self.hub, self.hub.tally
        left = hub.readers, hub.audiences, tally.queue_bytes, tally.pass_bytes, len(hub.lagging)
        ensure(left == (0, 0, 0, 0, 0), "left behind:", left)
        ensure(tally.opened == len(self.clients) == sum(tally.closed.values()), "opened", tally.opened)
        ensure(tally.deliveries == self.total_events, "deliveries", tally.deliveries, self.total_events)
        ensure(tally.bytes == self.total_bytes, "bytes", tally.bytes, self.total_bytes)
        ensure(sum(tally.dropped.values()) == self.total_dropped, "dropped", tally.dropped, self.total_dropped)
        gaps = {reason.value: n for reason, n in tally.gaps.items() if n}
        ensure(self.is_cut_off or gaps == dict(self.handed), "gaps", gaps, self.handed)


def schedule(seed: int, length: int) -> list[Step]:
    """Draw the steps of a schedule."""
    rng = Random(seed)
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=length)
    return [(kind, rng.getrandbits(32)) for kind in kinds]


def play(seed: int, steps: Sequence[Step], make_hub: MakeHub = Hub) -> None:
    """Run one schedule to its end.

    Raises:
        BrokenPromiseError: Or whatever the core raised.
    """
    run = Run(seed, make_hub)
    for step in steps:
        run.do(step)
    run.finish(Random(seed))


def fails(seed: int, steps: Sequence[Step], make_hub: MakeHub = Hub) -> Exception | None:
    """What a schedule fails with, or None."""
    try:
        play(seed, steps, make_hub)
    except Exception as error:  # noqa: BLE001 - whatever fails is the finding
        return error
    return None


def shrink(seed: int, steps: Sequence[Step], make_hub: MakeHub = Hub) -> list[Step]:
    """Take steps out of a failing schedule as long as it fails in the same way."""
    kind = _kind(fails(seed, steps, make_hub))
    best = list(steps)
    size = len(best) // 2
    while size:
        at = 0
        while at < len(best):
            shorter = best[:at] + best[at + size :]
            if _kind(fails(seed, shorter, make_hub)) == kind:
                best = shorter
            else:
                at += size
        size //= 2
    return best


def _kind(error: Exception | None) -> str:
    return f"{type(error).__name__} {error}"[:40]
