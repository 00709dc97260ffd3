from __future__ import annotations

import pytest

from sse_gateway.audience import RUN, Audience, Desk
from sse_gateway.batch import Batch, batch_of
from sse_gateway.channels import QueueBounds
from sse_gateway.outbox import CHUNK_BYTES, Outbox
from sse_gateway.reader import Follow, Reader, framing_of
from sse_gateway.reasons import CloseReason, GapReason, Policy
from sse_gateway.tally import Tally
from sse_gateway.window import Event, Window
from tests.support.core import rule, unchunk
from tests.support.sockets import UNLIMITED, FakeSocket, Network

WINDOW = Window("a", rule(), -1, 0.0)
HEARTBEAT = b"event: gateway.heartbeat\nid: 99\ndata: {}\n\n"


def event(position: int, size: int = 20) -> Event:
    """An event whose frame has so many bytes."""
    frame = b"id: %d\n" % position
    return Event(position, WINDOW, frame + b"x" * (size - len(frame) - 2) + b"\n\n", 0.0)


def break_(position: int) -> Event:
    """A gap that stands among events."""
    return Event(position, None, b"id: %d\nx\n\n" % position, 0.0, type=GapReason.SOURCE.value)


class Hall:
    """An audience with its members, and what it shares with others."""

    def __init__(
        self, policy: Policy = Policy.DROP_OLDEST, events: int = 100, size: int = 1_000_000, *, chunked: bool = False
    ) -> None:
        self.follow = Follow(("a",), (("a", WINDOW.rule),), (), QueueBounds(events, size, policy))
        self.audience = Audience(self.follow, framing_of(chunked=chunked, wrapped=False), [WINDOW], 0.0)
        self.network = Network()
        self.tally = Tally(1)
        self.desk = Desk(self.tally)

    def join(self, room: int = UNLIMITED, position: int = 0) -> tuple[Reader, FakeSocket]:
        """Add a member that has everything up to a position."""
        sock = self.network.open(room)
        reader = Reader(sock, self.follow, self.audience.framing, 3000)
        reader.position = position

        def leave(_reason: CloseReason) -> None:
            """As the hub does: settle, and with the last member everything goes."""
            self.audience.leave(reader)
            if not self.audience.size:
                self.tally.pass_bytes -= self.audience.drop_passes()

        sock.on_abort = leave
        self.audience.join(reader)
        return reader, sock

    def put(self, *events: Event) -> None:
        """Send a batch."""
        self.tally.pass_bytes += self.audience.put(batch_of(events))

    def put_heartbeat(self, position: int) -> None:
        """Send a heartbeat."""
        self.tally.pass_bytes += self.audience.put(Batch((), [HEARTBEAT], position))

    def deliver(self, limit: int = 1000, now: float = 0.0) -> int:
        """Serve some slots of the oldest pass; returns how many members got all of it at once."""
        batch = self.audience.passes[0].batch
        self.audience.deliver(self.network.write, limit, self.desk, now)
        served, batch.served = batch.served, 0
        self.desk.served.clear()
        return served

    def deliver_all(self) -> None:
        """Serve all passes."""
        while self.audience.passes:
            self.deliver()


def test_desk_counts() -> None:
    """Deliveries and gaps are counted once for each reader, with their latencies; a clock ahead of ours counts as 0."""
    desk = Desk(Tally(1))
    fresh = Event(1, WINDOW, b"", 8.0, ts=7.0)
    early = Event(2, WINDOW, b"", 9.0, ts=11.0)

    desk.count([fresh, early, event(3), break_(4)], 2, 10.0)

    assert (desk.tally.deliveries, desk.tally.gaps[GapReason.SOURCE]) == (6, 2)
    assert (sum(desk.tally.latency.counts), desk.tally.latency.sum) == (6, 26.0)
    assert (sum(desk.tally.publish_latency.counts), desk.tally.publish_latency.sum) == (4, 6.0)


def test_desk_observes() -> None:
    """What was handed over is counted once, with the clock read afterwards; what nobody got is not."""
    desk = Desk(Tally(1))
    batch, unwanted = batch_of([event(1), break_(2)]), batch_of([event(3)])
    desk.served += [batch, unwanted]
    batch.served = 3

    desk.observe(2.0)
    desk.observe(9.0)

    assert (desk.tally.deliveries, desk.tally.latency.sum, desk.tally.bytes) == (3, 6.0, 3 * batch.size)
    assert (batch.served, desk.served) == (0, [])


def test_everybody_gets_a_batch() -> None:
    """All members get the same bytes, and are counted as served."""
    hall = Hall(chunked=True)
    members = [hall.join() for _ in range(3)]
    hall.put(event(1), event(2))

    served = hall.deliver()

    assert served == 3
    assert [unchunk(sock.taken) for _, sock in members] == [event(1).frame + event(2).frame] * 3
    assert (hall.audience.passes, hall.audience.events, hall.audience.bytes) == ((), 2, 40)
    assert hall.tally.pass_bytes == 0


def test_slices() -> None:
    """A pass is served so many slots at a time, from where it stopped (I4)."""
    hall = Hall()
    members = [hall.join() for _ in range(5)]
    hall.put(event(1))

    served = [hall.deliver(2) for _ in range(3)]

    assert served == [2, 2, 1]
    assert [sock.taken for _, sock in members] == [event(1).frame] * 5
    assert hall.audience.passes == ()


def test_a_batch_of_two_audiences() -> None:
    """It is counted once for all who got it in a step, and waits until the last audience has been served (I5)."""
    hall, other = Hall(), Hall()
    other.tally, other.desk = hall.tally, hall.desk
    for _ in range(2):
        hall.join()
        other.join()
    batch = batch_of([event(1)])
    waits = [found.audience.put(batch) for found in (hall, other)]
    hall.tally.pass_bytes = sum(waits)

    hall.audience.deliver(hall.network.write, 9, hall.desk, 0.0)
    between = hall.tally.pass_bytes
    other.audience.deliver(other.network.write, 9, hall.desk, 0.0)

    assert waits == [batch.size, 0]
    assert (between, hall.tally.pass_bytes) == (batch.size, 0)
    assert (batch.served, hall.desk.served) == (4, [batch])


def test_pass_is_for_those_who_were_there() -> None:
    """Whoever joins later has pulled a waiting pass already, and gets only what is put from then on (I3)."""
    hall = Hall()
    _, early = hall.join()
    hall.put(event(1))
    _, late = hall.join(position=1)
    hall.put(event(2))

    hall.deliver_all()

    assert early.taken == event(1).frame + event(2).frame
    assert late.taken == event(2).frame


def test_member_that_left() -> None:
    """A member that has left gets nothing more; the others keep their slots."""
    hall = Hall()
    (gone, gone_sock), (_, sock) = hall.join(), hall.join()
    hall.put(event(1))

    hall.audience.leave(gone)

    assert hall.deliver() == 1
    assert (gone_sock.taken, sock.taken) == (b"", event(1).frame)
    assert hall.audience.size == 1


@pytest.mark.parametrize("number", [0, 3, RUN])
def test_run_that_somebody_stops(number: int) -> None:
    """Many are written to in a run; who is gone, takes nothing, or a part of it stops it for himself alone."""
    hall = Hall()
    members = [hall.join(room) for room in [UNLIMITED] * number + [0, 9] + [UNLIMITED] * RUN]
    members[-1][1].is_gone = True
    hall.put(event(1))

    served = hall.deliver()

    assert served == number + RUN - 1
    assert [len(sock.taken) for _, sock in members] == [20] * number + [0, 9] + [20] * (RUN - 1) + [0]
    assert [reader.outbox is not None for reader, _ in members[number : number + 2]] == [True, True]
    assert members[-1][1].aborted is CloseReason.CLIENT
    hall.put(event(2))
    assert hall.deliver() == number + RUN - 1


def test_whole_run() -> None:
    """All get the same, in slices of a run."""
    hall = Hall()
    members = [hall.join() for _ in range(2 * RUN)]
    hall.put(event(1))
    assert [hall.deliver(RUN), hall.deliver(RUN)] == [RUN, RUN]
    assert [sock.taken for _, sock in members] == [event(1).frame] * (2 * RUN)


def test_last_of_a_run_takes_a_part() -> None:
    """Nobody is left to go on with."""
    hall = Hall()
    members = [hall.join(room) for room in [UNLIMITED] * RUN + [9]]
    hall.put(event(1))
    assert hall.deliver() == RUN
    assert members[-1][0].outbox is not None


@pytest.mark.parametrize("rooms", [[UNLIMITED], [0], [9], [UNLIMITED, 0, 9]])
def test_served_at_once(rooms: list[int]) -> None:
    """Without a pass, all that take it have it; what others do not take waits."""
    hall = Hall()
    members = [hall.join(room) for room in rooms]
    batch = batch_of([event(1)])

    slots = hall.audience.serve(batch, hall.network.write, hall.desk, 5.0)

    assert (slots, batch.served) == (len(rooms), rooms.count(UNLIMITED))
    assert hall.desk.served == [batch] or not batch.served
    assert [reader.outbox is None for reader, _ in members] == [room == UNLIMITED for room in rooms]
    assert [reader.bytes + 20 for reader, _ in members] == [20 if room else 0 for room in rooms]
    assert (hall.audience.events, hall.audience.bytes, hall.audience.sent_at) == (1, 20, 5.0)
    assert [hall.audience.position_of(reader, 1) for reader, _ in members] == [int(room != 0) for room in rooms]


def test_served_one_by_one() -> None:
    """Batches of one audience may be counted together; nothing is written for one that is gone or behind."""
    hall = Hall()
    reader, sock = hall.join()
    batch = batch_of([event(1)])
    for _ in range(2):
        hall.audience.serve(batch, hall.network.write, hall.desk, 0.0)
    sock.room = 0
    for _ in range(2):
        hall.audience.serve(batch, hall.network.write, hall.desk, 0.0)

    assert (batch.served, hall.desk.served, len(sock.taken)) == (2, [batch], 40)
    assert reader.outbox is not None
    assert reader.outbox.count == 2
    reader.outbox = None
    hall.audience.writability_changed(reader)
    sock.room = UNLIMITED
    hall.audience.serve(batch, hall.network.write, hall.desk, 0.0)
    sock.is_gone = True
    hall.audience.serve(batch, hall.network.write, hall.desk, 0.0)
    assert (len(sock.taken), sock.aborted) == (60, CloseReason.CLIENT)


@pytest.mark.parametrize("room", [0, 9, 20])
def test_lone_member(room: int) -> None:
    """Who is alone and did not take all falls behind, unless at the second try it takes all."""
    hall = Hall()
    reader, sock = hall.join(room)
    lone = hall.audience.lone
    batch = batch_of([event(1)])
    sent = sock.take(batch.blob(chunked=False).data) if room == 9 else -1

    hall.audience.finish_lone(batch, sent, hall.network.write, hall.desk, 5.0)

    assert lone == sock.handle
    assert hall.audience.lone == (sock.handle if room == 20 else None)
    assert batch.served == (room == 20)
    assert (len(sock.taken), sock.waits) == (room, int(room < 20))
    assert hall.tally.queue_bytes == 20 - room == (0 if reader.outbox is None else len(reader.outbox))


def test_who_is_alone() -> None:
    """Only a member that has the one slot is, and only while it is writable."""
    hall = Hall()
    lone = [hall.audience.lone]
    readers = []
    for _ in range(2):
        readers.append(hall.join()[0])
        lone.append(hall.audience.lone)
    hall.audience.leave(readers[0])
    lone.append(hall.audience.lone)

    assert lone == [None, readers[0].sink.handle, None, None]
    hall.audience.leave(readers[1])
    for _ in range(20):
        hall.audience.leave(hall.join()[0])
    last = hall.join()[0]
    while last.slot:  # until it has closed up
        hall.audience.leave(last)
        last = hall.join()[0]
    assert hall.audience.lone == last.sink.handle
    hall.audience.leave(last)
    assert hall.audience.lone is None


def test_who_waits() -> None:
    """Readers that catch up are noted; nothing is kept for an audience that nobody waits for."""
    hall = Hall()
    readers = [Reader(hall.network.open(0), hall.follow, hall.audience.framing, 3000) for _ in range(2)]
    nobody = hall.audience.waiting
    for reader in readers:
        hall.audience.wait(reader)
    assert list(hall.audience.waiting) == readers
    for reader in readers:
        hall.audience.stop_waiting(reader)
    assert hall.audience.waiting is nobody
    assert not nobody


def test_full_socket() -> None:
    """A socket that takes nothing has the whole batch queued, and is waited for (I4)."""
    hall = Hall()
    slow, sock = hall.join(room=0)
    hall.join()
    hall.put(event(1), event(2))

    assert hall.deliver(now=7.0) == 1

    assert slow.outbox is not None
    assert (slow.outbox.chunk, slow.outbox.count, slow.outbox.position) == (b"", 2, 0)
    assert list(hall.desk.lagging) == [slow]
    assert (sock.waits, slow.progress_at, hall.tally.queue_bytes) == (1, 7.0, 40)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("taken", [1, 30, CHUNK_BYTES - 1])
def test_socket_that_stops_in_a_chunk(taken: int, *, chunked: bool) -> None:
    """The chunk that a socket has begun is kept outside the queue; the position is where it ends."""
    hall = Hall(chunked=chunked)
    reader, sock = hall.join(room=taken)
    frames = [event(1), event(2, CHUNK_BYTES), event(3)]
    hall.put(*frames)

    hall.deliver()

    box = reader.outbox
    assert box is not None
    whole = unchunk(sock.taken + box.chunk) if chunked else sock.taken + box.chunk
    queued = 2 if taken <= 20 + 6 * chunked else 1
    assert whole == b"".join(item.frame for item in frames[: 3 - queued])
    assert (box.count, box.position) == (queued, 3 - queued)
    assert hall.tally.queue_bytes == len(box)


def test_socket_that_stops_between_chunks() -> None:
    """A socket that stops at the end of a chunk has begun no other."""
    hall = Hall()
    reader, _ = hall.join(room=CHUNK_BYTES)
    hall.put(event(1, CHUNK_BYTES), event(2))

    hall.deliver()

    assert reader.outbox is not None
    assert (reader.outbox.chunk, reader.outbox.count, reader.outbox.position) == (b"", 1, 1)


def test_socket_that_stops_in_the_last_chunk() -> None:
    """With the whole batch begun the queue is empty and the position is the batch's."""
    hall = Hall()
    reader, _ = hall.join(room=1)
    hall.put(event(1), event(2))

    hall.deliver()

    assert reader.outbox is not None
    assert (len(reader.outbox.chunk), reader.outbox.count, reader.outbox.position) == (39, 0, 2)


def test_member_behind_is_offered() -> None:
    """Further batches are queued for a member that is behind, while the others get theirs (I4)."""
    hall = Hall(events=2)
    slow, sock = hall.join(room=0)
    _, other = hall.join()

    for position in range(1, 5):
        hall.put(event(position))
        hall.deliver()

    assert len(other.taken) == 80
    assert sock.taken == b""
    assert slow.outbox is not None
    assert (slow.outbox.count, slow.dropped) == (3, 1)
    assert hall.tally.dropped[Policy.DROP_OLDEST] == 1
    assert hall.tally.queue_bytes == slow.outbox.bytes == 60
    assert sock.waits == 1


def test_disconnect() -> None:
    """Under `disconnect` a queue beyond its bounds ends the stream when the next batch arrives, not before."""
    hall = Hall(Policy.DISCONNECT, events=2)
    slow, sock = hall.join(room=0)
    hall.join()
    aborted = []

    for position in range(1, 4):
        hall.put(event(position), event(position + 100))
        hall.deliver()
        aborted.append(sock.aborted)

    assert aborted == [None, None, CloseReason.SLOW]
    assert slow.dropped == hall.tally.dropped[Policy.DISCONNECT] == 4
    assert hall.audience.size == 1


def test_latest() -> None:
    """Under `latest` what is superseded in the very batch that blocks is counted."""
    hall = Hall(Policy.LATEST)
    slow, _ = hall.join(room=0)
    hall.put(event(1), event(2), event(3))

    hall.deliver()

    assert slow.outbox is not None
    assert (slow.outbox.count, slow.dropped, hall.tally.dropped[Policy.LATEST]) == (1, 2, 2)
    assert hall.tally.queue_bytes == 20


def test_client_that_left() -> None:
    """A socket whose client has gone ends its stream; the others get the batch."""
    hall = Hall()
    (_, gone), (_, sock) = hall.join(), hall.join()
    gone.is_gone = True
    hall.put(event(1))

    assert hall.deliver() == 1

    assert (gone.aborted, sock.taken) == (CloseReason.CLIENT, event(1).frame)
    assert hall.audience.size == 1


def test_last_client_left() -> None:
    """If the last member leaves in the midst of a pass, all passes have gone with it, and are counted once."""
    hall = Hall()
    _, sock = hall.join()
    sock.is_gone = True
    hall.put(event(1))

    current = hall.audience.passes[0]
    served = hall.deliver(10)

    assert (current.index, served) == (1, 0)
    assert (hall.audience.passes, hall.audience.size, hall.tally.pass_bytes) == ((), 0, 0)


def test_heartbeat() -> None:
    """A heartbeat goes to all members whose socket takes it, and waits for nobody."""
    hall = Hall(chunked=True)
    (_, fine), (full, full_sock) = hall.join(), hall.join(room=0)
    hall.put_heartbeat(99)

    served = hall.deliver()

    assert served == 1
    assert unchunk(fine.taken) == HEARTBEAT
    assert full_sock.waits == 1
    assert full.outbox is not None
    assert (len(full.outbox), full.outbox.position) == (0, 0)
    assert hall.tally.pass_bytes == 0


def test_heartbeat_cut_short() -> None:
    """A heartbeat that a socket has begun is sent to its end; then its position is the stream's (I1)."""
    hall = Hall()
    reader, sock = hall.join(room=5)
    hall.put_heartbeat(99)

    hall.deliver()

    assert reader.outbox is not None
    assert sock.taken + reader.outbox.chunk == HEARTBEAT
    assert (reader.outbox.count, reader.outbox.position) == (0, 99)


def test_heartbeat_for_a_member_behind() -> None:
    """A member that is behind gets no heartbeat, and is not ended for one."""
    hall = Hall(Policy.DISCONNECT, events=1)
    reader, sock = hall.join(room=0)
    hall.put(event(1), event(2))
    hall.deliver()

    hall.put_heartbeat(99)
    hall.deliver()

    assert sock.aborted is None
    assert reader.outbox is not None
    assert positions(reader.outbox) == [1, 2]


def positions(box: Outbox) -> list[int]:
    """What waits in an outbox."""
    return [item.position for item in box.events]


def test_events_after_a_heartbeat() -> None:
    """Events never join a heartbeat's pass."""
    hall = Hall()
    _, sock = hall.join()
    hall.put_heartbeat(99)
    hall.put(event(100))

    hall.deliver_all()

    assert sock.taken == HEARTBEAT + event(100).frame


def test_positions() -> None:
    """A member has what it was served, or what it had when it joined; without passes all up to the head."""
    hall = Hall()
    one, two = (hall.join()[0] for _ in range(2))
    idle = [hall.audience.position_of(reader, 3) for reader in (one, two)]
    hall.put(event(5))
    hall.deliver()
    hall.put(event(7))
    late = hall.join(position=8)[0]
    hall.put(event(9))

    waiting = [hall.audience.position_of(reader, 9) for reader in (one, two, late)]
    hall.deliver(1)
    under_way = [hall.audience.position_of(reader, 9) for reader in (one, two, late)]
    hall.deliver()
    second = [hall.audience.position_of(reader, 9) for reader in (one, two, late)]
    hall.deliver()
    done = [hall.audience.position_of(reader, 10) for reader in (one, two, late)]

    assert idle == [3, 3]
    assert waiting == [5, 5, 8]
    assert under_way == [7, 5, 8]
    assert second == [7, 7, 8]
    assert done == [10, 10, 10]


def test_position_after_a_heartbeat() -> None:
    """A position never falls behind the id of a heartbeat that was sent (I1)."""
    hall = Hall()
    reader = hall.join()[0]
    hall.put_heartbeat(99)
    hall.deliver()
    hall.put(event(120))

    assert hall.audience.position_of(reader, 120) == 99


def test_position_of_a_member_behind() -> None:
    """A member that is behind has what its outbox says."""
    hall = Hall()
    reader = hall.join(room=0, position=4)[0]
    hall.put(event(5))
    hall.deliver()

    assert hall.audience.position_of(reader, 9) == 4


def test_counters_of_members() -> None:
    """Each member's own counters are right whenever it joined, left, or fell behind."""
    hall = Hall()
    early, slow = hall.join()[0], hall.join(room=50)[0]
    hall.put(event(1), break_(2))
    hall.deliver()
    hall.put(event(3))
    late = hall.join()[0]
    hall.put(event(4), event(5))
    hall.deliver(1)
    unserved = hall.join()[0]

    for reader in (early, slow, late, unserved):
        hall.audience.leave(reader)

    first = 20 + len(break_(2).frame)
    assert [reader.events for reader in (early, slow, late, unserved)] == [2, 1, 0, 0]
    assert [reader.bytes for reader in (early, slow, late, unserved)] == [first + 20, first, 0, 0]


def test_counters_of_a_member_behind() -> None:
    """What was queued instead of handed over is not counted, nor is a heartbeat that was not sent."""
    hall = Hall()
    slow, waiting = hall.join(room=0)[0], hall.join(room=5)[0]
    hall.put_heartbeat(0)
    hall.deliver()
    hall.put(event(1), break_(2))
    hall.deliver()
    hall.put_heartbeat(2)
    hall.deliver()

    for reader in (slow, waiting):
        hall.audience.leave(reader)

    assert [(reader.events, reader.bytes) for reader in (slow, waiting)] == [(0, 0), (0, len(HEARTBEAT))]


def test_slots_are_reused() -> None:
    """However many come and go, the audience does not grow; those who stay still get everything (I5)."""
    hall = Hall()
    _, sock = hall.join()
    for _ in range(100):
        hall.audience.leave(hall.join()[0])
    last, last_sock = hall.join()
    hall.put(event(1))

    hall.deliver()

    assert last.slot < 20
    assert len(hall.audience.members()) == hall.audience.size == 2
    assert sock.taken == last_sock.taken == event(1).frame


def test_most_have_left() -> None:
    """Then the next pass does not go through their slots, though nobody joins any more."""
    hall = Hall()
    readers = [hall.join() for _ in range(30)]
    for reader, _ in readers[:28]:
        hall.audience.leave(reader)
    hall.put(event(1))
    assert (hall.audience.passes[0].end, len(hall.audience.handles)) == (2, 2)
    hall.deliver()
    assert [sock.taken for _, sock in readers[27:]] == [b"", event(1).frame, event(1).frame]


def test_silence_is_that_of_the_first() -> None:
    """However long a pass takes: who was served first has been silent since then."""
    hall = Hall()
    for _ in range(2):
        hall.join()
    hall.put(event(1))
    hall.deliver(1, now=5.0)
    hall.deliver(1, now=9.0)
    assert hall.audience.sent_at == 5.0


def test_slots_stay_while_passes_wait() -> None:
    """Slots do not move under a pass (rule 2)."""
    hall = Hall()
    readers = [hall.join() for _ in range(30)]
    hall.put(event(1))
    for reader, _ in readers[:29]:
        hall.audience.leave(reader)
    late_sock = hall.join(position=1)[1]

    hall.deliver()

    assert readers[29][1].taken == event(1).frame
    assert late_sock.taken == b""


def test_passes_are_dropped() -> None:
    """Passes under way are forgotten once nobody is left of their members, and their bytes with them (I5)."""
    hall = Hall()
    reader, sock = hall.join()
    other = hall.join()[0]
    hall.put(event(1))
    hall.deliver(1)
    hall.put(event(2), event(3))
    for member in (reader, other):
        hall.audience.leave(member)

    dropped = hall.audience.drop_passes()
    hall.audience.join(reader)
    hall.put(event(4))
    hall.deliver()

    assert dropped == 60
    assert sock.taken == event(1).frame + event(4).frame
    hall.audience.leave(reader)
    assert ((reader.events, reader.bytes), (other.events, other.bytes)) == ((2, 40), (0, 0))


def test_queue_that_shrinks() -> None:
    """What all queues hold is exact, too, where a small event pushes a large one out (I5)."""
    hall = Hall(events=1)
    reader, _ = hall.join(room=0)
    held = []
    for position, size in [(1, 20), (2, 900), (3, 20), (4, 20), (5, 20)]:
        hall.put(event(position, size))
        hall.deliver_all()
        assert reader.outbox is not None
        held.append(len(reader.outbox))
        assert hall.tally.queue_bytes == held[-1]

    assert held[3] < held[2]
    assert reader.dropped == sum(hall.tally.dropped.values()) == 3
