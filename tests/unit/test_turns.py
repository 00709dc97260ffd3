from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sse_gateway.audience import Desk
from sse_gateway.batch import JOINED_BYTES, Batch, batch_of
from sse_gateway.frames import chunk
from sse_gateway.reader import framing_of
from sse_gateway.reasons import CloseReason
from sse_gateway.tally import Tally
from sse_gateway.turns import Turns
from tests.support.core import Core, rule
from tests.support.sockets import UNLIMITED
from tests.unit.test_audience import HEARTBEAT, Hall, event

if TYPE_CHECKING:
    from tests.support.sockets import FakeSocket


class Room:
    """Some audiences of one member or more, and whose turn it is."""

    def __init__(self, *sizes: int) -> None:
        self.desk = Desk(Tally(1))
        self.halls = [Hall() for _ in sizes]
        self.turns = Turns(self.write, self.desk)
        self.writes = 0
        self.members: list[list[FakeSocket]] = []
        for hall, size in zip(self.halls, sizes, strict=True):
            hall.network, hall.tally, hall.desk = self.halls[0].network, self.desk.tally, self.desk
            self.members.append([hall.join()[1] for _ in range(size)])

    def write(self, fd: int, data: bytes) -> int:
        """Write, and count it."""
        self.writes += 1
        return self.halls[0].network.write(fd, data)

    def add(self, batch: Batch, *numbers: int) -> None:
        """Note a batch for some audiences."""
        self.turns.add([self.halls[number].audience for number in numbers], batch)

    def got(self) -> list[list[bytes]]:
        """What all sockets have taken."""
        return [[sock.taken for sock in members] for members in self.members]


def test_served_at_their_turn() -> None:
    """Nothing is done for an audience when something comes; at its turn it gets it whole, and nothing waits any more (rule 1)."""
    room = Room(1, 2)
    batch = batch_of([event(1)])
    room.add(batch, 0, 1)
    before = room.got(), room.desk.tally.pass_bytes, bool(room.turns), room.halls[0].audience in room.turns

    room.turns.serve(64, 5.0)

    assert before == ([[b""], [b"", b""]], batch.size, True, True)
    assert room.got() == [[event(1).frame], [event(1).frame] * 2]
    assert (room.desk.tally.pass_bytes, bool(room.turns), batch.served) == (0, False, 3)
    assert [hall.audience.sent_at for hall in room.halls] == [5.0, 5.0]


def test_nobody_to_serve() -> None:
    """A batch that nobody follows is forgotten at once."""
    room = Room(1)
    room.add(batch_of([event(1)]))
    assert (room.desk.tally.pass_bytes, bool(room.turns)) == (0, False)


def test_what_gathers_goes_out_together() -> None:
    """An audience that gets several batches before its turn gets them in one write, in log order (rule 2)."""
    room = Room(1, 1, 1)
    room.add(batch_of([event(1), event(3)]), 0, 1)
    room.add(batch_of([event(2)]), 0, 1, 2)
    room.add(batch_of([event(4)]), 0)

    room.turns.serve(64, 0.0)

    frames = [event(position).frame for position in range(1, 5)]
    assert room.got() == [[b"".join(frames)], [b"".join(frames[:3])], [frames[1]]]
    assert (room.writes, room.desk.tally.pass_bytes) == (3, 0)


def test_what_goes_out_together_has_a_bound() -> None:
    """A queue judges batch by batch, so no batch becomes as large as all that waits."""
    room = Room(1)
    for position in range(1, 6):
        room.add(batch_of([event(position, JOINED_BYTES // 2)]), 0)

    room.turns.serve(1, 0.0)

    passes = room.halls[0].audience.passes
    assert [current.batch.size for current in passes] == [JOINED_BYTES, JOINED_BYTES // 2]  # one has gone out
    room.turns.serve(64, 0.0)
    assert len(room.got()[0][0]) == 5 * JOINED_BYTES // 2
    assert (room.desk.tally.pass_bytes, bool(room.turns)) == (0, False)


def test_alone_with_passes() -> None:
    """Audiences of one that are due the same are served one after the other, but for one that has passes before it."""
    room = Room(1, 1)
    for position in range(1, 4):
        room.add(batch_of([event(position, JOINED_BYTES)]), 0)
    room.turns.serve(1, 0.0)
    room.add(batch_of([event(4)]), 0, 1)

    room.turns.serve(2, 0.0)
    between = [len(members[0]) for members in room.got()]
    room.turns.serve(64, 0.0)

    frames = [event(position, JOINED_BYTES).frame for position in range(1, 4)] + [event(4).frame]
    assert between == [2 * JOINED_BYTES, len(frames[3])]
    assert room.got() == [[b"".join(frames)], [frames[3]]]


def test_alone_and_due_the_same() -> None:
    """Each gets it for himself: who is gone, takes nothing, or a part of it holds up nobody, and all is counted once (I4, I8)."""
    room = Room(*[1] * 6)
    rooms = [UNLIMITED, 0, 9, UNLIMITED, UNLIMITED, 20]
    readers = [hall.audience.members()[0] for hall in room.halls]
    for (sock,), free in zip(room.members, rooms, strict=True):
        sock.room = free
    room.members[3][0].is_gone = True
    batch = batch_of([event(1)])
    room.add(batch, *range(6))

    room.turns.serve(5, 5.0)
    between = [len(members[0]) for members in room.got()]
    room.turns.serve(64, 6.0)
    room.desk.observe(7.0)

    tally = room.desk.tally
    assert between == [0, 0, 9, 0, 20, 20]  # the last noted comes first
    assert [len(members[0]) for members in room.got()] == [20, 0, 9, 0, 20, 20]
    assert [members[0].aborted for members in room.members] == [None] * 3 + [CloseReason.CLIENT] + [None] * 2
    assert [hall.audience.sent_at for hall in room.halls if hall.audience.size] == [6.0] + [5.0] * 4
    assert (tally.deliveries, tally.bytes, tally.queue_bytes) == (4, 80, 20 + 11)
    assert list(room.desk.lagging) == [readers[2], readers[1]]
    for hall in room.halls:
        for reader in hall.audience.members():
            hall.audience.leave(reader)
    assert [(reader.events, reader.bytes) for reader in readers] == [(1, 20), (0, 0), (1, 20), (0, 0), (1, 20), (1, 20)]
    assert (tally.pass_bytes, bool(room.turns)) == (0, False)


def test_alone_and_due_the_same_but_nobody_takes_it() -> None:
    """Then nothing is counted."""
    room = Room(1, 1)
    for members in room.members:
        members[0].room = 0
    room.add(batch_of([event(1)]), 0, 1)
    room.turns.serve(64, 0.0)
    room.desk.observe(1.0)
    assert (room.desk.tally.deliveries, room.desk.tally.bytes, room.writes) == (0, 0, 4)


def test_alone_and_due_another() -> None:
    """What others are due, how it is framed, and who is not alone is left to their own turn, in the same step."""
    room = Room(1, 1, 2, 1, 1, 1)
    room.halls[1].audience.framing = framing_of(chunked=True, wrapped=False)
    batch, another = batch_of([event(1)]), batch_of([event(2)])
    room.add(batch, *range(5))
    room.add(another, 3, 5)

    room.turns.serve(64, 0.0)

    one, two = event(1).frame, event(2).frame
    assert room.got() == [[one], [chunk(one)], [one, one], [one + two], [one], [two]]
    assert (batch.served, another.served, room.writes) == (5, 1, 7)
    assert (room.desk.tally.pass_bytes, bool(room.turns)) == (0, False)


def test_very_many_passes() -> None:
    """To make a pass counts as well where it comes later: a step does not make very many (I4)."""
    room = Room(*[1] * 40)
    for position in range(1, 4):
        room.add(batch_of([event(position, JOINED_BYTES)]), *range(40))

    room.turns.serve(4, 0.0)

    assert sum(bool(hall.audience.passes) for hall in room.halls) <= 4
    while room.turns:
        room.turns.serve(4, 0.0)
    assert [len(members[0]) for members in room.got()] == [3 * JOINED_BYTES] * 40
    assert room.desk.tally.pass_bytes == 0


def test_very_much_gathers() -> None:
    """As much as comes: to note one more does not depend on how much there is, and it is let go of in one piece."""
    room = Room(1)
    for position in range(1, 100_001):
        room.add(batch_of([event(position)]), 0)

    room.turns.serve(1000, 0.0)

    assert len(room.got()[0][0]) == 100_000 * 20
    assert (room.desk.tally.pass_bytes, bool(room.turns)) == (0, False)


def test_rounds() -> None:
    """What comes while a round is under way is due in the next one: all others have their turn before (rule 2)."""
    room = Room(1, 1)
    room.add(batch_of([event(1)]), 0, 1)
    room.turns.serve(1, 0.0)
    room.add(batch_of([event(2)]), 1)

    room.turns.serve(1, 0.0)
    between = room.got()
    room.turns.serve(64, 0.0)

    assert between == [[event(1).frame]] * 2
    assert room.got() == [[event(1).frame], [event(1).frame + event(2).frame]]
    assert not room.turns


def test_more_slots_than_writes_left() -> None:
    """A large audience is served over several steps, before further turns (rule 3)."""
    room = Room(1, 5)
    room.add(batch_of([event(1)]), 0, 1)

    steps = []
    for _ in range(4):
        room.turns.serve(2, 0.0)
        steps.append([[bool(taken) for taken in members] for members in room.got()])

    assert [sum(members[1]) for members in steps] == [2, 4, 5, 5]
    assert [members[0] for members in steps] == [[False], [False], [True], [True]]
    assert (room.desk.tally.pass_bytes, bool(room.turns)) == (0, False)


def test_several_passes_take_turns() -> None:
    """Between two passes of an audience, others that have some go on."""
    room = Room(2, 2)
    for position in 1, 2:
        room.add(batch_of([event(position)]), 0, 1)
        for hall in room.halls:
            room.turns.settle(hall.audience)

    steps = []
    for _ in range(4):
        room.turns.serve(2, 0.0)
        steps.append([len(members[0]) // 20 for members in room.got()])

    assert steps == [[1, 0], [1, 1], [2, 1], [2, 2]]


def test_always_passes() -> None:
    """After each pass of an audience that always has some, others get what is due to them, be it of the next round (rule 3)."""
    room = Room(2, 1)
    for position in 1, 2:
        room.add(batch_of([event(position)]), 0)
        room.turns.settle(room.halls[0].audience)
    room.turns.serve(1, 0.0)
    room.add(batch_of([event(3)]), 0, 1)

    order = []
    for _ in range(6):
        room.turns.serve(1, 0.0)
        order.append([len(taken) // 20 for members in room.got() for taken in members])

    assert order == [[1, 1, 0], [1, 1, 1], [2, 1, 1], [2, 2, 1], [3, 2, 1], [3, 3, 1]]
    room.turns.serve(64, 0.0)
    assert (room.desk.tally.pass_bytes, bool(room.turns)) == (0, False)


def test_nothing_is_kept() -> None:
    """When a round has ended and nothing is due, what was made in it is gone (I5)."""
    room = Room(1)
    for position in 1, 2:
        room.add(batch_of([event(position)]), 0)
    room.turns.serve(64, 0.0)
    assert room.turns._round.joiner.made == []


def test_empty_audiences_count() -> None:
    """Very many audiences that everybody has left do not make a step longer."""
    room = Room(*[1] * 9)
    room.add(batch_of([event(1)]), *range(9))
    for hall in room.halls:
        hall.audience.members()[0].sink.abort(CloseReason.CLIENT)
    room.turns.serve(4, 0.0)
    assert len(room.turns._round.due) == 5


def test_settled_before_somebody_joins() -> None:
    """Who joins has pulled what is due already, and gets what is noted from then on (rule 4, I3)."""
    room = Room(1, 1)
    room.add(batch_of([event(1)]), 0)
    room.turns.serve(0, 0.0)
    room.add(batch_of([event(2)]), 0, 1)
    room.turns.settle(room.halls[0].audience)
    room.members[0].append(room.halls[0].join(position=2)[1])
    room.add(batch_of([event(3)]), 0)

    room.turns.serve(64, 0.0)

    frames = [event(position).frame for position in range(1, 4)]
    assert room.got() == [[b"".join(frames), frames[2]], [frames[1]]]
    assert room.desk.tally.pass_bytes == 0


def test_all_is_settled() -> None:
    """Then every audience has its passes, in order, whichever round they were due in."""
    room = Room(1, 1)
    room.add(batch_of([event(1)]), 0, 1)
    room.turns.serve(1, 0.0)
    room.add(batch_of([event(2)]), 0, 1)

    room.turns.settle_all()

    positions = [[current.batch.position for current in hall.audience.passes] for hall in room.halls]
    assert positions == [[1, 2], [2]]
    room.turns.serve(64, 0.0)
    assert room.got() == [[event(1).frame + event(2).frame]] * 2
    assert room.desk.tally.pass_bytes == 0


def test_nobody_is_left() -> None:
    """What was due to an audience that everybody has left is dropped, be it settled or at its turn; so are its passes."""
    room = Room(1, 1, 1)
    room.add(batch_of([event(1)]), 0, 1, 2)
    room.turns.settle(room.halls[2].audience)
    for hall in room.halls:
        for reader in hall.audience.members():
            reader.sink.abort(CloseReason.CLIENT)
    room.turns.settle(room.halls[0].audience)

    room.turns.serve(64, 0.0)

    assert room.got() == [[b""]] * 3
    assert (room.desk.tally.pass_bytes, bool(room.turns)) == (0, False)


def test_a_heartbeat_among_events() -> None:
    """It goes out alone, wrapped or not; with events beside it nobody needs it."""
    room = Room(1, 1)
    room.add(Batch((), [HEARTBEAT], 9), 0, 1)
    room.add(batch_of([event(10)]), 1)

    room.turns.serve(64, 0.0)

    assert room.got() == [[HEARTBEAT], [event(10).frame]]


def test_wrapped() -> None:
    """Wrapped audiences get the same batch, wrapped once for all; a heartbeat has nothing to wrap."""
    core = Core(rule(), writes_per_step=1)
    clients = [core.connect(f"channel=a&channel={name}&wrap=1") for name in "bc"]
    core.put("a", "1")
    core.hub.flush(core.now)
    noted = core.held()
    core.hub.step(core.now)
    made = core.held() - noted
    core.run()
    core.tick(15.0)

    assert [len(batch.events) for batch in made] == [1]
    for client in clients:
        blocks = [block for block in client.blocks() if block.type != "gateway.open"]
        assert [block.type for block in blocks] == ["message", "gateway.heartbeat"]
        assert json.loads(blocks[0].data)["data"] == "1"
