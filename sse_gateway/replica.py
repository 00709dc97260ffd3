"""One log on every node: how a node joins it, and how all agree that it begins anew.

A pure state machine over the log: its input are log entries in their order, snapshots and `now`;
its output are decisions, which the caller carries out. Redis orders the control messages among the
publications, so every node takes each of these decisions at the same place in the log:

    OFFLINE    no link
    JOINING    our JOIN is on its way; what comes before it is none of ours
    BUFFERING  our JOIN has come back: everything after it is kept until the snapshot is there
    SYNCED     the hub counts, and we answer others
    LEFT       in our third divergence within five minutes: away, for a while

Rules:
    1. A peer cuts its snapshot when it dequeues the JOIN, so snapshot and buffer meet exactly.
    2. One peer answers: the one whose OFFER is the first in the log.
    3. Nobody can know that nobody holds the log, so it may be claimed, and the claim is judged by the
       log alone: CONFIRM is in force if since its CLAIM neither a VETO nor another CONFIRM in force
       came. Everybody who saw the CLAIM begins the epoch there; whoever held the log tells a gap.
    4. Claims before our JOIN are part of the snapshot. Until it is there we believe less than others:
       any CONFIRM ends all claims that we know of.
    5. CHECKPOINTs compare hashes. Whoever finds another says DIVERGED, and all who count such an
       epoch begin a new one: better an honest gap than a wrong event.
    6. Nothing is counted across a loss of the link (I6): what comes next is buffered, or ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.checkpoints import Checkpoints
from sse_gateway.control import Ignored, Kind
from sse_gateway.decisions import Fetch, How, Leave, Publish, Stop, Synced
from sse_gateway.errors import SnapshotError
from sse_gateway.joining import ECHO_S, Joining, Publication
from sse_gateway.offers import Offers
from sse_gateway.reasons import GapReason
from sse_gateway.recall import Recall
from sse_gateway.role import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_gateway.channels import Rule
    from sse_gateway.control import Control, Message
    from sse_gateway.decisions import Decision
    from sse_gateway.errors import MessageError
    from sse_gateway.hub import Hub
    from sse_gateway.recollection import Recollection
    from sse_gateway.snapshot import Snapshot

JOIN_S = 0.5
"""Without an offer for this long, we claim."""

VETO_S = 0.3
"""What others have to object to our claim."""

PROGRESS_S = 2.0
"""Without the next block of a snapshot for this long, we ask somebody else."""

REJOIN_S = 5.0
"""The patience with a JOIN doubles with each that came to nothing, up to this."""

BESIDE_S = 2.0
"""Another log that was heard in this time is there still."""

MAX_CLAIMS = 64
"""Claims undecided at the same time; beyond, the oldest is forgotten."""

AWAY_S = (60.0, 600.0)
"""How long we stay away then."""


class Replica:
    """This node's part in the common log.

    Attributes:
        role: Where we stand.
        decisions: What the caller has to do; it takes them after every call.
        joins: Attempts to get the log.
        offers: The snapshots that we give.
        checkpoints: Compare the nodes' logs.
    """

    def __init__(
        self,
        hub: Hub,
        control: Control,
        node: str,
        *,
        copies: int = 1,
        has_store: bool = False,
        draw: Callable[[], str],
        horizon: Callable[[], str],
        random: Callable[[], float],
        is_local: Callable[[str], bool],
    ) -> None:
        """Start without a link.

        Args:
            hub: The core.
            control: Reads and writes control messages.
            node: Our own name in them.
            copies: Copies of each control message that Redis sends us: more than one, if rules match it, too.
            has_store: Whether the log may be stored, where no node holds it any more.
            draw: Draws a name: 12 base-36 digits, which ascend with time.
            horizon: Says what a name drawn now is like on the clock of any node, or above it.
            random: Draws from 0 to 1.
            is_local: Whether a node can be reached on this host.
        """
        self.role = Role.OFFLINE
        self.decisions: list[Decision] = []
        self.joins = 0
        self.offers = Offers(hub, publish=self._publish, decide=self.decisions.append, random=random, is_local=is_local)
        self.checkpoints = Checkpoints(hub.log, random)
        self._recall = Recall(hub, self.decisions.append, has_store=has_store)
        self._hub = hub
        self._control = control
        self._node = node
        self._copies = copies
        self._draw = draw
        self._horizon = horizon
        self._random = random
        self._joining = Joining("", 0.0)
        self._claims: dict[str, None] = {}
        self._patience_s = JOIN_S
        self._foreign, self._foreign_at = 0, -BESIDE_S

    @property
    def is_synced(self) -> bool:
        """Whether the log is live here."""
        return self.role is Role.SYNCED

    @property
    def is_joining(self) -> bool:
        """Whether the link is up and the log about to be there."""
        return self.role in {Role.JOINING, Role.BUFFERING}

    # The link.

    def connected(self, now: float) -> None:
        """The link is up: ask for the log."""
        self._patience_s = JOIN_S
        self._recall.reset()
        self._join(now)

    def lost(self) -> None:
        """The link is gone: what was counted stays, what comes is taken from a peer."""
        self._abandon()
        self.offers.drop()
        if self.role is not Role.LEFT:
            self.role = Role.OFFLINE

    def published(self, publish: Publish, receivers: int, now: float) -> None:
        """Redis has answered a PUBLISH of ours, before or after our own copy of it came."""
        if receivers <= self._copies:
            self._joining.note_alone(publish)
            self._claim_if_alone(now)

    # The log.

    def message(
        self, pattern: bytes, channel: bytes, payload: bytes, now: float, wall: float
    ) -> tuple[Rule, MessageError] | None:
        """Take a publication; arguments and result as in `Hub.publish`."""
        if self.role is Role.SYNCED:
            return self._hub.publish(pattern, channel, payload, now, wall)
        if self.role is Role.BUFFERING and not self._joining.keep(Publication(pattern, channel, payload, now, wall)):
            self._join(now)
        return None

    def entry(self, payload: bytes, now: float) -> None:
        """Take a control message, in its place among the publications."""
        message = self._control.read(payload)
        if message is None:
            if (heard := self._control.ignored[Ignored.FOREIGN]) > self._foreign:
                self._foreign, self._foreign_at = heard, now
                self._hub.placement.beside = True
            return
        if self.role is Role.SYNCED:
            self._act(message, now)
        elif self.role is Role.BUFFERING:
            self._wait(message, now)
        elif self.role is Role.JOINING and message.kind is Kind.JOIN and message.fields[0] == self._joining.token:
            self._begin_buffer(now)

    def tick(self, now: float) -> None:
        """Do what is due; to be called some 20 times a second, while the log is quiet only when a checkpoint is due."""
        self._hub.placement.horizon = self._horizon()
        if self.role is Role.SYNCED:
            self.offers.make(now)
            if self.checkpoints.is_due(now):
                self._publish(Kind.CHECKPOINT, self._hub.log.cursor(self._hub.log.head))
        elif self.is_joining and now >= self._joining.deadline:
            self._hurry(now)

    # Snapshots.

    def block(self, token: str, block: bytes, now: float) -> bool:
        """Take the next block of a snapshot; False if no more of it is wanted.

        On one host it may overtake the log: the OFFER, and even our own JOIN, are then still to come.
        """
        joining = self._joining
        if not self.is_joining or token != joining.token:
            return False
        snapshot = joining.snapshot or self._expect(joining, now)
        if joining.seen_at is not None:
            joining.deadline = now + PROGRESS_S
        try:
            snapshot.add(block)
        except SnapshotError:
            self._join(now)
            return False
        if snapshot.is_complete:
            self._install(joining, now)
        return not snapshot.is_complete

    def served(self, token: str) -> None:
        """A snapshot of ours has been handed over, or could not be."""
        self.offers.end(token)

    def loaded(self, recollection: Recollection | None, now: float) -> None:
        """We have looked for a stored log; None if there is none."""
        self._recall.found(recollection)
        self._claim_if_alone(now)

    # Joining.

    def _join(self, now: float) -> None:
        """Ask for the log, anew if need be."""
        self._abandon()
        self.joins += 1
        self.role = Role.JOINING
        self._joining = joining = Joining(self._draw(), now + ECHO_S)
        log = self._hub.log
        joining.join = self._publish(Kind.JOIN, joining.token, log.cursor(log.head) if log.epochs else "-")

    def _join_again(self, now: float) -> None:
        """Ask anew, and give others more time: whoever holds the log may be slow, or serve all that it can."""
        self._patience_s = min(REJOIN_S, 2 * self._patience_s)
        self._join(now)

    def _begin_buffer(self, now: float) -> None:
        self.role = Role.BUFFERING
        self._claims.clear()
        joining = self._joining
        joining.seen_at = now
        joining.deadline = now + (PROGRESS_S if joining.snapshot else self._patience_s * (1 + self._random() / 4))
        self._claim_if_alone(now)
        self._install(joining, now)

    def _abandon(self) -> None:
        """Give up what was under way to get the log."""
        if self._joining.snapshot is not None:
            self.decisions.append(Stop(self._joining.token))
        self._joining = Joining("", 0.0)

    def _hurry(self, now: float) -> None:
        """Something has not come in time."""
        joining = self._joining
        if joining.claimed is not None and joining.is_claim_seen:
            joining.is_claim_seen = False
            joining.deadline = now + ECHO_S
            self._publish(Kind.CONFIRM, joining.claimed)
        elif not joining.may_claim:
            self._join_again(now)
        elif self._recall.look():
            self._claim(now)

    def _claim(self, now: float) -> None:
        self._joining.claimed = epoch = self._draw()
        self._joining.deadline = now + ECHO_S
        self._joining.claim = self._publish(Kind.CLAIM, epoch)

    def _claim_if_alone(self, now: float) -> None:
        """If Redis says that nobody else is subscribed, there is nobody to wait for."""
        if self.role is Role.BUFFERING and self._joining.is_unopposed:
            self._hurry(now)

    def _wait(self, message: Message, now: float) -> None:
        """Keep a control message for later, and see what it means for us already."""
        joining = self._joining
        if not joining.keep(message):
            self._join(now)
            return
        match message.kind:
            case Kind.OFFER if message.fields[0] == joining.token and joining.snapshot is None:
                self._expect(joining, now)
                joining.deadline = now + PROGRESS_S
                self.decisions.append(Fetch(joining.token, message.fields[2]))
            case Kind.CLAIM:
                self._note_claim(message.fields[0])
                if message.fields[0] == joining.claimed:
                    joining.is_claim_seen = True
                    joining.deadline = now + VETO_S
                    self._claim_if_alone(now)
            case Kind.VETO:
                self._claims.pop(message.fields[0], None)
                if message.fields[0] == joining.claimed:
                    self._join_again(now)
            case Kind.CONFIRM:
                self._wait_confirm(message.fields[0], now)
            case _:
                pass

    def _wait_confirm(self, epoch: str, now: float) -> None:
        was_claimed = epoch in self._claims
        self._claims.clear()
        if was_claimed and self._recall.is_settled:
            self._abandon()
            self._begin_epoch(epoch, GapReason.SOURCE, How.CLAIMED, now)
        elif self._joining.snapshot is None:  # somebody has the log now, or our claim was void
            self._join(now)

    def _expect(self, joining: Joining, now: float) -> Snapshot:
        """A snapshot is coming."""
        joining.snapshot = self._hub.receive(joining.token, joining.seen_at or now)
        joining.claimed = None  # a claim under way is void by the peer's veto, or in force without our help
        return joining.snapshot

    def _install(self, joining: Joining, now: float) -> None:
        """Go on from the snapshot if it is there, and our JOIN too; make up for what has come since."""
        snapshot = joining.snapshot
        if snapshot is None or snapshot.head is None or not snapshot.is_complete or joining.seen_at is None:
            return
        try:
            self._hub.install(snapshot, now)
        except SnapshotError:
            self._join_again(now)
            return
        self._recall.drop()
        self._claims = dict.fromkeys(snapshot.head.claims)
        self._joining = Joining("", 0.0)
        self.role = Role.SYNCED
        self.checkpoints.begin(now)
        self.decisions.append(Stop(joining.token))
        for entry in joining.buffer:
            if not self.is_synced:  # LEFT
                return
            if isinstance(entry, Publication):
                self._hub.publish(entry.pattern, entry.channel, entry.payload, entry.now, entry.wall)
            else:
                self._act(entry, now)
        self._hub.flush(now)
        self.decisions.append(Synced(self._hub.log.epoch.name, How.JOINED))

    # Holding the log.

    def _act(self, message: Message, now: float) -> None:
        match message.kind:
            case Kind.JOIN if message.node != self._node:
                self.offers.prepare(message, self._claims, now)
            case Kind.OFFER:
                self.offers.settle(message, is_ours=message.node == self._node)
            case Kind.CLAIM:
                self._note_claim(message.fields[0])
                self._publish(Kind.VETO, message.fields[0])
            case Kind.VETO:
                self._claims.pop(message.fields[0], None)
            case Kind.CONFIRM if message.fields[0] in self._claims:
                self._claims.clear()
                self._begin_epoch(message.fields[0], GapReason.EPOCH, How.SWITCHED, now)
            case Kind.CHECKPOINT:
                self._compare(message, now)
            case Kind.DIVERGED:
                self._diverge(message, now)
            case _:
                pass

    def _note_claim(self, epoch: str) -> None:
        if not self._hub.log.knows(epoch):  # else somebody plays what he has recorded (I1)
            self._claims[epoch] = None
        if len(self._claims) > MAX_CLAIMS:
            del self._claims[next(iter(self._claims))]

    def _begin_epoch(self, epoch: str, reason: GapReason, how: How, now: float) -> None:
        self.role = Role.SYNCED
        self.checkpoints.begin(now)
        self._hub.placement.beside = now - self._foreign_at < BESIDE_S
        self._recall.use(now)
        self._hub.begin_epoch(epoch, reason, now)
        self.decisions.append(Synced(epoch, how))

    def _compare(self, checkpoint: Message, now: float) -> None:
        if epochs := self.checkpoints.contested(checkpoint.fields[0], now):
            self._publish(Kind.DIVERGED, ",".join(epochs), self._draw(), checkpoint.node)

    def _diverge(self, message: Message, now: float) -> None:
        epochs, to, accused = message.fields
        if self._hub.log.epoch.name not in epochs.split(",") or self._hub.log.knows(to):
            return
        self._begin_epoch(to, GapReason.EPOCH, How.SWITCHED, now)
        if self._node in {message.node, accused} and self.checkpoints.took_part(now):
            self.offers.drop()
            self.role = Role.LEFT
            self.decisions.append(Leave(AWAY_S[0] + self._random() * (AWAY_S[1] - AWAY_S[0])))

    def _publish(self, kind: Kind, *fields: str) -> Publish:
        self.decisions.append(publish := Publish(kind, self._control.write(kind, *fields)))
        return publish
