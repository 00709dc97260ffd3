"""What a log hands over is what it was at the cut, whatever goes on meanwhile, and nothing is forgotten by it.

Each run plays a random history on one node, and cuts it at a random moment. While the blocks are
read the node goes on. Another node takes them in: a blank one, one that lagged behind in the same
log with windows of its own, or one of another log. It must then hold what the first one held, and
tell every loss to whoever resumes there, with any cursor. Then both go on in the same log.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import TYPE_CHECKING, TypeAlias

import pytest

from sse_gateway.cursor import parse_cursor
from sse_gateway.history import EVENT_BYTES, KEY_BYTES, LOST_BYTES
from sse_gateway.hub import Hub
from sse_gateway.log import Verdict
from sse_gateway.reasons import CloseReason, Format, GapReason
from sse_gateway.snapshot import Snapshot
from sse_gateway.timeline import Mark
from sse_gateway.window import Event
from tests.support.core import Core, rule

if TYPE_CHECKING:
    from sse_gateway.channels import Rule
    from sse_gateway.window import Window
    from tests.support.core import Client

HEADS = "abc"
NAMES = [f"{head}{number}" for head in HEADS for number in range(6)]
OTHER_EPOCHS = 5000  # names of another log

Entry: TypeAlias = tuple[str, str]
"""A channel and what is published there; or an empty name, with the reason of a BREAK and the epoch's number."""


def rules(scale: int) -> list[Rule]:
    """Three rules: plain text, the envelope, and large events without prefixes."""
    return [
        rule("a*", events=3 * scale, age_s=40.0),
        rule("b*", format_=Format.JSON, events=6 * scale, age_s=200.0, size=600 * scale),
        rule("c*", prefix=False, events=20 * scale, age_s=100.0, size=500_000 * scale),
    ]


class Node:
    """A core, and all that was ever published to it.

    Attributes:
        core: The core.
        truth: Places of all events of a channel.
        issued: The cursor of every position.
        clients: Streams open.
    """

    def __init__(
        self, random: Random, scale: int = 1, *, channels: int = 1000, memory: int = 1 << 30, ring_size: int
    ) -> None:
        self.core = Core(*rules(scale), channels=channels, window_bytes=memory, ring_size=ring_size)
        self.random = random
        self.truth: dict[str, list[int]] = defaultdict(list)
        self.issued = [self.core.cursor]
        self.clients: list[Client] = []

    def restart(self, epochs: int | None) -> None:
        """Begin anew: without a log, or in one of its own."""
        core = self.core
        core.hub = Hub(core.rules, core.hub.limits, b"key", core.network.write)
        self.issued.clear()
        if epochs is not None:
            self.take(("", f"{GapReason.SOURCE} {epochs}"))

    def take(self, entry: Entry) -> None:
        """Take what stands next in the log."""
        channel, payload = entry
        core, hub = self.core, self.core.hub
        before = sum(hub.tally.events)
        if channel:
            core.put(channel, payload)
        else:
            reason, number = payload.split()
            core.epochs = int(number) - 1
            core.begin_epoch(GapReason(reason))
        if sum(hub.tally.events) > before:
            self.truth[channel].append(hub.log.head)
        self.issued.append(core.cursor)

    def take_all(self, entries: list[Entry]) -> None:
        """Take several."""
        for entry in entries:
            self.take(entry)

    def live(self) -> None:
        """Something that happens here alone."""
        chance = self.random.random()
        if chance < 0.5:
            self.core.tick(self.random.choice([1, 1, 5, 30]))
        elif chance < 0.55:
            self.core.tick(500)
        elif chance < 0.75 or not self.clients:
            names = self.random.sample(NAMES, 2) if chance < 0.7 else ["a*"]
            self.clients.append(self.core.connect("&".join(f"channel={name}" for name in names)))
        else:
            client = self.clients.pop(self.random.randrange(len(self.clients)))
            self.core.hub.leave(client.reader, CloseReason.CLIENT)


class Publishers:
    """What stands in the log."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.count = 0
        self.epochs = 1

    def next(self) -> list[Entry]:
        """The next entries."""
        random = self.random
        chance = random.random()
        if chance < 0.02:
            self.epochs += 1
            return [("", f"{random.choice([GapReason.SOURCE, GapReason.EPOCH])} {self.epochs}")]
        if chance < 0.025:
            return [("b0", "no envelope")] * random.choice([10, 3000])
        self.count += 1
        name = random.choice(NAMES)
        if name.startswith("b"):
            key = {"id": f"k{random.randrange(12)}"} if random.random() < 0.5 else {}
            return [(name, json.dumps({"data": f"d{self.count}", **key}))]
        size = random.choice([0, 100, 70_000]) if name.startswith("c") else random.randrange(100)
        return [(name, f"d{self.count}\r{'x' * size}" if size % 3 == 0 else f"d{self.count}{'x' * size}")]


@dataclass(frozen=True, slots=True)
class Kept:
    """A window at one moment."""

    events: list[tuple[int, bytes, str, bool, bytes | None, float]]
    newest_loss: int
    forgotten: int
    lost: list[int]
    keys: list[str]

    @staticmethod
    def of(window: Window, now: float, shift: int = 0, after: int = -1) -> Kept:
        """See `Event` and `Window`; places are moved by `shift`, and what is not after a place is left out."""
        return Kept(
            [
                (e.position + shift, e.frame, e.type, e.is_text, e.raw, now - e.received_at)
                for e in window.after(after, len(window))
            ],
            window.newest_loss + shift if window.newest_loss > after else -1,
            window.forgotten + shift if window.forgotten > after else -1,
            [position + shift for position in window.lost if position > after],
            list(window.keys),
        )

    def missed_after(self, position: int) -> int | None:
        """As `Window.missed_after`."""
        return None if self.forgotten > position else sum(place > position for place in self.lost)


class Handover:
    """One snapshot, from the node that is cut to the node that takes it in.

    Attributes:
        begin: What lies after it is handed over; a position of the server's.
        shift: From the server's positions to the joiner's.
        moment: The server's windows at the cut.
        before: The joiner's own windows, which it keeps where only more has come.
        after: What stands in the log after the cut.
    """

    def __init__(self, server: Node, joiner: Node, publishers: Publishers, random: Random) -> None:
        self.server, self.joiner, self.publishers, self.random = server, joiner, publishers, random
        server.core.tick(0)
        hub, log = server.core.hub, joiner.core.hub.log
        have = log.cursor(log.head) if log.epochs else "-"
        verdict, position = hub.log.locate(have)
        self.begin = position if verdict is Verdict.VERIFIED else -1
        self.shift = log.head - self.begin
        self.head = hub.log.head
        self.cursor = server.core.cursor
        self.verdicts = {text: hub.log.locate(text) for text in server.issued}
        self.moment = {name: Kept.of(window, server.core.now) for name, window in hub.history.windows.items()}
        own = joiner.core.hub.history.windows
        self.before = {name: Kept.of(window, joiner.core.now) for name, window in own.items()}
        self.marks = list(hub.history.marks)
        self.abandoned = [set(timeline.abandoned) for timeline in hub.history.timelines]
        self.server_truth = {name: list(places) for name, places in server.truth.items()}
        self.joiner_verdicts = {text: log.locate(text) for text in joiner.issued}
        self.after: list[Entry] = []
        self.snapshot = self.hand_over(have)

    @property
    def is_whole(self) -> bool:
        """Whether nothing that the joiner had is of use."""
        return self.begin < 0

    def hand_over(self, have: str) -> Snapshot:
        """Cut, and read the blocks while the server goes on."""
        cut = self.server.core.hub.cut("token", have, ["claimed00001"], self.server.core.now)
        snapshot = Snapshot(b"key", "token", len(HEADS), self.joiner.core.now, max_bytes=1 << 30)
        for block in cut:
            if block:
                snapshot.add(block)
            for _ in range(self.random.randrange(30)):
                self.go_on()
        assert snapshot.is_complete
        assert not self.server.core.hub.history.cuts
        return snapshot

    def go_on(self) -> None:
        """Something happens at the server."""
        if self.random.random() < 0.3:
            self.server.live()
            return
        entries = self.publishers.next()
        self.server.take_all(entries)
        self.after.extend(entries)

    def install(self) -> None:
        """Take the snapshot in, and what is known of the server's events."""
        joiner = self.joiner
        joiner.core.hub.install(self.snapshot, joiner.core.now)
        joiner.core.run()
        if self.is_whole:
            joiner.truth.clear()
        for name, places in self.server_truth.items():
            joiner.truth[name].extend(place + self.shift for place in places if place > self.begin)

    def resume(self) -> None:
        """Both nodes go on in the same log."""
        self.joiner.take_all(self.after)
        self.joiner.core.run()


def check_log(handover: Handover) -> None:
    """The joiner stands where the server stood, and believes no cursor that is not good (I10)."""
    log = handover.joiner.core.hub.log
    begin, shift = handover.begin, handover.shift

    assert (log.head, log.cursor(log.head)) == (handover.head + shift, handover.cursor)
    for position, text in enumerate(handover.server.issued):
        verdict, place = log.locate(text)
        if verdict is Verdict.VERIFIED and position > begin:
            assert place == position + shift
        if position > handover.head:
            assert verdict in {Verdict.AHEAD, Verdict.NEWER_EPOCH}
        elif position > begin and handover.verdicts[text][0] is Verdict.VERIFIED:
            assert verdict is (Verdict.VERIFIED if position + shift >= log.floor else Verdict.STALE)
    for text, (before, position) in handover.joiner_verdicts.items():
        verdict, place = log.locate(text)
        if handover.is_whole:
            assert verdict in {Verdict.UNKNOWN_EPOCH, Verdict.NEWER_EPOCH} or text in handover.verdicts
        elif before is Verdict.VERIFIED:
            assert (verdict, place) in {(before, position), (Verdict.STALE, log.floor)}


def check_windows(handover: Handover) -> None:
    """A joiner with room enough holds and has lost after the begin just what the server held and had lost."""
    history, now = handover.joiner.core.hub.history, handover.joiner.core.now
    begin, shift = handover.begin, handover.shift
    for name, kept in handover.moment.items():
        index = HEADS.index(name[0])
        if name not in history.windows:
            assert not [place for place, *_ in kept.events if place > begin]
            assert kept.newest_loss <= max(begin, handover.marks[index])
            continue
        taken = Kept.of(history.windows[name], now, -shift, after=begin + shift)
        assert taken.events == [event for event in kept.events if event[0] > begin]
        assert taken.newest_loss == (kept.newest_loss if kept.newest_loss > begin else -1)
        for place in [begin, *kept.lost, handover.head]:
            if place >= begin:
                missed = taken.missed_after(place)
                assert missed == kept.missed_after(place) or (missed is None and not handover.is_whole)
        if handover.is_whole or kept.newest_loss > begin or taken.events:
            assert taken.keys == kept.keys
    for name in history.windows.keys() - handover.moment.keys():
        mark = handover.marks[HEADS.index(name[0])]
        assert mark <= begin or (history.windows[name].newest_loss, history.windows[name].keys) == (mark + shift, {})
        assert not history.windows[name].after(begin + shift, 1)


def check_kept(handover: Handover) -> None:
    """Of what a joiner held before, a delta takes nothing that the server has not lost, too, or no room is for."""
    if handover.is_whole:
        return
    core = handover.joiner.core
    for name, before in handover.before.items():
        index = HEADS.index(name[0])
        now = handover.moment.get(name)
        if (handover.marks[index] if now is None else now.newest_loss) > handover.begin:
            continue
        window = core.hub.history.windows[name]
        more = len(window.after(handover.begin + handover.shift, len(window)))
        places = [event.position for event in window.after(-1, len(window))]
        bounds = window.rule.window
        if len(before.events) + more <= bounds.max_events and window.bytes < bounds.max_bytes / 2:
            assert places[: len(places) - more] == [place for place, *_ in before.events]
            assert window.newest_loss == before.newest_loss


def check_abandoned(handover: Handover) -> None:
    """Where channels were forgotten, the joiner knows as much."""
    history = handover.joiner.core.hub.history
    for index, places in enumerate(handover.abandoned):
        found = {place - handover.shift for place in history.timelines[index].abandoned}
        assert {place for place in found if place > handover.begin} == {
            place for place in places if place > handover.begin
        }
        mark = handover.marks[index]
        assert mark <= handover.begin or history.marks[index] >= mark + handover.shift


def check_books(node: Node) -> None:
    """Counters equal what they count, and limits hold as far as anything can be given up (I5)."""
    history, limits = node.core.hub.history, node.core.hub.limits
    windows = list(history.windows.values())
    events = [event for window in windows for event in window.after(-1, len(window))]
    memory = sum(EVENT_BYTES + len(event.frame) + len(event.raw or b"") for event in events)
    memory += sum(LOST_BYTES * len(window.lost) for window in windows)
    memory += sum(KEY_BYTES + len(key) for window in windows for key in window.keys)

    assert (history.events, history.bytes) == (len(events), sum(len(event.frame) for event in events))
    assert history.memory == memory
    assert [window.bytes for window in windows] == [
        sum(len(event.frame) for event in window.after(-1, len(window))) for window in windows
    ]
    assert all(event.window is history.windows[event.window.name] for event in events if event.window is not None)
    assert not any(window.is_over(-1e9) for window in windows)
    assert len(windows) <= max(limits.channels, sum(bool(window.audiences) for window in windows) + 1)
    if memory > limits.window_bytes:
        assert not events
        assert all(len(window.lost) <= 1 and not window.keys for window in windows)


def check_honesty(node: Node) -> None:
    """What a channel does not hold any more it has lost: it says so, and counts it or admits that it cannot (I2)."""
    history = node.core.hub.history
    for name, places in node.truth.items():
        index = HEADS.index(name[0])
        window = history.windows.get(name)
        held = [event.position for event in window.after(-1, len(window))] if window is not None else []
        missing = [place for place in places if place not in held]
        newest_loss = history.marks[index] if window is None else window.newest_loss
        assert newest_loss >= max(missing, default=-1)
        assert newest_loss < min(held, default=newest_loss + 1)
        assert history.newest_losses[index] >= newest_loss
        for place in (-1, *missing, node.core.hub.log.head) if window is not None else ():
            missed = window.missed_after(place) if window is not None else None
            assert missed is None or missed == len(missing) - bisect_right(missing, place)


def check_timelines(node: Node) -> None:
    """A walk over a rule meets every event, and after each loss a mark before its channel's next event (I2)."""
    history = node.core.hub.history
    for owner in node.core.rules.rules:
        timeline = history.timeline(owner)
        entries = list(timeline.after(-1))
        windows = [window for window in history.windows.values() if window.rule is owner]
        marks = [entry for entry in entries if isinstance(entry, Mark)]
        held = {event.position: window for window in windows for event in window.after(-1, len(window))}

        assert [entry.position for entry in entries] == sorted({entry.position for entry in entries})
        assert {entry.position: entry.window for entry in entries if isinstance(entry, Event)} == held
        assert {(mark.position, mark.window) for mark in marks if mark.window is not None} == {
            (window.newest_loss, window) for window in windows if window.lost
        }
        assert {mark.position for mark in marks if mark.window is None} == timeline.abandoned
        for name in (name for name in node.truth if HEADS.index(name[0]) == owner.index):
            told = [mark.position for mark in marks if mark.window in {None, history.windows.get(name)}]
            nearest = min((place for place, window in held.items() if window.name == name), default=1 << 60)
            for loss in (place for place in node.truth[name] if place not in held):
                assert any(loss <= place < nearest for place in told)


def check_streams(node: Node, texts: list[str]) -> None:
    """Whoever comes back gets what he has missed, in order, once; each hole is told before what follows it (I2)."""
    log = node.core.hub.log
    bases = {epoch.name: epoch.base for epoch in log.epochs}
    for text in texts:
        verdict, begin = log.locate(text)
        query = node.random.choice(
            ["channel=a1", "channel=b2&channel=c3&channel=a4", "channel=a*", "channel=a*&channel=c1"]
        )
        asked = [name.removeprefix("channel=").removesuffix("*") for name in query.split("&")]
        client = node.core.connect(query, text)
        got: list[int] = []
        gaps: list[int] = []
        for block in client.blocks()[1:]:
            cursor = parse_cursor(block.id)
            assert cursor is not None
            (gaps if block.type == "gateway.gap" else got).append(bases[cursor.epoch] + cursor.offset)
        node.core.hub.leave(client.reader, CloseReason.CLIENT)
        if verdict is not Verdict.VERIFIED:
            continue
        assert got == sorted(set(got))
        assert gaps == sorted(set(gaps))
        for name, places in node.truth.items():
            if not name.startswith(tuple(asked)):
                continue
            there = [place for place in places if place in got]
            for loss in (place for place in places if place > begin and place not in got):
                after = next((place for place in there if place > loss), log.head + 1)
                assert any(loss <= gap < after for gap in gaps)


class Kind(Enum):
    """Who takes a snapshot in."""

    BLANK = 0
    BEHIND = 1
    OTHER = 2


def make_server(random: Random, scale: int) -> Node:
    """A node that will be cut."""
    memory = random.choice([5000, 300_000, 1 << 30])
    return Node(
        random, scale, channels=random.choice([5, 12, 100]), memory=memory, ring_size=random.choice([4096, 12_288])
    )


def make_joiner(kind: Kind, random: Random, *, is_roomy: bool) -> Node:
    """A node that will take a snapshot in."""
    ring_size = random.choice([4096, 8192])
    if is_roomy:
        joiner = Node(random, ring_size=ring_size)
    else:
        channels, memory = random.randint(3, 20), random.choice([2000, 400_000])
        joiner = Node(random, random.randint(1, 3), channels=channels, memory=memory, ring_size=ring_size)
    if kind is not Kind.BEHIND:
        joiner.restart(OTHER_EPOCHS if kind is Kind.OTHER else None)
    return joiner


def play(random: Random, kind: Kind, *, is_roomy: bool) -> Handover:
    """Play a history up to the moment when a snapshot is there to be installed."""
    server = make_server(random, 1 if is_roomy else random.randint(1, 3))
    joiner = make_joiner(kind, random, is_roomy=is_roomy)
    publishers = Publishers(random)
    for _ in range(random.randrange(300)):
        entries = publishers.next()
        server.take_all(entries)
        if kind is not Kind.BLANK:
            joiner.take_all(entries if kind is Kind.BEHIND else publishers.next())
        if random.random() < 0.2:
            (server if kind is Kind.BLANK else random.choice([server, joiner])).live()
    for _ in range(random.choice([0, 0, 5, 50, 300])):
        server.take_all(publishers.next())
        if random.random() < 0.2:
            server.live()
    return Handover(server, joiner, publishers, random)


@pytest.mark.parametrize("seed", range(80))
def test_handed_over(seed: int) -> None:
    """Cut, handed over and installed while all goes on, a log is what it was; nothing is lost without a word (I2)."""
    random = Random(seed)
    is_roomy = random.random() < 0.6
    handover = play(random, Kind(seed % 3), is_roomy=is_roomy)
    joiner = handover.joiner

    handover.install()

    check_log(handover)
    check_books(joiner)
    check_honesty(joiner)
    check_timelines(joiner)
    if is_roomy:
        check_windows(handover)
        check_kept(handover)
        check_abandoned(handover)
    texts = handover.server.issued + joiner.issued
    check_streams(joiner, joiner.random.sample(texts, min(len(texts), 6)))
    handover.resume()
    assert joiner.core.cursor == handover.server.core.cursor
    check_books(joiner)
    check_honesty(joiner)
    check_timelines(joiner)
    check_streams(joiner, joiner.random.sample(texts, min(len(texts), 6)))
