"""Load on several gateways that share a log: one who publishes, and clients that come back anywhere.

One connection publishes everything, so what it has written down is the order in which Redis took it.
Each client is one thread: it follows its channels on one node, leaves or is cut, and comes back with
its last id on whichever node or worker takes it. Nothing is judged before the end; see `judge`.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import TYPE_CHECKING, Final, Protocol

from hiredis import HiredisError

from tests.support.checker import Ledger, Told, check, check_ids, observe
from tests.support.gateway_process import poll
from tests.support.raw_client import Stream
from tests.support.valkey import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.checker import Seen
    from tests.support.raw_client import Address, Block


class Target(Protocol):
    """Where messages are published."""

    @property
    def port(self) -> int:
        """On loopback; looked at for every connection."""


PREFIX: Final = "sse:"
BATCH_S: Final = 0.01
"""Time between two batches of the publisher."""

PAUSE_S: Final = 0.02
"""How long a client waits that was refused."""

SILENCE_S: Final = 40.0
"""Heartbeats come much more often, but a node that starts on a busy machine may let clients wait for so long."""

FINISH_S: Final = 40.0
"""How long clients may take to get everything once nothing goes wrong any more."""


class Publisher:
    """Publishes at a rate on one connection, and writes down what and when.

    Attributes:
        ledger: What was published, in order; of a batch that failed, what may have been published.
        at: When, by data.
        failures: Batches that failed.
    """

    def __init__(self, server: Target, names: Sequence[str], *, rate: int, padding: int = 0) -> None:
        """Prepare; `run` publishes.

        Args:
            server: Gets the messages.
            names: Channels, as clients name them.
            rate: Messages per second.
            padding: Bytes to add to each.
        """
        self.ledger = Ledger()
        self.at: dict[str, float] = {}
        self.failures = 0
        self._server = server
        self._names = list(names)
        self._batch = max(1, round(rate * BATCH_S))
        self._padding = padding
        self._dice = random.Random(1)
        self._link: Link | None = None
        self._is_over = threading.Event()

    def run(self) -> None:
        """Publish until `stop`."""
        due = time.monotonic()
        while not self._is_over.is_set():
            self._publish([self._dice.choice(self._names) for _ in range(self._batch)])
            due = max(due + BATCH_S, time.monotonic() - 10 * BATCH_S)
            self._is_over.wait(max(0.0, due - time.monotonic()))

    def move(self) -> None:
        """Leave the connection that is open now, also one that hangs."""
        if (link := self._link) is not None:
            link.abort()

    def stop(self) -> None:
        """Let `run` come to its end."""
        self._is_over.set()

    def finish(self) -> dict[str, str]:
        """Publish one message more on every channel, once `run` has ended; returns their data by channel."""
        last = self._publish(self._names)
        if self._link is not None:
            self._link.close()
        return last

    def _publish(self, names: Sequence[str]) -> dict[str, str]:
        messages = [self.ledger.message(name, self._padding) for name in names]
        now = time.monotonic()
        self.at.update((data, now) for _, data in messages)
        try:
            if self._link is None:
                self._link = Link(self._server.port)
            self._link.pipeline(("PUBLISH", PREFIX + name, data) for name, data in messages)
        except (OSError, HiredisError):
            self.failures += 1
            if self._link is not None:
                self._link.close()
            self._link = None
        return dict(messages)


class Client:
    """One client over all its connections.

    Attributes:
        target: What it asks for.
        names: The channels that stand behind it.
        blocks: What it got, over all connections.
        times: When, monotonic.
        visits: Connections on which it was let in.
        refusals: Others.
        stay: At most so many blocks on one connection, then it leaves of itself; None: it stays.
    """

    def __init__(
        self, target: str, names: Sequence[str], places: Sequence[Address], *, seed: int = 0, stay: int | None = None
    ) -> None:
        """Prepare; `run` connects.

        Args:
            target: What it asks for.
            names: The channels that stand behind it.
            places: Where it may connect, looked at for every connection.
            seed: Of its dice.
            stay: See above.
        """
        self.target = target
        self.names = list(names)
        self.stay = stay
        self.blocks: list[Block] = []
        self.times: list[float] = []
        self.visits = 0
        self.refusals = 0
        self.last_id = ""
        self._places = places
        self._dice = random.Random(seed)
        self._seen: set[str] = set()
        self._wanted: frozenset[str] | None = None
        self._turn = threading.Event()

    @property
    def gaps(self) -> list[Block]:
        """The gaps it was told."""
        return [block for block in self.blocks if block.type == "gateway.gap"]

    @property
    def reasons(self) -> list[str]:
        """The reasons of its gaps."""
        return [gap.json()["reason"] for gap in self.gaps]

    def has(self, data: str) -> bool:
        """Whether this event has come."""
        return data in self._seen

    def finish(self, last: dict[str, str]) -> None:
        """Let `run` end when the last event of each of its channels has come; it leaves no more of itself."""
        self._wanted = frozenset(last[name] for name in self.names)

    def move(self) -> None:
        """Leave the connection that is open now."""
        self._turn.set()

    def run(self) -> None:
        """Follow until everything has come."""
        while not self._has_all():
            stream = self._connect()
            if stream is None or not self._visit(stream):
                self.refusals += 1
                self._turn.wait(PAUSE_S)

    def _has_all(self) -> bool:
        return self._wanted is not None and self._wanted <= self._seen

    def _connect(self) -> Stream | None:
        self._turn.clear()
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        with contextlib.suppress(OSError):
            return Stream(self._dice.choice(self._places), self.target, headers=headers)
        return None

    def _visit(self, stream: Stream) -> bool:
        """Follow one stream and leave it, one way or the other; whether it let us in."""
        with contextlib.closing(stream):
            is_in = self._follow(stream)
            if self._dice.random() < 0.5:
                stream.reset()
            return is_in

    def _follow(self, stream: Stream) -> bool:
        """Follow one stream until its end or ours; whether it let us in."""
        leave_at = None if self.stay is None else self._dice.randint(1, self.stay)
        taken = 0
        silent_at = time.monotonic() + SILENCE_S
        while not (stream.eof or self._turn.is_set() or self._has_all()):
            if stream._read_until(time.monotonic() + 0.1):
                silent_at = time.monotonic() + SILENCE_S
            assert time.monotonic() < silent_at, f"silent for {SILENCE_S} s: {stream.describe()}"
            assert stream.status in {0, 200}, stream.describe()
            taken = self._take(stream.blocks, taken)
            if leave_at is not None and taken > leave_at and self._wanted is None:
                break
        is_in = bool(stream.blocks) and stream.blocks[0].type == "gateway.open"
        assert is_in or not stream.blocks or stream.blocks[0].type == "gateway.unavailable", stream.describe()
        return is_in

    def _take(self, blocks: Sequence[Block], taken: int) -> int:
        now = time.monotonic()
        for block in blocks[taken:]:
            self.visits += block.type == "gateway.open"
            self.blocks.append(block)
            self.times.append(now)
            self.last_id = self.last_id if block.id is None else block.id
            if not block.own:
                self._seen.add(block.data)
        return len(blocks)


class Load:
    """A publisher and clients at work.

    Attributes:
        publisher: Who publishes.
        clients: Who follow.
    """

    def __init__(self, publisher: Publisher, clients: Sequence[Client]) -> None:
        self.publisher = publisher
        self.clients = list(clients)
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._publishing = self._thread(publisher.run)

    def start(self) -> None:
        """Let the clients in, and then publish: they are owed everything."""
        for client in self.clients:
            self._threads.append(self._thread(client.run))
            self._threads[-1].start()
        self.wait(lambda: all(client.visits for client in self.clients), SILENCE_S, "clients that are let in")
        self._publishing.start()

    def wait(self, probe: Callable[[], object], timeout_s: float, what: str) -> None:
        """Wait while nothing has failed."""

        def probe_sound() -> object:
            self._raise()
            return probe()

        poll(probe_sound, timeout_s=timeout_s, what=what)

    def wait_published(self, count: int, timeout_s: float = SILENCE_S) -> None:
        """Wait until so many messages more have been published."""
        until = len(self.publisher.ledger) + count
        self.wait(lambda: len(self.publisher.ledger) >= until, timeout_s, f"{count} messages more")

    def wait_current(self, timeout_s: float = SILENCE_S) -> None:
        """Wait until every client has something that was published from now on."""
        since = time.monotonic()
        published = self.publisher.at

        def is_current(client: Client) -> bool:
            return any(published.get(block.data, 0.0) > since for block in client.blocks[-200:])

        self.wait(lambda: all(map(is_current, self.clients)), timeout_s, "current clients")

    def finish(self, timeout_s: float = FINISH_S) -> None:
        """Publish no more, and wait until every client has everything."""
        self.publisher.stop()
        self._publishing.join(timeout_s)
        last = self.publisher.finish()
        for client in self.clients:
            client.finish(last)
        self._join(timeout_s)

    def close(self) -> None:
        """End all threads, however things stand."""
        self.publisher.stop()
        for client in self.clients:
            client.finish(dict.fromkeys(client.names, ""))
            client._seen.add("")
            client.move()
        if self._publishing.ident is not None:
            self._publishing.join(FINISH_S)
        for thread in self._threads:
            thread.join(FINISH_S)

    def judge(self, *, anew: bool = False) -> list[str]:
        """Return every way in which a client's view breaks the promise; see `judge`."""
        return judge(self.publisher.ledger, self.clients, anew=anew)

    def delay(self, client: Client) -> float:
        """The longest that an event took to a client, in seconds."""
        published = self.publisher.at
        pairs = zip(client.blocks, client.times, strict=True)
        return max(at - published[block.data] for block, at in pairs if block.data in published)

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._guard, args=(work,), daemon=True)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            self._errors.append(error)

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _join(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for thread, client in zip(self._threads, self.clients, strict=True):
            thread.join(max(0.0, deadline - time.monotonic()))
            self._raise()
            assert not thread.is_alive(), (
                f"{client.target} is not at the end after {timeout_s} s: {judge(self.publisher.ledger, [client])[:3]}, "
                f"the last blocks {[(b.type, b.id, b.data[:40]) for b in client.blocks[-5:]]}"
            )


@contextlib.contextmanager
def loaded(
    server: Target, names: Sequence[str], clients: Sequence[Client], *, rate: int = 1_000, padding: int = 0
) -> Iterator[Load]:
    """Run a load for the length of a ``with`` block; clients have everything at its end."""
    load = Load(Publisher(server, names, rate=rate, padding=padding), clients)
    try:
        load.start()
        yield load
        load.finish()
    finally:
        load.close()


def judge(ledger: Ledger, clients: Sequence[Client], *, anew: bool = False) -> list[str]:
    """Compare what clients got with what was published.

    Args:
        ledger: What was published.
        clients: Who followed, with all they got.
        anew: After a gap `epoch` a client begins anew: it has come to another log, which knows nothing of it.

    Returns:
        Everything that is wrong; empty if each client got every event of its channels once and in order or was
        told, and an id stands for one event everywhere.
    """
    problems = []
    for client in clients:
        for view in _views(observe(client.blocks), anew=anew):
            found = check(ledger, view, client.names, from_cursor=["window"])
            problems += [f"{client.target}: {problem}" for problem in found]
    return problems + check_ids([client.blocks for client in clients])


def _views(seen: list[Seen], *, anew: bool) -> Iterator[list[Seen]]:
    """Cut a client's view at its gaps `epoch`, each of which belongs to both sides."""
    view: list[Seen] = []
    for item in seen:
        view.append(item)
        if anew and isinstance(item, Told) and item.reason == "epoch":
            yield view
            view = [item]
    yield view
