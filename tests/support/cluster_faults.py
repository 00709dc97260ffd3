"""What goes wrong in a schedule, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.cluster_node import CONTROL

if TYPE_CHECKING:
    from tests.support.cluster_node import Node
    from tests.support.cluster_run import Run


@dataclass(frozen=True, slots=True)
class Profile:
    """What may happen in a schedule.

    Attributes:
        weight: How often schedules are like that.
        rate: Faults per second.
        kinds: Kinds and weights; nothing at all in a calm one.
    """

    weight: int
    rate: float
    kinds: dict[str, int]


_LINKS = {"cut": 6, "deafen": 2, "pause": 3, "delay": 3, "squeeze": 2}
_DEATHS = {"kill": 4, "stop": 2, "start": 3, "freeze": 2}
_PEERS = {"worsen": 3, "babble": 2}

PROFILES = {
    "calm": Profile(2, 0.0, {}),
    "links": Profile(3, 0.7, _LINKS),
    "deaths": Profile(3, 0.7, _DEATHS),
    "snapshots": Profile(3, 1.2, {"cut": 6, "kill": 3, "start": 3, "worsen": 4, "flood": 2}),
    "lag": Profile(2, 0.8, {"delay": 6, "pause": 4, "freeze": 3, "start": 1}),
    "redis": Profile(2, 0.5, {"restart": 3, "cut": 4, "start": 2, "kill": 1, "squeeze": 2}),
    "claims": Profile(
        2, 1.0, {"cut": 3, "cut_all": 4, "delay": 3, "kill": 2, "kill_all": 2, "start": 3, "hesitate": 1, "crowd": 2}
    ),
    "all": Profile(
        4,
        1.5,
        _LINKS
        | _DEATHS
        | _PEERS
        | {"restart": 1, "cut_all": 1, "kill_all": 1, "flood": 2, "start": 4, "hesitate": 1, "crowd": 1},
    ),
    "parrot": Profile(0, 3.0, {"repeat": 10, "cut": 3, "kill": 1, "start": 2}),
    "hole": Profile(0, 0.6, {"hole": 1}),
}


class Chaos:
    """Does what a profile says.

    Attributes:
        kinds: Kinds of faults and their weights.
        longest_lag_s: So far behind its log some node may have been.
    """

    def __init__(self, run: Run, profile: Profile) -> None:
        self.kinds = profile.kinds
        self.longest_lag_s = 0.0
        self._run = run
        self._rate = profile.rate
        self._is_over = False

    def begin(self) -> None:
        """Let it come."""
        if self.kinds:
            self._run.after(self._run.rng.expovariate(self._rate) + 0.5, self._strike)
        else:
            self._run.after(self._run.rng.uniform(2, 4), self._renew)

    def end(self) -> None:
        """Let it end; what has happened is left to heal by itself."""
        run = self._run
        self._is_over = True
        run.redis.start()
        run.redis.max_items = 10_000
        run.transport.is_bad = False
        for connection in run.redis.connections:
            connection.delay_s = connection.paused_until = 0.0
        for node in run.nodes:
            node.stopped_until = min(node.stopped_until, run.now)

    def _strike(self) -> None:
        if self._is_over:
            return
        run = self._run
        kind = run.rng.choices(list(self.kinds), list(self.kinds.values()))[0]
        run.trace("fault", kind)
        run.counts["faults"] += 1
        getattr(self, f"_do_{kind}")()
        run.after(run.rng.expovariate(self._rate), self._strike)

    def _renew(self) -> None:
        """Without a fault: a node more, and another one less."""
        run = self._run
        if self._is_over:
            return
        run.start_node(0)
        run.after(3.0, self._retire)

    def _retire(self) -> None:
        run = self._run
        if not self._is_over:
            self._remove(run.nodes[0])

    def _node(self) -> Node | None:
        return self._run.rng.choice(self._run.nodes) if self._run.nodes else None

    # Links.

    def _do_cut(self) -> None:
        """A connection breaks."""
        if self._run.redis.connections:
            self._run.redis.kill(self._run.rng.choice(self._run.redis.connections))

    def _do_cut_all(self) -> None:
        """All break, nearly at once."""
        for connection in list(self._run.redis.connections):
            self._run.after(self._run.rng.choice([0.0, 0.01, 0.3]), self._run.redis.kill, connection)

    def _do_deafen(self) -> None:
        """A connection becomes half-open."""
        run = self._run
        if run.redis.connections:
            connection = run.rng.choice(run.redis.connections)
            connection.is_deaf = True
            run.after(run.rng.uniform(1, 9), run.redis.forget, connection)

    def _do_pause(self) -> None:
        """Nothing comes for a while."""
        run = self._run
        if run.redis.connections:
            connection = run.rng.choice(run.redis.connections)
            seconds = run.rng.choice([0.2, 0.6, 2.0, 4.0, 7.0])
            connection.paused_until = run.now + seconds
            self._note_lag(seconds)

    def _do_delay(self) -> None:
        """Everything comes late for a while."""
        run = self._run
        if run.redis.connections:
            connection = run.rng.choice(run.redis.connections)
            connection.delay_s = run.rng.choice([0.1, 0.4, 0.7, 1.5, 6.0])
            self._note_lag(connection.delay_s)
            run.after(run.rng.uniform(0.5, 8), setattr, connection, "delay_s", 0.0)

    def _do_squeeze(self) -> None:
        """The server allows little in a connection's buffer."""
        run = self._run
        run.redis.max_items = run.rng.choice([8, 20, 60])
        run.after(run.rng.uniform(0.2, 1.5), setattr, run.redis, "max_items", 10_000)

    def _do_restart(self) -> None:
        """Redis begins anew."""
        run = self._run
        run.redis.stop()
        run.transport.flush_lists()
        run.after(run.rng.choice([0.0, 0.3, 1.5]), run.redis.start)

    def _note_lag(self, seconds: float) -> None:
        self.longest_lag_s = max(self.longest_lag_s, seconds)
        self._run.ledger.lag_s = self.longest_lag_s + 0.1

    # Processes.

    def _remove(self, node: Node) -> None:
        self._run.nodes.remove(node)
        node.stop()

    def _do_kill(self) -> None:
        """A process dies, and is started again."""
        run, node = self._run, self._node()
        if node is not None and not self._is_over:
            run.nodes.remove(node)
            node.kill()
            run.after(run.rng.choice([0.0, 0.1, 1.0, 3.0]), self._again, node.kit.family)

    def _do_kill_all(self) -> None:
        """All die, nearly at once."""
        for _ in list(self._run.nodes):
            self._run.after(self._run.rng.choice([0.0, 0.01, 0.3]), self._do_kill)

    def _do_stop(self) -> None:
        """A process ends in order."""
        node = self._node()
        if node is not None and len(self._run.nodes) > 1:
            self._remove(node)

    def _do_start(self) -> None:
        """One more."""
        run = self._run
        if len(run.nodes) < 6:
            run.start_node(run.rng.choice(run.nodes).kit.family if run.nodes else 0)

    def _again(self, family: int) -> None:
        if not self._is_over:
            self._run.start_node(family)

    def _do_freeze(self) -> None:
        """A process does nothing for a while."""
        node = self._node()
        if node is not None:
            seconds = self._run.rng.choice([0.3, 1.0, 3.0, 8.0])
            node.freeze(seconds)
            self._note_lag(seconds)

    def _do_hesitate(self) -> None:
        """All do nothing for about as long as a joiner waits, while one joins."""
        for node in self._run.nodes:
            node.freeze(self._run.rng.uniform(0.4, 0.8))
            self._note_lag(0.8)
        self._do_start()

    def _do_crowd(self) -> None:
        """So many join at the same time that not everybody can be served."""
        run = self._run
        self._do_worsen()
        for connection in run.redis.connections[1:]:
            run.redis.kill(connection)
        for _ in range(6 - len(run.nodes)):
            run.start_node(0)

    # Peers.

    def _do_worsen(self) -> None:
        """Snapshots travel badly for a while."""
        run = self._run
        run.transport.is_bad = True
        run.after(run.rng.uniform(1, 4), setattr, run.transport, "is_bad", False)

    def _do_flood(self) -> None:
        """Very much is published at once."""
        for _ in range(self._run.rng.choice([30, 60])):
            self._run.publish_one()

    def _do_babble(self) -> None:
        """Somebody else speaks on the control channel."""
        run = self._run
        said = [entry.payload for entry in run.ledger.entries[-200:] if not entry.patterns] or [b"1"]
        old = run.rng.choice(said)
        words = [
            b"",
            b"\xff\x00",
            b"1",
            b"2 " + old[2:],
            old[:-3],
            old + b" x",
            b"1 MARK abc:1",
            old.replace(b" ", b"  "),
        ]
        run.redis.publish(CONTROL, run.rng.choice(words))

    def _do_repeat(self) -> None:
        """Somebody repeats what nodes have said, word for word."""
        run = self._run
        said = [entry.payload for entry in run.ledger.entries if not entry.patterns]
        for payload in run.rng.sample(said, min(len(said), 3)):
            run.redis.publish(CONTROL, payload)

    def _do_hole(self) -> None:
        """One connection misses a message, as none ever should; another node of its log can tell."""
        run = self._run
        links = [node.connection for node in run.nodes if node.is_synced and node.kit.family == 0]
        if len(links) > 1 and not any(connection.loses for connection in run.redis.connections):
            connection = run.rng.choice(links)
            assert connection is not None
            connection.loses = 1
            run.ledger.is_faulty = True
