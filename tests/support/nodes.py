"""Some nodes that share one log, driven by hand: an order of everything, and no clock but the test's.

Every entry goes to all nodes that are connected, in one order; each reads when the test says so, or
with all others in `Bus.settle`. Snapshots are moved there, too.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from sse_gateway.control import Control, Kind
from sse_gateway.decisions import Fetch, Leave, Load, Publish, Serve, Stop, Synced
from sse_gateway.replica import Replica
from tests.support.core import Core, rule

if TYPE_CHECKING:
    from sse_gateway.channels import Rule
    from sse_gateway.decisions import Decision

FINGERPRINT = "0123456789abcdef"
STEP_S = 0.0625
"""Time between two ticks; sums of it are exact."""


class Bus:
    """What Redis and the clock are to the nodes.

    Attributes:
        now: Seconds.
        nodes: All of them.
        said: Control messages so far, as text.
        listeners: Others that are subscribed, and say nothing.
        moves_snapshots: Whether `settle` does.
        horizon: What the nodes take for a name drawn now.
        has_store: Whether nodes made from now on look for a stored log.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.nodes: list[Node] = []
        self.said: list[str] = []
        self.listeners = 0
        self.moves_snapshots = True
        self.horizon = "~"
        self.has_store = False
        self._drawn = 0

    def node(
        self,
        *rules: Rule,
        fingerprint: str = FINGERPRINT,
        secret: bytes = b"",
        copies: int = 1,
        local: bool = False,
        chance: float = 0.0,
        is_up: bool = True,
    ) -> Node:
        """Add a node.

        Args:
            rules: Of its channels; one for all if there are none.
            fingerprint: Of its configuration.
            secret: Of its messages.
            copies: Copies of each control message that it gets.
            local: All others are on its host.
            chance: What its random numbers are.
            is_up: Connect it.
        """
        node = Node(self, rules or (rule(),), fingerprint, secret, copies, local=local, chance=chance)
        self.nodes.append(node)
        if is_up:
            node.connect()
        return node

    def draw(self) -> str:
        """The next of all names."""
        self._drawn += 1
        return f"{self._drawn:012}"

    def publish(self, channel: str, *payloads: str) -> None:
        """Publish for clients; nobody reads yet."""
        for payload in payloads:
            for node in self.nodes:
                node.hear(Item(channel, payload.encode()))

    def say(self, payload: bytes) -> None:
        """Publish a control message."""
        self.said.append(payload.decode())
        for node in self.nodes:
            node.hear(Item("", payload))

    @property
    def receivers(self) -> int:
        """Copies of a control message that go out."""
        return self.listeners + sum(node.copies for node in self.nodes if node.is_connected)

    def kinds(self) -> Counter[str]:
        """How many messages of each kind were published, but for checkpoints."""
        return Counter(text.split(" ")[1] for text in self.said if " CHECKPOINT " not in text)

    def settle(self) -> None:
        """Let everybody read everything, and hand over what is offered."""
        while any(node.read() for node in self.nodes) or (self.moves_snapshots and self.move()):
            pass
        for node in self.nodes:
            node.core.run()

    def move(self, blocks: int = 1_000_000) -> bool:
        """Hand over some blocks of each snapshot; False if there was nothing to hand over."""
        moved = False
        for joiner in self.nodes:
            for token in list(joiner.fetches):
                for server in self.nodes:
                    if token in server.serves:
                        server.hand_over(token, joiner, blocks)
                        moved = True
        return moved

    def wait(self, seconds: float) -> None:
        """Let time pass, in small steps; everybody goes on reading."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + STEP_S)
            for node in self.nodes:
                node.tick()
            self.settle()


class Item:
    """What waits to be read: a message, or the answer to a PUBLISH."""

    def __init__(self, channel: str, payload: bytes, answers: Publish | None = None, receivers: int = 0) -> None:
        self.channel = channel
        self.payload = payload
        self.answers = answers
        self.receivers = receivers


class Node:
    """One gateway, without its shell.

    Attributes:
        name: In messages.
        core: Its hub and clients.
        control: Its end of the conversation.
        replica: What is tested.
        copies: Copies of each control message that it gets.
        is_connected: It is subscribed.
        inbox: What it has not read yet.
        serves: Snapshots that it hands over, by token.
        fetches: Snapshots that it waits for: token and way.
        synced: What it said about its log.
        left_s: For how long it said that it leaves.
        is_answered_first: Whether an answer comes before the node's own copy of the message.
    """

    def __init__(
        self,
        bus: Bus,
        rules: tuple[Rule, ...],
        fingerprint: str,
        secret: bytes,
        copies: int,
        *,
        local: bool,
        chance: float,
    ) -> None:
        self._bus = bus
        self.name = bus.draw()
        self.core = Core(*rules, is_begun=False)
        self.control = Control(self.name, fingerprint, secret)
        self.copies = copies
        self.replica = Replica(
            self.core.hub,
            self.control,
            self.name,
            copies=copies,
            has_store=bus.has_store,
            draw=bus.draw,
            horizon=lambda: bus.horizon,
            random=lambda: chance,
            is_local=lambda _: local,
        )
        self.is_connected = False
        self.inbox: deque[Item] = deque()
        self.serves: dict[str, Serve] = {}
        self.fetches: dict[str, str] = {}
        self.synced: list[Synced] = []
        self.left_s: list[float] = []
        self.is_answered_first = True
        self.loads = 0

    @property
    def epoch(self) -> str:
        """Name of its epoch."""
        return self.core.hub.log.epoch.name

    @property
    def head(self) -> str:
        """Its place in the log."""
        return self.core.cursor

    def connect(self) -> None:
        """The link is up."""
        self.is_connected = True
        self.replica.connected(self._bus.now)
        self.carry_out()

    def disconnect(self) -> None:
        """The link is gone, and what it had not read with it."""
        self.is_connected = False
        self.inbox.clear()
        self.replica.lost()
        self.carry_out()

    def hear(self, item: Item) -> None:
        """Redis sends something."""
        if self.is_connected:
            self.inbox.append(item)

    def say(self, kind: Kind, *fields: str) -> None:
        """Publish a message in its name, whatever its replica thinks."""
        self._bus.say(self.control.write(kind, *fields))

    def read(self, count: int = 1_000_000) -> bool:
        """Read so much of what waits; False if there was nothing."""
        had_some = bool(self.inbox)
        while self.inbox and count:
            item = self.inbox.popleft()
            self.core.now = now = self._bus.now
            if item.answers is not None:
                self.replica.published(item.answers, item.receivers, now)
            elif item.channel:
                owner = self.core.rules.owner(item.channel.encode())
                assert owner is not None
                self.replica.message(owner.pattern.encode(), item.channel.encode(), item.payload, now, now)
            else:
                self.replica.entry(item.payload, now)
            self.carry_out()
            count -= 1
        self.core.hub.flush(self.core.now)
        return had_some

    def tick(self) -> None:
        """A moment has passed."""
        self.core.now = self._bus.now
        self.replica.tick(self._bus.now)
        self.carry_out()
        self.core.tick(0.0, live=self.replica.is_synced)

    def block(self, token: str, block: bytes) -> bool:
        """A block of a snapshot comes."""
        self.core.now = self._bus.now
        is_wanted = self.replica.block(token, block, self._bus.now)
        self.carry_out()
        return is_wanted

    def hand_over(self, token: str, joiner: Node, blocks: int = 1_000_000) -> None:
        """Hand over some blocks, to the end if there are no more."""
        order = self.serves[token]
        for _ in range(blocks):
            block = next(order.blocks, None)
            if block is None or not joiner.block(token, block):
                break
        else:
            return
        joiner.fetches.pop(token, None)
        self.served(token)

    def served(self, token: str) -> None:
        """A hand-over has ended."""
        self.serves.pop(token, None)
        self.replica.served(token)
        self.carry_out()

    def carry_out(self) -> None:
        """Do what the replica wants done."""
        while self.replica.decisions:
            self._do(self.replica.decisions.pop(0))

    def _do(self, decision: Decision) -> None:
        match decision:
            case Publish():
                self._publish(decision)
            case Serve(token):
                self.serves[token] = decision
            case Fetch(token, via):
                self.fetches[token] = via
            case Stop(token):
                self.serves.pop(token, None)
                self.fetches.pop(token, None)
            case Load():
                self.loads += 1
            case Synced():
                self.synced.append(decision)
            case Leave(seconds):
                self.left_s.append(seconds)

    def _publish(self, publish: Publish) -> None:
        answer = Item("", b"", publish, self._bus.receivers)
        if self.is_answered_first:
            self.hear(answer)
        self._bus.say(publish.payload)
        if not self.is_answered_first:
            self.hear(answer)
