"""People with browsers: they roam over the nodes, read slowly, and are cut anywhere."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from sse_gateway.reader import Phase, Reader, framing_of
from sse_gateway.reasons import CloseReason
from sse_gateway.subscription import Subscription, parse_subscription
from tests.support.cluster_witness import Stream
from tests.support.unframer import _block
from tests.support.world import ensure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.cluster_node import Node
    from tests.support.cluster_run import Run
    from tests.support.cluster_witness import Witness
    from tests.support.unframer import Block

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
_SIZE = re.compile(rb"[0-9a-f]{0,8}\r?")
parse_block = lru_cache(maxsize=65536)(_block)
"""The same frames go to many people."""


def gives_by_rule(subscription: Subscription) -> bool:
    """Whether the rules give the newest events to who does not say what he wants."""
    if subscription.replay is not None:
        return False
    follow = subscription.follow
    return any(rule.replay_on_connect for _, rule in follow.exact) or any(
        rule.replay_on_connect for _, rules in follow.prefixes for rule in rules
    )


class Frames:
    """Takes HTTP's framing and the blocks apart, at every byte."""

    def __init__(self, *, chunked: bool) -> None:
        self._chunked = chunked
        self._head = HEAD
        self._buffer = b""
        self._text = b""

    def feed(self, data: bytes) -> list[Block]:
        """Take the next bytes; return the blocks they complete."""
        if self._head:
            taken = min(len(self._head), len(data))
            ensure(data[:taken] == self._head[:taken], "the head was cut or repeated")
            self._head, data = self._head[taken:], data[taken:]
        if self._chunked:
            self._buffer += data
            self._unchunk()
        else:
            self._text += data
        *whole, self._text = self._text.split(b"\n\n")
        return [parse_block(raw) for raw in whole]

    def _unchunk(self) -> None:
        """Move the text of whole chunks over."""
        while True:
            line, separator, rest = self._buffer.partition(b"\r\n")
            ensure(_SIZE.fullmatch(line), "not a chunk's size:", line[:40])
            size = int(line, 16) if separator else 0
            if not separator or len(rest) < size + 2:
                return
            ensure(rest[size : size + 2] == b"\r\n", "a chunk longer than it says")
            self._text += rest[:size]
            self._buffer = rest[size + 2 :]
            ensure(size or not self._buffer, "bytes after the last chunk:", self._buffer[:40])


class Client:
    """One stream with its socket; the hub's `Sink`.

    Attributes:
        handle: Never used again.
        person: Who reads.
        node: Where it is open.
        reader: The hub's side.
        room: Bytes the socket still takes; None is any number.
        waits: The hub waits for it.
        is_over: It has ended, for the hub.
        is_deserted: Nobody reads any more, and the node has not noticed.
    """

    def __init__(self, person: Person, node: Node, fd: int, *, chunked: bool, room: int | None) -> None:
        self.handle = fd
        self.person = person
        self.node = node
        self.room = room
        self.waits = False
        self.is_over = False
        self.is_deserted = False
        self.reader: Reader
        self.stream: Stream
        self._frames = Frames(chunked=chunked)
        self._arriving = b""  # written, and not read yet

    def write(self, data: bytes) -> int:
        """Take bytes as a descriptor that does not block."""
        ensure(data, "a write of nothing")
        taken = len(data) if self.room is None else min(self.room, len(data))
        self.stream.is_slow |= taken < len(data)
        if taken == 0:
            raise BlockingIOError
        if self.room is not None:
            self.room -= taken
        self._arrive(data[:taken])
        return taken

    def wait_writable(self) -> None:
        """See `Sink`."""
        self.waits = True

    def replayed(self, size: int) -> None:
        """See `Sink`."""

    def abort(self, reason: CloseReason) -> None:
        """See `Sink`."""
        if self.reader.phase is not Phase.ENDED:
            self._end()
            self.node.hub.leave(self.reader, reason)
            self.lose()

    def farewell(self, reason: CloseReason) -> None:
        """The node ends the stream with a word."""
        self._end()
        rest = self.node.hub.farewell(self.reader, reason)
        self._arrive(rest if self.room is None else rest[: self.room])
        self.lose(share=1.0)

    def lose(self, share: float | None = None) -> None:
        """The connection is gone; of what is on its way, some still arrives."""
        self.is_over = True
        if not self.is_deserted:
            rng = self.person.run.rng
            kept = rng.choice([0.0, 1.0, rng.random()]) if share is None else share
            self._arriving = self._arriving[: round(len(self._arriving) * kept)]
            self.read()
            self.person.disconnected()

    def desert(self) -> None:
        """The person goes, in the midst of anything; the node notices sooner or later."""
        run = self.person.run
        self.lose()
        self.is_deserted = True
        run.after(run.rng.choice([0.0, 0.0, 0.5, 3.0]), self._noticed)

    def relieve(self, room: int | None) -> None:
        """The socket takes more."""
        self.room = None if room is None else (self.room or 0) + room
        if not self.waits or self.node.is_dead or self._has_ended():
            return
        has_more = self.node.hub.advance(self.reader, self.node.now)
        if not self._has_ended() and self.reader.outbox is None:
            self.waits = False
            if has_more:
                self.node.hub.schedule(self.reader)
        self.node.pump()

    def read(self) -> None:
        """The person reads what has arrived."""
        data, self._arriving = self._arriving, b""
        witness, run = self.person.witness, self.person.run
        for block in self._frames.feed(data) if data else ():
            run.trace("block", self.person, self.node, block)
            witness.take(block, run.now)

    def _arrive(self, data: bytes) -> None:
        if self.is_deserted:
            return
        if not self._arriving:
            self.person.run.after(self.person.run.rng.random() * 0.03, self._read_later)
        self._arriving += data

    def _read_later(self) -> None:
        if not self.is_over:
            self.read()

    def _noticed(self) -> None:
        if not self.node.is_dead and self.reader.phase is not Phase.ENDED:
            self._end()
            self.node.hub.leave(self.reader, CloseReason.CLIENT)

    def _has_ended(self) -> bool:
        return self.reader.phase is Phase.ENDED

    def _end(self) -> None:
        self.is_over = True
        self.node.clients.pop(self.handle, None)


class Person:
    """Follows the same channels all along, on one node after the other.

    Attributes:
        run: The simulation.
        witness: The oracle behind it.
        client: The open stream, or None.
        clients: All streams so far.
        is_home: Stays for good where it is.
    """

    def __init__(self, run: Run, number: int, witness: Witness, *, stays: Sequence[float], slow: bool) -> None:
        """Begin without a stream.

        Args:
            run: The simulation.
            number: Its name.
            witness: The oracle behind it.
            stays: Seconds it may stay on a stream.
            slow: Its sockets take little at a time.
        """
        self.run = run
        self.witness = witness
        self.client: Client | None = None
        self.clients: list[Client] = []
        self.is_home = False
        self.fds = 0
        self._number = number
        self._stays = stays
        self._slow = slow
        self._query = "&".join(f"channel={quote(name)}" for name in witness.names)
        self._subscriptions: dict[tuple[str, str], Subscription] = {}

    def __str__(self) -> str:
        return f"person {self._number}"

    def connect(self) -> None:
        """Open a stream on any node that takes it, or try again soon."""
        if self.client is not None:
            return
        node = self.run.any_node()
        if node is None:
            self.run.after(self.run.rng.uniform(0.05, 0.4), self.connect)
            return
        self._open(node)

    def _open(self, node: Node) -> None:
        rng, witness = self.run.rng, self.witness
        subscription = self._ask(node, rng.choice(["", "", "", "&replay=0", "&replay=2", "&replay=all"]))
        follow, chunked = subscription.follow, rng.random() < 0.7
        room = rng.choice([0, 30, 400, 2000]) if self._slow else None
        self.fds += 1
        fd = self._number * 100_000 + self.fds
        self.client = client = Client(self, node, fd, chunked=chunked, room=room)
        self.clients.append(client)
        client.reader = Reader(client, follow, framing_of(chunked=chunked, wrapped=False), 3000)
        node.clients[fd] = client
        gives = bool(subscription.replay) or gives_by_rule(subscription)
        head = self.run.ledger.ids[node.head]
        self.run.trace("open", self, node, witness.last_id, head)
        client.stream = Stream(
            node.kit.family, follow.bounds.policy, witness.last_id, gives, self.run.now, head, begun=head
        )
        witness.begin(client.stream)
        node.hub.attach(client.reader, subscription, HEAD, node.now)
        node.pump()
        if self._slow:
            self.run.after(rng.uniform(0.02, 0.3), self._relieve, client)
        if not self.is_home:
            self.run.after(rng.choice(self._stays) * rng.uniform(0.5, 1.5), self._move, client)

    def _ask(self, node: Node, replay: str) -> Subscription:
        """What a node makes of a request, which it reads only once: no node changes its rules."""
        known = self._subscriptions.get((node.name, replay))
        if known is None:
            known = parse_subscription(None, self._query + replay, None, node.kit.table, 64)
            self._subscriptions[node.name, replay] = known
        return Subscription(known.follow, self.witness.last_id, known.replay, known.wrap)

    def disconnected(self) -> None:
        """The stream is gone: come back, at once or later."""
        self.client = None
        rng = self.run.rng
        self.run.after(rng.choice([0.0, 0.0, 0.02, rng.random()]), self.connect)

    def settle(self) -> None:
        """Roam no more, and read quickly."""
        self.is_home, self._slow = True, False
        if self.client is not None:
            self.client.relieve(None)

    def leave(self) -> None:
        """Go for good."""
        client, self.client = self.client, None
        if client is not None:
            client.read()
            client._end()
            client.node.hub.leave(client.reader, CloseReason.CLIENT)

    def _move(self, client: Client) -> None:
        if self.client is client and not self.is_home and not client.is_over:
            client.desert()

    def _relieve(self, client: Client) -> None:
        if self.client is not client or client.is_over or not self._slow:
            return
        rng = self.run.rng
        client.relieve(rng.choice([0, 20, 300, 3000]))
        self.run.after(rng.choice([0.05, 0.2, 1.0]), self._relieve, client)
