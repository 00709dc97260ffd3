"""The core without a loop: a hub, a clock in the test's hand, and clients on fake sockets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sse_gateway.channels import QueueBounds, Rule, RuleTable, WindowBounds
from sse_gateway.hub import Hub
from sse_gateway.limits import Limits
from sse_gateway.reader import Reader, framing_of
from sse_gateway.reasons import Format, GapReason, Policy
from sse_gateway.subscription import parse_subscription
from tests.support.sockets import UNLIMITED, Network

if TYPE_CHECKING:
    from sse_gateway.batch import Batch
    from sse_gateway.reasons import CloseReason
    from tests.support.sockets import FakeSocket

LIMITS = Limits(
    channels=1000,
    window_bytes=10_000_000,
    queue_bytes=10_000_000,
    message_bytes=1_000_000,
    heartbeat_s=15.0,
    write_timeout_s=30.0,
)
RETRY_MS = 3000
HANDOVER = "t0ken0000001"
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def rule(
    pattern: str = "*",
    index: int = 0,
    *,
    format_: Format = Format.TEXT,
    prefix: bool = True,
    events: int = 100,
    age_s: float = 300.0,
    size: int = 1_000_000,
    queue: int = 100,
    queue_size: int = 1_000_000,
    policy: Policy = Policy.DROP_OLDEST,
    replay: int = 0,
    public: bool = False,
) -> Rule:
    """A rule with bounds that most tests do not come near."""
    window = WindowBounds(events, age_s, size)
    return Rule(index, pattern, "", format_, prefix, window, QueueBounds(queue, queue_size, policy), replay, public)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a stream: its fields as they were written."""

    id: str
    type: str
    data: str

    def json(self) -> Any:
        """The data as JSON."""
        return json.loads(self.data)


def parse_blocks(stream: bytes) -> list[Block]:
    """Read complete blocks; what the core writes has no CR and one line per field but for data."""
    assert stream.endswith(b"\n\n") or not stream
    blocks = []
    for text in stream.decode().split("\n\n")[:-1]:
        fields: dict[str, list[str]] = {}
        for line in text.split("\n"):
            name, _, value = line.partition(": ")
            fields.setdefault(name, []).append(value)
        (type_,) = fields.get("event", ["message"])
        (id_,) = fields["id"]
        blocks.append(Block(id_, type_, "\n".join(fields["data"])))
    return blocks


def unchunk(body: bytes) -> bytes:
    """Undo the chunked coding of whole chunks."""
    data = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        data += body[:length]
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]
    return data


class Client:
    """One stream, seen from the other end.

    Attributes:
        reader: The core's side.
        sock: Its socket.
    """

    def __init__(self, core: Core, reader: Reader, sock: FakeSocket) -> None:
        self.reader = reader
        self.sock = sock
        self._core = core
        self._seen = len(HEAD)

    def read(self, room: int = UNLIMITED) -> None:
        """Read so much; the core goes on where it waited."""
        self.sock.room = room
        while self._core.hub.advance(self.reader, self._core.now) and self.reader.outbox is not None:
            pass
        self._core.run()

    def blocks(self) -> list[Block]:
        """All blocks since the last call; nothing may be left of a chunk."""
        body = self.sock.taken[self._seen :]
        self._seen = len(self.sock.taken)
        return parse_blocks(unchunk(body) if self.reader.framing.chunked else body)

    def told(self) -> list[str]:
        """The data of all events since the last call, and gaps as ``reason:missed``."""
        return [
            block.data if not block.type.startswith("gateway.") else "{reason}:{missed}".format_map(block.json())
            for block in self.blocks()
            if block.type not in {"gateway.open", "gateway.heartbeat"}
        ]


class Core:
    """A hub, with an epoch or without, and what belongs around it.

    Attributes:
        hub: The hub.
        rules: Its rules.
        network: Its sockets.
        now: The clock, seconds.
    """

    def __init__(self, *rules: Rule, is_begun: bool = True, **limits: float) -> None:
        """Begin.

        Args:
            rules: In order; they get their indexes here.
            is_begun: With an epoch of its own.
            limits: Other than those of `LIMITS`.
        """
        self.network = Network()
        self.rules = RuleTable([replace(rule, index=index) for index, rule in enumerate(rules)])
        self.hub = Hub(self.rules, replace(LIMITS, **limits), b"key", self.network.write)  # type: ignore[arg-type] # numbers
        self.now = 0.0
        self.epochs = 0
        if is_begun:
            self.begin_epoch()

    def begin_epoch(self, reason: GapReason = GapReason.SOURCE) -> None:
        """End the epoch and begin the next."""
        self.epochs += 1
        self.hub.begin_epoch(f"epoch{self.epochs:07}", reason, self.now)
        self.run()

    def publish(self, channel: str, *payloads: str | bytes) -> str:
        """Publish in one batch, and have everything delivered; returns the last one's cursor."""
        for payload in payloads:
            self.put(channel, payload)
        self.run()
        return self.cursor

    def put(self, channel: str, payload: str | bytes) -> None:
        """Publish without an end of the batch."""
        owner = self.rules.owner(channel.encode())
        assert owner is not None
        data = payload.encode() if isinstance(payload, str) else payload
        self.hub.publish(owner.pattern.encode(), channel.encode(), data, self.now, self.now)

    def take_over(self, peer: Core) -> None:
        """Go on from a peer's log and windows, as a node that had lost its link does."""
        have = self.cursor if self.hub.log.epochs else "-"
        snapshot = self.hub.receive(HANDOVER, self.now)
        for block in peer.hub.cut(HANDOVER, have, [], peer.now):
            if block:
                snapshot.add(block)
        self.hub.install(snapshot, self.now)

    @property
    def cursor(self) -> str:
        """The log's head."""
        return self.hub.log.cursor(self.hub.log.head)

    def connect(
        self, query: str, cursor: str | None = None, *, room: int = UNLIMITED, chunked: bool = True, run: bool = True
    ) -> Client:
        """Open a stream.

        Args:
            query: As ``channel=a&channel=b*``.
            cursor: What the client comes back with.
            room: Of its socket, beyond the response's head.
            chunked: HTTP/1.1.
            run: Deliver what is due.
        """
        subscription = parse_subscription(None, query, cursor, self.rules, 64)
        sock = self.network.open(room + len(HEAD))
        reader = Reader(sock, subscription.follow, framing_of(chunked=chunked, wrapped=subscription.wrap), RETRY_MS)

        def leave(reason: CloseReason) -> None:
            self.hub.leave(reader, reason)

        sock.on_abort = leave
        self.hub.attach(reader, subscription, HEAD, self.now)
        if run:
            self.run()
        return Client(self, reader, sock)

    def held(self) -> set[Batch]:
        """Batches that wait in rounds and in passes."""
        return held_batches(self.hub)

    def run(self) -> None:
        """Do everything that is due."""
        self.hub.flush(self.now)
        while self.hub.is_busy:
            self.hub.step(self.now)
            self.hub.observe(self.now)

    def tick(self, seconds: float, *, live: bool = True) -> None:
        """Let time pass."""
        self.now += seconds
        self.hub.tick(self.now, live=live)
        self.run()


def held_batches(hub: Hub) -> set[Batch]:
    """Batches that wait in a hub's rounds and passes; several audiences may share one."""
    passes = [current for audience in hub._audiences for current in audience.passes]
    return {*hub._turns._round.held, *hub._turns._next.held, *(current.batch for current in passes)}
